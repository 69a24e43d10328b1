"""Losses and accuracies on held-out rows, weighted by counts: the mean over predictions, not over batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from megabert.training.objective import Batch, Objective, inputs_of


@dataclass(frozen=True)
class Evaluation:
    """Means over all predictions of an evaluation.

    Attributes:
        losses: mean loss of each term, in nats.
        accuracies: share of right answers of each term, 0 to 1.
        counts: predictions of each term.
    """

    losses: dict[str, float]
    accuracies: dict[str, float]
    counts: dict[str, int]

    @property
    def loss(self) -> float:
        """The sum of all terms: what training minimises, and what the best checkpoint is chosen by."""
        return sum(self.losses.values())

    def record(self, prefix: str = "valid") -> dict[str, float]:
        """Flat metrics: `valid_loss`, `valid_lm_loss`, `valid_lm_accuracy`, `valid_perplexity`, ...

        Perplexity is exp(min(20, lm loss)), as Megatron prints it.
        """
        metrics: dict[str, float] = {f"{prefix}_loss": self.loss}
        for name, loss in self.losses.items():
            metrics[f"{prefix}_{name}_loss"] = loss
            metrics[f"{prefix}_{name}_accuracy"] = self.accuracies[name]
        if "lm" in self.losses:
            metrics[f"{prefix}_perplexity"] = math.exp(min(self.losses["lm"], 20.0))  # NaN stays NaN
        return metrics


def evaluate(
    model: nn.Module,
    objective: Objective,
    batches: Iterable[Batch],
    *,
    device: torch.device,
    stop: Callable[[], bool] | None = None,
) -> Evaluation | None:
    """Run the model over the batches in evaluation mode; its mode is put back after.

    Args:
        stop: asked before each batch; when it says True the evaluation is given up.

    Returns:
        The means; None when given up, or when there was no batch. A term without predictions is left out.
    """
    sums: dict[str, Tensor] = {}
    hits: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                if stop is not None and stop():
                    return None
                for name, count in objective.counts(batch).items():
                    counts[name] = counts.get(name, 0) + int(count)
                here = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
                outputs = model(**inputs_of(objective, here))
                _add(sums, objective.sums(outputs, here))
                _add(hits, objective.hits(outputs, here))
    finally:
        model.train(was_training)
    seen = {name: count for name, count in counts.items() if count > 0}
    if not seen:
        return None
    return Evaluation(
        {name: float(sums[name]) / count for name, count in seen.items()},
        {name: float(hits[name]) / count for name, count in seen.items()},
        seen,
    )


def _add(totals: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        exact = value.detach().double()
        totals[name] = totals[name] + exact if name in totals else exact
