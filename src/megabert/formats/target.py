"""What a format writes appears whole under its name, or not at all."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from megabert import runtime


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Stop before anything is written where something lies already; an empty folder is nothing.

    Raises:
        ValueError: there is something, and `overwrite` was not asked for or would remove what is no checkpoint's.
    """
    empty = path.is_dir() and not path.is_symlink() and not any(path.iterdir())
    if not (path.exists() or path.is_symlink()) or empty:
        return
    if not overwrite:
        raise ValueError(f"{path} exists; give another target, or --overwrite to replace it")
    strange = _strange(path)
    if strange is not None:
        raise ValueError(f"{path} is not replaced, --overwrite or not: {strange}; name another target, or remove it "
                         "yourself")  # fmt: skip


_WEIGHTS = re.compile(
    r"(?:model|pytorch_model)(?:-\d+-of-\d+)?\.(?:safetensors|bin)|(?:model_optim_rng|model_rng|optim|distrib_optim)\.pt"
    r"|__\d+_\d+\.distcp|model_weights\.ckpt"
)
_BESIDE = re.compile(
    r"(?:generation_|tokenizer_)?config\.json|(?:model\.safetensors|pytorch_model\.bin)\.index\.json|\.metadata|metadata\.json"
    r"|common\.pt|latest_checkpointed_iteration\.txt|(?:[0-9a-f]{32}_)?(?:vocab\.txt|tokenizer\.vocab_file)|tokenizer\.json"
    r"|special_tokens_map\.json|added_tokens\.json|(?:spiece|tokenizer)\.model|model_config\.yaml|[\w-]*_encoder_config\.json"
    r"|(?:[0-9a-f]{32}_)?(?:megatron_checkpoint_version\.json|tokenizer_vocab_dict(?:\.json)?)"
)
_FOLDERS = re.compile(r"iter_\d{7,}|release|model_weights|(?:mp_rank_\d{2,}(?:_\d{3,})*|tp_rank_\d{2,}_pp_rank_\d{3,})")
_ARCHIVES = (".nemo", ".pt", ".ckpt", ".zip", ".bin", ".safetensors")


def _strange(path: Path) -> str | None:
    """What speaks against removing a path: a file that no checkpoint has, or that there is no checkpoint at all."""
    if not path.is_dir():
        whole = not path.is_file() or path.suffix.lower() in _ARCHIVES
        return None if whole else f"a file called {path.name} is no checkpoint"
    weights = False
    for entry in path.rglob("*"):
        inner = entry.relative_to(path)
        if entry.is_dir() and not entry.is_symlink():
            if not _FOLDERS.fullmatch(entry.name):
                return f"no checkpoint has a folder {inner}, which is in it"
        elif _WEIGHTS.fullmatch(entry.name):
            weights = True
        elif not _BESIDE.fullmatch(entry.name):
            return f"no checkpoint has a file {inner}, which is in it"
    return None if weights else "there are no weights in it, so it is no checkpoint"


_MOST_FILES = 100_000


def files_of(place: Path) -> Iterator[Path]:
    """The file at a place, or all that lie in it, links followed."""
    if place.is_file():
        yield place
    seen, found = set(), 0
    for folder, folders, names in os.walk(place, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()  # a link that leads back
            continue
        seen.add((status.st_dev, status.st_ino))
        for name in names:
            yield Path(folder, name)
            found += 1
            if found > _MOST_FILES:
                return


def keep_sources(sources: Sequence[Path], target: Path) -> None:
    """Refuse a target that is a source, lies in the one that was opened, or would replace a folder that holds one.

    Args:
        sources: the path that was opened, then the files that were read; each counts by its name and by what its links
            lead to.

    Raises:
        ValueError: so it is.
    """
    places = {Path(os.path.abspath(target)), target.resolve()}
    for index, source in enumerate(sources):
        for name in {Path(os.path.abspath(source)), source.resolve()}:
            inside = index == 0 and any(name in place.parents for place in places)
            if inside or any(place == name or place in name.parents for place in places):
                raise ValueError(f"TARGET {target} is SOURCE, or one lies in the other ({name}); a source is never "
                                 "changed: name another target")  # fmt: skip


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
