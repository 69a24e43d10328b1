"""How the processes of a run are laid out, and torch's mesh of them."""

from __future__ import annotations

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


def layout_of(
    options: ParallelOptions, world: int, *, layers: int, heads: int, intermediate: int, sequence: int
) -> Layout:
    """The layout that the options mean among `world` processes.

    Args:
        layers, heads, intermediate: of the model: number of layers and heads, width inside the MLP.
        sequence: longest row, in tokens.

    Raises:
        ValueError: they do not fit; the reason and the nearest possible number are named.
    """
    tensor, pipeline = options.tensor_model_parallel_size, options.pipeline_model_parallel_size
    _check_tensor(tensor, heads=heads, intermediate=intermediate)
    if options.sequence_parallel and sequence % tensor:
        raise ValueError(
            f"--sequence-parallel cuts a sequence of {sequence} tokens among {tensor} processes: --seq-length must be "
            f"a multiple of {tensor} (the nearest is {_nearest_multiple(sequence, tensor)})"
        )
    virtual = _pieces(options, layers)
    if world == 1 < tensor * pipeline:
        raise ValueError(
            f"--tensor-model-parallel-size {tensor} x --pipeline-model-parallel-size {pipeline} needs "
            f"{tensor * pipeline} processes, and this is one: start them with torchrun --nproc-per-node "
            f"{tensor * pipeline} -m megabert ..."
        )
    if world % (tensor * pipeline):
        possible = [size for size in range(1, world + 1) if world % size == 0]
        near = min(possible, key=lambda size: (abs(size - tensor * pipeline), size))
        raise ValueError(
            f"{world} processes cannot be cut into groups of {tensor * pipeline} (--tensor-model-parallel-size "
            f"{tensor} x --pipeline-model-parallel-size {pipeline}): the nearest group size that divides {world} is "
            f"{near}, the nearest number of processes {_nearest_multiple(world, tensor * pipeline)}"
        )
    data = world // (tensor * pipeline)
    return Layout(
        world=world, tensor=tensor, pipeline=pipeline, virtual=virtual, data=data,
        sequence_parallel=options.sequence_parallel and tensor > 1, sharding=sharding_of(options),
    )  # fmt: skip


def _check_tensor(tensor: int, **counts: int) -> None:
    for name, count in counts.items():
        if count % tensor:
            flag = {"heads": "--num-attention-heads", "intermediate": "--intermediate-size"}[name]
            near = max(size for size in range(1, tensor) if all(number % size == 0 for number in counts.values()))
            raise ValueError(
                f"--tensor-model-parallel-size {tensor} does not divide {flag} {count}: the nearest size that does is "
                f"{near}, the nearest {flag} {_nearest_multiple(count, tensor)}"
            )


def _pieces(options: ParallelOptions, layers: int) -> int:
    """Pieces of the model on each stage."""
    pipeline, each = options.pipeline_model_parallel_size, options.num_layers_per_virtual_pipeline_stage
    if layers % pipeline:
        near = max(size for size in range(1, pipeline) if layers % size == 0)
        raise ValueError(
            f"--pipeline-model-parallel-size {pipeline} does not divide --num-layers {layers}: the nearest size that "
            f"does is {near}, the nearest --num-layers {_nearest_multiple(layers, pipeline)}"
        )
    if each is None:
        return 1
    if pipeline == 1:
        raise ValueError("--num-layers-per-virtual-pipeline-stage needs --pipeline-model-parallel-size 2 or more")
    if (layers // pipeline) % each:
        possible = [size for size in range(1, layers // pipeline + 1) if (layers // pipeline) % size == 0]
        near = min(possible, key=lambda size: (abs(size - each), size))
        raise ValueError(
            f"--num-layers-per-virtual-pipeline-stage {each} does not divide the {layers // pipeline} layers of a "
            f"stage: the nearest number that does is {near}"
        )
    return layers // pipeline // each


def _nearest_multiple(number: int, of: int) -> int:
    return max(of, round(number / of) * of)


def make_mesh(layout: Layout, device_type: str) -> DeviceMesh:
    """The mesh of a running process group, with the axes `AXES`; rank order as Megatron's.

    Args:
        device_type: `cpu`, `cuda` or `meta`: where the tensors lie.
    """
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(device_type, (layout.pipeline, layout.data, layout.tensor), mesh_dim_names=AXES)
