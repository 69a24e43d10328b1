"""How long it takes: a few lines of arithmetic over what the recorder counted. docs/parallelism.md explains each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from megabert.parallel.mesh import Layout
from megabert.planning.hardware import Hardware
from megabert.planning.recorder import Collective, Operation

HALF_RATE_CONTRACTION = 128
"""A matrix product whose sums are so long runs at half of the full rate."""
ATTENTION_SHARE = 0.6
"""The rate of a fused attention kernel, as a share of that of a large matrix product."""
CONTENTION = 0.4
"""The share of a hidden collective that computing loses all the same: it takes memory bandwidth and processors."""


def seconds_of(operation: Operation, hardware: Hardware) -> float:
    """How long one kernel takes: as long as its arithmetic, its memory traffic or its launch, whichever is longest."""
    rate = (hardware.matrix if operation.half else hardware.matrix_float32) * hardware.matrix_share
    if operation.kind == "matrix":
        rate *= operation.contraction / (operation.contraction + HALF_RATE_CONTRACTION)
    elif operation.kind == "attention":
        rate *= ATTENTION_SHARE
    return max(operation.flops / rate, operation.size / hardware.bandwidth, hardware.launch)


def compute_seconds(operations: Mapping[Operation, float], hardware: Hardware) -> float:
    """How long all of them take, one after the other."""
    return sum(count * seconds_of(operation, hardware) for operation, count in operations.items())


def collective_seconds(collective: Collective, hardware: Hardware) -> float:
    """How long one collective takes: a ring over the ranks, and through the network where they fill several nodes.

    All groups of an axis are at it at the same time, so a group has of its nodes' network what its members there are
    of the nodes' GPUs.
    """
    count = len(collective.ranks)
    if count < 2:
        return 0.0
    nodes = len({rank // hardware.gpus for rank in collective.ranks})
    rate, latency = hardware.link, hardware.link_latency
    if nodes > 1:
        share = max(1.0, count / nodes) / hardware.gpus
        rate, latency = min(rate, hardware.network * share), hardware.network_latency
    steps = {"all-reduce": 2 * (count - 1), "send": 1, "receive": 1}.get(collective.kind, count - 1)
    if nodes > 1 and count > nodes:
        # Inside a node a step is short: only those between nodes wait for the network.
        crossing = {"all-reduce": 2 * (nodes - 1)}.get(collective.kind, nodes - 1)
        waiting = crossing * latency + (steps - crossing) * hardware.link_latency
    else:
        waiting = steps * latency
    # NCCL takes a tree where a ring's many steps would take longer.
    waiting = min(waiting, 2 * latency * max(1, count - 1).bit_length() + 10e-6)
    return waiting + collective.wire / rate


def axis_of(collective: Collective, layout: Layout) -> str:
    """Along which axis of the layout it runs: `tensor`, `data`, `pipeline`, or `all` for several at once."""
    places = [layout.place(rank) for rank in collective.ranks]
    varying = [axis for axis, numbers in enumerate(zip(*places, strict=True)) if len(set(numbers)) > 1]
    if len(varying) != 1:
        return "all"
    return ("pipeline", "data", "tensor")[varying[0]]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one rank does in a step.

    Attributes:
        operations, collectives: of all forward and backward passes.
        update_operations, update_collectives: after them: adding up gradients, norm, optimizer.
        last: operations of the last micro-batch alone, behind whose backward pass gradients can be reduced.
    """

    operations: Mapping[Operation, float]
    collectives: Mapping[Collective, float]
    update_operations: Mapping[Operation, float]
    update_collectives: Mapping[Collective, float]
    last: Mapping[Operation, float]

    def toward(self, other: Work, times: float) -> Work:
        """This work and `times` times what `other` has more of everything: a straight line through both."""

        def line(one: Mapping[Any, float], two: Mapping[Any, float]) -> dict[Any, float]:
            numbers = {key: one.get(key, 0) + times * (two.get(key, 0) - one.get(key, 0)) for key in {*one, *two}}
            return {key: number for key, number in numbers.items() if number}

        names = [field.name for field in fields(self)]
        return Work(**{name: line(getattr(self, name), getattr(other, name)) for name in names})

    @property
    def all_collectives(self) -> dict[Collective, float]:
        """Of the passes and of the update."""
        both = dict(self.collectives)
        for collective, count in self.update_collectives.items():
            both[collective] = both.get(collective, 0) + count
        return both

    @property
    def flops(self) -> float:
        """Multiplications and additions of matrices in the passes."""
        return sum(operation.flops * count for operation, count in self.operations.items())


@dataclass(frozen=True, kw_only=True)
class Times:
    """Where the seconds of a step go, on one rank."""

    compute: float
    tensor: float
    pipeline: float
    bubble: float
    data: float
    update: float

    @property
    def step(self) -> float:
        """Seconds of a step."""
        return self.compute + self.tensor + self.pipeline + self.bubble + self.data + self.update


def times_of(work: Work, layout: Layout, hardware: Hardware, micro_batches: int, *, overlap: bool) -> Times:
    """The seconds of a step on one rank, were all ranks of its pipeline like it.

    Args:
        overlap: collectives of data parallelism run beside the computing.
    """
    compute = compute_seconds(work.operations, hardware)
    by_axis: dict[str, float] = {"tensor": 0.0, "data": 0.0, "pipeline": 0.0, "all": 0.0}
    for collective, count in work.all_collectives.items():
        by_axis[axis_of(collective, layout)] += count * collective_seconds(collective, hardware)
    data = by_axis["data"]
    if overlap:
        # Replicated gradients move while the last backward pass runs, sharded weights during all passes.
        room = compute if layout.sharding == "full" else compute_seconds(work.last, hardware) * 2 / 3
        data = max(data - room, 0.0) + CONTENTION * min(data, room)
    passing = compute + by_axis["tensor"] + by_axis["pipeline"]
    return Times(
        compute=compute,
        tensor=by_axis["tensor"],
        pipeline=by_axis["pipeline"],
        bubble=passing * (layout.pipeline - 1) / (micro_batches * layout.virtual),
        data=data,
        update=compute_seconds(work.update_operations, hardware) + by_axis["all"],
    )
