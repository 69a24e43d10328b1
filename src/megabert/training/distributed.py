"""Several processes as one job: how they meet, agree on what they are about to do, speak with one voice, and end.

```python
with started(launched(os.environ), backend="gloo", timeout=timedelta(minutes=10)) as world:
    world.agree({"--lr": "0.1"})
    with world.first():        # rank 0 does it, then the others, who find it done
        ...
```
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megabert import config as configuration
from megabert.training.launch import Launch
from megabert.training.meeting import meet, one_line
from megabert.training.watch import Hub, Watch

SLOW = 2.0
"""A rank that multiplies matrices this many times slower than the median is named."""

MEASURED_SECONDS = 0.2


class World:
    """All processes of a job, from the inside of one.

    Attributes:
        rank, size: of this process among all.
        hosts: the machine of each rank.
        watch: ends the job when a process is lost.
        timeout: of each collective.
        control: a gloo group of all ranks, for small numbers on the CPU.
    """

    def __init__(
        self, launch: Launch, hosts: Sequence[str], watch: Watch, store: dist.Store, timeout: timedelta, backend: str
    ):
        self.rank = launch.rank
        self.size = launch.size
        self.hosts = tuple(hosts)
        self.watch = watch
        self.timeout = timeout
        self._store = dist.PrefixStore("megabert", store)
        self._turn = 0
        dist.init_process_group(
            backend, store=dist.PrefixStore("groups", store), rank=self.rank, world_size=self.size, timeout=timeout
        )
        self.control = dist.new_group(backend="gloo", timeout=timeout)

    def named(self, rank: int) -> str:
        """`rank 3 on host`."""
        return f"rank {rank} on {self.hosts[rank]}"

    @contextmanager
    def first(self) -> Iterator[None]:
        """The block is run by rank 0, then by all others at once: what the first made, they find.

        There is no time limit: a corpus may take hours; if rank 0 fails, its end ends the others.
        """
        key = f"turn/{self._turn}"
        self._turn += 1
        if self.rank == 0:
            yield
            self._store.set(key, "1")
            return
        while not self._store.check([key]):
            time.sleep(0.05)
        yield

    def gather(self, value: str) -> list[str]:
        """The text of each rank, in their order, on all."""
        texts: list[str | None] = [None] * self.size
        dist.all_gather_object(texts, value, group=self.control)
        return [text or "" for text in texts]

    def add(self, numbers: Sequence[int]) -> list[int]:
        """The sums over all ranks."""
        tensor = torch.tensor(numbers, dtype=torch.int64)
        dist.all_reduce(tensor, group=self.control)
        return tensor.tolist()

    def agree(self, values: Mapping[str, str]) -> None:
        """Refuse to start when a rank has another configuration, other data or other code than most.

        Args:
            values: short strings by what they are, as a user would call it.

        Raises:
            ValueError: the rank, its host, and the first of the values that differ.
        """
        found = [json.loads(text) for text in self.gather(json.dumps(dict(values)))]
        for name in dict.fromkeys(name for one in found for name in one):
            said = [one.get(name) for one in found]
            usual, _ = Counter(said).most_common(1)[0]
            odd = [rank for rank, value in enumerate(said) if value != usual]
            if odd:
                more = f" (and {len(odd) - 1} more ranks)" if len(odd) > 1 else ""
                raise ValueError(
                    f"{self.named(odd[0])}{more} was started with another {name}: {said[odd[0]]} there, {usual} on "
                    "the others; start all ranks with the same flags, data and code"
                )

    def slow_ranks(self, device: torch.device) -> list[str]:
        """Ranks whose processor or GPU is far slower than the others', each as a line: they hold all back."""
        rates = [float(text) for text in self.gather(str(_matrix_rate(device)))]
        median = sorted(rates)[len(rates) // 2]
        return [
            f"{self.named(rank)} is a straggler: it multiplies matrices at {rate / 1e9:.0f} GFLOP/s where the median "
            f"of all ranks is {median / 1e9:.0f}; every step waits for it"
            for rank, rate in enumerate(rates)
            if rate * SLOW < median
        ]


def _matrix_rate(device: torch.device) -> float:
    """Floating point operations a second of this process.

    The mean over many of a scheduler's turns: a process that shares its core is as fast as any while it has it.
    """
    size = 4096 if device.type == "cuda" else 256
    one = torch.ones(size, size, device=device)
    (one @ one)[0, 0].item()  # the first one loads the library
    made, begin, seconds = 0, time.perf_counter(), 0.0
    while seconds < MEASURED_SECONDS:
        (one @ one)[0, 0].item()
        made += 1
        seconds = time.perf_counter() - begin
    return 2 * size**3 * made / seconds


def backend_of(chosen: str | None, device: torch.device) -> str:
    """The backend of torch's process group: what was chosen, else NCCL between GPUs and gloo between CPUs.

    Raises:
        ValueError: NCCL for processes without a GPU.
    """
    if chosen == "nccl" and device.type != "cuda":
        raise ValueError(
            "--distributed-backend nccl carries messages between GPUs, and this process trains on the CPU "
            "(--device cpu, or PyTorch sees no GPU): leave the flag out, or say gloo"
        )
    name = chosen or ("nccl" if device.type == "cuda" else "gloo")
    return "cpu:gloo,cuda:nccl" if name == "nccl" else name


def code_version() -> dict[str, str]:
    """What a rank runs: digests and versions that all ranks must share."""
    folder = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return {
        "code of megabert": digest.hexdigest()[:16],
        "version of torch": torch.__version__,
        "version of Python": platform.python_version(),
    }


def agree_to_start(world: World, config: Any, identity: Mapping[str, str], device: torch.device) -> None:
    """Refuse processes that were started with other flags, data or code; name those that are far slower.

    Args:
        config: a command's.
        identity: what the run is made of, as short strings.

    Raises:
        ValueError: the rank, its host, and the first of the values that differ.
    """
    flags = {
        f"--{configuration.flag_name(field.name)}": str(getattr(config, field.name))
        for field in dataclasses.fields(config)
        if field.name != "local_rank"
    }
    world.agree({**flags, **identity, **code_version()})
    for line in world.slow_ranks(device):
        print(line, flush=True)


@contextmanager
def started(
    launch: Launch, *, backend: str, timeout: timedelta, program: str = "megabert", say: Callable[[str], None] = print
) -> Iterator[World]:
    """The job while it runs: its processes have met, and each one's end is known to all.

    In the block only rank 0 writes to standard output. An error in it is said once, by rank 0, with the rank and host
    that it comes from unless all have it, and ends all processes.

    Args:
        backend: of torch's process group, as `gloo` or `cpu:gloo,cuda:nccl`.
        timeout: of the meeting, of each collective, and of a machine that has fallen silent.
        program: begins an error's line.

    Raises:
        ValueError: not all processes arrived in time; the missing ranks are named.
    """
    store, hosts = meet(launch, timeout, say)
    watch = _watch(launch, store, hosts, timeout, program)
    if launch.rank:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    with watch.patient():  # a launcher's SIGTERM must not end this process before it has said why
        try:
            yield World(launch, hosts, watch, store, timeout, backend)
        except (ValueError, OSError) as error:
            _leave(watch, one_line(error), 2, cause=not _is_network(error))
        except KeyboardInterrupt:
            _leave(watch, "interrupted", 130, cause=True)
        except RuntimeError as error:
            # Most often a collective whose other side is gone: the watch knows of whom, and speaks of that.
            if os.environ.get("MEGABERT_TRACEBACK"):
                raise
            _leave(watch, one_line(error), 1, cause=False)
    watch.close()
    dist.destroy_process_group()


def _leave(watch: Watch, text: str, status: int, *, cause: bool) -> None:
    raise SystemExit(watch.fail(text, status, cause=cause))


def _is_network(error: Exception) -> bool:
    return isinstance(error, ConnectionError | TimeoutError)


def _watch(launch: Launch, store: dist.Store, hosts: list[str], timeout: timedelta, program: str) -> Watch:
    silence = timeout.total_seconds()
    if launch.rank == 0:
        token = secrets.token_hex(16)

        def shout(line: str) -> None:
            print(f"{program}: error: {line}", file=sys.stderr, flush=True)

        hub = Hub(hosts, token, silence, shout)
        store.set("watch", f"{token} {hub.port}")
        return Watch(0, hosts[0], ("127.0.0.1", hub.port), token, silence, hub, first_host=hosts[0])
    token, port = store.get("watch").decode().split()
    return Watch(launch.rank, hosts[launch.rank], (launch.address, int(port)), token, silence, first_host=hosts[0])
