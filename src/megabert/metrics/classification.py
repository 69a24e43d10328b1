"""Scores of labels and numbers: accuracy, precision, recall, F1, Matthews, Pearson, Spearman, confusion.

Pure functions of sequences; shares are between 0 and 1. Where a definition divides by zero the score is 0.0, as
scikit-learn has it, so that a score can always be written and compared.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Hashable, Sequence
from typing import NamedTuple


class ClassScores(NamedTuple):
    """Precision, recall and F1 of one class (or an average over classes), and how many examples it has."""

    precision: float
    recall: float
    f1: float
    support: int


def share(part: float, whole: float) -> float:
    """`part / whole`, 0.0 when there is nothing to divide by."""
    return part / whole if whole else 0.0


def scores_of(right: int, predicted: int, gold: int) -> ClassScores:
    """Precision, recall and F1 from counts: right answers, answers given, answers wanted."""
    return ClassScores(share(right, predicted), share(right, gold), share(2 * right, predicted + gold), gold)


def _check(gold: Sequence, predicted: Sequence) -> None:
    if len(gold) != len(predicted):
        raise ValueError(f"{len(predicted)} predictions do not fit {len(gold)} gold values")
    if not gold:
        raise ValueError("there is nothing to score: no example")


def accuracy(gold: Sequence[Hashable], predicted: Sequence[Hashable]) -> float:
    """Share of equal pairs.

    Raises:
        ValueError: lengths differ, or there is none.
    """
    _check(gold, predicted)
    return sum(left == right for left, right in zip(gold, predicted, strict=True)) / len(gold)


def per_class(
    gold: Sequence[Hashable], predicted: Sequence[Hashable], labels: Sequence[Hashable]
) -> dict[Hashable, ClassScores]:
    """Scores of each of `labels`, in their order.

    Raises:
        ValueError: lengths differ, or there is no example.
    """
    _check(gold, predicted)
    wanted, given = Counter(gold), Counter(predicted)
    right = Counter(left for left, other in zip(gold, predicted, strict=True) if left == other)
    return {label: scores_of(right[label], given[label], wanted[label]) for label in labels}


def macro(scores: Collection[ClassScores]) -> ClassScores:
    """The mean over classes, each counting the same; support is the sum."""
    count = max(len(scores), 1)
    return ClassScores(
        sum(one.precision for one in scores) / count,
        sum(one.recall for one in scores) / count,
        sum(one.f1 for one in scores) / count,
        sum(one.support for one in scores),
    )


def weighted(scores: Collection[ClassScores]) -> ClassScores:
    """The mean over classes, each counting as often as it occurs."""
    total = sum(one.support for one in scores)
    return ClassScores(
        share(sum(one.precision * one.support for one in scores), total),
        share(sum(one.recall * one.support for one in scores), total),
        share(sum(one.f1 * one.support for one in scores), total),
        total,
    )


def micro(gold: Sequence[Hashable], predicted: Sequence[Hashable], labels: Collection[Hashable]) -> ClassScores:
    """Scores over all examples at once, counting only `labels`: over all labels that is the accuracy; over the
    positive classes it is how relation extraction is scored (ChemProt).

    Raises:
        ValueError: lengths differ, or there is no example.
    """
    _check(gold, predicted)
    counted = set(labels)
    right = sum(left == other and left in counted for left, other in zip(gold, predicted, strict=True))
    return scores_of(right, sum(item in counted for item in predicted), sum(item in counted for item in gold))


def confusion(gold: Sequence[Hashable], predicted: Sequence[Hashable], labels: Sequence[Hashable]) -> list[list[int]]:
    """Counts: row = gold label, column = predicted label, both in the order of `labels`.

    Raises:
        ValueError: lengths differ, there is no example, or a label is not among `labels`.
    """
    _check(gold, predicted)
    places = {label: place for place, label in enumerate(labels)}
    table = [[0] * len(labels) for _ in labels]
    for left, other in zip(gold, predicted, strict=True):
        if left not in places or other not in places:
            strange = left if left not in places else other
            raise ValueError(f"label {strange!r} is not among {', '.join(map(repr, labels))}")
        table[places[left]][places[other]] += 1
    return table


def matthews(gold: Sequence[Hashable], predicted: Sequence[Hashable]) -> float:
    """Matthews' correlation for any number of classes, -1 to 1; 0.0 when gold or prediction is constant.

    Source: Gorodkin 2004, "Comparing two K-category assignments by a K-category correlation coefficient"; GLUE's CoLA.

    Raises:
        ValueError: lengths differ, or there is no example.
    """
    _check(gold, predicted)
    total = len(gold)
    right = sum(left == other for left, other in zip(gold, predicted, strict=True))
    wanted, given = Counter(gold), Counter(predicted)
    crossed = sum(wanted[label] * given[label] for label in wanted)
    spread = (total**2 - sum(n * n for n in given.values())) * (total**2 - sum(n * n for n in wanted.values()))
    return share(right * total - crossed, math.sqrt(spread))


def pearson(gold: Sequence[float], predicted: Sequence[float]) -> float:
    """Pearson's linear correlation, -1 to 1; 0.0 when either side is constant.

    Raises:
        ValueError: lengths differ, or there is no example.
    """
    _check(gold, predicted)
    mean_gold, mean_predicted = math.fsum(gold) / len(gold), math.fsum(predicted) / len(predicted)
    left = [value - mean_gold for value in gold]
    right = [value - mean_predicted for value in predicted]
    together = math.fsum(one * other for one, other in zip(left, right, strict=True))
    lengths = math.sqrt(math.fsum(value * value for value in left)) * math.sqrt(math.fsum(v * v for v in right))
    return max(-1.0, min(1.0, share(together, lengths)))


def ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1 on; equal values share the mean of theirs."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    result = [0.0] * len(values)
    start = 0
    while start < len(order):
        stop = start
        while stop < len(order) and values[order[stop]] == values[order[start]]:
            stop += 1
        for index in order[start:stop]:
            result[index] = (start + 1 + stop) / 2
        start = stop
    return result


def spearman(gold: Sequence[float], predicted: Sequence[float]) -> float:
    """Spearman's rank correlation, -1 to 1: Pearson's of the ranks, ties sharing theirs.

    Raises:
        ValueError: lengths differ, or there is no example.
    """
    _check(gold, predicted)
    return pearson(ranks(gold), ranks(predicted))
