"""The contract of what is learned. Training knows no model: an objective tells it what to minimise."""

from __future__ import annotations

from typing import Any, Protocol

import torch

Batch = dict[str, torch.Tensor]
"""A row of `data/` with one more leading dimension, as tensors."""


class Objective(Protocol):
    """What is learned, as sums and counts of named terms (`lm`, `sop`, ...).

    The loss of a step is `sum over terms of (sums over all micro-batches) / (counts over all micro-batches)`. Since
    the division comes last, the gradient does not depend on how a batch is cut; a mean of means would.
    """

    @property
    def targets(self) -> frozenset[str]:
        """Batch keys that are labels; the others are the model's keyword arguments."""
        ...

    def counts(self, batch: Batch) -> dict[str, torch.Tensor]:
        """For each term, the number of predictions in the batch (scalar). Needs no model."""
        ...

    def sums(self, outputs: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """For each term, the summed loss (scalar, float32, differentiable)."""
        ...

    def hits(self, outputs: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """For each term, the number of right answers (scalar)."""
        ...
