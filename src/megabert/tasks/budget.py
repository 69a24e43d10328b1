"""Rows in batches of a fixed number of places, where `rows.TrainingRows` has batches of a fixed number of rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from megabert.tasks.base import Features, Row
from megabert.tasks.rows import padded


class BudgetedBatches:
    """Batches of at most `tokens` places, padding included: each feature once in a pass, in another order each time.

    Batch `i` is a function of (seed, i). Features are put in order of their padded length, those of one length as the
    seed of the pass shuffles them, and cut into batches, which come in random order. The lengths in this order are the
    same in every pass, so all passes have equally many batches; and all rows of nearly every batch have one length.

    Args:
        tokens: places of a batch; a feature that has more is a batch of its own.
        multiple: lengths are rounded up to a multiple of it.
    """

    def __init__(self, features: Sequence[Features], *, tokens: int, seed: int, pad_id: int, multiple: int = 8):
        self.features = features
        self.seed = seed
        self.pad_id = pad_id
        self.multiple = multiple
        self.widths = np.array([-(-one.length // multiple) * multiple for one in features])
        # Several choices of one example go through the model together.
        lines = np.array([one.input_ids.size // one.length for one in features])
        self.ends = _ends(-np.sort(-self.widths), int(lines.max(initial=1)), tokens)
        self._pass = -1
        self._batches: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> Row:
        """Batch `index` of all passes, one behind the other: arrays [rows, ...]."""
        return padded(
            [self.features[number].row() for number in self.numbers(index)], pad_id=self.pad_id, multiple=self.multiple
        )

    def numbers(self, index: int) -> np.ndarray:
        """The numbers of the features of batch `index`."""
        number, place = divmod(index, len(self))
        if number != self._pass:
            self._pass, self._batches = number, self._planned(number)
        return self._batches[place]

    def _planned(self, number: int) -> list[np.ndarray]:
        generator = np.random.default_rng((self.seed, number))
        shuffled = generator.permutation(len(self.features))
        order = shuffled[np.argsort(-self.widths[shuffled], kind="stable")]
        batches = np.split(order, self.ends[:-1])
        return [batches[place] for place in generator.permutation(len(batches))]

    def features_before(self, index: int) -> int:
        """How many features batches `[0, index)` hold."""
        number, place = divmod(index, len(self))
        return number * len(self.features) + sum(self.numbers(number * len(self) + at).size for at in range(place))


def _ends(widths: np.ndarray, lines: int, tokens: int) -> np.ndarray:
    """Where batches end in features of descending widths."""
    ends: list[int] = []
    begin = 0
    while begin < len(widths):
        begin += max(1, tokens // int(lines * widths[begin]))
        ends.append(min(begin, len(widths)))
    return np.array(ends)


def only(items: Sequence[Row]) -> Row:
    """The batch that a loader has taken as its only row."""
    assert len(items) == 1, "budgeted batches are read one by one"
    return items[0]
