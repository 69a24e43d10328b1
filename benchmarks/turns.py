"""Sides of a benchmark, each in a process of its own, that take turns: A, B, A, B; and the benchmark's command line.

While one works the others wait, so that each has the machine for itself; and none has anything of another's: neither
its memory nor what it told the C library about memory.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import signal
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from megabert import runtime
from megabert.config import parse


class _Options(Protocol):
    @property
    def output(self) -> Path | None: ...


Options = TypeVar("Options", bound=_Options)


def program(
    options: type[Options], name: str, description: str | None, run: Callable[[Options], Any],
    shown: Callable[[Any], str],
) -> int:  # fmt: skip
    """A benchmark as a program: flags, the run, its result as JSON (`--output`) and as a text.

    Args:
        options: of the command line; `output` among them.
        name: of the benchmark.
        run: gives what JSON can hold.
        shown: that for people.

    Returns:
        The exit status: 2 where the flags or the machine do not let it run, 130 where it was interrupted.
    """
    try:
        chosen = parse(options, sys.argv[1:], program=f"benchmarks/{name}.py", description=description or "")
        earlier = getattr(chosen, "table", None)
        if earlier is not None:
            print(_table_of(earlier, shown))
            return 0
        if chosen.output is not None and not chosen.output.absolute().parent.is_dir():
            raise ValueError(f"--output {chosen.output}: there is no folder {chosen.output.parent}")
        result = run(chosen)
        print(shown(result))
        if chosen.output is not None:
            with runtime.atomic_write(chosen.output) as file:
                file.write(json.dumps(result, indent=2) + "\n")
    except (ValueError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted; nothing is written", file=sys.stderr)
        return 130
    return 0


def _table_of(file: Path, shown: Callable[[Any], str]) -> str:
    """The text of the result that an earlier run wrote.

    Raises:
        ValueError: it is not such a file.
    """
    try:
        return shown(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"--table {file}: is not what --output of this benchmark writes") from error


def check_names(flag: str, given: Sequence[str], known: Sequence[str] | Mapping[str, Any]) -> None:
    """Refuse a name that a flag does not know.

    Raises:
        ValueError: it is not one of the known ones.
    """
    strange = next((name for name in given if name not in known), None)
    if strange is not None:
        raise ValueError(f"{flag}: {strange} is not one of {', '.join(known)}")


def peak_mib() -> float:
    """The largest memory that this process held so far, in MiB: a GPU's in tensors where it uses one, else its own."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.is_file():
        # Not ru_maxrss, which on Linux starts with the size of the process that started this one.
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _serve(connection: Connection, threads: int, prepare: Callable[..., Callable[[], Any]], arguments: Any) -> None:
    # Ctrl-C is the main process's, which ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
    torch.set_num_threads(threads)
    try:
        turn = prepare(*arguments)
        while connection.recv():
            begin = time.perf_counter()
            answer = turn()
            connection.send((time.perf_counter() - begin, answer, peak_mib()))
    except (EOFError, BrokenPipeError):
        return
    except Exception as error:
        connection.send(error)


class Side:
    """A process that prepares itself and then takes a turn when it is asked to.

    Args:
        prepare: a function of a module, called there with `arguments`; returns what a turn does.
        threads: of PyTorch's.
    """

    def __init__(self, prepare: Callable[..., Callable[[], Any]], *arguments: Any, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, threads, prepare, arguments), daemon=True)
        resource_tracker.ensure_running()  # where it starts with the process, it lets signals through again
        with runtime.signals_wait():
            self._process.start()
        theirs.close()
        self.peak_mib = 0.0

    def turn(self) -> tuple[float, Any]:
        """Seconds of a turn, and what it answered; `peak_mib` is then the process's peak of memory so far.

        Raises:
            ValueError: the side failed.
        """
        self._connection.send(True)
        try:
            answer = self._connection.recv()
        except EOFError:
            raise ValueError(f"a side's process ended with status {self._process.exitcode}") from None
        if isinstance(answer, Exception):
            raise ValueError(f"a side failed: {answer}") from answer
        seconds, said, self.peak_mib = answer
        return seconds, said

    def end(self) -> None:
        """End the process, wherever it is."""
        self._connection.close()
        self._process.join(1)
        if self._process.is_alive():
            self._process.kill()


def alternate(
    sides: Mapping[str, Side], repetitions: int, show: Callable[[int, dict[str, float]], None], *, warming: int = 1
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Let all sides take `repetitions` turns one after the other, after some that are not timed; then end them.

    Args:
        show: is told the number of each round, from 1 on, and its seconds.
        warming: turns that are not timed.

    Returns:
        Seconds of each side's turns, and what each answered in the first one.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    try:
        said = {name: side.turn()[1] for name, side in sides.items()}
        for _ in range(warming - 1):
            for side in sides.values():
                side.turn()
        for number in range(1, repetitions + 1):
            for name, side in sides.items():
                seconds[name].append(side.turn()[0])
            show(number, {name: times[-1] for name, times in seconds.items()})
    finally:
        for side in sides.values():
            side.end()
    return seconds, said


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """How many times faster: of the median seconds, and round by round."""
    rounds = [other / own for own, other in zip(ours, theirs, strict=True)]
    return {"ratio": statistics.median(theirs) / statistics.median(ours), "of_each_round": rounds}
