"""Losses and accuracies on held-out rows, weighted by counts: the mean over predictions, not over batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from megabert.training.engine import Engine
from megabert.training.objective import Batch, Objective
from megabert.training.team import OneProcess, Team


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
    engine: Engine,
    objective: Objective,
    batches: Iterable[tuple[Batch, bool]],
    *,
    stop: Callable[[], bool] | None = None,
    team: Team | None = None,
) -> Evaluation | None:
    """Run the model over the batches in evaluation mode; its mode is put back after.

    Args:
        batches: of this process, each with whether it counts (`evaluation_batches`).
        stop: asked before each batch; when it says True the evaluation is given up.
        team: the processes that have the other batches.

    Returns:
        The means over the batches of all processes; None when given up, or when there was no batch. A term without
        predictions is left out.
    """
    team = team or OneProcess()
    found: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    modes = [module.training for module in engine.modules]
    for module in engine.modules:
        module.eval()
    try:
        for batch, counted in batches:
            if stop is not None and stop():
                return None
            here = objective.counts(batch)
            for name, count in here.items():
                counts[name] = counts.get(name, 0) + int(count) * (counted and team.counts)
            read = engine.evaluate(batch, lambda outputs, moved: _read(objective, outputs, moved))
            if counted and team.sums:
                _add(found, read)
    finally:
        for module, training in zip(engine.modules, modes, strict=True):
            module.train(training)
    return _means(counts, found, team)


def _read(objective: Objective, outputs: Any, batch: Batch) -> dict[str, Tensor]:
    sums = {f"sum {name}": value for name, value in objective.sums(outputs, batch).items()}
    return sums | {f"hits {name}": value for name, value in objective.hits(outputs, batch).items()}


def _means(counts: dict[str, int], found: dict[str, Tensor], team: Team) -> Evaluation | None:
    """Divide the sums of all processes."""
    numbers = [
        number
        for name, count in counts.items()
        for number in (count, float(found.get(f"sum {name}", 0.0)), float(found.get(f"hits {name}", 0.0)))
    ]
    added = team.add(numbers)
    seen = {name: added[3 * index : 3 * index + 3] for index, name in enumerate(counts) if added[3 * index] > 0}
    if not seen:
        return None
    return Evaluation(
        {name: total / count for name, (count, total, _) in seen.items()},
        {name: hits / count for name, (count, _, hits) in seen.items()},
        {name: int(count) for name, (count, _, _) in seen.items()},
    )


def _add(totals: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        exact = value.detach().double()
        totals[name] = totals[name] + exact if name in totals else exact
