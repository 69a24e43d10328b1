"""Rows of samples that were stored with their masks (`stored_reading.py`): each pass shows the same ones."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from megabert.data import stored_reading
from megabert.data.indexed import IndexedData
from megabert.data.options import DataOptions
from megabert.data.samples import NO_LABEL, Row, RowShape, Sample, Vocabulary, assemble, reordered
from megabert.data.stored_reading import SEQUENCES, sample_at

if TYPE_CHECKING:
    from megabert.tokenization.base import Tokenizer


def holds_samples(data: IndexedData) -> bool:
    """Whether indexed data is made of stored samples, not of text."""
    return "samples" in data.facts


class StoredSet:
    """Stored samples, one padded sample a row: row i is a function of (seed, i).

    The first pass has them in the order of the files, later ones in other orders; `len` is one pass.
    """

    def __init__(
        self, data: IndexedData, tokenizer: Tokenizer | Vocabulary, options: DataOptions, *, seed: int, name: str
    ) -> None:
        """Make rows of `data`, whose side file tells its shape.

        Raises:
            ValueError: as `stored_reading.check_shape`; the options do not say that the data are stored samples.
        """
        if not options.use_tfrecords:
            raise ValueError(f"{data.prefix}: the {name} is stored samples, no text; add --use-tfrecords")
        self.data, self.seed = data, seed
        self.vocabulary = tokenizer if isinstance(tokenizer, Vocabulary) else Vocabulary.of(tokenizer)
        self.paired = options.pairs != "none"
        positions, predictions = (int(data.facts["samples"][key]) for key in ("positions", "predictions"))
        stored_reading.check_shape(stored_reading.Shape(positions, predictions), options, str(data.prefix))
        self.shape = RowShape(positions, predictions, 1)

    def reshaped(self, shape: RowShape) -> StoredSet:
        """The same rows in arrays of another, larger shape."""
        other = copy.copy(self)
        other.shape = shape
        return other

    def __len__(self) -> int:
        """Samples."""
        return self.data.num_documents

    def __iter__(self) -> Iterator[Row]:
        """The samples in their order."""
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Row:
        """Row `index`; any index from 0 on."""
        epoch, place = divmod(index, len(self))
        return assemble(
            [self.sample(reordered(place, len(self), self.seed, epoch))], self.shape, self.vocabulary.pad_id
        )

    def sample(self, number: int) -> Sample:
        """Sample `number` of the data."""
        first = int(self.data.documents[number])
        parts = [self.data.tokens(place, place + 1) for place in range(first, first + SEQUENCES)]
        ids, places, middle, hidden, label = sample_at(parts)
        types = (np.arange(len(ids)) >= middle).astype(np.int64)
        return Sample(ids, types, places, hidden, label if self.paired else NO_LABEL)

    @property
    def document_count(self) -> int:
        """Samples; their documents are not known."""
        return len(self)

    def documents_left_out(self) -> int:
        """None: each sample is a row."""
        return 0
