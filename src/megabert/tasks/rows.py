"""Features as rows for a loop: their order, and how they become a batch without much padding."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import numpy as np

from megabert.tasks.base import NO_LABEL, Features, Row

GROUP_BATCHES = 50
_LEAST_FILLED = 0.9


def padded(rows: Sequence[Row], *, pad_id: int, multiple: int = 8, length: int = 0) -> Row:
    """Stack rows of different lengths, each key [batch, ...], with padding to the longest, rounded up to `multiple`.

    With `length` they are padded to it at least.

    Token types and the mask are 0 there, labels -100. Numbers and arrays of one shape are stacked as they are.
    """
    fills = {"input_ids": pad_id, "token_type_ids": 0, "attention_mask": 0}
    length = -(-max(length, *(row["input_ids"].shape[-1] for row in rows)) // multiple) * multiple
    batch: Row = {}
    for key, first in rows[0].items():
        if not first.ndim:
            batch[key] = np.stack([row[key] for row in rows])
            continue
        batch[key] = np.full((len(rows), *first.shape[:-1], length), fills.get(key, NO_LABEL), dtype=first.dtype)
        for line, row in enumerate(rows):
            batch[key][line, ..., : row[key].shape[-1]] = row[key]
    return batch


class _Padding(Protocol):
    def __call__(self, rows: Sequence[Row]) -> Row: ...


def padding(pad_id: int, *, multiple: int = 8, length: int = 0) -> _Padding:
    """`padded` for a tokenizer's pad id."""
    return partial(padded, pad_id=pad_id, multiple=multiple, length=length)


class TrainingRows:
    """Rows in another order each time they are read through; neighbours in a batch are of about the same length.

    Row `i` is a function of (seed, i). Of the shuffled rows, as many as `group` batches hold are sorted by length and
    cut into batches, which are then put in random order; so each batch is as likely early as late, and little of it is
    padding. Batches lie at multiples of `batch`, over the end of a pass as well.

    Args:
        batch: rows that go through the model together.
        group: batches that are sorted together; 0 leaves the shuffled order.
    """

    def __init__(self, features: Sequence[Features], *, batch: int, seed: int, group: int = GROUP_BATCHES):
        self.features = features
        self.batch = batch
        self.seed = seed
        self.group = group
        self.lengths = np.array([one.length for one in features])
        self._pass = -1
        self._order = np.zeros(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> Row:
        number, place = divmod(index, len(self.features))
        if number != self._pass:
            self._pass, self._order = number, self.order(number)
        return self.features[self._order[place]].row()

    def order(self, number: int) -> np.ndarray:
        """The order of one pass over the features."""
        generator = np.random.default_rng((self.seed, number))
        count = len(self.features)
        order = generator.permutation(count)
        if not self.group:
            return order
        # The first batch that begins in this pass.
        head = min(-(number * count) % self.batch, count)
        whole = (count - head) // self.batch * self.batch
        body = order[head : head + whole]
        size = self.group * self.batch
        pieces = [body[start : start + size] for start in range(0, whole, size)]
        pieces = [piece[np.argsort(self.lengths[piece], kind="stable")] for piece in pieces]
        if pieces:
            batches = np.concatenate(pieces).reshape(-1, self.batch)
            body = batches[generator.permutation(len(batches))].reshape(-1)
        return np.concatenate([order[:head], body, order[head + whole :]])


def by_length(sizes: Sequence[int], tokens: int, *, enough: int = 0) -> list[list[int]]:
    """Numbers of rows in batches of at most `tokens` places, padding included, the longest first.

    A row that is longer than `tokens` is a batch of its own; every one occurs once.

    Args:
        sizes: tokens of each row.
        enough: a batch of so many places takes no row that would be padding by more than a tenth (`enough_tokens`).
            0: it does.
    """
    batches: list[list[int]] = []
    width = 0
    for index in sorted(range(len(sizes)), key=lambda number: (-sizes[number], number)):
        held = len(batches[-1]) * width if batches else 0
        wasteful = 0 < enough <= held and sizes[index] < _LEAST_FILLED * width
        if not batches or held + width > tokens or wasteful:
            batches.append([])
            width = -(-sizes[index] // 8) * 8
        batches[-1].append(index)
    return batches


def enough_tokens(tokens: int, device: str) -> int:
    """How many of the `tokens` that a batch may have make it worth computing, on a device of this type.

    A processor works as fast on a few hundred tokens as on thousands; a GPU wants more at once.
    """
    return tokens // (16 if device == "cpu" else 2)
