"""Which documents are for training, validation and test, and how several data sets are mixed.

Shares are contiguous ranges of documents and mixing is greedy by weight, both as Megatron-LM does for indexed data.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from megabert.data.indexed import IndexedData
from megabert.data.lazy import open_data
from megabert.data.options import DataOptions
from megabert.data.packing import PackedSampleSet
from megabert.data.pairs import LONGEST_SENTENCE
from megabert.data.samples import Row, RowShape, SampleSet, Vocabulary
from megabert.data.stored import StoredSet, holds_samples

if TYPE_CHECKING:
    from megabert.tokenization.base import Tokenizer

# The greedy choice is written down for so many samples and then begins again: weights are kept to one in a million.
_BLEND_PERIOD = 1 << 20
_BLEND_BEGIN = 1 << 14  # more is written down when it is asked for
_FIELDS = ("train_data", "valid_data", "test_data")
_NAMES = ("training data", "validation data", "test data")


class Source(NamedTuple):
    """One data set of several, and its share of the samples (any scale)."""

    weight: float
    path: str


def parse_split(text: str) -> tuple[float, float, float]:
    """Read `949,50,1` (or with slashes; missing shares are 0): shares of training, validation and test that sum to 1.

    Raises:
        ValueError: not one to three numbers that are at least 0 and not all 0.
    """
    try:
        shares = [float(part) for part in text.replace("/", ",").split(",")]
    except ValueError:
        shares = []
    if not 1 <= len(shares) <= 3 or min(shares) < 0 or not 0 < sum(shares) < float("inf"):
        raise ValueError(f"--split: {text!r} is not one to three shares such as 949,50,1 (training, validation, test)")
    shares += [0.0] * (3 - len(shares))
    if sum(shares) < 1 and shares[2] == 0:  # `0.9,0.05` of 2019: what is missing to 1 is the next share
        shares[2 if "," in text or "/" in text else 1] = 1 - sum(shares)
    return shares[0] / sum(shares), shares[1] / sum(shares), shares[2] / sum(shares)


def split_documents(count: int, shares: Sequence[float]) -> list[tuple[int, int]]:
    """Ranges of documents (first, one past the last) for shares that sum to 1, in their order in the data.

    Megatron's rule: each share is rounded for itself, and what is too much or too little at the end moves every border.
    """
    borders = [0]
    for share in shares:
        borders.append(borders[-1] + round(share * count))
    excess = borders[-1] - count
    borders = [0] + [max(border - excess, 0) for border in borders[1:]]
    return list(itertools.pairwise(borders))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def is_weighted(values: Sequence[str]) -> bool:
    """Whether a data flag's values are weights and paths in turn."""
    return len(values) > 1 and _is_number(values[0])


def parse_sources(values: Sequence[str], flag: str) -> list[Source]:
    """Read `PATH`, several paths (each with the same weight), or `WEIGHT PATH WEIGHT PATH ...`.

    Args:
        flag: where the values come from, for errors.

    Raises:
        ValueError: a weight without a path, or one that is not above 0.
    """
    weighted = is_weighted(values)
    pairs = list(zip(values[::2], values[1::2], strict=False)) if weighted else [("1", value) for value in values]
    if weighted and (len(values) % 2 or not all(_is_number(weight) for weight, _ in pairs)):
        raise ValueError(f"{flag}: weights and paths must take turns (0.7 first 0.3 second), not {' '.join(values)}")
    sources = [Source(float(weight), path) for weight, path in pairs]
    for source in sources:
        if not 0 < source.weight < float("inf"):
            raise ValueError(f"{flag}: the weight of {source.path} is {source.weight:g}; it must be above 0")
    return sources


def blend(weights: Sequence[float], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Megatron's greedy mix: sample i comes from the data set that is furthest below its weight of the first i.

    Args:
        weights: that sum to 1.

    Returns:
        number of the data set [count] uint8, and the place in that data set [count] int64.
    """
    chosen, places = bytearray(count), np.empty(count, np.int64)
    taken = [0] * len(weights)
    for index in range(count):
        so_far = max(index, 1)
        errors = [weight * so_far - number for weight, number in zip(weights, taken, strict=True)]
        best = errors.index(max(errors))
        chosen[index] = best
        places[index] = taken[best]
        taken[best] += 1
    return np.frombuffer(chosen, np.uint8), places


class BlendedSet:
    """Rows of several data sets, mixed by weight. Row i is a function of (seed, i).

    `len` is one pass: the rows until the first of the sets was read once.
    """

    def __init__(self, sets: Sequence[SampleSet | PackedSampleSet | StoredSet], weights: Sequence[float]) -> None:
        """Mix `sets` (at most 256); their rows are given the largest of their shapes."""
        assert len(sets) == len(weights) <= 256
        self.shape = RowShape(*(max(sizes) for sizes in zip(*(part.shape for part in sets), strict=True)))
        self.sets = [part.reshaped(self.shape) for part in sets]
        self.weights = [weight / sum(weights) for weight in weights]
        self._length = max(int(min(len(part) / weight for part, weight in zip(sets, self.weights, strict=True))), 1)
        self._write_down(_BLEND_BEGIN)

    def _write_down(self, count: int) -> None:
        self._set_of, self._place_of = blend(self.weights, count)
        self._taken = np.bincount(self._set_of, minlength=len(self.sets))

    def __len__(self) -> int:
        """Rows of one pass."""
        return self._length

    def __iter__(self) -> Iterator[Row]:
        """The rows of one pass in order."""
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Row:
        """Row `index`; any index from 0 on."""
        period, place = divmod(index, _BLEND_PERIOD)
        needed = _BLEND_PERIOD if period else place + 1
        if needed > len(self._set_of):
            self._write_down(min(max(needed, 4 * len(self._set_of)), _BLEND_PERIOD))
        number = int(self._set_of[place])
        return self.sets[number][int(self._place_of[place]) + period * int(self._taken[number])]


RowSet = SampleSet | PackedSampleSet | StoredSet | BlendedSet


class DataSets(NamedTuple):
    """The rows of a run; `notes` say why a set is missing or unusual, for the user to read."""

    train: RowSet
    valid: RowSet | None
    test: RowSet | None
    notes: tuple[str, ...]


def make_set(
    data: IndexedData,
    vocabulary: Vocabulary,
    options: DataOptions,
    *,
    seed: int,
    documents: tuple[int, int] | None = None,
    name: str = "training data",
) -> SampleSet | PackedSampleSet | StoredSet:
    """Rows of one indexed data set, packed when the options say so; arguments and errors as `SampleSet`."""
    if holds_samples(data):
        return StoredSet(data, vocabulary, options, seed=seed, name=name)
    samples = SampleSet(data, vocabulary, options, seed=seed, documents=documents, name=name)
    return PackedSampleSet(samples) if options.pack else samples


def _make_mixed(
    sources: Sequence[Source],
    opened: dict[str, IndexedData],
    vocabulary: Vocabulary,
    options: DataOptions,
    *,
    seed: int,
    shares: Sequence[float],
    number: int,
) -> RowSet:
    """The training (number 0), validation (1) or test (2) rows of several sources."""
    sets = []
    for source in sources:
        data = opened[source.path]
        documents = split_documents(data.num_documents, shares)[number]
        sets.append(make_set(data, vocabulary, options, seed=seed, documents=documents, name=_NAMES[number]))
    return sets[0] if len(sets) == 1 else BlendedSet(sets, [source.weight for source in sources])


def _left_out(rows: RowSet) -> list[str]:
    """A note on the documents that the map of samples passes over."""
    sets = rows.sets if isinstance(rows, BlendedSet) else [rows]
    samples = [part.samples if isinstance(part, PackedSampleSet) else part for part in sets]
    left_out = sum(part.documents_left_out() for part in samples)
    if not left_out:
        return []
    total = sum(part.document_count for part in samples)
    reason = "have fewer than two sentences, or a sentence" if samples[0].paired else "have, among others, a sentence"
    return [
        f"{left_out:,} of {total:,} training documents {reason} of over {LONGEST_SENTENCE} tokens: they are left out"
    ]


def make_sets(
    options: DataOptions,
    tokenizer: Tokenizer | Vocabulary,
    *,
    seed: int,
    train: Sequence[Source],
    valid: Sequence[Source] = (),
    test: Sequence[Source] = (),
) -> DataSets:
    """The rows for training, validation and test.

    Args:
        train, valid, test: prefixes of indexed data. Without `valid` or `test` these are split off the training data by
            `options.split`; with them the whole of each is used, and its share of the split falls to the others.

    Raises:
        ValueError: as `SampleSet` and `IndexedData`; of a validation or test share that only the split asked for, a
            note is made instead when it gives no sample.
    """
    vocabulary = tokenizer if isinstance(tokenizer, Vocabulary) else Vocabulary.of(tokenizer)
    encoding = None if isinstance(tokenizer, Vocabulary) else tokenizer
    opened = {source.path: open_data(source.path, encoding) for source in (*train, *valid, *test)}
    # Stored samples repeat their documents with other masks: a share of them would have been seen in training.
    shares = [1.0, 0.0, 0.0] if options.use_tfrecords else list(parse_split(options.split))
    for number, separate in ((1, valid), (2, test)):
        if separate:
            shares[number] = 0.0
    if not sum(shares):
        raise ValueError(f"--split: {options.split!r} leaves nothing for training beside the separate data")
    shares = [share / sum(shares) for share in shares]
    made: list[RowSet | None] = []
    notes: list[str] = []
    for number, separate in enumerate(((), valid, test)):
        sources = separate or train
        portion = [float(place == number) for place in range(3)] if separate else shares
        if not separate and number and not shares[number]:
            made.append(None)
            continue
        chosen = options.of(_FIELDS[number]) if separate else options
        try:
            made.append(_make_mixed(sources, opened, vocabulary, chosen, seed=seed, shares=portion, number=number))
        except ValueError as error:
            if separate or not number:
                raise
            made.append(None)
            notes.append(f"no {_NAMES[number]}: {error}")
    assert made[0] is not None
    notes += _left_out(made[0])
    if options.use_tfrecords and not valid:
        notes.append("no validation data: stored samples are not split; name some with --valid-data")
    return DataSets(made[0], made[1], made[2], tuple(notes))
