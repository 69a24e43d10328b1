"""Checkpoints of a run: folders that appear whole or not at all, and are checked before they are believed.

```
checkpoints/
  step-00001000/         see `stored.py`
  latest                 the name of the newest whole checkpoint
  best                   the name of the one with the lowest validation loss
```
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import safetensors
from torch import Tensor

from megabert import runtime
from megabert.training import stored
from megabert.training.snapshot import Snapshot
from megabert.training.stored import read, verify

_STEP = re.compile(r"step-(\d{8,})")


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
        with self.tidy(final, temporary):
            self.folder.mkdir(parents=True, exist_ok=True)
            stored.write(temporary, snapshot)
            self.publish(temporary, step, best=best)
        self.remove_old()
        return final

    @contextmanager
    def tidy(self, final: Path, temporary: Path) -> Iterator[None]:
        """Whatever happens in the block, nothing half-written stays; a user learns what that means.

        Raises:
            OSError: the block could not write.
        """
        try:
            yield
        except (OSError, safetensors.SafetensorError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            reason = reason.removeprefix("Error while serializing: I/O error: ")
            raise OSError(
                f"cannot write the checkpoint {final}: {reason}; nothing half-written was left, and earlier "
                "checkpoints are whole: make room (a smaller --keep-last takes less) and run the same command again"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def publish(self, temporary: Path, step: int, *, best: bool) -> None:
        """Let a whole checkpoint appear under its name, and `latest` (and `best`) point to it."""
        final = self.folder / folder_name(step)
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

    def read(self, path: Path, weights: Mapping[str, Tensor], masters: Mapping[str, Tensor]) -> Snapshot:
        """A checkpoint of this run or of another, verified, for a model with these weights.

        Raises:
            ValueError: it is not whole, damaged, or of a version that is not known here.
        """
        return read(path)

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

    def remove_old(self) -> None:
        """Remove all but the newest, and those that are pointed to."""
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
