"""Where the part of a weight that a process holds lies in the whole weight.

In a step every tensor is a plain local one: kernels, optimizers and norms need nothing else. A `DTensor`, which knows
the whole, is made here of the local part where the whole is asked for: checkpoints, exports, plans.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard  # DTensor has no public name for it

from megabert.parallel.mesh import Layout


def chunk(size: int, parts: int, index: int) -> tuple[int, int]:
    """The [begin, end) of part `index` when `size` rows are cut into `parts` as `torch.chunk` does: the last are short."""
    each = -(-size // parts)
    return min(each * index, size), min(each * (index + 1), size)


@dataclass(frozen=True)
class Placed:
    """One weight's place.

    Attributes:
        shape: of the whole weight.
        cut: the dim that the tensor-parallel processes share; None: each has all of it.
        sharded: the data-parallel processes share dim 0 of what the tensor cut leaves.
    """

    shape: tuple[int, ...]
    cut: int | None = None
    sharded: bool = False

    def whole(self, local: Tensor, mesh: DeviceMesh, layout: Layout) -> DTensor:
        """A view of this process's part as a part of the whole. Tensors with other shapes than the weight stay whole.

        Args:
            local: the weight's, gradient's or moment's part, as the optimizer holds it.
            mesh: with the axes of `mesh.AXES`.
        """
        tensor: Placement = Replicate() if self.cut is None else Shard(self.cut)
        data: Placement = Replicate()
        if self.sharded:
            data = _StridedShard(0, split_factor=layout.tensor) if self.cut == 0 and layout.tensor > 1 else Shard(0)
        stride = [1] * len(self.shape)
        for dim in range(len(self.shape) - 2, -1, -1):
            stride[dim] = stride[dim + 1] * self.shape[dim + 1]
        return DTensor.from_local(
            local, mesh["data", "tensor"], (data, tensor), run_check=False, shape=self.shape, stride=tuple(stride)
        )
