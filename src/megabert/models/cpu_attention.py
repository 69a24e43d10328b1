"""Attention on a CPU: matrix products, block by block, in training with a way back of their own.

PyTorch's fused kernel has no fast path there once attention weights are dropped, its way back is slower than
plain products at the lengths of BERT even without, and in bfloat16 so is its way forward. Written in the usual way
those products copy transposed matrices and pass over the weights many times; here each pass is made once, on blocks
that a processor's cache holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megabert.models.cpu_linear import product
from megabert.models.cpu_softmax import softmax_gradient, softmax_into
from megabert.models.dropout import byte_threshold, draw_kept, from_bits, kept_scale, to_bits, zero_dropped

BLOCK = 2**20
"""Attention weights in one block."""


def _blocks(batch: int, heads: int, weights: int) -> Iterator[tuple[slice, slice]]:
    """Cut [batch, heads, ...] into slices of about `BLOCK` numbers, `weights` being those of one head."""
    if heads * weights <= BLOCK:
        step = max(1, BLOCK // (heads * weights))
        for start in range(0, batch, step):
            yield slice(start, start + step), slice(None)
        return
    step = max(min(heads, torch.get_num_threads()), BLOCK // weights)
    for row in range(batch):
        for start in range(0, heads, step):
            yield slice(row, row + 1), slice(start, start + step)


def _part(mask: Tensor, rows: slice, heads: slice) -> Tensor:
    """The part of a mask [batch or 1, heads or 1, ...] that belongs to a block."""
    return mask[rows if mask.shape[0] > 1 else slice(None), heads if mask.shape[1] > 1 else slice(None)]


def _scores(query: Tensor, key: Tensor, mask: Tensor | None, block: tuple[slice, slice]) -> Tensor:
    """The masked scores of a block; `query` is scaled."""
    scores = torch.matmul(query[block], key[block].transpose(-1, -2))
    return scores if mask is None else scores.add_(_part(mask, *block))


def _room(like: Tensor, *shape: int) -> Tensor:
    """Memory of `like`'s dtype for what is kept for the way back.

    NumPy's: PyTorch wants its memory aligned, for which the C library looks for more than that, so that what has passed
    leaves holes which nothing of the same size fits.
    """
    return torch.from_numpy(np.empty(math.prod(shape) * like.element_size(), np.uint8)).view(like.dtype).view(shape)


def _copy(tensor: Tensor, factor: float = 1.0) -> Tensor:
    """A contiguous copy of `tensor`, times a number."""
    copy = _room(tensor, *tensor.shape).copy_(tensor)
    return copy if factor == 1.0 else copy.mul_(factor)


class BlockedAttention(torch.autograd.Function):
    """softmax(q k' + mask), dropped, times v; see `blocked_attention`."""

    @staticmethod
    def forward(  # noqa: D102
        ctx, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, threshold: int, scaling: float
    ) -> Tensor:
        batch, heads, length, width = query.shape
        ctx.scaling, ctx.scale = scaling, kept_scale(threshold)
        query, key, value = _copy(query, scaling), _copy(key), _copy(value, ctx.scale)
        weights = _room(query, batch, heads, length, key.shape[2])
        kept = draw_kept(weights.shape, threshold) if threshold else None
        context = _room(query, batch, length, heads, width)
        with torch.autocast("cpu", enabled=False):
            for block in _blocks(batch, heads, length * key.shape[2]):
                used = softmax_into(_scores(query, key, mask, block), weights[block])
                if kept is not None:
                    used = zero_dropped(used, kept[block])
                context[block[0], :, block[1]] = torch.matmul(used, value[block]).transpose(1, 2)
        ctx.save_for_backward(query, key, value, weights, None if kept is None else to_bits(kept))
        return context

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]  # noqa: D102
        query, key, value, weights, bits = ctx.saved_tensors
        kept = None if bits is None else from_bits(bits, weights.shape)
        context_gradient = gradients[0].transpose(1, 2).contiguous()

        def empty(like: Tensor) -> Tensor:
            # [batch, heads, seq, head_dim] that lies as [batch, seq, heads, head_dim]: what the projections need.
            return like.new_empty(like.shape[0], like.shape[2], like.shape[1], like.shape[3]).transpose(1, 2)

        query_gradient, key_gradient, value_gradient = empty(query), empty(key), empty(value)
        with torch.autocast("cpu", enabled=False):
            for block in _blocks(query.shape[0], query.shape[1], weights.shape[2] * weights.shape[3]):
                upper, probabilities = context_gradient[block], weights[block]
                used, weights_gradient = probabilities, torch.matmul(upper, value[block].transpose(-1, -2))
                if kept is not None:
                    used = zero_dropped(used, kept[block])
                    weights_gradient = zero_dropped(weights_gradient, kept[block])
                value_gradient[block] = torch.matmul(used.transpose(-1, -2), upper).mul_(ctx.scale)
                scores_gradient = softmax_gradient(weights_gradient, probabilities)
                query_gradient[block] = torch.matmul(scores_gradient, key[block]).mul_(ctx.scaling)
                key_gradient[block] = torch.matmul(scores_gradient.transpose(-1, -2), query[block])
        return query_gradient, key_gradient, value_gradient, None, None, None


def blocked_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, probability: float, scaling: float
) -> Tensor:
    """Attention on a CPU.

    Args:
        query, key, value: [batch, heads, seq, head_dim], on a CPU; the keys' length may differ from the queries'.
        mask: additive, [batch or 1, heads or 1, query or 1, key]; gets no gradient.
        probability: of dropping an attention weight, rounded to a multiple of 1/256 (`dropout.byte_threshold`).
        scaling: of the scores.

    Returns:
        [batch, query, heads, head_dim], contiguous.
    """
    threshold = byte_threshold(probability)
    return BlockedAttention.apply(query, key, value, mask, threshold, scaling)  # type: ignore[return-value]


def blocked_context(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, scaling: float) -> Tensor:
    """`blocked_attention` without dropout and without a way back: no weight is kept. Arguments and result as there."""
    batch, heads, length, width = query.shape
    query, key, value = query.contiguous() * scaling, key.contiguous(), value.contiguous()
    context = query.new_empty(batch, length, heads, width)
    with torch.autocast("cpu", enabled=False):
        for block in _blocks(batch, heads, length * key.shape[2]):
            scores = _scores(query, key, mask, block)
            weights = softmax_into(scores, torch.empty_like(scores))
            context[block[0], :, block[1]] = torch.matmul(weights, value[block]).transpose(1, 2)
    return context


def headwise_context(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, scaling: float) -> Tensor:
    """`blocked_context` one head after the other, in the products of `cpu_linear`: for float32."""
    batch, heads, length, width = query.shape
    query, key, value = query.contiguous() * scaling, key.contiguous(), value.contiguous()
    context = query.new_empty(batch, length, heads, width)
    for row in range(batch):
        for head in range(heads):
            scores = product(query[row, head], key[row, head])
            if mask is not None:
                scores.add_(mask[row if mask.shape[0] > 1 else 0, head if mask.shape[1] > 1 else 0])
            context[row, :, head] = product(torch.softmax(scores, dim=-1), value[row, head].t())
    return context
