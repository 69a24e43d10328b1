"""The files of one checkpoint: written, checked against their checksums, and read.

```
step-00001000/
  model.safetensors      weights by name; float32 masters where the run keeps them
  optimizer.safetensors  `exp_avg/NAME`, `exp_avg_sq/NAME`, `step/NAME`, ...
  random.safetensors     states of torch's generators: `cpu`, `cuda`
  state.json             counters, schedule, loss scale, metrics window, and what the run was made of
  checksums.json         size and SHA-256 of each file above
```

Many processes write shards and an index in place of the first three (`sharded.py`). Nothing here is a pickle: reading a
checkpoint runs no code.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch

from megabert import runtime
from megabert.training.snapshot import Snapshot, derived_random

STATE, SUMS = "state.json", "checksums.json"
_FILES = ("model.safetensors", "optimizer.safetensors", "random.safetensors", STATE)
INDEX = "index.json"
"""Beside shards that many processes wrote (`sharded.py`)."""
_SHARD = re.compile(r"shard-\d{5,}\.safetensors")
_LARGEST_JSON = 64 * 2**20


def write(folder: Path, snapshot: Snapshot) -> None:
    """Write a checkpoint of one process.

    Raises:
        OSError, SafetensorError: the disk is full or not writable.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    tensors = {"model": snapshot.weights, "optimizer": snapshot.optimizer, "random": snapshot.random}
    for name, part in tensors.items():
        plain = {key: tensor.detach().contiguous() for key, tensor in part.items()}
        path = folder / f"{name}.safetensors"
        safetensors.torch.save_file(plain, path, metadata={"format": "pt"})
        runtime.usual_permissions(path)
    finish(folder, snapshot, {name: digest(folder / name, sync=True) for name in _FILES if name != STATE})


def finish(folder: Path, snapshot: Snapshot, sums: dict[str, dict[str, Any]], **more: str) -> None:
    """Write what is not tensors, and the checksums of all files.

    Args:
        sums: of the files that hold tensors, by name.
        more: further entries of `state.json`.
    """
    state = {"version": 1, **more, "identity": snapshot.identity, "state": snapshot.state}
    (folder / STATE).write_text(json.dumps(state, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    with runtime.atomic_write(folder / SUMS) as file:
        json.dump({**sums, STATE: digest(folder / STATE, sync=True)}, file, indent=1)


def digest(path: Path, *, sync: bool = False) -> dict[str, Any]:
    """Size and SHA-256 of a file; `sync` makes it durable."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
        if sync:
            os.fsync(file.fileno())
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": found}


def verify(folder: Path, *, part: int = 0, parts: int = 1) -> None:
    """Compare the files of a checkpoint with their sizes and SHA-256.

    Args:
        part, parts: only every `parts`-th file from number `part` on: many processes share the work.

    Raises:
        ValueError: a file is missing, cut off or changed; it is named.
    """
    sums = runtime.read_object(folder / SUMS, kind="whole checkpoint", largest=_LARGEST_JSON)
    if set(sums) != set(_FILES) and not (
        {INDEX, STATE} <= set(sums) and all(name in (INDEX, STATE) or _SHARD.fullmatch(name) for name in sums)
    ):
        raise ValueError(f"{folder / SUMS} is damaged: it must name {', '.join(_FILES)} and nothing else")
    for name in sorted(sums)[part::parts]:
        path, expected = folder / name, sums[name]
        if not path.is_file():
            raise ValueError(f"{folder} is not a whole checkpoint: {name} is missing")
        if not isinstance(expected, dict) or path.stat().st_size != expected.get("bytes"):
            raise ValueError(f"{path} is damaged: its size is not the one in checksums.json")
        if digest(path) != expected:
            raise ValueError(f"{path} is damaged: its SHA-256 is not the one in checksums.json")


def read_state(folder: Path) -> dict[str, Any]:
    """What is not tensors: `version`, `identity`, `state`, and `layout` where many processes wrote it.

    Raises:
        ValueError: it is missing, damaged, or of a version that is not known here.
    """
    content = runtime.read_object(folder / STATE, kind="whole checkpoint", largest=_LARGEST_JSON)
    if content.get("version") != 1:
        raise ValueError(f"{folder}: version {content.get('version')!r} of the checkpoint is not known; 1 is")
    return content


def read(folder: Path) -> Snapshot:
    """Read a checkpoint, verified; what many processes wrote is put together.

    Raises:
        ValueError: it is not whole, damaged, or of a version that is not known here.
    """
    verify(folder)
    content = read_state(folder)
    if (folder / INDEX).is_file():
        return _read_sharded(folder, content)
    parts = []
    for name in ("model", "optimizer", "random"):
        try:
            parts.append(safetensors.torch.load_file(folder / f"{name}.safetensors"))
        except safetensors.SafetensorError as error:
            raise ValueError(f"{folder / name}.safetensors is damaged: {error}") from None
    return Snapshot(*parts, state=content["state"], identity=content["identity"])


def _read_sharded(folder: Path, content: dict[str, Any]) -> Snapshot:
    from megabert.training.sharded import Pieces

    pieces = Pieces(folder)
    weights, optimizer = dict(pieces.whole("model/")), dict(pieces.whole("optimizer/"))
    random = derived_random(dict(pieces.whole("random/")), 0)
    return Snapshot(weights, optimizer, random, state=content["state"], identity=content["identity"])
