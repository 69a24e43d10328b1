"""What is learned by each head, as sums and counts (the objective of `docs/architecture.md`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from megabert.models.losses import IGNORED, counted, summed_cross_entropy

Batch = Mapping[str, Tensor]

NUMBER = "number"
"""The term of `Number`: a squared error, where the others are cross entropies."""


class TaskObjective(Protocol):
    """As training's objective; `targets` are the batch keys that are labels."""

    targets: frozenset[str]

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """For each term, how many predictions the batch has."""
        ...

    def sums(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """For each term, the summed float32 loss."""
        ...

    def hits(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """For each term, the number of right answers."""
        ...


class Classes:
    """A class for each label that is not -100: of sequences, of tokens or of choices.

    Args:
        term: the name of the loss.
        target: batch key of the labels, [batch] or [batch, seq], for logits with one dimension more.
        weights: of each class; a class is then worth that many examples of weight 1 in the sum. The count stays that of
            examples, so weights should have a mean of 1 over the training examples (`balanced`).
        logits: attribute of the model's output.
        columns: the classes among those of the head, where one matrix holds several classifiers; left out, all.
        share: the term's weight in the whole loss.
    """

    def __init__(
        self,
        term: str,
        *,
        target: str = "labels",
        weights: Sequence[float] | None = None,
        logits: str = "logits",
        columns: slice = slice(None),
        share: float = 1.0,
    ):
        self.term = term
        self.target = target
        self.targets = frozenset({target})
        self.weights = None if weights is None else torch.tensor(weights, dtype=torch.float32)
        self.logits = logits
        self.columns = columns
        self.share = share

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """How many labels there are."""
        return {self.term: counted(batch[self.target])}

    def sums(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """Summed cross entropy."""
        logits, labels = self._scores(outputs), batch[self.target]
        if self.weights is None:
            return {self.term: self.share * summed_cross_entropy(logits, labels)}
        total = torch.nn.functional.cross_entropy(
            logits.flatten(0, -2).float(), labels.flatten(), weight=self.weights.to(logits.device),
            ignore_index=IGNORED, reduction="sum",
        )  # fmt: skip
        return {self.term: self.share * total}

    @torch.no_grad()
    def hits(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """How many labels have the highest logit."""
        return {self.term: (self._scores(outputs).argmax(-1) == batch[self.target]).sum()}

    def _scores(self, outputs: Any) -> Tensor:
        return getattr(outputs, self.logits)[..., self.columns]


class Number:
    """Squared error of one number a sequence; a hit is an answer within half a unit."""

    def __init__(self) -> None:
        self.targets = frozenset({"labels"})

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """How many numbers there are."""
        return {NUMBER: torch.tensor(batch["labels"].numel())}

    def sums(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """Summed squared error."""
        difference = outputs.logits.squeeze(-1).float() - batch["labels"].float()
        return {NUMBER: difference.square().sum()}

    @torch.no_grad()
    def hits(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """How many answers are less than 0.5 off."""
        return {NUMBER: ((outputs.logits.squeeze(-1) - batch["labels"]).abs() < 0.5).sum()}


class Ends:
    """Start and end of a span: the mean of both cross entropies, as in BERT's SQuAD.

    Padding can be neither end. Else the loss of a row would depend on how long the others of its batch are.
    """

    def __init__(self) -> None:
        self.targets = frozenset({"start_positions", "end_positions"})

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """How many windows there are."""
        return {"span": counted(batch["start_positions"])}

    def sums(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """Summed mean of both ends' cross entropy."""
        starts, ends = self._scores(outputs, batch)
        start = summed_cross_entropy(starts, batch["start_positions"])
        end = summed_cross_entropy(ends, batch["end_positions"])
        return {"span": (start + end) / 2}

    @torch.no_grad()
    def hits(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """How many windows have both ends right."""
        starts, ends = self._scores(outputs, batch)
        right = (starts.argmax(-1) == batch["start_positions"]) & (ends.argmax(-1) == batch["end_positions"])
        return {"span": right.sum()}

    def _scores(self, outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits of both ends, float32 [batch, seq], the least number at padding."""
        padding = batch["attention_mask"] == 0
        logits = outputs.start_logits.float(), outputs.end_logits.float()
        starts, ends = (one.masked_fill(padding, torch.finfo(one.dtype).min) for one in logits)
        return starts, ends


class Together:
    """Several objectives on one model's outputs."""

    def __init__(self, *parts: TaskObjective):
        self.parts = parts
        self.targets = frozenset().union(*(part.targets for part in parts))

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Those of all parts."""
        return {name: value for part in self.parts for name, value in part.counts(batch).items()}

    def sums(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """Those of all parts."""
        return {name: value for part in self.parts for name, value in part.sums(outputs, batch).items()}

    def hits(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """Those of all parts."""
        return {name: value for part in self.parts for name, value in part.hits(outputs, batch).items()}


def balanced(counts: Sequence[int]) -> tuple[float, ...]:
    """Class weights `examples / (classes x count)`, as NeMo's `weighted_loss`; a class that never occurs has 0."""
    seen = sum(1 for count in counts if count)
    return tuple(sum(counts) / (seen * count) if count else 0.0 for count in counts)
