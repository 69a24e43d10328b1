"""The only place that chooses an attention kernel, and the kernels of this package.

`attend` takes queries, keys and values and the name that `attn_implementation` set:

* `sdpa`, the default: PyTorch's fused kernel. On a CPU it is this package's own matrix products in training, because
  PyTorch's kernel there is slow on the way back and leaves its fast path altogether once weights are dropped, and in
  bfloat16, where it takes twice the time. On a GPU, in half precision, packed rows have no mask but borders: the kernel
  then computes nothing between samples (`packed_attention`);
* `eager`: everything written out; also used, whatever the name, for a call that asks for the attention weights;
* any other name: the function that Transformers, or a user, registered under it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import is_flash_attn_2_available

from megabert.models.cpu_attention import blocked_attention, blocked_context, headwise_context
from megabert.models.cpu_linear import has_product
from megabert.models.dropout import dropout, serves
from megabert.models.masks import PackedRows
from megabert.models.packed_attention import (
    PackedKernel,
    by_operator,
    by_package,
    by_varlen,
    kernels_take,
    packed_context,
)

SHORTEST_BLOCKED = 32
"""Queries from which on blocks are the faster way in bfloat16; below, starting each product costs more."""

SHORTEST_HEADWISE = 256
"""The same in float32, by the products of `cpu_linear`: head by head, and a short one is too little for two threads."""


def eager_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, probability: float, scaling: float
) -> tuple[Tensor, Tensor]:
    """Attention with its weights written out.

    Args:
        query, key, value: [batch, heads, seq, head_dim], the keys' length may differ from the queries'.
        mask: additive, [batch or 1, heads or 1, query or 1, key].
        probability: of dropping a weight.

    Returns:
        [batch, query, heads, head_dim] and the weights after dropout, [batch, heads, query, key].
    """
    scores = torch.matmul(query * scaling, key.transpose(-1, -2))
    if mask is not None:
        scores = scores + mask
    weights = dropout(torch.softmax(scores, dim=-1), probability, True)
    return torch.matmul(weights, value).transpose(1, 2), weights


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, probability: float, scaling: float
) -> Tensor:
    """PyTorch's fused kernel, or blocked matrix products where a CPU trains or computes in bfloat16.

    Arguments as `eager_attention`; returns [batch, query, heads, head_dim].
    """
    learning = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    wanted = mask is not None and mask.requires_grad
    if serves(query) and probability < 1.0 and not wanted:
        if probability > 0.0 or learning:
            return blocked_attention(query, key, value, mask, probability=probability, scaling=scaling)
        if query.dtype == torch.bfloat16 and query.shape[2] >= SHORTEST_BLOCKED:
            return blocked_context(query, key, value, mask, scaling=scaling)
        if query.dtype == torch.float32 and query.shape[2] >= SHORTEST_HEADWISE and has_product(query.dtype):
            return headwise_context(query, key, value, mask, scaling=scaling)
    context = nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=probability, scale=scaling
    )
    return context.transpose(1, 2)


def takes_borders(kernel: str, device: torch.device, dtype: torch.dtype, head_width: int) -> bool:
    """Whether `attend` takes `masks.PackedRows` in place of a mask from the kernel of that name."""
    return kernel == "sdpa" and kernels_take(device, dtype, head_width)


def packed_kernel(probability: float, scaling: float, head_width: int) -> PackedKernel:
    """The way to the packed kernel: the package if it is installed, else PyTorch's public one where that suffices."""
    if is_flash_attn_2_available():
        return by_package
    return by_varlen if probability == 0.0 and scaling == head_width**-0.5 else by_operator


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | PackedRows | None,
    *,
    kernel: str,
    probability: float,
    scaling: float,
    **kwargs: object,
) -> tuple[Tensor, Tensor | None]:
    """Attention by the kernel of that name.

    Args:
        module: the attention module, handed to registered functions, which read `is_causal` from it.
        query, key, value: [batch, heads, seq, head_dim].
        mask: in the form that the kernel takes (see `masks`); packed rows with `sdpa` only.
        kernel: `sdpa`, `eager`, or a name in Transformers' registry.
        probability: of dropping an attention weight; 0 out of training.
        kwargs: for registered functions (`cu_seq_lens_q`, ...).

    Returns:
        context [batch, query, heads, head_dim]; the weights after dropout, or None from a kernel that has none.

    Raises:
        ValueError: packing arguments of FlashAttention given to a kernel that would ignore them.
    """
    if kernel in ("sdpa", "eager"):
        if kwargs.get("cu_seq_lens_q") is not None:
            raise ValueError(f"cu_seq_lens_q has no meaning for attention kernel {kernel}; pass sample_ids instead")
        if isinstance(mask, PackedRows):
            chosen = packed_kernel(probability, scaling, query.shape[-1])
            return packed_context(
                chosen, query, key, value, borders=mask.borders, probability=probability, scaling=scaling
            ), None
        if kernel == "eager":
            return eager_attention(query, key, value, mask, probability=probability, scaling=scaling)
        return fused_attention(query, key, value, mask, probability=probability, scaling=scaling), None
    registered = ALL_ATTENTION_FUNCTIONS.get_interface(kernel, eager_attention)
    return registered(module, query, key, value, mask, dropout=probability, scaling=scaling, **kwargs)
