"""What every room needs: atomic files, bounded JSON, permissions, signals, pools of processes, memory, durations.

Nothing imports torch.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO, Any, Protocol, TypeVar

# Of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = -1

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Item = TypeVar("Item")
Result = TypeVar("Result")


class MapInOrder(Protocol):
    """What `map_in_order` below is in this machine, and executors are elsewhere."""

    def __call__(
        self,
        make: Callable[..., Callable[[Item], Result]],
        arguments: tuple[Any, ...],
        items: Iterable[Item],
        workers: int,
        /,
    ) -> Iterator[tuple[Item, Result]]:
        """(item, result) in the order of the items."""
        ...


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
    with signals_heard():
        # A new process inherits what is blocked.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


@contextmanager
def signals_heard() -> Iterator[Callable[[], None]]:
    """SIGINT and SIGTERM act where the given function is called, and at the end of this context, and nowhere else.

    What a handler raises is lost where it interrupts one of Python's own callbacks, as that of a weak reference; a loop
    that makes threads would then wait on, as if nobody had asked it to end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    came: list[int] = []

    def remember(number: int, _: FrameType | None) -> None:
        came.append(number)

    def act() -> None:
        while came:
            number = came.pop(0)
            signal.signal(number, before[number])
            try:
                signal.raise_signal(number)
            finally:
                signal.signal(number, remember)

    before: dict[int, Any] = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield act
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)


def cache_folder() -> Path:
    """Where what has a name is kept: `MEGABERT_CACHE`, else `megabert` in the user's cache folder."""
    given = os.environ.get("MEGABERT_CACHE")
    if given:
        return Path(given).expanduser()
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home).expanduser() if home else Path.home() / ".cache") / "megabert"


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
    except BaseException as error:
        if isinstance(error, OSError) and (str(error.filename) == str(temporary) or error.errno in _NO_ROOM):
            error.filename = str(path)  # what the user knows
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def read_object(path: Path, *, kind: str = "", largest: int = 16 << 20) -> dict[str, Any]:
    """The JSON object in a file that others may have written.

    Args:
        kind: what the file's folder is none of, where the file is missing, for the message.
        largest: bytes that are read at most.

    Raises:
        ValueError: the file is missing, too large, no JSON, or not an object.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise ValueError(f"{path.parent}{f' is no {kind}' if kind else ''}: {path.name} is missing") from None
    if size > largest:
        raise ValueError(f"{path} is damaged: {size:,} bytes are too many for what it should be")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # a number of too many digits is a plain ValueError
        raise ValueError(f"{path} is damaged: it is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: it is JSON but not an object")
    return value


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


def keep_freed_memory() -> bool:
    """Let memory that is freed stay with this process for what it allocates next, instead of going back to the system.

    The C library returns a large block at once, and the next one is made of fresh pages that the system must clear as
    they are touched: in a training step on a CPU, which makes and frees the same tensors again and again, up to half of
    the time. For the verbs that compute for long; the peak of memory stays what it is, but it is held to the end.

    Returns:
        Whether the C library can be told so (glibc can).
    """
    if not sys.platform.startswith("linux"):
        return False
    adjust = getattr(ctypes.CDLL(None), "mallopt", None)
    if adjust is None:
        return False
    # Blocks of every size from the heap, and the heap is not cut at its end, however much of it is free: the largest
    # positive number is 2 GiB, which a step of a large network frees.
    return bool(adjust(_M_MMAP_MAX, 0)) and bool(adjust(_M_TRIM_THRESHOLD, _NEVER))


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


_function: Any = None  # of a worker process: a pool hands a task nothing but its arguments


def map_in_order(
    make: Callable[..., Callable[[Item], Result]], arguments: tuple[Any, ...], items: Iterable[Item], workers: int
) -> Iterator[tuple[Item, Result]]:
    """(item, result) in the order of the items; a few items are under way at a time, however many there are.

    Args:
        make: gives the function, called with `arguments` once in each process.
        workers: processes beside this one; with one worker the work is done in this process.

    Raises:
        ChildProcessError: a process of the pool was ended from outside.
    """
    if workers <= 1:
        function = make(*arguments)
        for item in items:
            yield item, function(item)
        return
    from concurrent.futures import Future, ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    waiting: deque[tuple[Item, Future[Result]]] = deque()
    # A fresh interpreter for each worker: a copy of this one could hold locks of threads that it does not have.
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (make, arguments)) as pool:
        try:
            for item in items:
                with signals_wait():  # a submitted item may start a process
                    future = pool.submit(_work, item)
                waiting.append((item, future))
                if len(waiting) >= 3 * workers:
                    begun, future = waiting.popleft()
                    yield begun, future.result()
            while waiting:
                begun, future = waiting.popleft()
                yield begun, future.result()
        except BrokenProcessPool:
            raise ChildProcessError(
                "a process of the pool was ended from outside (out of memory?); run the command again, with fewer "
                "--workers if need be: it goes on where it was"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start_worker(make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    global _function  # noqa: PLW0603
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the pool is the parallelism
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _function = make(*arguments)


def _end_with_parent() -> None:
    """A pool whose main process was killed would wait for work for ever."""
    from multiprocessing import parent_process

    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(item: Any) -> Any:
    assert _function is not None
    return _function(item)
