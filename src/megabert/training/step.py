"""One update of the weights: exact under any cut of its batch, in any precision.

Usable without the loop: `make_step(model, objective, options)(micro_batches, learning_rate)`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from megabert.training.cuda_graphs import GraphedForward
from megabert.training.embedding_rows import LookedUp, weights_of
from megabert.training.engine import Alone, Engine, Exchange, LocalEngine
from megabert.training.objective import Batch, Objective
from megabert.training.optim import Rates, make_optimizer
from megabert.training.options import TrainingOptions
from megabert.training.precision import Weights
from megabert.training.scaler import Scaler, make_scaler


@dataclass(frozen=True)
class StepReport:
    """What one step found.

    Attributes:
        losses: mean loss of each term over the whole batch.
        grad_norm: global L2 norm of the gradient before clipping; NaN or infinite when it is.
        loss_scale: the scale that the step ran under.
        skipped: the weights were left as they were, because a loss or gradient was not finite.
        fault: why, when that cannot be the loss scale's doing: one clause for the user; empty otherwise.
        zeros: how many numbers of the gradient are 0; None when they were not counted.
    """

    losses: dict[str, float]
    grad_norm: float
    loss_scale: float
    skipped: bool
    fault: str
    zeros: int | None = None


class TrainingStep:
    """Forward, backward, unscale, clip, update.

    Args:
        engine: runs the micro-batches.
        exchange: brings the processes' gradients and numbers together.
        clip_grad: largest global L2 norm of the gradient; 0 for no limit.
        count_zeros: count the zeros of the gradient, for the report.
        device: where the model lies.
    """

    def __init__(
        self,
        weights: Weights,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        scaler: Scaler,
        *,
        engine: Engine,
        exchange: Exchange,
        clip_grad: float,
        count_zeros: bool = False,
        device: torch.device,
    ):
        self.weights = weights
        self.objective = objective
        self.optimizer = optimizer
        self.scaler = scaler
        self.clip_grad = clip_grad
        self.engine = engine
        self.exchange = exchange
        self.count_zeros = count_zeros
        self.device = device

    def __call__(
        self, micro_batches: Sequence[Batch], learning_rate: float, weight_decay: float | None = None
    ) -> StepReport:
        """Make one update from a batch that is cut into micro-batches. The model is in training mode.

        Without `weight_decay` it stays what it was.
        """
        losses, norm = self.exchange.numbers(self.accumulate(micro_batches))
        gradients = self.weights.gradients()
        scale = self.scaler.scale
        finite_loss = all(math.isfinite(value) for value in losses.values())
        skipped = not (finite_loss and math.isfinite(norm))
        fault = "" if not skipped else self._fault(losses, finite_loss)
        zeros = self._zeros() if self.count_zeros else None
        if not skipped:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate * group["rate"]
                if group["decayed"] and weight_decay is not None:
                    group["weight_decay"] = weight_decay
            self._update(gradients, norm / scale)
        self.exchange.clear()
        self.scaler.update(overflow=skipped)
        return StepReport(losses, norm / scale, scale, skipped, fault, zeros)

    def accumulate(self, micro_batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Leave the (scaled) gradient of the whole batch in the masters.

        Returns:
            What this process's micro-batches contribute to each term's mean loss, as tensors.
        """
        totals = self._totals(micro_batches)

        def share(outputs: Any, batch: Batch) -> dict[str, Tensor]:
            return {name: value / totals[name] for name, value in self.objective.sums(outputs, batch).items()}

        losses = self.engine.forward_backward(micro_batches, share, self.scaler.scale, self.exchange.collect)
        self.exchange.complete()
        return losses

    def _totals(self, micro_batches: Sequence[Batch]) -> Mapping[str, int | Tensor]:
        """Predictions of each term in the whole batch, at least 1. Counted where the batch lies: no waiting."""
        counts: dict[str, int] = {}
        for batch in micro_batches:
            for name, count in self.objective.counts(batch).items():
                counts[name] = counts.get(name, 0) + int(count)
        return self.exchange.totals(counts)

    def _zeros(self) -> int:
        """How many numbers of the gradient are 0."""
        gradients = {name: master.grad for name, master in self.weights.masters.items()}
        return int(self.exchange.total({name: (one == 0).sum() for name, one in gradients.items() if one is not None}))

    def params_norm(self) -> float:
        """The L2 norm of all weights."""
        exact = self.weights.exact
        squares = {name: exact(master).square().sum() for name, master in self.weights.masters.items()}
        return self.exchange.total(squares) ** 0.5

    def _fault(self, losses: dict[str, float], finite_loss: bool) -> str:
        if not finite_loss:
            return ", ".join(f"{name} loss is {value}" for name, value in losses.items() if not math.isfinite(value))
        return "" if self.scaler.catches_overflow else "the gradient is not finite"

    @torch.no_grad()
    def _update(self, gradients: list[Tensor], norm: float) -> None:
        """Unscale, clip, step on the masters, round into the model."""
        coefficient = 1.0 / self.scaler.scale
        if self.clip_grad > 0:
            coefficient *= min(1.0, self.clip_grad / (norm + 1e-6))
        fused = isinstance(self.optimizer, torch.optim.AdamW) and self.optimizer.defaults["fused"]
        if coefficient != 1.0 and not fused:
            torch._foreach_mul_(gradients, coefficient)
        elif fused:
            # The fused kernel divides each gradient as it reads it: one pass over the memory less.
            divisor = torch.full((), 1.0 / coefficient, device=self.device) if coefficient != 1.0 else None
            self.optimizer.grad_scale = divisor  # type: ignore[attr-defined]
        self.optimizer.step()
        self.weights.publish()


def make_step(
    model: nn.Module,
    objective: Objective,
    options: TrainingOptions,
    *,
    device: torch.device | None = None,
    rates: Rates = lambda _: 1.0,
    cuda_graphs: bool = False,
    looked_up: LookedUp | None = None,
) -> TrainingStep:
    """A step with the weights, optimizer and loss scale that the options ask for.

    The model is moved to `device` (left out: it stays where it is) and converted in place.

    Args:
        rates: of weights that learn faster or slower than others.
        cuda_graphs: capture the forward and backward pass (`cuda_graphs.check_cuda_graphs` says when that can be).
        looked_up: the rows of an embedding that are ever looked up, where they are known.

    Raises:
        ValueError: options that exclude each other, or a model with nothing to train.
    """
    place = device or next(model.parameters()).device
    model.to(place).train()
    weights = weights_of(model, options, looked_up, split=options.optimizer == "adam")
    forward = torch.compile(model) if options.compile else model
    arm = None
    if cuda_graphs:
        forward = GraphedForward(model, forward, place)
        arm = forward.arm
    engine = LocalEngine(model, objective.targets, place, forward=forward, arm=arm)
    optimizer = make_optimizer(weights, options, rates=rates)
    weights.follow(optimizer)
    return TrainingStep(
        weights,
        objective,
        optimizer,
        make_scaler(options),
        engine=engine,
        exchange=Alone(weights),
        clip_grad=options.clip_grad,
        count_zeros=options.log_num_zeros_in_grad,
        device=place,
    )
