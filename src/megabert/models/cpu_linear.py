"""Matrices with a bias on a CPU: oneDNN's product, which adds the bias as it writes.

PyTorch's own way copies the bias into every row first, a pass over the result that costs a small network a tenth of the
product; and in float32 it asks MKL, which uses half of what a processor of another maker than Intel can do.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as all_modules
from torch.utils.flop_counter import register_flop_formula

from megabert.models.dropout import serves
from megabert.models.remade import kept_for

FEWEST_ROWS = 8
"""Below, the call costs more than the product."""


@cache
def has_product(dtype: torch.dtype) -> bool:
    """Whether this PyTorch, on this processor, has oneDNN's product for `dtype`."""
    operators = torch.ops.mkldnn
    if not torch.backends.mkldnn.is_available() or not hasattr(operators, "_linear_pointwise"):
        return False
    if dtype == torch.bfloat16:
        return bool(operators._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def product(left: Tensor, right: Tensor, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    """left [..., k] times the transpose of right [n, k], plus bias [n]; without a way back.

    Args:
        activation: what follows the product, by oneDNN's name: "none" or "gelu" (the exact one).
    """
    return torch.ops.mkldnn._linear_pointwise(left, right, bias, activation, [], "none")


def _flops(input_shape: torch.Size, weight_shape: torch.Size, *_: object, **__: object) -> int:
    return 2 * math.prod(input_shape) * weight_shape[0]


if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
    register_flop_formula(torch.ops.mkldnn._linear_pointwise)(_flops)  # for whoever counts: PyTorch knows none


def _times(left: Tensor, right: Tensor) -> Tensor:
    """left [m, k] times right [k, n]: on the way back, where there is no bias."""
    if left.dtype == torch.float32 and not torch.is_grad_enabled():
        return product(left, right.t())
    return torch.mm(left, right)


class BiasedProduct(torch.autograd.Function):
    """input [..., k], weight [n, k], bias [n] -> input weight' + bias."""

    @staticmethod
    def forward(ctx, input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:  # noqa: D102
        ctx.recipe, kept = kept_for(input) if ctx.needs_input_grad[1] else (None, ())
        ctx.save_for_backward(weight, *kept)
        return product(input, weight, bias)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]  # noqa: D102
        weight, *kept = ctx.saved_tensors
        upper = gradients[0].reshape(-1, weight.shape[0])
        first, second, third = ctx.needs_input_grad
        lower = _times(upper, weight).view(*gradients[0].shape[:-1], weight.shape[1]) if first else None
        weight_gradient = None
        if second:
            input = kept[0] if ctx.recipe is None else ctx.recipe.again(*kept)
            weight_gradient = _times(upper.t(), input.reshape(-1, weight.shape[1]))
        return lower, weight_gradient, upper.sum(0) if third else None


def linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`torch.nn.functional.linear`, by the fastest product that the device has for it.

    Args:
        input: [..., k].
        weight: [n, k].
        bias: [n], or None.

    Returns:
        [..., n].
    """
    if bias is None or not _takes(input, weight, bias):
        return nn.functional.linear(input, weight, bias)
    if torch.is_grad_enabled():
        return BiasedProduct.apply(input, weight, bias)  # type: ignore[return-value]
    return product(input, weight, bias)


def _takes(input: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Whether these go through `product`."""
    return (
        serves(input)
        and serves(weight)
        and serves(bias)
        and input.dtype == weight.dtype == bias.dtype
        and input.numel() >= FEWEST_ROWS * weight.shape[1]
        and has_product(input.dtype)
        and not torch.is_autocast_enabled("cpu")
        and forward_ad._current_level < 0  # of the two ways to differentiate, there is one back only
    )


class Linear(nn.Linear):
    """`nn.Linear` (`isinstance` says so) through `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        return linear(input, self.weight, self.bias)


def is_untouched(module: nn.Module) -> bool:
    """Whether a call of `module` is what its class does: nobody hooked anything to it, or to all modules."""
    hooks = (
        module._forward_hooks, module._forward_pre_hooks,
        all_modules._global_forward_hooks, all_modules._global_forward_pre_hooks,
    )  # fmt: skip
    return not any(hooks) and "forward" not in vars(module)


def gelu_of(module: nn.Module, input: Tensor) -> Tensor | None:
    """The exact GELU of what `module` makes of `input` [..., in_features], in one pass over the result.

    None where that must be done in two: while something is learnt, and where the module is no `Linear` as it was made
    (`is_untouched`) or has no bias.
    """
    if torch.is_grad_enabled() or type(module) is not Linear or not is_untouched(module):
        return None
    if module.bias is None or not _takes(input, module.weight, module.bias):
        return None
    return product(input, module.weight, module.bias, "gelu")
