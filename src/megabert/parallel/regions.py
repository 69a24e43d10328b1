"""The borders between what tensor-parallel processes hold whole and what they hold in parts.

Each is a function with its gradient: what is whole on one way is a sum over processes on the other. Tensors are local.
Source: Shoeybi et al. 2019 (`enter`, `leave`: their f and g), Korthikanti et al. 2022 (over the sequence).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.distributed_c10d import _resolve_process_group

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


def _group(name: Any) -> ProcessGroup:
    return _resolve_process_group(name)


@torch.library.custom_op("megabert::border", mutates_args=())
def _compiled_border(tensor: Tensor, group: str, there: str, back: str) -> Tensor:
    """`_Border` for code that torch captures: one operator, which it does not look into.

    torch 2.11 captures a message inside an `autograd.Function` without its gradient, and says nothing.
    """
    result = _WAYS[there](tensor, _group(group))
    # An operator's result is its own memory, and lies as the one without numbers below. A part of one row is inside it.
    shared = result.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
    return result.clone(memory_format=torch.contiguous_format) if shared else result


@_compiled_border.register_fake
def _(tensor: Tensor, group: str, there: str, back: str) -> Tensor:
    batch, length, *rest = tensor.shape
    processes = _group(group).size()
    if there == "joined":
        length *= processes
    elif there in ("part_of", "added_part"):
        length //= processes
    return tensor.new_empty(batch, length, *rest)


def _remember(ctx: Any, inputs: tuple[Tensor, str, str, str], output: Tensor) -> None:
    _, *ctx.border = inputs


def _compiled_gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
    group, there, back = ctx.border
    return _compiled_border(gradient, group, back, there), None, None, None


_compiled_border.register_autograd(_compiled_gradient, setup_context=_remember)


def _border(tensor: Tensor, group: ProcessGroup, there: str, back: str) -> Tensor:
    """`there` on the way forward, `back` on the way back."""
    if torch.compiler.is_compiling():
        return _compiled_border(tensor, group.group_name, there, back)
    return _Border.apply(tensor, group, there, back)  # type: ignore[return-value]


def enter(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """Whole -> whole, about to be used by each process's part: its gradients are added up."""
    return _border(tensor, group, "same", "added")


def leave(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """Each process's summand -> the sum."""
    return _border(tensor, group, "added", "same")


def enter_from_sequence(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """A part of the sequence -> all of it, about to be used by each process's part of the matrices."""
    return _border(tensor, group, "joined", "added_part")


def leave_to_sequence(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """Each process's summand -> its part of the sequence of the sum."""
    return _border(tensor, group, "added_part", "joined")


def cut_sequence(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """Whole -> this process's part of the sequence."""
    return _border(tensor, group, "part_of", "joined")


def join_sequence(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """A part of the sequence -> all of it, used in the same way by every process."""
    return _border(tensor, group, "joined", "part_of")
