"""Attention on packed rows without a mask: GPU kernels that are told where each sample begins and ends.

Three ways to one kernel, FlashAttention 2 in half precision: the package `flash_attn`; PyTorch's public `varlen_attn`,
which has no dropout; and the operator below both that and PyTorch's nested tensors, which has it. `attention.py`
chooses. Source: Dao 2023, "FlashAttention-2".
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

PackedKernel = Callable[[Tensor, Tensor, Tensor, Tensor, int, float, float], Tensor]
"""(query, key, value, borders, longest, probability, scaling) -> context; see `packed_context`."""

WIDEST_HEAD = 256
HEAD_MULTIPLE = 8


def kernels_take(device: torch.device, dtype: torch.dtype, head_width: int) -> bool:
    """Whether the kernels compute with heads of this width here: in half precision, on NVIDIA's Ampere or newer."""
    return (
        device.type == "cuda"
        and dtype in (torch.bfloat16, torch.float16)
        and head_width <= WIDEST_HEAD
        and head_width % HEAD_MULTIPLE == 0
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def by_package(
    query: Tensor, key: Tensor, value: Tensor, borders: Tensor, longest: int, probability: float, scaling: float
) -> Tensor:
    """The package `flash_attn`; arguments and result as `packed_context`, rows without their batch dimension."""
    from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found]

    return flash_attn_varlen_func(
        query, key, value, borders, borders, longest, longest, dropout_p=probability, softmax_scale=scaling
    )


def by_varlen(
    query: Tensor, key: Tensor, value: Tensor, borders: Tensor, longest: int, probability: float, scaling: float
) -> Tensor:
    """PyTorch's `varlen_attn`: no dropout, and scores are scaled by one over the root of the head's width."""
    from torch.nn.attention.varlen import varlen_attn

    assert probability == 0.0 and scaling == query.shape[-1] ** -0.5
    context = varlen_attn(query, key, value, borders, borders, longest, longest)
    assert isinstance(context, Tensor)
    return context


def by_operator(
    query: Tensor, key: Tensor, value: Tensor, borders: Tensor, longest: int, probability: float, scaling: float
) -> Tensor:
    """The operator that PyTorch's scaled dot product attention calls for nested tensors, dropout included."""
    return torch.ops.aten._flash_attention_forward(
        query, key, value, borders, borders, longest, longest, probability, False, False, scale=scaling
    )[0]


def packed_context(
    kernel: PackedKernel,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    borders: Tensor,
    probability: float,
    scaling: float,
) -> Tensor:
    """Attention inside samples.

    Args:
        query, key, value: [batch, heads, seq, head_dim], all of one shape.
        borders: int32 [samples + 1]: where each sample begins in the rows laid end to end, then their whole length;
            samples at the end may be empty.
        probability: of dropping an attention weight.

    Returns:
        [batch, seq, heads, head_dim].
    """
    batch, _, length, _ = query.shape
    # In memory the heads of a place lie together, so this is a view of what the projections gave.
    query, key, value = (tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value))
    return kernel(query, key, value, borders, length, probability, scaling).unflatten(0, (batch, length))
