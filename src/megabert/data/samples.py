"""Samples as rows of arrays: row i of a data set is a function of (seed, i) and nothing else.

A row is what the model and the loss need of one sample (or, packed, of several: `packing.py`), with fixed shapes; the
keys are listed in docs/architecture.md. Which sentences belong together is decided in `pairs.py`, what is predicted
in `masking.py`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from megabert.data import masking, pairs
from megabert.data.indexed import IndexedData
from megabert.data.options import DataOptions

if TYPE_CHECKING:
    from megabert.tokenization.base import Tokenizer

Row = dict[str, np.ndarray]
NO_LABEL = -100
# So many samples are cut once; further passes read them in another order. Cutting more would take seconds each time.
LONGEST_MAP = 1 << 22


class Vocabulary(NamedTuple):
    """What samples need of a tokenizer; small, so that it travels to worker processes."""

    size: int
    cls_id: int
    sep_id: int
    mask_id: int
    pad_id: int
    continuation: np.ndarray  # [size] bool
    maskable: np.ndarray  # [size] bool, False for special tokens: text may spell them too

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Vocabulary:
        """Take it from a tokenizer."""
        special = [tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id, tokenizer.pad_id]
        maskable = np.ones(tokenizer.vocabulary_size, bool)
        maskable[special] = False
        return cls(
            tokenizer.vocabulary_size, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id, tokenizer.pad_id,
            np.asarray(tokenizer.continuation, bool), maskable,
        )  # fmt: skip


class Sample(NamedTuple):
    """One sample without padding; n tokens, p of them to predict."""

    input_ids: np.ndarray  # [n] int64
    token_type_ids: np.ndarray  # [n] int64
    masked_positions: np.ndarray  # [p] int64
    masked_labels: np.ndarray  # [p] int64
    next_sentence_label: int


class RowShape(NamedTuple):
    """The sizes of a data set's rows: S positions, P places to predict, M samples."""

    positions: int
    predictions: int
    samples: int


def assemble(samples: list[Sample], shape: RowShape, pad_id: int) -> Row:
    """Lay samples one after the other into a row and fill the rest with padding."""
    positions, predictions, places = shape
    row = {
        "input_ids": np.full(positions, pad_id, np.int64),
        "token_type_ids": np.zeros(positions, np.int64),
        "position_ids": np.zeros(positions, np.int64),
        "sample_ids": np.zeros(positions, np.int64),
        "masked_positions": np.zeros(predictions, np.int64),
        "masked_labels": np.full(predictions, NO_LABEL, np.int64),
        "sample_starts": np.zeros(places, np.int64),
        "next_sentence_label": np.full(places, NO_LABEL, np.int64),
    }
    at = predicted = 0
    for number, sample in enumerate(samples):
        end = at + len(sample.input_ids)
        row["input_ids"][at:end] = sample.input_ids
        row["token_type_ids"][at:end] = sample.token_type_ids
        row["position_ids"][at:end] = np.arange(end - at)
        row["sample_ids"][at:end] = number + 1
        until = predicted + len(sample.masked_positions)
        row["masked_positions"][predicted:until] = sample.masked_positions + at
        row["masked_labels"][predicted:until] = sample.masked_labels
        row["sample_starts"][number] = at
        row["next_sentence_label"][number] = sample.next_sentence_label
        at, predicted = end, until
    return row


def _seed_of(seed: int, epoch: int) -> int:
    """The seed of an epoch's map, 32 bits; the first epoch's is Megatron's."""
    return seed % (1 << 32) if epoch == 0 else int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


def reordered(place: int, count: int, seed: int, epoch: int) -> int:
    """Where place `place` of an epoch lies in the order of the first: each of `count` places once.

    A stride through an order that is random already; a table of a new order would take memory in every process.
    """
    if epoch == 0:
        return place
    stride, offset = (
        int(number) % count for number in np.random.SeedSequence([seed, epoch]).generate_state(2, np.uint64)
    )
    while math.gcd(stride, count) != 1:
        stride += 1
    return (place * stride + offset) % count


class SampleSet:
    """Masked sentence pairs of a part of indexed data, one padded sample a row.

    `len` is one pass: the samples of the first epoch. Index i is place i % len of epoch i // len, whose map of samples
    is a function of (seed, epoch): other cuts in another order. So no row depends on how many will be read. An epoch
    with more samples than the first leaves out the last of its order, one with fewer begins it again; masks depend
    on the index.
    """

    def __init__(
        self,
        data: IndexedData,
        tokenizer: Tokenizer | Vocabulary,
        options: DataOptions,
        *,
        seed: int,
        documents: tuple[int, int] | None = None,
        name: str = "training data",
    ) -> None:
        """Make the map of samples.

        Args:
            documents: the documents from the first number up to, without, the second; all by default.
            name: what the data is for, used in errors.

        Raises:
            ValueError: no document in the range, or none that gives a sample; ids that the vocabulary does not have; a
                sequence length under 8.
        """
        self.data, self.options, self.seed, self.name = data, options, seed, name
        self.vocabulary = tokenizer if isinstance(tokenizer, Vocabulary) else Vocabulary.of(tokenizer)
        self.paired = options.pairs != "none"
        self.specials = 3 if self.paired else 2
        if options.seq_length < 8:
            raise ValueError(f"--seq-length: {options.seq_length} is below 8, the least allowed")
        most = options.max_preds_per_seq or masking.most_predictions(options.seq_length, options.mask_prob)
        self.most_predictions = most
        self.shape = RowShape(options.seq_length, most, 1)
        self.document_range = documents or (0, data.num_documents)
        self._check_documents()
        self._check_ids()
        self.map = self._cut(0)
        self._later = (0, self.map)
        if not len(self.map):
            raise ValueError(
                f"{data.prefix}: no document of the {name} ({len(self.documents) - 1}) gives a sample: each has fewer "
                f"than {2 if self.paired else 1} sentences or a sentence of over {pairs.LONGEST_SENTENCE} tokens"
                + (" (--pair-task none trains on documents of one sentence)" if self.paired else "")
            )

    def _cut(self, epoch: int) -> np.ndarray:
        return pairs.build_sample_map(
            self.documents,
            self.data.sizes,
            # Megatron counts three special tokens with and without the pair task.
            length=self.options.seq_length - 3,
            short_seq_prob=self.options.short_seq_prob,
            seed=_seed_of(self.seed, epoch),
            least_sentences=2 if self.paired else 1,
        )

    def map_of(self, epoch: int) -> np.ndarray:
        """The samples of an epoch in their order: [samples, 3] as `pairs.build_sample_map`, of the first for long ones.

        The last epoch but the first that was asked for is kept: rows are read nearly in order.
        """
        if epoch == 0 or len(self.map) > LONGEST_MAP:
            return self.map
        if self._later[0] != epoch:
            self._later = (epoch, self._cut(epoch))
        return self._later[1]

    def _check_documents(self) -> None:
        first, last = self.document_range
        # Empty documents are left out: they give no sample and are nobody's other document.
        self.documents = np.unique(self.data.documents[first : last + 1]) if last > first else np.zeros(1, np.int64)
        count = len(self.documents) - 1
        if count < 1:
            raise ValueError(
                f"{self.data.prefix}: the {self.name} has no document: its share of the {self.data.num_documents} "
                f"documents is empty (--split {self.options.split}); give it a larger share, or more documents"
            )
        if self.options.pairs == "nsp" and count < 2:
            raise ValueError(
                f"{self.data.prefix}: the {self.name} has one document, but --pair-task nsp needs another one for "
                "random second halves; use --pair-task sop, or more documents"
            )

    def _check_ids(self) -> None:
        largest = self.data.largest_id()
        if largest is not None and largest >= self.vocabulary.size:
            raise ValueError(
                f"{self.data.prefix}: holds the id {largest}, but the vocabulary has {self.vocabulary.size} entries: "
                "it was tokenized with another vocabulary"
            )
        self._ids_known = largest is not None

    def reshaped(self, shape: RowShape) -> SampleSet:
        """The same rows in arrays of another, larger shape."""
        other = copy.copy(self)
        other.shape = shape
        return other

    def __len__(self) -> int:
        """Samples of the map."""
        return len(self.map)

    def __iter__(self) -> Iterator[Row]:
        """The samples of the map, in its order."""
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Row:
        """Row `index`; any index from 0 on."""
        return assemble([self.sample_of(index)], self.shape, self.vocabulary.pad_id)

    def sample_of(self, index: int) -> Sample:
        """The sample of row `index`."""
        epoch, place = divmod(index, len(self.map))
        table = self.map_of(epoch)
        place = reordered(place, len(self.map), self.seed, epoch) if len(table) > LONGEST_MAP else place % len(table)
        return self.sample(table[place], index)

    @property
    def document_count(self) -> int:
        """Documents that are not empty."""
        return len(self.documents) - 1

    def documents_left_out(self) -> int:
        """Documents that give no sample: too few sentences, or one of several that is overlong."""
        usable = pairs.usable_documents(self.documents, self.data.sizes, 2 if self.paired else 1)
        return int(np.count_nonzero(~usable))

    def lengths(self, rows: np.ndarray | None = None) -> np.ndarray:
        """Tokens of samples with special tokens, [rows] int64 (for NSP the most that a sample can have).

        Args:
            rows: [rows, 3] of the map; the whole map by default.
        """
        rows = self.map if rows is None else rows
        return np.minimum(self.data.count_tokens(rows[:, 0], rows[:, 1]), rows[:, 2]) + self.specials

    def sample(self, place: np.ndarray, index: int) -> Sample:
        """The sample of the sentences `place` (first, one past the last, target length), drawn with (seed, `index`)."""
        generator = np.random.Generator(np.random.Philox(key=np.array([self.seed % (1 << 64), index], np.uint64)))
        first, last, target = (int(number) for number in place)
        vocabulary = self.vocabulary
        if self.paired:
            one, two, label = self._two_segments(first, last, target, generator)
        else:
            one, two, label = self._one_segment(first, last, target, generator), None, NO_LABEL
        length = len(one) + 2 + (len(two) + 1 if two is not None else 0)
        ids, types = np.empty(length, np.int64), np.zeros(length, np.int64)
        middle = len(one) + 1
        ids[0], ids[1:middle], ids[middle] = vocabulary.cls_id, one, vocabulary.sep_id
        if two is not None:
            ids[middle + 1 : -1], ids[-1] = two, vocabulary.sep_id
            types[middle + 1 :] = 1
        if not self._ids_known and not 0 <= ids.min() <= ids.max() < vocabulary.size:
            wrong = ids.min() if ids.min() < 0 else ids.max()
            raise ValueError(
                f"{self.data.prefix}: holds the id {wrong} in the sentences {first} to {last - 1}, but the "
                f"vocabulary has {vocabulary.size} entries: it was tokenized with another vocabulary"
            )
        count = masking.quota(length, target, self.options.mask_prob, self.most_predictions)
        masked, places, labels = masking.mask(
            ids, vocabulary.maskable[ids], vocabulary.continuation, count, generator,
            method=self.options.masking, mask_id=vocabulary.mask_id, vocabulary_size=vocabulary.size,
        )  # fmt: skip
        return Sample(masked, types, places, labels, label)

    def _one_segment(self, first: int, last: int, target: int, generator: np.random.Generator) -> np.ndarray:
        tokens = self.data.tokens(first, last)
        return tokens[pairs.truncate(len(tokens), 0, target, generator)[0]]

    def _two_segments(
        self, first: int, last: int, target: int, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """SOP: two halves of a text, swapped or not. NSP: the second half as it is, or from another document."""
        sizes = self.data.sizes
        middle = first + pairs.cut_in_two(sizes[first:last], generator)
        one, two = self.data.tokens(first, middle), self.data.tokens(middle, last)
        label = int(generator.random() < 0.5)
        if label and self.options.pairs == "sop":
            one, two = two, one
        elif label:
            wanted = max(min(len(one) + len(two), target) - len(one), 1)
            target = min(len(one) + len(two), target)
            two = self.data.tokens(*pairs.random_second(self.documents, sizes, first, wanted, generator))
        keep_one, keep_two = pairs.truncate(len(one), len(two), target, generator)
        return one[keep_one], two[keep_two], label

    def describe(self, examples: int = 3) -> dict[str, Any]:
        """Numbers for a person: documents, sentences, samples, tokens, share of padding, and a few rows of ids."""
        lengths = self.lengths()
        counts, edges = np.histogram(lengths, bins=16, range=(0, self.options.seq_length))
        return {
            "documents": len(self.documents) - 1,
            "documents_left_out": self.documents_left_out(),
            "sentences": int(self.documents[-1] - self.documents[0]),
            "samples": len(self.map),
            "tokens": int(lengths.sum()),
            "mean_length": float(lengths.mean()),
            "fill": float(lengths.sum() / (len(lengths) * self.options.seq_length)),
            "length_histogram": {"edges": edges.astype(int).tolist(), "counts": counts.tolist()},
            "examples": [
                self.sample(self.map[index], index).input_ids.tolist() for index in range(min(examples, len(self)))
            ],
        }
