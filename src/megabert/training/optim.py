"""Optimizers and their parameter groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from megabert.training.options import OptimizerOptions
from megabert.training.precision import Weights, is_norm
from megabert.training.split import SplitAdamW, evaluated


def undecayed(model: nn.Module) -> set[str]:
    """Names of the parameters without weight decay: all of normalisation layers, and all called `bias`.

    Embeddings do decay. Source: Megatron-LM, `get_params_for_weight_decay_optimization`.
    """
    names = set()
    for module_name, module in model.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            if is_norm(module) or name == "bias":
                names.add(f"{module_name}.{name}" if module_name else name)
    return names


Rates = Callable[[str], float]
"""Name of a weight -> what its learning rate is of the run's."""


def parameter_groups(weights: Weights, weight_decay: float, rates: Rates = lambda _: 1.0) -> list[dict[str, Any]]:
    """The masters in groups of one learning rate, decayed or not: `names`, `rate` and `decayed` tell which is which."""
    exempt = set().union(*(undecayed(module) for module in weights.modules))
    members: dict[tuple[bool, float], list[str]] = {}
    for decayed in (True, False):
        for name in weights.masters:
            if (name not in exempt) == decayed:
                members.setdefault((decayed, rates(name)), []).append(name)
    return [
        {
            "params": [weights.masters[name] for name in names],
            "names": names,
            "weight_decay": weight_decay if decayed else 0.0,
            "decayed": decayed,
            "rate": rate,
        }
        for (decayed, rate), names in members.items()
    ]


Lengths = Callable[[Sequence[Tensor], Sequence[Tensor]], list[Tensor]]
"""(masters, tensors of their shapes) -> the L2 norm of each whole tensor, whose part here is given."""


def local_lengths(masters: Sequence[Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
    """`Lengths` where each process has all of every tensor."""
    return list(torch._foreach_norm(list(tensors)))


def make_optimizer(
    weights: Weights, options: OptimizerOptions, *, lengths: Lengths = local_lengths, rates: Rates = lambda _: 1.0
) -> torch.optim.Optimizer:
    """The optimizer of --optimizer over the weights' masters.

    Args:
        lengths: norms of whole tensors, where processes share them.
        rates: of weights that learn faster or slower than others.

    Raises:
        ValueError: the model has nothing to train.
    """
    start = options.start_weight_decay
    groups = parameter_groups(weights, options.weight_decay if start is None else start, rates)
    if not groups:
        raise ValueError("the model has no weights to train: every parameter has requires_grad=False")
    betas = (options.adam_beta1, options.adam_beta2)
    if options.optimizer == "adam":
        if weights.halves:
            return SplitAdamW(groups, weights.halves, lr=options.lr, betas=betas, eps=options.adam_eps)
        return torch.optim.AdamW(groups, lr=options.lr, betas=betas, eps=options.adam_eps, fused=True)
    assert not weights.halves, f"{options.optimizer} knows no split masters"
    if options.optimizer == "lamb":
        return Lamb(groups, lr=options.lr, betas=betas, eps=options.adam_eps, lengths=lengths)
    return torch.optim.SGD(groups, lr=options.lr, momentum=options.sgd_momentum)


class Lamb(torch.optim.Optimizer):
    """LAMB: Adam's step, its length in each tensor brought to `lr` times the length of the weights.

    With `g` the gradient and both moments bias-corrected: `u = m / (sqrt(v) + eps) + weight_decay * w`, then
    `w -= lr * ratio * u` where `ratio = |w| / |u|`, or 1 where either length is 0. Groups without weight decay
    (biases, LayerNorm) are stepped with a ratio of 1, as in the paper's own code and NVIDIA's.

    Source: You et al. 2020, "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", algorithm 2.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        lengths: Lengths = local_lengths,
    ):
        self.lengths = lengths
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make one update of all parameters that have a gradient."""
        loss = evaluated(closure)
        for group in self.param_groups:
            parameters: list[Tensor] = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._step_group(group, parameters)
        return loss

    def _step_group(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.tensor(0.0)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        gradients: list[Tensor] = [parameter.grad for parameter in parameters]  # type: ignore[misc]
        states = [self.state[parameter] for parameter in parameters]
        means, squares = [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states]
        torch._foreach_add_([state["step"] for state in states], 1.0)
        beta1, beta2 = group["betas"]
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        steps = [float(state["step"]) for state in states]
        denominators = torch._foreach_div(squares, [1 - beta2**step for step in steps])
        torch._foreach_sqrt_(denominators)
        torch._foreach_add_(denominators, group["eps"])
        updates = torch._foreach_div(means, [1 - beta1**step for step in steps])
        torch._foreach_div_(updates, denominators)
        if group["weight_decay"]:
            torch._foreach_add_(updates, parameters, alpha=group["weight_decay"])  # type: ignore[call-overload]
            lengths, update_lengths = self.lengths(parameters, parameters), self.lengths(parameters, updates)
            for update, length, update_length in zip(updates, lengths, update_lengths, strict=True):
                usable = (length > 0) & (update_length > 0)
                update.mul_(torch.where(usable, length / update_length, torch.ones_like(length)))
        torch._foreach_add_(parameters, updates, alpha=-group["lr"])  # type: ignore[call-overload]
