"""What every room needs: atomic files, permissions, SIGTERM, and durations in words. Nothing here imports torch."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO


class Terminated(KeyboardInterrupt):
    """SIGTERM came: whoever keeps what was done so far on Ctrl-C keeps it then too."""


@contextmanager
def termination_interrupts() -> Iterator[None]:
    """While this context is open, SIGTERM raises `Terminated` in this process (in the main thread only).

    A process that was forked meanwhile ends by the signal, as it would have without this.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def interrupt(number: int, _: FrameType | None) -> None:
        if os.getpid() == owner:
            raise Terminated
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def signals_wait() -> Iterator[None]:
    """Put off SIGINT and SIGTERM to the end of this context; processes that it starts never see them.

    A worker that is interrupted while it starts, or by half a message about what it should be, would print a page.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in numbers}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)  # what a new process inherits
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO]:
    """Open a temporary file beside `path`; when the block ends well, sync it and rename it to `path`.

    A block that raises leaves `path` as it was and no temporary file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    encoding = None if "b" in mode else "utf-8"
    try:
        with temporary.open(mode, encoding=encoding) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def remove_empty(made: Sequence[Path], leftover: str) -> None:
    """Take back folders that were made for something that did not begin.

    Args:
        made: inner ones first; one that holds anything stays.
        leftover: the name of a file that does not count.
    """
    for path in made:
        with suppress(OSError):
            if [item.name for item in path.iterdir()] == [leftover]:
                (path / leftover).unlink()
            path.rmdir()


def usual_permissions(path: Path) -> None:
    """Give a file the permissions that `open` would have given it: some libraries make theirs readable to one user."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def duration(seconds: float) -> str:
    """Seconds as people say them: `42s`, `3m12s`, `5h07m`, `2d03h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"
