"""Stand-ins for the kernels of a GPU, while a program runs without one.

On tensors without memory PyTorch would take attention and dropout apart into the steps of its slowest path. What a GPU
runs is one kernel each, that keeps less for the way back; these have the same inputs, results and saved tensors, and
tell the recorder what they cost.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor  # private; what a program without memory is made of
from torch.overrides import TorchFunctionMode

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
        query, key, value = ctx.saved_tensors[:3]
        made = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        size = _bytes(*ctx.saved_tensors, *made, gradients[0])
        # The scores are computed again: five products where forward had two.
        operation = Operation("attention", ctx.flops * 5 // 2, size, query.shape[-1], _half(query))
        ctx.recorder.add(operation)
        return *made, None, None


_NUMBERS = {
    torch.Tensor.item: 1, torch.Tensor.__int__: 1, torch.Tensor.__index__: 1, torch.Tensor.__float__: 1.0,
    torch.Tensor.__bool__: False,
}  # fmt: skip


class Kernels(TorchFunctionMode):
    """While entered: attention and dropout are one kernel each, and a number that nobody computed is 1."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Call `func`, or its stand-in."""
        kwargs = kwargs or {}
        if func in _NUMBERS and isinstance(args[0], FakeTensor):
            return _NUMBERS[func]
        if func is torch.Tensor.tolist and isinstance(args[0], FakeTensor):
            return _ones(tuple(args[0].shape))
        if func is nn.functional.dropout:
            return self._dropout(*args, **kwargs)
        if func is nn.functional.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _dropout(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0.0:
            return input
        return OneKernelDropout.apply(input, self.recorder)  # type: ignore[return-value]

    def _attention(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
        **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        return OneKernelAttention.apply(query, key, value, attn_mask, self.recorder)  # type: ignore[return-value]


def _ones(shape: tuple[int, ...]) -> Any:
    return 1.0 if not shape else [_ones(shape[1:]) for _ in range(shape[0])]
