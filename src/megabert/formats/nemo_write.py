"""Writing NeMo 1's checkpoints: one archive, or a weight file a rank; of 1.7 and later, of 1.0, and of its candidate.

The same checkpoint gives the same bytes: what NeMo drew at random (the hash before a member's name) is made from the
member's content.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from megabert.formats import bert_names, megatron_arguments, megatron_write, nemo_described, torch_writer
from megabert.formats.archive import Writer
from megabert.formats.checkpoint import Checkpoint, LazyTensor
from megabert.formats.nemo_described import Described
from megabert.formats.nemo_layout import CONFIG, WEIGHTS
from megabert.formats.table import padded_vocabulary, resize_vocabulary, split
from megabert.formats.target import new_file, new_folder

Generation = Literal["1.7", "1.0", "2021-05"]
"""`1.7`: a `MegatronBertModel`; `1.0`: a task's model with hashed members; `2021-05`: the same, as first documented."""

_WORDS = "language_model.embedding.word_embeddings.weight"
_PRETRAINING = "nemo.collections.nlp.models.language_modeling.megatron_bert_model.MegatronBertModel"
_TEXT = "nemo.collections.nlp.models.text_classification.text_classification_model.TextClassificationModel"
_VERSION = "1.23.0"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the target is stored.

    Attributes:
        generation: whose members and names; None: `1.0` for a model that was taught a task, else `1.7`.
        tensor: ranks that share each layer; more than one gives a file of weights for each.
        pipeline: stages; `1.7` only.
        ranks: folders of ranks also for a single rank.
        compressed: gzip; None: as the generation did (up to 1.6 it was).
        folder: not an archive but the folder that it would unpack to.
        divisible_by: the vocabulary is padded to a multiple of this times `tensor`.
    """

    generation: Generation | None = None
    tensor: int = 1
    pipeline: int = 1
    ranks: bool = False
    compressed: bool | None = None
    folder: bool = False
    divisible_by: int = 128


class _Folder:
    """A folder with the methods of an archive's writer."""

    def __init__(self, folder: Path):
        self._folder = folder

    def add(self, name: str, content: bytes) -> None:
        (self._folder / name).write_bytes(content)

    @contextmanager
    def member(self, name: str) -> Iterator[IO[bytes]]:
        (self._folder / name).parent.mkdir(parents=True, exist_ok=True)
        with (self._folder / name).open("wb") as file:
            yield file


def write(checkpoint: Checkpoint, path: Path, *, layout: Layout | None = None, overwrite: bool = False) -> list[str]:
    """Write an archive, or the folder that it unpacks to.

    Returns:
        Notes: what was added or could not be kept.

    Raises:
        ValueError: the model cannot be cut so, has weights without a place there, or `path` exists.
        OSError: the disk is full or not writable; nothing half-written stays.
    """
    layout, task = layout or Layout(), nemo_described.described(checkpoint)
    layout = dataclasses.replace(layout, generation=layout.generation or ("1.0" if task else "1.7"))
    if task is not None and layout.generation == "1.7":
        raise ValueError("NeMo 1.7's MegatronBertModel has no task's head: give --nemo-generation 1.0 or 2021-05, or "
                         "leave it out")  # fmt: skip
    if layout.pipeline > 1 and layout.generation != "1.7":
        raise ValueError(f"NeMo {layout.generation} had no pipeline: leave out --pipeline-model-parallel-size")
    if task is not None and task.head:
        begin = ("classifier.", "qa_outputs.")
        tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if not name.startswith(begin)}
        checkpoint = dataclasses.replace(checkpoint, tensors=tensors)
    notes = _notes(checkpoint, layout) + (task.notes if task else [])
    if layout.folder:
        with new_folder(path, overwrite=overwrite) as folder:
            _write(checkpoint, layout, task, _Folder(folder))
        return notes
    compressed = layout.generation != "1.7" if layout.compressed is None else layout.compressed
    with new_file(path, overwrite=overwrite) as temporary, temporary.open("wb") as file:
        writer = Writer(file, compressed=compressed)
        _write(checkpoint, layout, task, writer)
        writer.finish()
    return notes


def _cut(layout: Layout) -> megatron_write.Layout:
    return megatron_write.Layout(tensor=layout.tensor, pipeline=layout.pipeline, divisible_by=layout.divisible_by)


def _notes(checkpoint: Checkpoint, layout: Layout) -> list[str]:
    megatron_write.check(checkpoint, _cut(layout))
    config, notes = checkpoint.config, []
    if note := megatron_arguments.check_activation(config):
        notes.append(note)
    size = _padded(config, layout)
    if size != config["vocab_size"]:
        notes.append(
            f"{size - config['vocab_size']} rows of padding added to the vocabulary of {config['vocab_size']:,}: "
            f"{size:,} are needed for {layout.tensor} tensor ranks"
        )
    if checkpoint.optimizer:
        notes.append("the optimizer's state is not carried: an archive of NeMo holds none")
    if layout.generation != "1.7" and {"lm_head", "binary_head"} & set(checkpoint.parts):
        notes.append(
            "NeMo 1.0 had no pretraining heads: they are in the archive, and NeMo needs strict=False to restore it"
        )
    return notes


def _padded(config: Mapping[str, Any], layout: Layout) -> int:
    return padded_vocabulary(config["vocab_size"], layout.divisible_by, layout.tensor)


def _write(checkpoint: Checkpoint, layout: Layout, task: Described | None, target: Writer | _Folder) -> None:
    size = _padded(checkpoint.config, layout)
    rows = megatron_write.check(checkpoint, _cut(layout))
    heads = checkpoint.config["num_attention_heads"]
    tensors = resize_vocabulary(checkpoint.tensors, size)
    for name, content in _members(checkpoint, layout, task, size).items():
        target.add(name, content)
    prefix = "model." if layout.generation == "1.7" else "bert_model."
    alone = layout.tensor * layout.pipeline == 1 and not layout.ranks
    for rank, held in enumerate(split(rows, tensors, layout.tensor, heads=heads, order="v2")):
        for stage in range(layout.pipeline):
            folder = f"mp_rank_{rank:02d}/" if layout.pipeline == 1 else f"tp_rank_{rank:02d}_pp_rank_{stage:03d}/"
            mine = _stage(held, checkpoint.config["num_hidden_layers"], stage, layout.pipeline)
            with target.member(WEIGHTS if alone else folder + WEIGHTS) as file:
                torch_writer.save(
                    {**{prefix + name: tensor for name, tensor in mine}, **(task.head if task else {})}, file
                )


def _stage(held: Mapping[str, LazyTensor], layers: int, stage: int, stages: int) -> Iterator[tuple[str, LazyTensor]]:
    """What one stage holds, layers counted from 0 in it."""
    count = layers // stages
    for name, tensor in held.items():
        moved, layer = bert_names.shift(name, -stage * count)
        if bert_names.shift(name, 0)[1] < 0:
            if stage == (0 if name.startswith("language_model.embedding.") else stages - 1):
                yield name, tensor
        elif 0 <= layer < count:
            yield moved, tensor
    if stages > 1 and stage == stages - 1 and "lm_head.bias" in held:
        yield "word_embeddings.weight", held[_WORDS]


def _members(checkpoint: Checkpoint, layout: Layout, task: Described | None, size: int) -> dict[str, bytes]:
    """Everything but the weights, the configuration first."""
    if layout.generation == "1.7":
        return _recent(checkpoint, layout, size)
    return _early(checkpoint, layout, task, size)


def _hashed(name: str, content: bytes) -> str:
    return f"{hashlib.md5(content, usedforsecurity=False).hexdigest()}_{name}"


def _plain(checkpoint: Checkpoint, size: int) -> dict[str, Any]:
    """Sizes and numerics under Megatron's names."""
    values = megatron_arguments.from_config(checkpoint.config, {})
    names = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "max_position_embeddings",
             "hidden_dropout", "attention_dropout", "init_method_std", "layernorm_epsilon",
             "apply_residual_connection_post_layernorm", "openai_gelu", "bias_gelu_fusion")  # fmt: skip
    plain = {name: values[name] for name in names}
    if size != checkpoint.config["vocab_size"]:
        plain[megatron_arguments.ADDED_ROWS] = checkpoint.config["vocab_size"]
    return plain


def _recent(checkpoint: Checkpoint, layout: Layout, size: int) -> dict[str, bytes]:
    parts, config = checkpoint.parts, checkpoint.config
    artefacts: dict[str, bytes] = {}
    vocabulary = checkpoint.vocabulary.get("vocab.txt")
    place = None
    if vocabulary is not None:
        place = _hashed("vocab.txt", vocabulary)
        artefacts[place] = vocabulary
    described = {
        **_plain(checkpoint, size),
        "onnx_safe": False,
        "encoder_seq_length": config["max_position_embeddings"],
        "kv_channels": None,
        "tensor_model_parallel_size": layout.tensor,
        "pipeline_model_parallel_size": layout.pipeline,
        "make_vocab_size_divisible_by": layout.divisible_by,
        "pre_process": True,
        "post_process": True,
        "add_pooler": "pooler" in parts,
        "add_lm_head": "lm_head" in parts,
        "bert_binary_head": "binary_head" in parts,
        "transformer_block_type": "pre_ln",
        "normalization": "layernorm",
        "megatron_legacy": False,
        "mcore_bert": False,
        "precision": {"float16": 16, "bfloat16": "bf16"}.get(str(config.get("dtype")), 32),
        "tokenizer": {
            "library": "megatron",
            "type": "BertWordPieceCase" if _is_cased(vocabulary) else "BertWordPieceLowerCase",
            "model": None,
            "vocab_file": f"nemo:{place}" if place else None,
            "merge_file": None,
        },
        "target": _PRETRAINING,
        "nemo_version": _VERSION,
    }
    return {CONFIG: _yaml(described), **artefacts}


def _early(checkpoint: Checkpoint, layout: Layout, task: Described | None, size: int) -> dict[str, bytes]:
    vocabulary = checkpoint.vocabulary.get("vocab.txt")
    name = f"megatron-bert-{'cased' if _is_cased(vocabulary) else 'uncased'}"
    hashed = layout.generation == "1.0"
    encoder = json.dumps(_plain(checkpoint, size), indent=2).encode()
    contents = {
        f"{name}_encoder_config.json": encoder,
        "megatron_checkpoint_version.json": b'{"checkpoint_version": 3.0}',
    }
    if vocabulary is not None:
        tokens = vocabulary.decode("utf-8", "replace").splitlines()
        mapping = json.dumps({token: number for number, token in enumerate(tokens)}).encode()
        contents["tokenizer_vocab_dict" if hashed else "tokenizer_vocab_dict.json"] = mapping
        contents["tokenizer.vocab_file"] = vocabulary
    contents |= dict(task.labels.values()) if task is not None else {}
    names = {plain: _hashed(plain, content) if hashed else plain for plain, content in contents.items()}

    def reference(plain: str) -> str | None:
        return (f"nemo:{names[plain]}" if hashed else names[plain]) if plain in names else None

    nodes = dict(task.nodes) if task else {}
    described = {
        "tokenizer": {
            "tokenizer_name": name,
            "vocab_file": reference("tokenizer.vocab_file"),
            "tokenizer_model": None,
            "special_tokens": None,
        },
        "language_model": {
            "pretrained_model_name": name,
            "config_file": reference(f"{name}_encoder_config.json"),
            "config": None,
            "lm_checkpoint": None,
            **nodes.pop("language_model", {}),
        },
        "target": task.target if task else _TEXT,
        **nodes,
    }
    if task is not None and task.labels:
        described["class_labels"] = {key: reference(file) for key, (file, _) in task.labels.items()}
    return {CONFIG: _yaml(described), **{names[plain]: content for plain, content in contents.items()}}


def _is_cased(vocabulary: bytes | None) -> bool:
    """Whether a vocabulary has capitals outside of its special tokens."""
    tokens = (vocabulary or b"").decode("utf-8", "replace").split()
    return any(token != token.lower() for token in tokens if not token.startswith("["))


def _yaml(value: Mapping[str, Any]) -> bytes:
    import yaml

    return yaml.safe_dump(dict(value), sort_keys=True).encode()
