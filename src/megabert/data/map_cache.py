"""Maps of samples on disk, named after what they are made of: cut once, mapped into memory by every process."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from megabert import runtime

_SMALL = 1 << 16  # samples; cutting fewer takes less time than a file and a lock
_VERSION = 1  # of the way that samples are cut


def cached(folder: Path | None, made_of: dict[str, Any], sentences: int, cut: Callable[[], np.ndarray]) -> np.ndarray:
    """What `cut` gives, from the folder's file where an earlier call or another process has left it there.

    Processes that ask at the same time wait for the first of them. A file that is damaged is made anew.

    Args:
        folder: None: nothing is kept.
        made_of: all that decides on the map.
        sentences: of the data; the map of few is cut each time.

    Returns:
        [samples, 3]; a view of the file, not to be written to.
    """
    if folder is None or sentences < _SMALL:
        return cut()
    import filelock

    key = hashlib.sha256(json.dumps([_VERSION, made_of], sort_keys=True).encode()).hexdigest()[:24]
    path = folder / f"samples-{key}.npy"
    found = _read(path)
    if found is not None:
        return found
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / f"samples-{key}.lock"):
        found = _read(path)
        if found is None:
            made = cut()
            with runtime.atomic_write(path, "wb") as file:
                np.save(file, made)
            found = made if (again := _read(path)) is None else again
    return found


def _read(path: Path) -> np.ndarray | None:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError, SyntaxError):
        return None
    whole = found.ndim == 2 and found.shape[1] == 3 and found.dtype in (np.uint32, np.uint64)
    return found if whole else None
