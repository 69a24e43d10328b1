"""Dropout that does not hold up a step on a CPU.

`torch.nn.functional.dropout` draws one 32-bit Mersenne number for each element there, on one thread, which is a visible
share of a training step. Here one random *byte* decides over an element, and the bytes come from SFC64, seeded by one
draw of torch's generator: the same `torch.manual_seed` gives the same masks, and recomputation under gradient
checkpointing, which restores torch's generator, draws them again.

On other devices, and while a graph is captured, torch's own dropout runs.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

BYTE = 256


def byte_threshold(probability: float) -> int:
    """How many of the 256 values of a byte drop the element: `probability` rounded to a multiple of 1/256.

    0.1 becomes 26/256 = 0.1016. A positive probability is never rounded to 0 and one below 1 never to 1. The
    kept elements are scaled with the exact rounded probability, so the expectation stays what it was.
    """
    if probability <= 0.0:
        return 0
    return min(max(round(probability * BYTE), 1), BYTE - 1)


def random_bytes(shape: tuple[int, ...] | torch.Size) -> Tensor:
    """Uniform random bytes, a function of the state of torch's CPU generator, which moves by one draw.

    Args:
        shape: of the result.

    Returns:
        uint8 tensor of `shape`.
    """
    seed = int(torch.randint(2**62, ()))
    count = int(np.prod(shape))
    words = np.random.SFC64(seed).random_raw((count + 7) // 8)
    return torch.from_numpy(words.view(np.uint8))[:count].view(shape)


def drops_bytes(tensor: Tensor) -> bool:
    """Whether the byte dropout serves this tensor: on a CPU, and not while torch records a graph of it."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling() and type(tensor) in (Tensor, nn.Parameter)


class ByteDropout(torch.autograd.Function):
    """x -> x * keep / (1 - p) with p a multiple of 1/256; keeps one byte an element for the way back."""

    @staticmethod
    def forward(ctx, tensor: Tensor, threshold: int) -> Tensor:  # noqa: D102
        kept = random_bytes(tensor.shape).ge_(threshold)
        ctx.save_for_backward(kept)
        ctx.scale = BYTE / (BYTE - threshold)
        return (tensor * ctx.scale).mul_(kept)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: D102
        (kept,) = ctx.saved_tensors
        return (gradients[0] * ctx.scale).mul_(kept), None


def dropout(tensor: Tensor, probability: float, training: bool) -> Tensor:
    """Zero each element with `probability` and scale the others by its complement; the identity out of training.

    Args:
        tensor: any shape.
        probability: in [0, 1). On a CPU it is rounded to a multiple of 1/256 (see `byte_threshold`).
    """
    if not training or probability == 0.0:
        return tensor
    if probability < 1.0 and drops_bytes(tensor):
        return ByteDropout.apply(tensor, byte_threshold(probability))  # type: ignore[return-value]
    return nn.functional.dropout(tensor, probability, True)


class Dropout(nn.Dropout):
    """`nn.Dropout` (so code that looks for it, or sets its `p`, finds it) through `dropout`."""

    def forward(self, input: Tensor) -> Tensor:
        """Drop elements of `input` (any shape) in training."""
        return dropout(input, self.p, self.training)


def drop_and_add(tensor: Tensor, residual: Tensor, probability: float, training: bool) -> Tensor:
    """residual + dropout(tensor), both of one shape."""
    return residual + dropout(tensor, probability, training)
