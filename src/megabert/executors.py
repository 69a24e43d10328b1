"""Where the pieces of a long work are computed: processes of this machine, or machines of a Ray cluster.

An executor is a function like `runtime.map_in_order`: results come in the order of the pieces whoever computes them, so
what is written does not depend on it. Only functions that need nothing but their piece can be sent away.
"""

from __future__ import annotations

import logging
import os
import platform
import signal
import socket
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

from megabert import runtime
from megabert.config import option
from megabert.runtime import Item, MapInOrder, Result

_RETRIES = 5  # of a piece whose worker or node was lost
_SECONDS_BETWEEN_LOOKS = 5.0
_SECONDS_TO_REACH = 10.0
_LEAST_STORE_BYTES = 256 << 20
_STORE_BYTES_A_WORKER = 64 << 20
_END = object()


@dataclass(frozen=True, kw_only=True)
class ExecutorOptions:
    """Machines."""

    executor: Literal["local", "ray"] = option(
        "local", "who computes: processes of this machine, or the machines of a Ray cluster (pip install "
        "'megabert[ray]'), which see the input files under the same paths; the output is the same",
    )  # fmt: skip
    ray_address: str | None = option(
        None, "with --executor ray: HOST:PORT of the cluster's head; left out, RAY_ADDRESS or the cluster that runs on "
        "this machine, and if there is none, one is started for this command", metavar="HOST:PORT",
        example="10.0.0.1:6379",
    )  # fmt: skip


@contextmanager
def chosen(options: ExecutorOptions, workers: int | None) -> Iterator[tuple[MapInOrder, int | None]]:
    """The executor that is asked for, and how many pieces it computes at once; None leaves that to who uses it.

    Args:
        workers: as asked for; None on Ray: all processors of the cluster.

    Raises:
        ValueError: Ray is not installed, its cluster cannot be reached or has no processors.
    """
    if options.executor == "local":
        if options.ray_address is not None:
            raise ValueError("--ray-address names a cluster, but nothing is sent there: add --executor ray")
        yield runtime.map_in_order, workers
        return
    try:
        import ray
    except ImportError:
        raise ValueError("--executor ray needs Ray: pip install 'megabert[ray]'") from None
    ours = not ray.is_initialized()
    if ours:
        _connect(ray, options.ray_address, workers)
    try:
        processors = int(ray.cluster_resources().get("CPU", 0))
        if processors < 1:
            raise ValueError("the Ray cluster has no processors: start its nodes with `ray start --num-cpus`")
        yield _Cluster(ray).map_in_order, workers or processors
    finally:
        if ours:
            ray.shutdown()


def _connect(ray: Any, address: str | None, workers: int | None) -> None:
    """Join a cluster, or start one on this machine."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    named = address or os.environ.get("RAY_ADDRESS", "")
    try:
        if named:
            _reach(named)
        ray.init(address=named or "auto", **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        if named:
            reason = str(error).strip().split("\n")[0]
            raise ValueError(f"there is no Ray cluster at {named} that can be joined: {reason}") from None
        workers = workers or len(os.sched_getaffinity(0))
        store = max(_LEAST_STORE_BYTES, workers * _STORE_BYTES_A_WORKER)
        ray.init(address="local", num_cpus=workers, object_store_memory=store, include_dashboard=False, **quiet)
    finally:
        if in_main_thread:  # Ray's own would end the program without a word and before it has kept what is done
            signal.signal(signal.SIGTERM, before)


def _reach(address: str) -> None:
    """Try an address of the form HOST:PORT at once; Ray itself would try for minutes, and say it in many lines."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), _SECONDS_TO_REACH).close()
    elif address not in ("auto", "local"):
        raise ValueError("HOST:PORT is needed")


class _Cluster:
    """Pieces sent over a cluster; those of a lost worker or node are sent again."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._alive = self._nodes()
        self._looked = time.monotonic()

    def map_in_order(
        self, make: Callable[..., Callable[[Item], Result]], arguments: tuple[Any, ...], items: Iterable[Item],
        workers: int,
    ) -> Iterator[tuple[Item, Result]]:  # fmt: skip
        """(item, result) in the order of the items; at most `workers` are computed at a time.

        Raises:
            ChildProcessError: one piece lost its worker again and again.
        """
        remote = self._ray.remote(num_cpus=1, max_retries=_RETRIES)(_work)
        # In a list it is not fetched for each piece: a worker asks for it once.
        how = [self._ray.put((make, arguments))]
        key = uuid.uuid4().hex
        source = iter(items)
        waiting: deque[tuple[Item, Any]] = deque()
        unfinished: set[Any] = set()
        ended = False
        while True:
            while not ended and len(unfinished) < workers and len(waiting) < 4 * workers:
                item: Any = next(source, _END)
                ended = item is _END
                if not ended:
                    waiting.append((item, remote.remote(key, _release(), how, item)))
                    unfinished.add(waiting[-1][1])
            if not waiting:
                return
            if waiting[0][1] not in unfinished:
                begun, result = waiting.popleft()
                yield begun, self._value(result)
                continue
            done, _ = self._ray.wait(list(unfinished), num_returns=1, timeout=_SECONDS_BETWEEN_LOOKS)
            unfinished.difference_update(done)
            self._look()

    def _value(self, result: Any) -> Any:
        try:
            return self._ray.get(result)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self._ray.exceptions.RayError as error:
            reason = str(error).strip().split("\n")[0]
            raise ChildProcessError(
                f"a piece was sent {_RETRIES + 1} times and lost its worker each time ({reason}); run the command "
                "again: it goes on where it was"
            ) from error

    def _nodes(self) -> int:
        return sum(node["Alive"] for node in self._ray.nodes())

    def _look(self) -> None:
        """Say it when machines went away or came."""
        if time.monotonic() - self._looked < _SECONDS_BETWEEN_LOOKS:
            return
        self._looked = time.monotonic()
        alive = self._nodes()
        if alive != self._alive:
            what = "lost nodes: what they had begun is done again" if alive < self._alive else "has more nodes"
            print(f"the cluster {what}; {alive} of them now", file=sys.stderr, flush=True)
            self._alive = alive


_functions: dict[str, Callable[[Any], Any]] = {}  # of a worker process, which serves one run after another


def _release() -> str:
    return version("megabert")


def _work(key: str, release: str, how: list[Any], item: Any) -> Any:
    """One piece, in a worker; `how` makes the function that is kept for the next piece."""
    if key not in _functions:
        import ray

        if release != _release():
            raise ValueError(f"node {platform.node()} has megabert {_release()}, the command is of {release}")
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the cluster is the parallelism
        make, arguments = ray.get(how[0])
        _functions.clear()
        _functions[key] = make(*arguments)
    try:
        return _functions[key](item)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"node {platform.node()} of the cluster sees no file {error.filename}: input files must lie on all nodes "
            "under the same path"
        ) from None
