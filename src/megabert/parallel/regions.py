"""The borders between what tensor-parallel processes hold whole and what they hold in parts.

Each is a function with its gradient: what is whole on one way is a sum over processes on the other. Tensors are local.
Source: Shoeybi et al. 2019 (`enter`, `leave`: their f and g), Korthikanti et al. 2022 (over the sequence).
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

# torch 2.13 has new names for these two and warns of the old ones, which 2.11 has.
_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def added(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """The sum over processes, as a new tensor."""
    result = tensor.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(result, group=group)
    return result


def gathered(part: Tensor, group: ProcessGroup) -> Tensor:
    """The parts [n, ...] of all processes, one after the other: [n * processes, ...]."""
    result = part.new_empty(part.shape[0] * group.size(), *part.shape[1:])
    _gather(result, part, group=group)
    return result


def part_of(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """This process's part of [batch, seq, ...]: [batch, seq / processes, ...].

    Raises:
        ValueError: the sequence does not divide.
    """
    processes, length = group.size(), tensor.shape[1]
    if length % processes:
        raise ValueError(
            f"sequence parallelism cuts a sequence of {length} places among {processes} processes: pad it to "
            f"{-(-length // processes) * processes}"
        )
    return tensor.chunk(processes, dim=1)[group.rank()].contiguous()


def joined(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """The parts [batch, part of seq, ...] of all processes, one after the other: [batch, seq, ...]."""
    return gathered(tensor.transpose(0, 1).contiguous(), group).transpose(0, 1).contiguous()


def added_part(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """This process's part of the sum over processes: [batch, seq, ...] -> [batch, seq / processes, ...]."""
    whole = tensor.transpose(0, 1).contiguous()
    result = whole.new_empty(whole.shape[0] // group.size(), *whole.shape[1:])
    _reduce_scatter(result, whole, group=group)
    return result.transpose(0, 1).contiguous()


_WAYS = {
    "same": lambda tensor, group: tensor.view_as(tensor),
    "added": added,
    "part_of": part_of,
    "joined": joined,
    "added_part": added_part,
}


class _Border(torch.autograd.Function):
    """One function on the way forward, another on the way back."""

    @staticmethod
    def forward(ctx, tensor: Tensor, group: ProcessGroup, there: str, back: str) -> Tensor:
        ctx.group, ctx.back = group, back
        return _WAYS[there](tensor, group)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return _WAYS[ctx.back](gradients[0], ctx.group), None, None, None


def enter(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """Whole -> whole, about to be used by each process's part: its gradients are added up."""
    return _Border.apply(tensor, group, "same", "added")  # type: ignore[return-value]


def leave(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """Each process's summand -> the sum."""
    return _Border.apply(tensor, group, "added", "same")  # type: ignore[return-value]


def enter_from_sequence(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """A part of the sequence -> all of it, about to be used by each process's part of the matrices."""
    return _Border.apply(tensor, group, "joined", "added_part")  # type: ignore[return-value]


def leave_to_sequence(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """Each process's summand -> its part of the sequence of the sum."""
    return _Border.apply(tensor, group, "added_part", "joined")  # type: ignore[return-value]


def cut_sequence(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """Whole -> this process's part of the sequence."""
    return _Border.apply(tensor, group, "part_of", "joined")  # type: ignore[return-value]


def join_sequence(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """A part of the sequence -> all of it, used in the same way by every process."""
    return _Border.apply(tensor, group, "joined", "part_of")  # type: ignore[return-value]
