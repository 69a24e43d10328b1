"""This package's own training folders (`step-00001000`, or a run with its `checkpoints/`), read as `Checkpoint`s.

Weights and optimizer state lie in safetensors under Transformers' names, whole or (by many processes) in pieces that
`index.json` puts together; the sizes come from `model/config.json` of the run when it has ended, else from its
`run.toml`. Only training writes such folders.
"""

from __future__ import annotations

import dataclasses
import hashlib
import tomllib
from pathlib import Path
from typing import Any

from transformers import MegatronBertConfig

from megabert import runtime
from megabert.formats import fields, huggingface_checkpoint, native_shards, safetensors_file, sizes
from megabert.formats.checkpoint import PRE_LAYERNORM, Checkpoint, LazyTensor
from megabert.formats.native_shards import INDEX

WHOLE = "model.safetensors"
_FILES = {"checksums.json", "state.json"}
_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
          "max_position_embeddings", "type_vocab_size")  # fmt: skip


def look(path: Path) -> Path | None:
    """The training checkpoint at a path: itself, or the newest whole one of a run.

    Raises:
        ValueError: `latest` of a run names something that is not there.
    """
    if not path.is_dir():
        return None
    if all((path / name).is_file() for name in _FILES) and any((path / name).is_file() for name in (WHOLE, INDEX)):
        return path
    for folder in (path, path / "checkpoints"):
        pointer = folder / "latest"
        if pointer.is_file() and pointer.stat().st_size < 100:
            name = pointer.read_text(encoding="utf-8", errors="replace").strip()
            if Path(name).name != name or not (folder / name / "state.json").is_file():
                raise ValueError(f"{pointer} names {name!r}, which is no checkpoint there")
            return folder / name
    return None


def read(path: Path, *, optimizer: bool = True) -> Checkpoint:
    """Read a checkpoint of a run, compared with its checksums.

    Raises:
        ValueError: there is none, it is damaged, or the run does not tell what model it trains.
    """
    folder = look(path)
    if folder is None:
        raise ValueError(f"{path} is no training checkpoint of this package")
    _verify(folder)
    parts = tensors_of(folder)
    found = parts["model"]
    config = _config(folder.resolve().parent.parent, found)
    tensors = _plain_bias(found)
    config = fields.checked(config, str(folder))
    sizes.check_named(str(folder), config, tensors)
    state = _optimizer(parts["optimizer"], found) if optimizer else {}
    training = _training(folder)
    return Checkpoint(
        family=PRE_LAYERNORM, config=config, tensors=tensors, optimizer=state, training=training,
        vocabulary=_vocabulary(folder.resolve().parent.parent),
    )  # fmt: skip


def tensors_of(folder: Path) -> dict[str, dict[str, LazyTensor]]:
    """`model` and `optimizer` -> tensors by name, as training stored them.

    Raises:
        ValueError: a file is damaged or missing.
    """
    if (folder / INDEX).is_file():
        return native_shards.read(folder)
    place = folder / "optimizer.safetensors"
    optimizer = safetensors_file.read(place) if place.is_file() else {}
    return {"model": safetensors_file.read(folder / WHOLE), "optimizer": optimizer}


def _verify(folder: Path) -> None:
    for name, expected in runtime.read_object(folder / "checksums.json").items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise ValueError(f"{folder} is not a whole checkpoint: {name[:80]} is missing")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if not isinstance(expected, dict) or digest != expected.get("sha256"):
            raise ValueError(f"{path} is damaged: its SHA-256 is not the one in checksums.json")


def _config(run: Path, tensors: dict[str, LazyTensor]) -> dict[str, Any]:
    if (run / "model" / "config.json").is_file():
        config = runtime.read_object(run / "model" / "config.json")
        config = {**{name: getattr(MegatronBertConfig(), name) for name in _SIZES}, **config}
        config.pop("transformers_version", None)
    else:
        config = _from_run_file(run / "run.toml", tensors)
    config.pop("torch_dtype", None)
    return {**config, "dtype": sizes.main_dtype(tensors)}


def _from_run_file(path: Path, tensors: dict[str, LazyTensor]) -> dict[str, Any]:
    from megabert.models.bert.config import make_config
    from megabert.models.options import ModelOptions

    try:
        written = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: nothing tells what model the checkpoint is of") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from None
    known = {field.name for field in dataclasses.fields(ModelOptions)}
    options = ModelOptions(**{name: value for name, value in written.items() if name in known})
    words = tensors.get("bert.embeddings.word_embeddings.weight")
    if words is None:
        raise ValueError(f"{path.parent}: the checkpoint holds no word embedding")
    paired = "cls.seq_relationship.weight" in tensors
    made = make_config(options, words.shape[0], add_binary_head=paired).to_dict()
    made.pop("transformers_version", None)
    made["vocab_size"] = words.shape[0]
    if not paired:
        made["architectures"] = ["MegatronBertForMaskedLM"]
    return made


def _plain_bias(found: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    tensors = dict(found)
    if "cls.predictions.decoder.bias" in tensors:
        tensors["cls.predictions.bias"] = tensors.pop("cls.predictions.decoder.bias")
    return tensors


def _optimizer(found: dict[str, LazyTensor], weights: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """`exp_avg/<name>`, `exp_avg_sq/<name>`, `master/<name>` (the stored weights are the masters) and `step`."""
    state: dict[str, LazyTensor] = {}
    for key, tensor in found.items():
        kind, _, name = key.partition("/")
        name = "cls.predictions.bias" if name == "cls.predictions.decoder.bias" else name
        if kind in ("exp_avg", "exp_avg_sq"):
            state[f"{kind}/{name}"] = tensor
        elif kind == "step":
            state.setdefault("step", tensor)
    if state:
        state |= {f"master/{name}": tensor for name, tensor in _plain_bias(weights).items()}
    return state


def _training(folder: Path) -> dict[str, Any]:
    state = runtime.read_object(folder / "state.json").get("state")
    progress = state.get("progress") if isinstance(state, dict) else None
    digits = folder.resolve().name.removeprefix("step-")
    training: dict[str, Any] = {"iteration": int(digits)} if digits.isdecimal() else {}
    if isinstance(progress, dict):
        training["progress"] = progress
        if isinstance(progress.get("samples"), int):
            training["consumed_train_samples"] = progress["samples"]
    return training


def _vocabulary(run: Path) -> dict[str, bytes]:
    for folder in (run / "model", run / "tokenizer", run):
        found = {name: (folder / name).read_bytes() for name in huggingface_checkpoint.VOCABULARY_FILES
                 if (folder / name).is_file()}  # fmt: skip
        if found:
            return found
    return {}
