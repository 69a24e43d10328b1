"""What lies at a path: a model, a run folder, a checkpoint of any program, indexed data or a tokenizer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, NamedTuple

Kind = Literal["model", "run", "checkpoint", "data", "tokenizer", "foreign"]

_STEP = re.compile(r"step-\d{8,}")
_NAMES = {
    "model": "a model's folder", "run": "a run folder", "checkpoint": "a training checkpoint", "data": "indexed data",
    "tokenizer": "a tokenizer", "foreign": "a checkpoint of Megatron-LM, Megatron-core or NeMo",
}  # fmt: skip


class Found(NamedTuple):
    """What was found, and its own path: a folder, or the prefix of indexed data."""

    kind: Kind
    path: Path

    @property
    def name(self) -> str:
        """The kind in words."""
        return _NAMES[self.kind]


def look(path: Path) -> Found:
    """Tell what a path is.

    Args:
        path: a folder (of a Transformers model, a run, a `checkpoints/` folder, one `step-*`, a tokenizer), a file in a
            model's folder, a `vocab.txt`, `tokenizer.json` or SentencePiece `.model`, or indexed data by its
            prefix or one of its files.

    Raises:
        ValueError: nothing is there, or nothing that is known; says what is allowed.
    """
    path = path.expanduser()
    if path.is_dir():
        return _look_into(path)
    prefix = _prefix(path)
    if prefix is not None:
        return Found("data", prefix)
    if not path.exists():
        raise ValueError(f"there is nothing at {path}: no file, no folder, and no indexed data ({path.name}.idx)")
    if path.name in ("config.json", "model.safetensors") and (path.parent / "config.json").is_file():
        return _look_into(path.parent)
    if path.name == "tokenizer.json" or path.suffix in (".txt", ".model"):
        return Found("tokenizer", path)
    if _is_foreign(path):
        return Found("foreign", path)
    raise ValueError(f"{path} is not of a kind known here; {_allowed()} is needed")


def _look_into(folder: Path) -> Found:
    has = {entry.name for entry in folder.iterdir()}
    if _STEP.fullmatch(folder.resolve().name) or {"checksums.json", "state.json"} <= has:
        return Found("checkpoint", folder)
    if has & {"run.toml", "metrics.jsonl", "checkpoints"}:
        return Found("run", folder)
    if "config.json" in has:
        return Found("model", folder)
    if "latest" in has or any(_STEP.fullmatch(name) for name in has):
        run = folder.resolve().parent
        return Found("run", run if (run / "checkpoints").resolve() == folder.resolve() else folder)
    if _is_foreign(folder):
        return Found("foreign", folder)  # before a tokenizer: one may lie in it
    if has & {"tokenizer.json", "vocab.txt", "tokenizer.model"}:
        return Found("tokenizer", folder)
    indexed = sorted(name for name in has if name.endswith(".idx"))
    if len(indexed) == 1:
        return Found("data", folder / indexed[0].removesuffix(".idx"))
    if indexed:
        raise ValueError(f"{folder} holds {len(indexed)} indexed data sets; name one of them: {', '.join(indexed[:5])}")
    raise ValueError(f"{folder} holds nothing that is known here; {_allowed()} is needed")


def _is_foreign(path: Path) -> bool:
    from megabert.formats.checkpoints import find_format

    return find_format(path) is not None


def _prefix(path: Path) -> Path | None:
    candidates = [path.with_name(path.name + added) for added in ("", "_text_sentence", "_text_document")]
    if path.suffix in (".bin", ".idx"):
        candidates.insert(0, path.with_suffix(""))
    return next((prefix for prefix in candidates if prefix.with_name(prefix.name + ".idx").is_file()), None)


def _allowed() -> str:
    *first, last = _NAMES.values()
    return f"{', '.join(first)} or {last}"


def find_model(path: Path) -> Found:
    """The model that a user means: the Transformers folder of `model_folder`, or a checkpoint of another program.

    Args:
        path: a path, or a name that `named` knows or looks up on the Hugging Face hub; a name is given back as it is.

    Raises:
        ValueError: there is none; says what the path is instead, and what to do.
    """
    from megabert.formats import named

    if named.stands_for(path):
        return Found("foreign", path)
    found = look(path)
    if found.kind == "foreign":
        return found
    folder = model_folder(path)
    # Weights that are a pickle are read as a checkpoint: that runs none of it.
    return Found("model" if any(folder.glob("*.safetensors")) else "foreign", folder)


def model_folder(path: Path) -> Path:
    """The Transformers folder that a user means: the path itself, or `model/` of a run.

    Raises:
        ValueError: there is none; says what the path is instead, and what to do.
    """
    found = look(path)
    if found.kind == "model":
        return found.path
    if found.kind == "run":
        folder = found.path / "model"
        if (folder / "config.json").is_file():
            return folder
        raise ValueError(
            f"{found.path} has no model/ yet: a run writes it when it ends; start the same run again to let it finish"
        )
    if found.kind == "checkpoint":
        run = found.path.resolve().parent.parent
        raise ValueError(
            f"{found.path} is a training checkpoint, which only training reads; the model of its run, in Transformers' "
            f"format, is {run / 'model'}"
        )
    if found.kind == "foreign":
        raise ValueError(
            f"{found.path} is {found.name}: make a model's folder of it with `megabert convert {found.path} FOLDER`"
        )
    raise ValueError(f"{path} is {found.name}; a model's folder or a run folder is needed")
