"""Dropout that does not hold up a step on a CPU.

`torch.nn.functional.dropout` draws one 32-bit Mersenne number for each element there, on one thread, which is a visible
share of a training step. Here one random *byte* decides over an element, and the bytes come from SFC64, seeded by one
draw of torch's generator: the same `torch.manual_seed` gives the same masks, and recomputation under gradient
checkpointing, which restores torch's generator, draws them again. Elements are zeroed by a bitwise `and` on their
representation, which is several times faster than a product with a mask of another type.

On other devices, and while a graph is captured, torch's own dropout runs.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

BYTE = 256
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes of an element -> the whole numbers of the same size."""


def byte_threshold(probability: float) -> int:
    """How many of the 256 values of a byte drop the element: `probability` rounded to a multiple of 1/256.

    0.1 becomes 26/256 = 0.1016. A positive probability is never rounded to 0 and one below 1 never to 1. The
    kept elements are scaled with the exact rounded probability, so the expectation stays what it was.
    """
    if probability <= 0.0:
        return 0
    return min(max(round(probability * BYTE), 1), BYTE - 1)


def kept_scale(threshold: int) -> float:
    """What kept elements are multiplied with, so that the expectation stays: one over the share that is kept."""
    return BYTE / (BYTE - threshold)


def draw_kept(shape: tuple[int, ...] | torch.Size, threshold: int) -> Tensor:
    """Draw which elements are kept: a function of the state of torch's CPU generator, which moves by one draw.

    Args:
        shape: of the result.
        threshold: of 256 elements, so many are dropped on average.

    Returns:
        uint8 tensor of `shape`: 1 kept, 0 dropped.
    """
    seed = int(torch.randint(2**62, ()))
    count = math.prod(shape)
    words = np.random.SFC64(seed).random_raw((count + 7) // 8)
    return torch.from_numpy(words.view(np.uint8))[:count].view(shape).ge_(threshold)


def to_bits(kept: Tensor) -> Tensor:
    """uint8 tensor of 0 and 1, of any shape, as its bits in a row, eight in a number: for the way back."""
    return torch.from_numpy(np.packbits(kept.numpy()))


def from_bits(bits: Tensor, shape: tuple[int, ...] | torch.Size) -> Tensor:
    """What `to_bits` was given, of that shape."""
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=math.prod(shape))).view(shape)


def zero_dropped(tensor: Tensor, kept: Tensor) -> Tensor:
    """`tensor` with zeros where `kept` (uint8 of 0 and 1, same shape) is 0; a new tensor."""
    bits = BITS[tensor.element_size()]
    # As whole numbers 0 and -1 have no bit and every bit set.
    return kept.to(bits).neg_().bitwise_and_(tensor.view(bits)).view(tensor.dtype)


def serves(tensor: Tensor) -> bool:
    """Whether what is written for the CPU here takes this tensor: not while torch records or transforms a function."""
    return (
        tensor.device.type == "cpu"
        and tensor.is_floating_point()
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch._C._are_functorch_transforms_active()
        and type(tensor) in (Tensor, nn.Parameter)
    )


class ByteDropout(torch.autograd.Function):
    """x -> x * kept * scale; keeps one bit an element for the way back."""

    @staticmethod
    def forward(ctx, tensor: Tensor, threshold: int) -> Tensor:  # noqa: D102
        kept = draw_kept(tensor.shape, threshold)
        ctx.save_for_backward(to_bits(kept))
        ctx.scale = kept_scale(threshold)
        return zero_dropped(tensor, kept).mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]  # noqa: D102
        kept = from_bits(ctx.saved_tensors[0], gradients[0].shape)
        return zero_dropped(gradients[0], kept).mul_(ctx.scale), None


class ByteDropoutAndAdd(torch.autograd.Function):
    """x, residual -> residual + x * kept * scale, in one pass less than the two steps."""

    @staticmethod
    def forward(ctx, tensor: Tensor, residual: Tensor, threshold: int) -> Tensor:  # noqa: D102
        kept = draw_kept(tensor.shape, threshold)
        ctx.save_for_backward(to_bits(kept))
        ctx.scale = kept_scale(threshold)
        ctx.dtypes = (tensor.dtype, residual.dtype)
        return torch.add(residual, zero_dropped(tensor, kept), alpha=ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]  # noqa: D102
        (gradient,) = gradients
        kept = from_bits(ctx.saved_tensors[0], gradient.shape)
        dropped = zero_dropped(gradient.to(ctx.dtypes[0]), kept).mul_(ctx.scale)
        return dropped, gradient.to(ctx.dtypes[1]), None


def dropout(tensor: Tensor, probability: float, training: bool) -> Tensor:
    """Zero each element with `probability` and scale the others by its complement; the identity out of training.

    Args:
        tensor: any shape.
        probability: in [0, 1]. On a CPU it is rounded to a multiple of 1/256 (see `byte_threshold`).
    """
    if not training or probability == 0.0:
        return tensor
    if probability < 1.0 and serves(tensor):
        return ByteDropout.apply(tensor, byte_threshold(probability))  # type: ignore[return-value]
    return nn.functional.dropout(tensor, probability, True)


def drop_and_add(tensor: Tensor, residual: Tensor, probability: float, training: bool) -> Tensor:
    """residual + dropout(tensor), both of one shape."""
    if training and 0.0 < probability < 1.0 and serves(tensor) and serves(residual):
        return ByteDropoutAndAdd.apply(tensor, residual, byte_threshold(probability))  # type: ignore[return-value]
    return residual + dropout(tensor, probability, training)


class Dropout(nn.Dropout):
    """`nn.Dropout` (so code that looks for it, or sets its `p`, finds it) through `dropout`."""

    def forward(self, input: Tensor) -> Tensor:
        """Drop elements of `input` (any shape) in training."""
        return dropout(input, self.p, self.training)
