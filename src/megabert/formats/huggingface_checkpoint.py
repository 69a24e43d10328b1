"""Transformers folders as `Checkpoint`s: read from safetensors, shards or `pytorch_model.bin`, written by streaming.

`huggingface.py` beside this handles models in memory; here tensors go from disk to disk.
"""

from __future__ import annotations

import json
import tempfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import BertConfig, MegatronBertConfig, PretrainedConfig

from megabert import runtime
from megabert.formats import fields, safetensors_file, sizes, torch_writer, unpickle
from megabert.formats.checkpoint import POST_LAYERNORM, PRE_LAYERNORM, Checkpoint, LazyTensor
from megabert.formats.huggingface import MARK
from megabert.formats.target import new_folder

_CONFIGS: dict[str, type[PretrainedConfig]] = {PRE_LAYERNORM: MegatronBertConfig, POST_LAYERNORM: BertConfig}
_FILLED = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "max_position_embeddings", "type_vocab_size", "hidden_act", "layer_norm_eps", "hidden_dropout_prob",
    "attention_probs_dropout_prob", "initializer_range", "pad_token_id", "tie_word_embeddings",
)  # fmt: skip
VOCABULARY_FILES = ("vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                    "added_tokens.json", "spiece.model", "tokenizer.model", "tokenizer.vocab")  # fmt: skip
_LARGEST_VOCABULARY = 256 << 20
_BASE = ("embeddings.", "encoder.", "pooler.")
_DECODER, _BIAS = "cls.predictions.decoder", "cls.predictions.bias"
_WORDS = "bert.embeddings.word_embeddings.weight"
_TYPES = "bert.embeddings.token_type_embeddings.weight"
NO_TOKENTYPES = "megatron_tokentypes"
"""False in a config whose table of token types is zeros that were added here."""
Container = Literal["safetensors", "torch"]
SHARD_BYTES = 5_000_000_000


def look(path: Path) -> Path | None:
    """The Transformers folder of a Megatron BERT (or a BERT) at a path: itself, or that of one of its files."""
    folder = path if path.is_dir() else path.parent
    if path.is_file() and not (path.name == "config.json" or path.suffix in (".safetensors", ".bin")):
        return None
    if not (folder / "config.json").is_file():
        return None
    kind = runtime.read_object(folder / "config.json").get("model_type")
    return folder if isinstance(kind, str) and kind in _CONFIGS else None


def read(path: Path) -> Checkpoint:
    """Read a folder; weights that are pickles are read without running anything.

    Raises:
        ValueError: it is no such folder, not of a BERT, damaged, or its weights do not fit its config.
    """
    folder = path if path.is_dir() else path.parent
    config = runtime.read_object(folder / "config.json")
    family = config.get("model_type")
    if not isinstance(family, str) or family not in _CONFIGS:
        raise ValueError(f"{folder}: config.json is of model_type {fields.shown(family)}; 'megatron-bert' or 'bert' is "
                         "needed")  # fmt: skip
    defaults = _CONFIGS[family]()
    config = fields.checked(
        {**{name: getattr(defaults, name, True) for name in _FILLED}, **config}, str(folder / "config.json")
    )
    for name in ("transformers_version", "_name_or_path"):
        config.pop(name, None)
    _check_fields(folder, family, config)
    notes: list[str] = []
    tensors = _ours(_tensors(folder, notes), config, notes)
    if config.get(NO_TOKENTYPES) is False:
        tensors.pop(_TYPES, None)
        config.pop(NO_TOKENTYPES)
    config["dtype"] = sizes.main_dtype(tensors)
    config.pop("torch_dtype", None)
    sizes.check_named(str(folder), config, tensors, family)
    return Checkpoint(family=family, config=config, tensors=tensors, vocabulary=_vocabulary(folder), notes=tuple(notes))


def _check_fields(folder: Path, family: str, config: Mapping[str, Any]) -> None:
    """Let Transformers' own class judge the fields that `fields` does not know."""
    apart = ("model_type", "dtype", "torch_dtype")  # the weights tell theirs
    try:
        _CONFIGS[family](**{name: value for name, value in config.items() if name not in apart})
    except Exception as error:  # whatever a damaged field makes the constructor raise
        text = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder / 'config.json'} describes no model: {text}") from None


def _tensors(folder: Path, notes: list[str]) -> dict[str, LazyTensor]:
    for single, index in (("model.safetensors", "model.safetensors.index.json"),
                          ("pytorch_model.bin", "pytorch_model.bin.index.json")):  # fmt: skip
        if (folder / single).is_file():
            return _of_file(folder / single, notes)
        if (folder / index).is_file():
            return _of_shards(folder, folder / index, notes)
    raise ValueError(f"{folder} holds no weights: neither model.safetensors nor pytorch_model.bin is there")


def _of_shards(folder: Path, index: Path, notes: list[str]) -> dict[str, LazyTensor]:
    places = runtime.read_object(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{index} is damaged: it names no file")
    tensors: dict[str, LazyTensor] = {}
    for name in sorted({str(value) for value in places.values()}):
        if Path(name).name != name or not (folder / name).is_file():
            raise ValueError(f"{index} names {name[:80]!r}, which is no file of this folder")
        tensors |= _of_file(folder / name, notes)
    absent = next((name for name in places if name not in tensors), None)
    if absent is not None:
        raise ValueError(f"{folder}: the file that {index.name} names for {absent!r} does not hold it")
    return tensors


def _of_file(path: Path, notes: list[str]) -> dict[str, LazyTensor]:
    if path.suffix == ".safetensors":
        return safetensors_file.read(path)
    content, foreign = unpickle.load(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, where weights by name are needed")
    if foreign:
        notes.append(f"{path.name}: objects whose classes were not loaded: {', '.join(foreign[:6])}")
    found = {str(name): tensor for name, tensor in content.items() if isinstance(tensor, LazyTensor)}
    for name, tensor in found.items():
        tensor.origin = f"{path}: {name}"
    return found


def _ours(found: Mapping[str, LazyTensor], config: Mapping[str, Any], notes: list[str]) -> dict[str, LazyTensor]:
    """Under the names of the pretraining model; what is tied is left out."""
    tensors: dict[str, LazyTensor] = {}
    for name, tensor in found.items():
        if name.endswith((".position_ids", ".token_type_ids")) or name == "position_ids":
            continue  # a buffer of old versions
        if name == MARK:
            continue
        name = f"bert.{name}" if name.startswith(_BASE) else name
        # What Transformers wrote before 2020.
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        tensors[name] = tensor
    weight, bias = tensors.pop(f"{_DECODER}.weight", None), tensors.pop(f"{_DECODER}.bias", None)
    if config.get("tie_word_embeddings", True):
        if bias is not None:
            tensors.setdefault(_BIAS, bias)
    else:
        if weight is not None:
            tensors[f"{_DECODER}.weight"] = weight
        if bias is not None:
            tensors[_BIAS] = bias  # the one that the network adds
        elif weight is not None and _BIAS in tensors:
            notes.append(f"{_DECODER}.bias is not in the file; {_BIAS} is taken for it")
    return tensors


def _vocabulary(folder: Path) -> dict[str, bytes]:
    files = [folder / name for name in VOCABULARY_FILES]
    return {file.name: file.read_bytes() for file in files
            if file.is_file() and file.stat().st_size <= _LARGEST_VOCABULARY}  # fmt: skip


def write(
    checkpoint: Checkpoint, path: Path, *, shard_bytes: int = SHARD_BYTES, container: Container = "safetensors",
    overwrite: bool = False,
) -> list[str]:  # fmt: skip
    """Write a folder that plain Transformers opens.

    Args:
        shard_bytes: weights over this size are written as several files.
        container: of the weights: `model.safetensors`, or torch's `pytorch_model.bin`.

    Returns:
        Notes: what was added or could not be kept.

    Raises:
        ValueError: `path` exists, or a source tensor is damaged.
        OSError: the disk is full or not writable; nothing half-written stays.
    """
    config, tensors, notes = theirs(checkpoint)
    if checkpoint.optimizer:
        notes.append("the optimizer's state has no place in a Transformers folder; it is left out")
    with new_folder(path, overwrite=overwrite) as folder:
        if container == "torch":
            _write_pickled(tensors, folder)
        else:
            _write_weights(tensors, folder, shard_bytes)
        text = json.dumps(config, indent=2, sort_keys=True, default=str) + "\n"
        (folder / "config.json").write_text(text, encoding="utf-8")
        for name, data in checkpoint.vocabulary.items():
            (folder / name).write_bytes(data)
        if "vocab.txt" in checkpoint.vocabulary and "tokenizer.json" not in checkpoint.vocabulary:
            notes += _write_tokenizer(folder, checkpoint.vocabulary["vocab.txt"])
    if not checkpoint.vocabulary:
        notes.append("no tokenizer in the source, so none beside the model; --tokenizer adds one")
    return notes


def theirs(checkpoint: Checkpoint) -> tuple[dict[str, Any], dict[str, LazyTensor], list[str]]:
    """The config and the tensors as Transformers names them, and notes."""
    notes: list[str] = []
    config = {**checkpoint.config, "model_type": checkpoint.family}
    tensors = dict(checkpoint.tensors)
    if config.get("head_act") not in (None, config.get("hidden_act")):
        notes.append(f"plain Transformers takes {config['hidden_act']} in the masked-word head too; this package takes "
                     f"{config['head_act']} there, as Megatron does")  # fmt: skip
    if config.get("head_layers"):
        notes.append("plain Transformers has no head of NeMo's kind: open the model with this package")
    if _TYPES not in tensors:
        hidden, dtype = config["hidden_size"], next(iter(tensors.values())).dtype
        table = LazyTensor((2, hidden), dtype, lambda: torch.zeros(2, hidden, dtype=dtype), _TYPES)
        tensors[_TYPES] = table
        config |= {"type_vocab_size": 2, NO_TOKENTYPES: False}
        notes.append("the model has no token types; Transformers needs them, so a table of zeros stands for them")
    if not config.get("tie_word_embeddings", True) and f"{_DECODER}.weight" in tensors:
        tensors[f"{_DECODER}.bias"] = tensors[_BIAS]
    if config.get("architectures") in (["MegatronBertModel"], ["BertModel"]):
        tensors = {name.removeprefix("bert."): tensor for name, tensor in tensors.items()}
    return config, tensors, notes


def _write_weights(tensors: Mapping[str, LazyTensor], folder: Path, shard_bytes: int) -> None:
    shards: list[dict[str, LazyTensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        if shards[-1] and filled + tensor.bytes > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += tensor.bytes
    if len(shards) == 1:
        safetensors_file.write(shards[0], folder / "model.safetensors")
        return
    places = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        safetensors_file.write(shard, folder / file)
        places |= dict.fromkeys(shard, file)
    total = sum(tensor.bytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _write_pickled(tensors: Mapping[str, LazyTensor], folder: Path) -> None:
    """One file of torch's, as Transformers wrote before safetensors: tied weights under both names, stored once."""
    both = dict(tensors)
    for tied, name in ((f"{_DECODER}.weight", _WORDS), (f"{_DECODER}.bias", _BIAS)):
        if _BIAS in tensors:
            both.setdefault(tied, tensors[name])
    torch_writer.save(OrderedDict(both), folder / "pytorch_model.bin")


def _write_tokenizer(folder: Path, vocabulary: bytes) -> list[str]:
    from megabert.tokenization import opening

    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "vocab.txt"
        file.write_bytes(vocabulary)
        try:
            opening.load(file).save(folder)
        except ValueError as error:
            return [f"vocab.txt is not a WordPiece vocabulary ({error}); it is kept as it is"]
    return []
