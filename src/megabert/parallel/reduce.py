"""Adding gradients up over processes, and the numbers that all processes must agree on.

A gradient is a sum over rows, so processes that read different rows add theirs up (each has divided by the whole
batch's counts before). Norms count each whole weight once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.utils.hooks import RemovableHandle

from megabert.parallel.mesh import Layout
from megabert.parallel.placement import Placed
from megabert.parallel.tied import Tie

BUCKET_BYTES = 25 * 2**20


class Trained(Protocol):
    """Weights that are trained: `training.precision.Weights`."""

    masters: dict[str, nn.Parameter]

    def pairs(self) -> list[tuple[Tensor, nn.Parameter]]:
        """Each weight as the model computes with it, and the float32 tensor that the optimizer changes."""
        ...

    def collect(self, *, first: bool) -> None:
        """Move the gradients of half weights to their masters."""
        ...

    def take_shards(self) -> None:
        """Let the masters of sharded weights hold their gradients."""
        ...

    def clear(self) -> None:
        """Forget all gradients."""
        ...


class _Bucket:
    """Masters whose gradients lie in one piece of float32 memory and are added up in one message."""

    def __init__(self, pairs: Sequence[tuple[Tensor, nn.Parameter]]):
        self.pairs = pairs
        size = sum(master.numel() for _, master in pairs)
        self.memory = torch.zeros(size, dtype=torch.float32, device=pairs[0][1].device)
        pieces = self.memory.split([master.numel() for _, master in pairs])
        self.views = [piece.view_as(master) for piece, (_, master) in zip(pieces, pairs, strict=True)]
        self.touched = [False] * len(pairs)
        self.ready = 0
        self.work: dist.Work | None = None


class Buckets:
    """Gradients of data-parallel replicas, added up in buckets while the last backward pass still runs.

    Gradients are gathered where they are added up: autograd adds those of float32 weights in place, those of half
    weights are moved after each backward pass of a weight.
    """

    def __init__(
        self, pairs: Sequence[tuple[Tensor, nn.Parameter]], group: ProcessGroup, *, bucket_bytes: int = BUCKET_BYTES
    ):
        self.group = group
        self.buckets: list[_Bucket] = []
        self._hooks: list[RemovableHandle] = []
        self._armed = False
        self._next = 0
        pending: list[tuple[Tensor, nn.Parameter]] = []
        # Gradients come from the last layer to the first.
        for pair in reversed(pairs):
            pending.append(pair)
            if sum(master.numel() for _, master in pending) * 4 >= bucket_bytes:
                self._close(pending)
                pending = []
        if pending:
            self._close(pending)
        self.clear()

    def _close(self, pairs: list[tuple[Tensor, nn.Parameter]]) -> None:
        bucket = _Bucket(pairs)
        self.buckets.append(bucket)
        for index, (weight, _) in enumerate(pairs):
            self._hooks.append(weight.register_post_accumulate_grad_hook(self._hook(bucket, index)))

    def _hook(self, bucket: _Bucket, index: int):
        weight, master = bucket.pairs[index]

        def ready(_: Tensor) -> None:
            if weight is not master:
                assert weight.grad is not None
                bucket.views[index].add_(weight.grad)
                weight.grad = None
            bucket.touched[index] = True
            if self._armed:
                bucket.ready += 1
                self._send()

        return ready

    def _send(self) -> None:
        """Start the messages of the buckets that are full, in one order on all processes."""
        while self._next < len(self.buckets):
            bucket = self.buckets[self._next]
            if bucket.ready < len(bucket.pairs):
                return
            bucket.work = dist.all_reduce(bucket.memory, group=self.group, async_op=True)
            self._next += 1

    def arm(self, last: bool) -> None:
        """Before each micro-batch: with the last one, buckets are sent as they fill."""
        self._armed = last

    def complete(self) -> None:
        """Send what is left, wait, and hand the gradients of weights that had one to their masters."""
        for bucket in self.buckets[self._next :]:
            bucket.ready = len(bucket.pairs)
        self._send()
        for bucket in self.buckets:
            assert bucket.work is not None
            bucket.work.wait()
            for (_, master), view, touched in zip(bucket.pairs, bucket.views, bucket.touched, strict=True):
                master.grad = view if touched else None

    def clear(self) -> None:
        """Forget all gradients; their memory stays."""
        self._armed, self._next = False, 0
        for bucket in self.buckets:
            bucket.memory.zero_()
            bucket.touched = [False] * len(bucket.pairs)
            bucket.ready, bucket.work = 0, None
            for (weight, master), view in zip(bucket.pairs, bucket.views, strict=True):
                weight.grad = None
                master.grad = view if weight is master else None


class MeshExchange:
    """What the processes of a mesh exchange in a step: `training.engine.Exchange`.

    Args:
        weights: this process's.
        places: where each of them lies, by name.
        summands: names of weights whose gradient each tensor rank has only a summand of (sequence parallelism).
        tie: of this process's copies of weights with those on another stage of the pipeline.
        overlap: add gradients up while the last backward pass runs.
    """

    def __init__(
        self,
        weights: Trained,
        mesh: DeviceMesh,
        layout: Layout,
        *,
        places: Mapping[str, Placed],
        summands: Collection[str] = (),
        tie: Tie | None = None,
        overlap: bool = True,
    ):
        self.weights = weights
        self.layout = layout
        self.pipeline_rank, self.data_rank, self.tensor_rank = mesh.get_coordinate() or (0, 0, 0)
        self.data_group = mesh.get_group("data")
        self.tensor_group = mesh.get_group("tensor")
        self.overlap = overlap
        self.names = {id(master): name for name, master in weights.masters.items()}
        self.places = places
        self.summands = sorted(summands)
        self.tie = tie
        self.device = next(iter(weights.masters.values())).device
        # Of sharded weights a few may be whole on each process: see `styles.placements`.
        replicas = [pair for pair in weights.pairs() if not places[self.names[id(pair[1])]].sharded]
        self.buckets = Buckets(replicas, self.data_group) if layout.data > 1 and replicas else None

    def totals(self, counts: Mapping[str, int]) -> dict[str, int] | dict[str, Tensor]:
        """Predictions of each term in the whole batch, at least 1, from those of this process's part of it."""
        if self.layout.data == 1:
            return {name: max(count, 1) for name, count in counts.items()}
        numbers = torch.tensor(list(counts.values()), dtype=torch.float32, device=self.device)
        dist.all_reduce(numbers, group=self.data_group)
        return dict(zip(counts, numbers.clamp_min(1.0).unbind(), strict=True))

    def arm(self, last: bool) -> None:
        """A micro-batch follows; `last` of the step or not."""
        if self.buckets is not None:
            self.buckets.arm(last and self.overlap)

    def collect(self, first: bool) -> None:
        """A backward pass is done: bring its gradients to where they are added up in float32."""
        if self.buckets is None:
            self.weights.collect(first=first)

    def complete(self) -> None:
        """Let the masters' gradients be those of the whole batch."""
        if self.buckets is not None:
            self.buckets.complete()
        self.weights.take_shards()
        masters = [self.weights.masters[name] for name in self.summands]
        gradients = [master.grad for master in masters if master.grad is not None]
        if gradients:
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(flat, group=self.tensor_group)
            pieces = flat.split([gradient.numel() for gradient in gradients])
            torch._foreach_copy_(
                gradients, [piece.view_as(gradient) for piece, gradient in zip(pieces, gradients, strict=True)]
            )
        if self.tie is not None:
            self.tie.add_gradients(self.weights.masters)

    def numbers(self, losses: Mapping[str, Tensor]) -> tuple[dict[str, float], float]:
        """Mean losses of the whole batch and the global L2 norm of its gradient, equal on every process.

        What another process counts is added as zero, or as NaN where it is not finite here: so not finite anywhere
        means not finite everywhere. Squares are summed in float64: a scaled gradient's may be too large for float32.
        """
        counted: list[Tensor] = []
        others: list[Tensor] = []
        for name, master in self.weights.masters.items():
            if master.grad is not None and master.grad.numel():
                (counted if self._counts(name) else others).append(master.grad)
        squares = torch.zeros((), dtype=torch.float64, device=self.device)
        for gradients, factor in ((counted, 1.0), (others, 0.0)):
            if gradients:
                squares += torch.stack(torch._foreach_norm(gradients)).double().square().sum() * factor
        speaks = 1.0 if self.tensor_rank == 0 else 0.0
        numbers = torch.stack([*(value.double() * speaks for value in losses.values()), squares])
        dist.all_reduce(numbers)
        *means, total = numbers.tolist()
        return dict(zip(losses, means, strict=True)), total**0.5

    def _counts(self, name: str) -> bool:
        """Whether this process's part of a weight is counted in sums over all processes."""
        place = self.places[name]
        return (
            (place.cut is not None or self.tensor_rank == 0)
            and (place.sharded or self.data_rank == 0)
            and (self.tie is None or name not in self.tie.copies)
        )

    def total(self, numbers: Mapping[str, Tensor]) -> float:
        """The sum of one number of each weight (by name: of the part here), every part of every weight counted once."""
        result = torch.zeros((), dtype=torch.float64, device=self.device)
        for name, number in numbers.items():
            if self._counts(name):
                result += number.double()
        dist.all_reduce(result)
        return float(result)

    def lengths(self, parameters: Sequence[Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
        """The L2 norm of each whole tensor, whose part here lies as the master at its place in `parameters` does."""
        places = [self.places[self.names[id(parameter)]] for parameter in parameters]
        squares = torch.stack(torch._foreach_norm(list(tensors))).square()
        for group, rank, shared in (
            (self.tensor_group, self.tensor_rank, [place.cut is not None for place in places]),
            (self.data_group, self.data_rank, [place.sharded for place in places]),
        ):
            if any(shared) and group.size() > 1:
                mine = torch.tensor([each or rank == 0 for each in shared], device=squares.device)
                squares = torch.where(mine, squares, 0.0)
                dist.all_reduce(squares, group=group)
        return list(squares.sqrt().unbind())

    def clear(self) -> None:
        """Forget all gradients."""
        self.weights.clear()
        if self.buckets is not None:
            self.buckets.clear()
