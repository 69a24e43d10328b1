"""Linear layers that a CPU computes in float32 by the library that is fast on it.

PyTorch gives float32 products to MKL, which has no fast code for processors that are not Intel's: there oneDNN, which
comes with PyTorch and makes its bfloat16 products, makes these too, forward and backward, at more than twice the rate.
On an Intel processor, and wherever PyTorch has other libraries, nothing is changed.
`torch.backends.mkldnn.flags(enabled=False)` is the way back to PyTorch's own.
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


@functools.cache
def foreign_to_mkl() -> bool:
    """Whether float32 products go to MKL here, on a processor that it does not serve well."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    return _by_other_maker(Path("/proc/cpuinfo"), platform.processor())


def _by_other_maker(facts: Path, processor: str) -> bool:
    """Whether a processor with MKL's instructions was made by somebody other than Intel, as far as the system tells."""
    told = facts.read_text(errors="replace") if facts.is_file() else processor
    return any(maker in told for maker in ("AuthenticAMD", "HygonGenuine", "CentaurHauls"))


def plain_product(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """input [..., inner] x weight [outer, inner]' + bias, by oneDNN, without a way back."""
    return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    """`plain_product` with its way back."""

    @staticmethod
    def forward(ctx, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(input, weight)
        return plain_product(input, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        input, weight = ctx.saved_tensors
        upper = gradients[0].reshape(-1, weight.shape[0])
        of_input, of_weight, of_bias = ctx.needs_input_grad
        return (
            plain_product(upper, weight.t()).view(input.shape) if of_input else None,
            plain_product(upper.t(), input.reshape(-1, weight.shape[1]).t()) if of_weight else None,
            upper.sum(0) if of_bias else None,
        )


def served(input: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN is to make this product: plain float32 numbers on such a processor, and no graph is captured."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return (
        input.dtype == torch.float32 == weight.dtype
        and input.device.type == "cpu" == weight.device.type
        and type(input) is Tensor
        and type(weight) in (Tensor, nn.Parameter)
        and input.numel() > 0
        and foreign_to_mkl()
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
    )


def linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`torch.nn.functional.linear`: [..., inner], [outer, inner], [outer] -> [..., outer]."""
    if not served(input, weight):
        return nn.functional.linear(input, weight, bias)
    return _Linear.apply(input, weight, bias)  # type: ignore[return-value]


class Linear(nn.Linear):
    """`torch.nn.Linear` by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., inner] -> [..., outer]."""
        return linear(input, self.weight, self.bias)
