"""Stand-ins for the kernels of a GPU, while a program runs without one.

On tensors without memory PyTorch would take attention and dropout apart into the steps of its slowest path. What a GPU
runs is one kernel each, that keeps less for the way back; these have the same inputs, results and saved tensors, and
tell the recorder what they cost.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor  # private; what a program without memory is made of

from megabert.models import losses
from megabert.parallel import vocabulary
from megabert.planning.recorder import Operation, Recorder


def _bytes(*tensors: Tensor | None) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


def _half(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.float16, torch.bfloat16)


class OneKernelDropout(torch.autograd.Function):
    """Dropout that keeps one byte an element."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, recorder: Recorder) -> Tensor:  # noqa: D102
        kept = tensor.new_empty(tensor.shape, dtype=torch.bool)
        ctx.save_for_backward(kept)
        ctx.recorder = recorder
        result = torch.empty_like(tensor)
        recorder.add(Operation("memory", 0, _bytes(tensor, result, kept), 0, _half(tensor)))
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]  # noqa: D102
        result = torch.empty_like(gradients[0])
        size = _bytes(gradients[0], result, ctx.saved_tensors[0])
        ctx.recorder.add(Operation("memory", 0, size, 0, _half(result)))
        return result, None


class OneKernelAttention(torch.autograd.Function):
    """Attention that keeps its inputs, its result and one number a query, and never a matrix of weights."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, recorder: Recorder
    ) -> Tensor:
        result = torch.empty_like(query)
        normaliser = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, mask, result, normaliser)
        ctx.recorder = recorder
        ctx.flops = 4 * math.prod(query.shape) * key.shape[-2]
        size = _bytes(query, key, value, mask, result, normaliser)
        recorder.add(Operation("attention", ctx.flops, size, query.shape[-1], _half(query)))
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:  # type: ignore[override]  # noqa: D102
        saved = ctx.saved_tensors
        query, key, value = saved[:3]
        made = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        size = _bytes(*saved, *made, gradients[0])
        # The scores are computed again: five products where forward had two.
        operation = Operation("attention", ctx.flops * 5 // 2, size, query.shape[-1], _half(query))
        ctx.recorder.add(operation)
        return *made, None, None


def _zeros(shape: tuple[int, ...]) -> Any:
    return 0.0 if not shape else [_zeros(shape[1:]) for _ in range(shape[0])]


def _answer(value: Any) -> Any:
    return lambda self: value


def _stand_ins(recorder: Recorder) -> Iterator[tuple[Any, str, Any]]:
    """(owner, name, what stands there meanwhile)."""

    def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return OneKernelDropout.apply(input, recorder) if training and p > 0.0 else input  # type: ignore[return-value]

    def attention(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
        **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        return OneKernelAttention.apply(query, key, value, attn_mask, recorder)  # type: ignore[return-value]

    for room in (losses, vocabulary):
        yield room, "ROWS_AT_ONCE", 2**40  # a GPU takes all rows of the loss at once; pieces are for a CPU's cache
    yield nn.functional, "dropout", dropout
    yield nn.functional, "scaled_dot_product_attention", attention
    # A number that nobody computed is 0, so a step never waits for one and never skips an update.
    # But torch's pipeline stages ask each other by `item` whether all know their shapes, and 1 is yes.
    for name, value in {"__int__": 0, "__index__": 0, "__float__": 0.0, "__bool__": False, "item": 1}.items():
        yield FakeTensor, name, _answer(value)
    yield FakeTensor, "data_ptr", lambda self: self.untyped_storage()._cdata  # only ever compared
    resize = torch.UntypedStorage.resize_

    def resized(storage: torch.UntypedStorage, size: int) -> Any:
        recorder.resized(storage, size)
        return resize(storage, size)

    yield torch.UntypedStorage, "resize_", resized
    yield FakeTensor, "tolist", lambda self: _zeros(tuple(self.shape))


@contextmanager
def stand_ins(recorder: Recorder) -> Iterator[None]:
    """Inside: attention and dropout are one kernel each, and tensors without memory can be asked for numbers.

    Replaced by name and not by a mode of torch's, which would be off in backward passes, where layers are recomputed.
    """
    before = []
    try:
        for owner, name, value in _stand_ins(recorder):
            before.append((owner, name, owner.__dict__.get(name)))
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in reversed(before):
            if value is None:
                delattr(owner, name)
            else:
                setattr(owner, name, value)
