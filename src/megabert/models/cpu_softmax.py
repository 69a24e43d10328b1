"""Softmax over the keys of attention on a CPU, in bfloat16, and its way back.

PyTorch's own takes what does not fill a vector one by one: of rows of bfloat16 all that is behind the last multiple of
32, and all of shorter rows. Here it is asked for float32, which has half as long vectors and no casts within; and where
rows are shorter than a vector, for columns, so that vectors lie across many rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

VECTOR = 32
"""Keys from which on a vector fits a row."""

AT_ONCE = 2**17
"""Weights that are in float32 at a time, in a processor's cache."""


def softmax_into(scores: Tensor, out: Tensor) -> Tensor:
    """Softmax over the last dimension.

    Args:
        scores: contiguous [..., keys].
        out: of the same shape and dtype, contiguous; filled.

    Returns:
        `out`.
    """
    keys = scores.shape[-1]
    if scores.dtype != torch.bfloat16 or keys % VECTOR == 0:
        return torch.softmax(scores, dim=-1, out=out)
    lines = max(1, AT_ONCE // keys)
    for part, target in zip(scores.view(-1, keys).split(lines), out.view(-1, keys).split(lines), strict=True):
        if keys < VECTOR:
            target.copy_(torch.softmax(part.t().contiguous(), dim=0, dtype=torch.float32).t())
        else:
            target.copy_(torch.softmax(part, dim=-1, dtype=torch.float32))
    return out


def softmax_gradient(upper: Tensor, weights: Tensor) -> Tensor:
    """The gradient of the scores.

    Args:
        upper: that of the weights, contiguous [..., keys].
        weights: what `softmax_into` gave, contiguous.
    """
    keys = weights.shape[-1]
    if weights.dtype != torch.bfloat16 or keys >= VECTOR:
        return torch._softmax_backward_data(upper, weights, -1, weights.dtype)
    left, right = (one.view(-1, keys).t().contiguous() for one in (upper, weights))
    return torch._softmax_backward_data(left, right, 0, weights.dtype).t().contiguous().view_as(weights)
