"""Losses as sums and counts, in float32, and the objective of pretraining made of them.

A mean is taken once, at the end, by whoever knows the whole batch: `mean_of_sum` here for a model that is called with
labels, the training step for pretraining. So the gradient does not depend on how a batch is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from megabert.models.dropout import serves

IGNORED = -100
ROWS_AT_ONCE = 16


class SummedCrossEntropy(torch.autograd.Function):
    """Sum over rows of -log softmax(logits)[label], with float32 arithmetic and no float32 copy of the logits.

    Rows are taken a few at a time, so that what is in float32 fits a processor's cache; kept for the way back are the
    logits as they came.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, labels: Tensor) -> Tensor:  # noqa: D102
        total = torch.zeros((), dtype=torch.float32, device=logits.device)
        kept, chosen = labels != IGNORED, _chosen(labels)
        for part in _parts(logits):
            logarithms = torch.log_softmax(logits[part], dim=-1, dtype=torch.float32)
            picked = logarithms.gather(1, chosen[part, None]).squeeze(1)
            total -= torch.where(kept[part], picked, 0.0).sum()
        ctx.save_for_backward(logits, labels)
        return total

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: D102
        logits, labels = ctx.saved_tensors
        scale, chosen = torch.where(labels != IGNORED, gradients[0].float(), 0.0), _chosen(labels)
        if torch.is_grad_enabled():  # this gradient is to be differentiated
            rows = torch.softmax(logits, dim=-1, dtype=torch.float32)
            rows = rows - nn.functional.one_hot(chosen, logits.shape[1])
            return (rows * scale[:, None]).to(logits.dtype), None
        result = torch.empty_like(logits)
        for part in _parts(logits):
            rows = torch.softmax(logits[part], dim=-1, dtype=torch.float32)
            rows.scatter_add_(1, chosen[part, None], -torch.ones_like(rows[:, :1]))
            result[part] = rows.mul_(scale[part, None])
        return result, None


def _chosen(labels: Tensor) -> Tensor:
    """The classes; any where a label is ignored. A number that is no class stays, for the device to refuse."""
    return labels.masked_fill(labels == IGNORED, 0)


def _parts(logits: Tensor) -> Iterator[slice]:
    """The rows of `logits` [rows, classes], on a CPU a few at a time."""
    step = ROWS_AT_ONCE if logits.device.type == "cpu" else max(logits.shape[0], 1)
    return (slice(start, start + step) for start in range(0, logits.shape[0], step))


def summed_cross_entropy(logits: Tensor, labels: Tensor, ignored: int = IGNORED) -> Tensor:
    """Sum of the cross entropy over the labels that are not `ignored`; float32 scalar, 0 when there are none.

    Args:
        logits: [..., classes], any floating-point type.
        labels: [...] of whole numbers in [0, classes), or `ignored`.

    Raises:
        ValueError: shapes that do not fit.
        IndexError: another number, on a CPU; on a GPU, which is not waited for, the device's own assertion fails.
    """
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"labels of shape {list(labels.shape)} do not fit logits of shape {list(logits.shape)}")
    if serves(logits):
        _check_classes(labels, logits.shape[-1], ignored)
    if ignored != IGNORED:
        labels = labels.masked_fill(labels == ignored, IGNORED)
    rows = logits.reshape(-1, logits.shape[-1])
    return SummedCrossEntropy.apply(rows, labels.reshape(-1).long())  # type: ignore[return-value]


def _check_classes(labels: Tensor, classes: int, ignored: int) -> None:
    wrong = labels[((labels < 0) | (labels >= classes)) & (labels != ignored)]
    if len(wrong):
        raise IndexError(f"the label {int(wrong[0])} is none of {classes} classes, [0, {classes}), and not {ignored}")


def counted(labels: Tensor, ignored: int = IGNORED) -> Tensor:
    """How many labels are not `ignored`; whole-number scalar on the labels' device."""
    return (labels != ignored).sum()


def mean_of_sum(total: Tensor, count: Tensor | int, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """`total` over `count`, or over the items of the whole batch when this call is a part of one; 0 for no item.

    Args:
        num_items_in_batch: what Transformers' `Trainer` counts over all micro-batches of a step.
    """
    divisor = torch.as_tensor(count if num_items_in_batch is None else num_items_in_batch, device=total.device)
    return total / divisor.clamp_min(1)


def classification_loss(
    logits: Tensor, labels: Tensor, problem_type: str | None, num_items_in_batch: Tensor | int | None = None
) -> Tensor:
    """Mean loss of a sequence classifier, in float32.

    Args:
        logits: [batch, num_labels].
        labels: as the problem needs them.
        problem_type: `regression` (squared error), `single_label_classification` (cross entropy),
            `multi_label_classification` (binary cross entropy); None: told by the number of labels and their type.
    """
    several = logits.shape[-1] > 1
    if problem_type is None:
        problem_type = "multi_label_classification" if labels.is_floating_point() else "single_label_classification"
        problem_type = problem_type if several else "regression"
    if problem_type == "single_label_classification":
        labels = labels.view(-1)
        return mean_of_sum(summed_cross_entropy(logits, labels), counted(labels), num_items_in_batch)
    targets = labels.view(logits.shape).float()
    if problem_type == "regression":
        total = nn.functional.mse_loss(logits.float(), targets, reduction="sum")
    else:
        total = nn.functional.binary_cross_entropy_with_logits(logits.float(), targets, reduction="sum")
    return mean_of_sum(total, targets.numel(), num_items_in_batch)


def right_guesses(logits: Tensor, labels: Tensor) -> Tensor:
    """How many labels [...] have the highest of the logits [..., classes]; float32 scalar. -100 is no class."""
    return (logits.argmax(-1) == labels).sum().float()


class PretrainingObjective:
    """Masked words, and the order of the two segments (SOP), the second one's origin (NSP), or neither.

    Args:
        pair_task: `sop`, `nsp` or `none`: the name of the second term, which reads `next_sentence_label`.
        word_loss, word_hits: (logits, labels) of the masked words -> summed loss, number of right guesses; for logits
            that are not [..., vocab].
    """

    def __init__(
        self,
        pair_task: Literal["sop", "nsp", "none"] = "sop",
        *,
        word_loss: Callable[[Tensor, Tensor], Tensor] = summed_cross_entropy,
        word_hits: Callable[[Tensor, Tensor], Tensor] = right_guesses,
    ) -> None:
        self.pair_task = pair_task
        self.word_loss = word_loss
        self.word_hits = word_hits
        self.targets = frozenset({"masked_labels", "next_sentence_label"})

    def _labels(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        labels = {"lm": batch["masked_labels"]}
        if self.pair_task != "none":
            labels[self.pair_task] = batch["next_sentence_label"]
        return labels

    def _logits(self, outputs: Any) -> dict[str, Tensor]:
        logits = {"lm": outputs.prediction_logits}
        if self.pair_task != "none":
            logits[self.pair_task] = outputs.seq_relationship_logits
        return logits

    def counts(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """How many labels each term has in `batch` (rows of `data`, stacked); float32 scalars."""
        return {name: counted(labels).float() for name, labels in self._labels(batch).items()}

    def sums(self, outputs: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Summed float32 loss of each term.

        Args:
            outputs: of `MegatronBertForPreTraining`, with logits [batch, P, vocab] and [batch, M, 2].
        """
        logits = self._logits(outputs)
        losses = {"lm": self.word_loss}
        return {
            name: losses.get(name, summed_cross_entropy)(logits[name], labels)
            for name, labels in self._labels(batch).items()
        }

    @torch.no_grad()
    def hits(self, outputs: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """How many labels of each term have the highest logit; float32 scalars."""
        logits = self._logits(outputs)
        guesses = {"lm": self.word_hits}
        return {
            name: guesses.get(name, right_guesses)(logits[name], labels) for name, labels in self._labels(batch).items()
        }
