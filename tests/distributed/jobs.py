"""Jobs of several processes, as a launcher would start them, from a server that has torch imported already."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "torch",
        "torch.distributed.tensor",
        "torch.distributed.fsdp",
        "megabert.training.loop",
        "matplotlib.backends.backend_agg",
        "matplotlib.figure",
        "tests.distributed.small",
    ]
)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@dataclass(frozen=True)
class Ended:
    """How one process ended: its exit status (minus the signal's number when killed) and what it wrote."""

    status: int
    output: str
    errors: str


class Job:
    """Processes that run `function(*arguments)` with torchrun's variables set."""

    def __init__(self, function: Callable, size: int, *arguments, environment: dict[str, str] | None = None):
        self.folder = Path(tempfile.mkdtemp(prefix="job-"))
        port = str(free_port())
        self.processes = []
        for rank in range(size):
            variables = {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **(environment or {}),
            }  # fmt: skip
            process = _CONTEXT.Process(
                target=_child, args=(function, arguments, variables, str(self.folder / str(rank)))
            )
            for name in ("out", "err"):
                (self.folder / f"{rank}.{name}").touch()  # a process may be killed before it opens them
            process.start()
            self.processes.append(process)

    def kill(self, rank: int, number: int = signal.SIGKILL) -> None:
        pid = self.processes[rank].pid
        if pid is not None and self.processes[rank].exitcode is None:
            os.kill(pid, number)

    def wait(self, seconds: float) -> list[Ended]:
        """All ends; a process that is still there after the time is killed, and fails the test."""
        end = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
        late = [rank for rank, process in enumerate(self.processes) if process.exitcode is None]
        for rank in late:
            self.kill(rank)
            self.processes[rank].join()
        found = [
            Ended(process.exitcode or 0, *((self.folder / f"{rank}.{name}").read_text() for name in ("out", "err")))
            for rank, process in enumerate(self.processes)
        ]
        assert not late, f"ranks {late} hang: {found}"
        return found


def run(function: Callable, size: int, *arguments, seconds: float = 60, **more) -> list[Ended]:
    return Job(function, size, *arguments, **more).wait(seconds)


def succeed(function: Callable, size: int, *arguments, seconds: float = 60) -> list[Ended]:
    ended = run(function, size, *arguments, seconds=seconds)
    assert all(one.status == 0 for one in ended), "\n".join(one.errors for one in ended)
    return ended


def _child(function: Callable, arguments: tuple, variables: dict[str, str], place: str) -> None:
    os.environ.update(variables)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{place}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    import torch

    torch.set_num_threads(1)
    function(*arguments)


@contextmanager
def world(seconds: float = 30, backend: str = "gloo"):
    from datetime import timedelta

    from megabert.training.distributed import started
    from megabert.training.launch import launched

    launch = launched(os.environ)
    assert launch is not None
    with started(launch, backend=backend, timeout=timedelta(seconds=seconds), program="test") as found:
        yield found
