"""The processes of a run as the loop sees them: whose rows are whose, who speaks, how numbers are added up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from megabert.parallel.mesh import Layout
from megabert.parallel.placement import Placed
from megabert.training.distributed import World
from megabert.training.resume import Checkpoints


class Team(Protocol):
    """All processes of a run, from the inside of one.

    Attributes:
        leads: this one writes metrics and speaks to people.
        data_rank: which share of the rows this one reads; several may read the same.
        data_ranks: shares in all.
        counts: of those that read the same rows, this is the one that counts them.
        sums: of those that hold the same outputs, this is the one that adds them up.
    """

    leads: bool
    data_rank: int
    data_ranks: int
    counts: bool
    sums: bool

    def add(self, numbers: Sequence[float]) -> list[float]:
        """The sums over all processes, which all call this."""
        ...

    def agree(self, values: Mapping[str, str]) -> None:
        """Refuse to go on when processes differ in a value.

        Raises:
            ValueError: the process and the value are named.
        """
        ...

    def first(self) -> AbstractContextManager[None]:
        """The block is run by the leading process before all others."""
        ...

    def checkpoints(self, folder: Path, keep_last: int) -> Checkpoints:
        """The checkpoints of the run, as these processes write and read them."""
        ...


class OneProcess:
    """A run of this process alone."""

    def __init__(self) -> None:
        self.leads = self.counts = self.sums = True
        self.data_rank, self.data_ranks = 0, 1

    def add(self, numbers: Sequence[float]) -> list[float]:
        """There is nobody else."""
        return list(numbers)

    def agree(self, values: Mapping[str, str]) -> None:
        """There is nobody else."""

    @contextmanager
    def first(self) -> Iterator[None]:
        """There is nobody else."""
        yield

    def checkpoints(self, folder: Path, keep_last: int) -> Checkpoints:
        """As `Team.checkpoints`."""
        return Checkpoints(folder, keep_last)


@dataclass(frozen=True)
class Sharing:
    """Which part of the run's rows and weights a process has.

    Attributes:
        layout: of the run, in words: a checkpoint of the same layout is gone on from bitwise.
        pipeline_rank, data_rank, tensor_rank: its place.
        data_ranks: shares of the rows.
        whole: (weight's name, this process's part of it or of its moments) -> that part of the whole (`DTensor`); a
            weight that every process has whole stays plain.
        aliases: names of copies that belong to the weight of another name (a tied weight on another stage).
    """

    layout: str
    pipeline_rank: int
    data_rank: int
    tensor_rank: int
    data_ranks: int
    whole: Callable[[str, Tensor], Tensor]
    aliases: Mapping[str, str] = field(default_factory=dict)


def sharing_of(
    layout: Layout, rank: int, mesh: DeviceMesh, places: Mapping[str, Placed], aliases: Mapping[str, str] | None = None
) -> Sharing:
    """What process `rank` has in a layout, whose weights lie as `places` says."""
    pipeline, data, tensor = layout.place(rank)

    def whole(name: str, local: Tensor) -> Tensor:
        return places[name].whole(local, mesh, layout) if name in places else local

    return Sharing(str(layout), pipeline, data, tensor, layout.data, whole, aliases or {})


class ManyProcesses:
    """A run of several processes."""

    def __init__(self, world: World, sharing: Sharing):
        self.world = world
        self.sharing = sharing
        self.leads = world.rank == 0
        self.data_rank = sharing.data_rank
        self.data_ranks = sharing.data_ranks
        self.sums = sharing.tensor_rank == 0
        self.counts = self.sums and sharing.pipeline_rank == 0
        # Saves run beside the training: their messages need a group of their own.
        saves = dist.new_group(backend="gloo", timeout=world.timeout)
        assert isinstance(saves, dist.ProcessGroup)
        self._saves = saves

    def add(self, numbers: Sequence[float]) -> list[float]:
        """As `Team.add`; exact for whole numbers below 2**53."""
        tensor = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(tensor, group=self.world.control)
        return tensor.tolist()

    def agree(self, values: Mapping[str, str]) -> None:
        """As `Team.agree`."""
        self.world.agree(values)

    @contextmanager
    def first(self) -> Iterator[None]:
        """As `Team.first`."""
        with self.world.first():
            yield

    def checkpoints(self, folder: Path, keep_last: int) -> Checkpoints:
        """As `Team.checkpoints`."""
        from megabert.training.shared import SharedCheckpoints

        found = SharedCheckpoints(folder, keep_last, self.world, self.sharing, self._saves)

        def advice() -> str:
            latest = found.named("latest")
            return f" (newest checkpoint: {latest}; the same command goes on from it)" if latest else ""

        for speaker in (self.world.watch.hub, self.world.watch):
            if speaker is not None:
                speaker.advice = advice
        return found
