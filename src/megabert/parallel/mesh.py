"""How the processes of a run are laid out, and torch's mesh of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from megabert.parallel.options import ParallelOptions, sharding_of

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

AXES = ("pipeline", "data", "tensor")
"""The mesh's axes, slowest first: Megatron's rank order. Tensor ranks are neighbours, so they share a machine."""


@dataclass(frozen=True)
class Layout:
    """How `world` processes share a model and a batch.

    Attributes:
        world: processes; `pipeline * data * tensor`.
        tensor: processes that share each layer.
        pipeline: stages.
        virtual: pieces of the model on each stage; 1 is plain 1F1B.
        data: processes (of one tensor and pipeline place) that read different rows.
        sequence_parallel: LayerNorm, dropout and residuals are cut over the sequence among the tensor processes.
        sharding: what data-parallel processes share.
    """

    world: int = 1
    tensor: int = 1
    pipeline: int = 1
    virtual: int = 1
    data: int = 1
    sequence_parallel: bool = False
    sharding: Literal["none", "optimizer", "full"] = "none"

    @property
    def alone(self) -> bool:
        """One process: the plain path."""
        return self.world == 1

    def place(self, rank: int) -> tuple[int, int, int]:
        """The (pipeline, data, tensor) place of a rank."""
        return rank // (self.data * self.tensor), rank // self.tensor % self.data, rank % self.tensor

    def __str__(self) -> str:
        parts = [f"tensor {self.tensor}" + (" + sequence" if self.sequence_parallel else "")]
        parts.append(f"pipeline {self.pipeline}" + (f" x {self.virtual} pieces" if self.virtual > 1 else ""))
        parts.append(f"data {self.data}" + (f" ({self.sharding} sharded)" if self.sharding != "none" else ""))
        return " x ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What of a model and its rows decides how they can be cut.

    Attributes:
        layers, heads, hidden, intermediate: number of layers and heads, width of hidden states and inside the MLP.
        sequence: longest row, in tokens.
    """

    layers: int
    heads: int
    hidden: int
    intermediate: int
    sequence: int


@dataclass(frozen=True)
class _Cut:
    """What the flags ask for: tensor and pipeline sizes, and layers in a piece of a stage."""

    tensor: int
    pipeline: int
    each: int | None

    def __str__(self) -> str:
        flags = f"--tensor-model-parallel-size {self.tensor} --pipeline-model-parallel-size {self.pipeline}"
        return flags if self.each is None else f"{flags} --num-layers-per-virtual-pipeline-stage {self.each}"


def layout_of(options: ParallelOptions, world: int, sizes: Sizes) -> Layout:
    """The layout that the options mean among `world` processes.

    Raises:
        ValueError: they do not fit; the reason and the nearest possible layout are named.
    """
    sharding = sharding_of(options)
    cut = _Cut(
        options.tensor_model_parallel_size, options.pipeline_model_parallel_size,
        options.num_layers_per_virtual_pipeline_stage,
    )  # fmt: skip
    share_sequence = options.sequence_parallel and cut.tensor > 1
    reason = _obstacle(cut, sizes, options.sequence_parallel)
    if reason is None and world == 1 < cut.tensor * cut.pipeline:
        raise ValueError(
            f"--tensor-model-parallel-size {cut.tensor} x --pipeline-model-parallel-size {cut.pipeline} needs "
            f"{cut.tensor * cut.pipeline} processes, and this is one: start them with torchrun --nproc-per-node "
            f"{cut.tensor * cut.pipeline} -m megabert ..."
        )
    if reason is None and world % (cut.tensor * cut.pipeline):
        group = cut.tensor * cut.pipeline
        reason = (
            f"{world} processes cannot be cut into groups of {group} (--tensor-model-parallel-size {cut.tensor} x "
            f"--pipeline-model-parallel-size {cut.pipeline}); the nearest number of processes is "
            f"{_nearest_multiple(world, group)}"
        )
    if reason is not None:
        processes = f" of {world} processes" if world > 1 else ""
        near = _nearest(cut, world, sizes, options.sequence_parallel)
        raise ValueError(f"{reason}; the nearest possible layout{processes} is {near}")
    virtual = 1 if cut.each is None else sizes.layers // cut.pipeline // cut.each
    return Layout(
        world=world, tensor=cut.tensor, pipeline=cut.pipeline, virtual=virtual,
        data=world // (cut.tensor * cut.pipeline), sequence_parallel=share_sequence, sharding=sharding,
    )  # fmt: skip


def remarks(options: ParallelOptions, layout: Layout, hosts: Sequence[str]) -> Iterator[str]:
    """Lines about what a layout allows, and its user may not have meant.

    Args:
        hosts: the machine of each process.
    """
    if options.sequence_parallel and layout.tensor == 1:
        yield "note: --sequence-parallel shares nothing without --tensor-model-parallel-size 2 or more"
    groups = range(0, layout.world, layout.tensor)
    torn = next((first for first in groups if len(set(hosts[first : first + layout.tensor])) > 1), None)
    if torn is not None:
        yield (
            f"note: the tensor ranks {torn} to {torn + layout.tensor - 1} lie on several machines, so each layer waits "
            f"for the network: --tensor-model-parallel-size {layout.tensor} should divide a machine's processes"
        )


def _obstacle(cut: _Cut, sizes: Sizes, share_sequence: bool) -> str | None:
    """Why a model cannot be cut so, and what of the model could change; None: it can."""
    tensor, pipeline = cut.tensor, cut.pipeline
    if sizes.heads % tensor:
        possible = [heads for heads in divisors(sizes.hidden) if heads % tensor == 0]
        near = min(possible, key=lambda heads: abs(heads - sizes.heads), default=None)
        advice = "" if near is None else f" (--num-attention-heads {near} could be cut so)"
        return f"--tensor-model-parallel-size {tensor} does not divide --num-attention-heads {sizes.heads}{advice}"
    if sizes.intermediate % tensor:
        return (
            f"--tensor-model-parallel-size {tensor} does not divide --intermediate-size {sizes.intermediate} "
            f"({_nearest_multiple(sizes.intermediate, tensor)} could be cut so)"
        )
    if share_sequence and sizes.sequence % tensor:
        return (
            f"--sequence-parallel cuts a sequence of {sizes.sequence} tokens among {tensor} processes: --seq-length "
            f"must be a multiple of {tensor}, such as {_nearest_multiple(sizes.sequence, tensor)}"
        )
    if sizes.layers % pipeline:
        return (
            f"--pipeline-model-parallel-size {pipeline} does not divide --num-layers {sizes.layers} "
            f"({_nearest_multiple(sizes.layers, pipeline)} could be cut so)"
        )
    if cut.each is not None and pipeline == 1:
        return "--num-layers-per-virtual-pipeline-stage needs --pipeline-model-parallel-size 2 or more"
    if cut.each is not None and (sizes.layers // pipeline) % cut.each:
        return (
            f"--num-layers-per-virtual-pipeline-stage {cut.each} does not divide the {sizes.layers // pipeline} layers "
            "of a stage"
        )
    return None


def _nearest(wanted: _Cut, world: int, sizes: Sizes, share_sequence: bool) -> _Cut:
    """The possible cut that is most like the wanted one; one process alone stands for as many as it takes."""

    def distance(cut: _Cut) -> tuple[int, int, int]:
        inside = 0 if wanted.each is None else sizes.layers if cut.each is None else abs(cut.each - wanted.each)
        outside = abs(cut.tensor - wanted.tensor) + abs(cut.pipeline - wanted.pipeline)
        return outside, inside, cut.tensor * cut.pipeline

    found = [
        cut
        for tensor in divisors(sizes.heads)
        for pipeline in divisors(sizes.layers)
        if world == 1 or world % (tensor * pipeline) == 0
        for each in (None, *(divisors(sizes.layers // pipeline) if wanted.each is not None else ()))
        if _obstacle(cut := _Cut(tensor, pipeline, each), sizes, share_sequence) is None
    ]
    return min(found, key=distance)


def divisors(number: int) -> list[int]:
    """The numbers that divide `number`, ascending."""
    return [size for size in range(1, number + 1) if number % size == 0]


def _nearest_multiple(number: int, of: int) -> int:
    return max(of, round(number / of) * of)


def make_mesh(layout: Layout, device_type: str) -> DeviceMesh:
    """The mesh of a running process group, with the axes `AXES`; rank order as Megatron's.

    Args:
        device_type: `cpu`, `cuda` or `meta`: where the tensors lie.
    """
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(device_type, (layout.pipeline, layout.data, layout.tensor), mesh_dim_names=AXES)
