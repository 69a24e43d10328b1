"""What a format writes appears whole under its name, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megabert import runtime


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Stop before anything is written where something lies already; an empty folder is nothing.

    Raises:
        ValueError: there is something, and `overwrite` was not asked for.
    """
    empty = path.is_dir() and not path.is_symlink() and not any(path.iterdir())
    if (path.exists() or path.is_symlink()) and not overwrite and not empty:
        raise ValueError(f"{path} exists; give another target, or --overwrite to replace it")


@contextmanager
def new_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside `path`; when the block ends well, it is synced and renamed to `path`.

    Raises:
        ValueError: as `refuse_existing`.
        OSError: the disk is full or not writable; what was there before stays.
    """
    refuse_existing(path, overwrite=overwrite)
    temporary = _beside(path, "part")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.rglob("*"):
            runtime.sync_folder(file)  # files and folders alike
        runtime.sync_folder(temporary)
        _replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def new_file(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """The name of a temporary file beside `path`; when the block ends well, it is synced and renamed to `path`.

    Raises:
        ValueError, OSError: as `new_folder`.
    """
    refuse_existing(path, overwrite=overwrite)
    temporary = _beside(path, "part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        runtime.sync_folder(temporary)
        _replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _beside(path: Path, what: str) -> Path:
    path = Path(os.path.abspath(path))
    return path.with_name(f".{path.name}.{os.getpid()}.{what}")


def _replace(temporary: Path, path: Path) -> None:
    path = Path(os.path.abspath(path))
    replaced = _beside(path, "replaced")
    there = path.exists() or path.is_symlink()
    if there:
        path.rename(replaced)
    try:
        temporary.rename(path)
    except BaseException:
        if there:
            replaced.rename(path)
        raise
    runtime.sync_folder(path.parent)
    if there:
        if replaced.is_dir() and not replaced.is_symlink():
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            replaced.unlink(missing_ok=True)
