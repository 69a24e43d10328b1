"""Checkpoints of a run: folders that appear whole or not at all, and are checked before they are believed.

```
checkpoints/
  step-00001000/
    model.safetensors      weights by name; float32 masters where the run keeps them
    optimizer.safetensors  `exp_avg/NAME`, `exp_avg_sq/NAME`, `step/NAME`, ...
    random.safetensors     states of torch's generators: `cpu`, `cuda`
    state.json             counters, schedule, loss scale, metrics window, and what the run was made of
    checksums.json         size and SHA-256 of each file above
  latest                   the name of the newest whole checkpoint
  best                     the name of the one with the lowest validation loss
```

Nothing here is a pickle: reading a checkpoint runs no code.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch

from megabert import runtime
from megabert.training.snapshot import Snapshot

_STEP = re.compile(r"step-(\d{8,})")
_FILES = ("model.safetensors", "optimizer.safetensors", "random.safetensors", "state.json")
_LARGEST_JSON = 64 * 2**20


def folder_name(step: int) -> str:
    """`step-00001000`."""
    return f"step-{step:08d}"


class Checkpoints:
    """The `checkpoints/` folder of one run.

    Args:
        folder: made when first saved to.
        keep_last: newest checkpoints to keep besides the best; 0 keeps all.
    """

    def __init__(self, folder: Path, keep_last: int = 2):
        self.folder = folder
        self.keep_last = keep_last

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder for this process: two runs in one would each remove what the other saves.

        The lock is the process's own: a killed run frees it, although its workers may live a little longer.

        Raises:
            ValueError: another process holds it.
            OSError: the folder cannot be made.
        """
        made = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with (self.folder / ".lock").open("w") as file:
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise ValueError(
                        f"another process is training in {self.folder.parent}: stop it, or give another --save folder"
                    ) from None
                yield
        except BaseException:
            runtime.remove_empty(made, ".lock")
            raise

    def prepare(self) -> None:
        """Make the folder, and remove what a killed save has left.

        Raises:
            OSError: the folder cannot be made.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob(".step-*.replaced"):
            # Killed between the two renames of a replacement: the old one is whole, so it comes back.
            whole = self.folder / path.name.split(".")[1]
            if not whole.exists():
                path.rename(whole)
        for path in self.folder.glob(".step-*"):
            shutil.rmtree(path, ignore_errors=True)
        for path in self.folder.glob(".*.part"):
            if path.is_file():
                path.unlink(missing_ok=True)

    def save(self, step: int, snapshot: Snapshot, *, best: bool = False) -> Path:
        """Write a checkpoint, point `latest` (and `best`) to it, and remove old ones.

        Raises:
            OSError: the disk is full or not writable; the checkpoints from before stay as they were.
        """
        final = self.folder / folder_name(step)
        temporary = self.folder / f".{final.name}.{os.getpid()}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(temporary, snapshot)
            if final.exists():
                replaced = self.folder / f".{final.name}.{os.getpid()}.replaced"
                final.rename(replaced)
                temporary.rename(final)
                shutil.rmtree(replaced)
            else:
                temporary.rename(final)
            runtime.sync_folder(self.folder)
            # `best` first: killed in between, the run goes on from before and comes to this checkpoint again.
            if best:
                self.point("best", step)
            self.point("latest", step)
        except (OSError, safetensors.SafetensorError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            reason = reason.removeprefix("Error while serializing: I/O error: ")
            raise OSError(
                f"cannot write the checkpoint {final}: {reason}; nothing half-written was left, and earlier "
                "checkpoints are whole: make room (a smaller --keep-last takes less) and run the same command again"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._remove_old()
        return final

    def point(self, name: str, step: int) -> None:
        """Let `latest` or `best` name the checkpoint of `step`."""
        with runtime.atomic_write(self.folder / name) as file:
            file.write(folder_name(step) + "\n")

    def named(self, name: str) -> Path | None:
        """The checkpoint that `latest` or `best` names; None when there is no such file.

        Raises:
            ValueError: it names something that is not there; the newest whole one is named.
        """
        return _follow(self.folder / name)

    def newest_whole(self) -> Path | None:
        """The newest checkpoint whose files are as they were written; None without one."""
        for step in reversed(self.steps()):
            path = self.folder / folder_name(step)
            try:
                verify(path)
            except (ValueError, OSError):
                continue
            return path
        return None

    def advice(self) -> str:
        """What a user can do when the checkpoint that is next cannot be used."""
        whole = self.newest_whole()
        if whole is not None:
            return f"the newest whole one is {whole.name}: --load {whole} goes on from it"
        return "there is no whole one beside it: start again with another --save folder"

    @contextmanager
    def advising(self, own: bool) -> Iterator[None]:
        """Add `advice` to what is wrong with a checkpoint of this run (`own`).

        Raises:
            ValueError: the block's, with the advice.
        """
        try:
            yield
        except ValueError as error:
            if not own:
                raise
            raise ValueError(f"{error}; {self.advice()}") from None

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending."""
        if not self.folder.is_dir():
            return []
        found = (_STEP.fullmatch(path.name) for path in self.folder.iterdir() if path.is_dir())
        return sorted(int(match[1]) for match in found if match)

    def _remove_old(self) -> None:
        if not self.keep_last:
            return
        pointed = {_name_in(self.folder / pointer) for pointer in ("latest", "best")}
        for step in self.steps()[: -self.keep_last]:
            if folder_name(step) not in pointed:
                # Out of sight first, so that a kill in the middle leaves no half checkpoint behind.
                doomed = self.folder / f".{folder_name(step)}.{os.getpid()}.old"
                (self.folder / folder_name(step)).rename(doomed)
                shutil.rmtree(doomed, ignore_errors=True)


def _name_in(pointer: Path) -> str | None:
    """What a pointer says, whether it is there or not; None without a pointer."""
    try:
        return pointer.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        return "(not text)"


def _follow(pointer: Path) -> Path | None:
    name = _name_in(pointer)
    if name is None:
        return None
    if not _STEP.fullmatch(name) or not (pointer.parent / name).is_dir():
        raise ValueError(
            f"{pointer} names {name[:80]!r}, which is no checkpoint there; {Checkpoints(pointer.parent).advice()}"
        )
    return pointer.parent / name


def find(path: Path) -> Path:
    """The checkpoint folder that a user's path means: itself, or the newest one of a run folder.

    Raises:
        ValueError: there is none.
    """
    if not path.is_dir():
        raise ValueError(f"--load: there is no folder {path}")
    if (path / "checksums.json").is_file():
        return path
    for folder in (path, path / "checkpoints"):
        found = _follow(folder / "latest")
        if found is not None:
            return found
        if Checkpoints(folder).steps():
            raise ValueError(f"--load: {folder / 'latest'} is missing; {Checkpoints(folder).advice()}")
    raise ValueError(f"--load: {path} holds no checkpoint (neither checksums.json nor checkpoints/latest)")


def beginning(
    checkpoints: Checkpoints, load: Path | None, say: Callable[[str], None] = print
) -> tuple[Path | None, bool]:
    """Where a run starts: the checkpoint, if any, and whether it is the run's own.

    The run's own checkpoints come before a `load` from elsewhere, which was the run's beginning: so the command that
    started a run also goes on with it. A `load` inside the run's folder chooses among its own, whatever `latest` says.
    Without `latest` the newest whole one is taken, aloud: a run that has checkpoints never starts again.

    Raises:
        ValueError: `load` holds no checkpoint; `latest` names none, or is missing and no checkpoint is whole.
    """
    folder = checkpoints.folder.resolve()
    inside = load is not None and load.resolve().is_relative_to(folder.parent)
    if load is not None and inside and load.resolve() not in (folder, folder.parent):
        return find(load), True
    latest = checkpoints.named("latest")
    if latest is None and checkpoints.steps():
        latest = checkpoints.newest_whole()
        if latest is None:
            raise ValueError(
                f"{checkpoints.folder}: `latest` is missing, and none of the {len(checkpoints.steps())} checkpoints is "
                "whole; start again with another --save folder"
            )
        say(f"{checkpoints.folder / 'latest'} is missing: the newest whole checkpoint is {latest.name}")
    # --load and --save may name one folder, which is still empty: Megatron's way to say "from there if you can".
    if latest is not None or load is None or inside:
        return latest, True
    return find(load), False


def _write(folder: Path, snapshot: Snapshot) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    tensors = {"model": snapshot.weights, "optimizer": snapshot.optimizer, "random": snapshot.random}
    for name, part in tensors.items():
        plain = {key: tensor.detach().contiguous() for key, tensor in part.items()}
        path = folder / f"{name}.safetensors"
        safetensors.torch.save_file(plain, path, metadata={"format": "pt"})
        runtime.usual_permissions(path)
    state = {"version": 1, "identity": snapshot.identity, "state": snapshot.state}
    (folder / "state.json").write_text(json.dumps(state, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    sums = {name: _digest(folder / name, sync=True) for name in _FILES}
    with runtime.atomic_write(folder / "checksums.json") as file:
        json.dump(sums, file, indent=1)


def _digest(path: Path, *, sync: bool = False) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if sync:
            os.fsync(file.fileno())
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": digest}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise ValueError(f"{path} is damaged: {path.stat().st_size:,} bytes are too many for this file")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path.parent} is not a whole checkpoint: {path.name} is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: a JSON object is needed")
    return value


def verify(folder: Path) -> None:
    """Compare each file of a checkpoint with its size and SHA-256.

    Raises:
        ValueError: a file is missing, cut off or changed; it is named.
    """
    sums = _read_json(folder / "checksums.json")
    if set(sums) != set(_FILES):
        raise ValueError(f"{folder / 'checksums.json'} is damaged: it must name {', '.join(_FILES)} and nothing else")
    for name in _FILES:
        path, expected = folder / name, sums[name]
        if not path.is_file():
            raise ValueError(f"{folder} is not a whole checkpoint: {name} is missing")
        if not isinstance(expected, dict) or path.stat().st_size != expected.get("bytes"):
            raise ValueError(f"{path} is damaged: its size is not the one in checksums.json")
        if _digest(path) != expected:
            raise ValueError(f"{path} is damaged: its SHA-256 is not the one in checksums.json")


def read(folder: Path) -> Snapshot:
    """Read a checkpoint, verified.

    Raises:
        ValueError: it is not whole, damaged, or of a version that is not known here.
    """
    verify(folder)
    content = _read_json(folder / "state.json")
    if content.get("version") != 1:
        raise ValueError(f"{folder}: version {content.get('version')!r} of the checkpoint is not known; 1 is")
    parts = []
    for name in ("model", "optimizer", "random"):
        try:
            parts.append(safetensors.torch.load_file(folder / f"{name}.safetensors"))
        except safetensors.SafetensorError as error:
            raise ValueError(f"{folder / name}.safetensors is damaged: {error}") from None
    return Snapshot(*parts, state=content["state"], identity=content["identity"])
