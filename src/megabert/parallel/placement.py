"""Where the part of a weight that a process holds lies in the whole weight.

In a step every tensor is a plain local one: kernels, optimizers and norms need nothing else. A `DTensor`, which knows
the whole, is made here of the local part where the whole is asked for: checkpoints, exports.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard  # fully_shard makes them; there is no public name

from megabert.parallel.mesh import Layout


def chunk(size: int, parts: int, index: int) -> tuple[int, int]:
    """The [begin, end) of part `index` of `size` rows in `parts`, as `torch.chunk` cuts: the last are shorter."""
    each = -(-size // parts)
    return min(each * index, size), min(each * (index + 1), size)


@dataclass(frozen=True)
class Placed:
    """One weight's place.

    Attributes:
        shape: of the whole weight.
        cut: the dim that the processes of a tensor-parallel group share; None: each has all of it.
        sharded: data-parallel processes share dim 0 of what the tensor cut leaves.
    """

    shape: tuple[int, ...]
    cut: int | None = None
    sharded: bool = False

    def within_tensor(self, whole: Tensor, parts: int, index: int) -> Tensor:
        """The part of tensor rank `index` of `parts` (before any sharding), a view."""
        if self.cut is None or parts == 1:
            return whole
        begin, end = chunk(self.shape[self.cut], parts, index)
        return whole.narrow(self.cut, begin, end - begin)

    def within_data(self, tensor: Tensor, parts: int, index: int) -> Tensor:
        """What data rank `index` of `parts` has of it, a view."""
        if not self.sharded or parts == 1:
            return tensor
        begin, end = chunk(tensor.shape[0], parts, index)
        return tensor[begin:end]

    def whole(self, local: Tensor, mesh: DeviceMesh, layout: Layout) -> DTensor:
        """A view of this process's part of the weight, its gradient or a moment of it, as a part of the whole.

        Args:
            mesh: with the axes of `mesh.AXES`.
        """
        tensor: Placement = Replicate() if self.cut is None else Shard(self.cut)
        data: Placement = Replicate()
        if self.sharded:
            data = _StridedShard(0, split_factor=layout.tensor) if self.cut == 0 and layout.tensor > 1 else Shard(0)
        stride = torch.empty(self.shape, device="meta").stride()
        return DTensor.from_local(
            local, mesh["data", "tensor"], (data, tensor), run_check=False, shape=torch.Size(self.shape), stride=stride
        )
