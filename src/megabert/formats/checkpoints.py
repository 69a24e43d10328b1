"""Opening and saving checkpoints of any format: a source's format is found by looking, a target's is given by name.

Each format is a module with `look(path)`, `read(path, ...)` and, where it is written, `write(checkpoint, ...)`.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from megabert.formats import named, named_vocabulary
from megabert.formats.checkpoint import Checkpoint
from megabert.formats.table import Order, resize_vocabulary
from megabert.formats.target import files_of, keep_sources

READERS: dict[str, str] = {
    "native": "native",
    "huggingface": "huggingface_checkpoint",
    "nemo": "nemo",
    "megatron-core": "megatron_core",
    "megatron": "megatron",
}
"""Format -> its module, in the order in which a path is looked at."""

WRITERS: dict[str, str] = {
    "huggingface": "huggingface_checkpoint",
    "megatron": "megatron_write",
    "megatron-core": "megatron_core_write",
    "nemo": "nemo_write",
}
"""Format -> the module that writes it."""

TITLES = {
    "native": "a training checkpoint of this package",
    "huggingface": "a Transformers folder",
    "megatron": "a Megatron-LM checkpoint",
    "megatron-core": "a Megatron-core checkpoint",
    "nemo": "a NeMo checkpoint",
}


def _module(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(f"megabert.formats.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"megabert.formats.{name}":
            raise
        return None


def find_format(path: Path) -> str | None:
    """The format of what lies at a path; None when it is no checkpoint.

    Raises:
        ValueError: a checkpoint lies there, but it is damaged or not whole.
    """
    found = _look(path)
    return found[0] if found else None


def _look(path: Path) -> tuple[str, Path] | None:
    """The format, and the file or folder that a checkpoint really is (a rank's file stands for the folder of all)."""
    for name, module_name in READERS.items():
        module = _module(module_name)
        facts = module.look(path) if module is not None else None
        if facts is not None:
            return name, facts if isinstance(facts, Path) else getattr(facts, "folder", None) or facts.path
    return None


def open_checkpoint(
    source: str | Path, *, heads: int | None = None, order: Order | None = None, optimizer: bool = True
) -> Checkpoint:
    """Open a checkpoint of any format; tensors stay on disk until they are asked for.

    Args:
        source: a path, or the name of a published model or of one in the user's table of names.
        heads: attention heads, for files that do not say how many there are.
        order: of fused query-key-value rows, for files whose stamp is known to be wrong.
        optimizer: with the optimizer's state.

    Raises:
        ValueError: there is nothing, nothing known, or it is damaged; file and key are named.
        OSError: it cannot be read, or fetched.
    """
    from megabert.formats import download

    place = named.resolve(source, progress=download.show_progress(str(source)))
    seen = _look(place.path)
    if seen is None:
        raise ValueError(
            f"{place.path} is no checkpoint that is known here: a Transformers folder, a checkpoint of Megatron-LM or "
            "Megatron-core, a NeMo archive or a training folder of this package is needed"
        )
    found, whole = seen
    module = _module(READERS[found])
    assert module is not None
    wanted = {"heads": heads, "order": order, "optimizer": optimizer}
    accepted = _accepted(module.read, wanted)
    if order is not None and "order" not in accepted:
        raise ValueError(f"{place.path} is {TITLES[found]}, which holds query, key and value apart: there is no order "
                         "of their rows to be told; leave out --assume-qkv-layout")  # fmt: skip
    checkpoint = module.read(place.path, **accepted)
    said = checkpoint.config["num_attention_heads"]
    if heads is not None and heads != said:
        raise ValueError(f"{place.path} tells of {said} attention heads, but {heads} were asked for; leave out "
                         "--num-attention-heads, and num_attention_heads of a --config-file")  # fmt: skip
    files = (file.absolute() for file in files_of(whole))
    checkpoint = dataclasses.replace(checkpoint, sources=(place.path.absolute(), *files))
    if place.vocabulary is not None and not checkpoint.vocabulary:
        vocabulary = {"vocab.txt": place.vocabulary.read_bytes()}
        return dataclasses.replace(checkpoint, vocabulary=vocabulary)
    return _with_published_vocabulary(checkpoint, place.path)


def _with_published_vocabulary(checkpoint: Checkpoint, path: Path) -> Checkpoint:
    """A published model without its vocabulary, with what the cache holds of it, or a note of what is missing."""
    known = None if checkpoint.vocabulary else named_vocabulary.published(path)
    if known is None:
        return checkpoint
    file, said = named_vocabulary.find(known)
    if file is None:
        return dataclasses.replace(checkpoint, notes=(*checkpoint.notes, said))
    found = dataclasses.replace(checkpoint, vocabulary={"vocab.txt": file.read_bytes()})
    entries, rows = tokenizer_entries(found), checkpoint.config["vocab_size"]
    if entries is None or entries > rows:
        said = f"{file} is not taken: it has {entries or 'no known'} entries, but the model has {rows:,} rows"
        return dataclasses.replace(checkpoint, notes=(*checkpoint.notes, said))
    return dataclasses.replace(found, notes=(*checkpoint.notes, said))


_FILES = (".pt", ".pth", ".ckpt", ".bin", ".zip", ".safetensors", ".tar", ".gz", ".json")


def format_of_name(path: Path) -> str:
    """The format that a target's name tells: `.nemo` is NeMo's, a folder is Transformers'.

    Raises:
        ValueError: it is the name of a file of another kind, which no format here writes alone.
    """
    suffix = path.suffix.lower()
    if suffix in _FILES:
        raise ValueError(f"{path} is called like a file, but every format here but .nemo is a folder; give a folder's "
                         "name, or the format with --to")  # fmt: skip
    return "nemo" if suffix == ".nemo" else "huggingface"


def _accepted(function: Callable[..., Any], wanted: dict[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters
    several = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return {name: value for name, value in wanted.items() if several or name in parameters}


def save_checkpoint(
    checkpoint: Checkpoint, path: str | Path, *, format: str | None = None, overwrite: bool = False, **choices: Any
) -> list[str]:
    """Write a checkpoint; it appears whole, or not at all.

    Args:
        format: one of `WRITERS`; None: by the name (`.nemo`), else a Transformers folder.
        overwrite: replace what lies there.
        choices: of the format, such as `layout` of Megatron's or `shard_bytes` of Transformers'.

    Returns:
        Notes: what was added or could not be kept.

    Raises:
        ValueError: no such format, the model does not fit into it, something lies at `path`, or what the checkpoint
            was opened from lies there, around it or in it.
        OSError: the disk is full or not writable.
    """
    path = Path(path)
    chosen = format or format_of_name(path)
    module = _module(WRITERS[chosen]) if chosen in WRITERS else None
    if module is None:
        raise ValueError(f"format {chosen!r} is not written; one of {', '.join(WRITERS)} is needed")
    keep_sources(checkpoint.sources, path)
    notes = module.write(checkpoint, path, overwrite=overwrite, **choices)
    return list(notes or ())


def with_vocabulary(checkpoint: Checkpoint, size: int) -> Checkpoint:
    """The checkpoint with rows of the vocabulary cut off or added (see `table.resize_vocabulary`).

    Raises:
        ValueError: the size is below 1, or would cut entries of the checkpoint's own tokenizer.
    """
    entries = tokenizer_entries(checkpoint)
    if size < max(1, entries or 1):
        raise ValueError(f"a vocabulary of {size:,} would lose entries: the tokenizer has {entries or 1:,}")
    tensors = resize_vocabulary(checkpoint.tensors, size)
    state = resize_vocabulary(checkpoint.optimizer, size)
    cut, notes = checkpoint.config["vocab_size"] - size, checkpoint.notes
    if cut > 0:
        unknown = "" if entries else "; no tokenizer tells whether they were padding"
        notes = (*notes, f"{cut:,} of {checkpoint.config['vocab_size']:,} rows of the vocabulary are cut off{unknown}")
    config = {**checkpoint.config, "vocab_size": size}
    if (config.get("pad_token_id") or 0) >= size:
        raise ValueError(f"a vocabulary of {size:,} would lose the padding token, entry {config['pad_token_id']}")
    return dataclasses.replace(checkpoint, tensors=tensors, optimizer=state, config=config, notes=notes)


def tokenizer_entries(checkpoint: Checkpoint) -> int | None:
    """Entries of the tokenizer that lies beside the model; None when there is none that is known here."""
    import tempfile

    from megabert.tokenization import opening

    kept = {name: data for name, data in checkpoint.vocabulary.items() if name in ("vocab.txt", "tokenizer.json")}
    if not kept:
        return None
    with tempfile.TemporaryDirectory() as folder:
        for name, data in checkpoint.vocabulary.items():
            (Path(folder) / Path(name).name).write_bytes(data)
        try:
            return opening.load(Path(folder)).vocabulary_size
        except ValueError:
            return None
