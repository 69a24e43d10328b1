"""Whether a model that says "80 % sure" is right four times out of five."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

BINS = 10


class Bin(NamedTuple):
    """Decisions whose probability is in `(low, high]`: how many, their mean probability, the share that is right."""

    low: float
    high: float
    decisions: int
    confidence: float
    accuracy: float


def reliability(beliefs: Iterable[tuple[float, bool]], bins: int = BINS) -> list[Bin]:
    """Decisions by their probability, in bins of equal width; 0 is in the first.

    Args:
        beliefs: of each decision its probability, 0 to 1, and whether it is right.

    Raises:
        ValueError: a probability outside of 0 to 1.
    """
    counts, sure, right = [0] * bins, [0.0] * bins, [0] * bins
    for probability, correct in beliefs:
        if not 0.0 <= probability <= 1.0:
            raise ValueError(f"a probability is between 0 and 1, not {probability}")
        # The bin whose upper end is the first that is not below the probability.
        number = max(0, min(bins - 1, -int(-probability * bins // 1) - 1))
        counts[number] += 1
        sure[number] += probability
        right[number] += correct
    return [
        Bin(at / bins, (at + 1) / bins, count, sure[at] / count if count else 0.0, right[at] / count if count else 0.0)
        for at, count in enumerate(counts)
    ]


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """The mean distance of probability and share of right decisions over the bins, weighted by their counts; 0 to 1.

    Source: Naeini et al. 2015; Guo et al. 2017, "On Calibration of Modern Neural Networks".

    Raises:
        ValueError: there is no decision.
    """
    total = sum(one.decisions for one in bins)
    if not total:
        raise ValueError("there is nothing to score: no decision")
    return sum(one.decisions * abs(one.accuracy - one.confidence) for one in bins) / total
