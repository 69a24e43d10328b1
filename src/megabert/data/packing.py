"""Several samples in one row, so that nearly no position is padding.

Samples are packed in windows of the shuffled map: best fit by decreasing length first; then the gaps that remain are
filled with parts of other samples, cut at a sentence as the map itself cuts documents; and where no part is short
enough, a sample of the row grows by what its length had cut off and by the sentences before it. Attention stays inside
a sample (`sample_ids`), so a packed row trains as its samples would in rows of their own (cf. Krell et al. 2021,
"Efficient sequence packing without cross-contamination", which packs whole samples only).
"""

from __future__ import annotations

import copy
import itertools
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from megabert.data import masking
from megabert.data.samples import Row, RowShape, SampleSet, assemble, reordered

WINDOW = 4096  # samples packed together
LONGEST_PACKED = (
    1 << 18
)  # so many samples are packed once, in some seconds; further passes take the rows in another order
SHORTEST_PIECE = 16  # tokens with special ones; shorter gaps stay
_TRIES = 8  # samples looked at for one that can be cut to a gap


class _Piece(NamedTuple):
    """A row of the sample map, whole or cut, with its length in tokens."""

    first: int
    last: int
    target: int
    length: int


class _Bin:
    """A row that is being filled."""

    __slots__ = ("pieces", "room")

    def __init__(self, room: int) -> None:
        self.room = room
        self.pieces: list[_Piece] = []

    def add(self, piece: _Piece) -> None:
        self.pieces.append(piece)
        self.room -= piece.length


def best_fit(pieces: Sequence[_Piece], capacity: int) -> list[_Bin]:
    """Best fit decreasing: each piece, longest first, goes where it leaves the least room.

    Bins are kept by their room, and which rooms occur is one whole number's bits: finding the best is a shift.
    """
    by_room: list[list[_Bin]] = [[] for _ in range(capacity + 1)]
    occurring = 0
    bins = []
    for piece in sorted(pieces, key=lambda piece: -piece.length):
        wide_enough = occurring >> piece.length
        if wide_enough:
            room = piece.length + (wide_enough & -wide_enough).bit_length() - 1
            chosen = by_room[room].pop()
            if not by_room[room]:
                occurring ^= 1 << room
        else:
            chosen = _Bin(capacity)
            bins.append(chosen)
        chosen.add(piece)
        by_room[chosen.room].append(chosen)
        occurring |= 1 << chosen.room
    return bins


class _Cutter:
    """Cuts pieces at sentences."""

    def __init__(self, sizes: np.ndarray, least_sentences: int, specials: int) -> None:
        self._sizes = np.array(sizes, np.int32).data
        self._least, self._specials = least_sentences, specials

    def cut(self, piece: _Piece, length: int) -> tuple[_Piece, _Piece] | None:
        """A first part of exactly `length` tokens (its last sentence is truncated) and the rest, or None."""
        target = length - self._specials
        tokens, last = 0, piece.first
        while last < piece.last and (tokens < target or last < piece.first + self._least):
            tokens += self._sizes[last]
            last += 1
        if tokens < target or piece.last - last < self._least:
            return None
        rest = min(sum(self._sizes[last : piece.last]), piece.target)
        return (
            _Piece(piece.first, last, target, length),
            _Piece(last, piece.last, piece.target, rest + self._specials),
        )

    def grow(self, piece: _Piece, room: int, document_start: int) -> _Piece:
        """The piece with up to `room` tokens more: those truncated from it, then those of the sentences before it."""
        first, wanted = piece.first, piece.length - self._specials + room
        tokens = sum(self._sizes[first : piece.last])
        while tokens < wanted and first > document_start:
            first -= 1
            tokens += self._sizes[first]
        if tokens > wanted:
            return _Piece(first, piece.last, wanted, wanted + self._specials)
        return _Piece(first, piece.last, max(tokens, piece.target), tokens + self._specials)


def _grow_into_gaps(row: list[_Piece], room: int, cutter: _Cutter, documents: np.ndarray) -> list[_Piece]:
    """The row with samples grown into its `room`, as far as their documents have text."""
    for place, piece in enumerate(row):
        if room <= 0:
            break
        start = int(documents[np.searchsorted(documents, piece.first, "right") - 1])
        row[place] = cutter.grow(piece, room, start)
        room -= row[place].length - piece.length
    return row


def _fill_gaps(bins: list[_Bin], cutter: _Cutter, capacity: int) -> tuple[list[_Bin], list[_Piece]]:
    """Dissolve the emptiest bins into the gaps of the others.

    Returns:
        the filled bins, and pieces that found no place.
    """
    bins = sorted(bins, key=lambda one: one.room)
    done: list[_Bin] = []
    pool: list[_Piece] = []
    receiver, donor = 0, len(bins) - 1
    while receiver <= donor:
        one = bins[receiver]
        receiver += 1
        if capacity // 128 < one.room < SHORTEST_PIECE and len(one.pieces) > 1:
            smallest = min(one.pieces, key=lambda piece: piece.length)  # the gap is too short: make it longer
            one.pieces.remove(smallest)
            one.room += smallest.length
            pool.append(smallest)
        while one.room >= SHORTEST_PIECE:
            if not pool:
                if donor < receiver:
                    break
                pool += bins[donor].pieces
                donor -= 1
            if not _take_from(pool, one, cutter):
                if donor < receiver:
                    break
                pool += bins[donor].pieces
                donor -= 1
                if not _take_from(pool, one, cutter):
                    break
        done.append(one)
    if done and done[-1].room > capacity // 8:  # the last one may be half empty: it goes on to the next window
        pool += done.pop().pieces
    return done, pool


def _take_from(pool: list[_Piece], one: _Bin, cutter: _Cutter) -> bool:
    """Move a whole piece that fits, or a part cut to the gap, from the end of the pool; False where none would do."""
    for place in range(len(pool) - 1, max(len(pool) - 1 - _TRIES, -1), -1):
        piece = pool[place]
        if piece.length == one.room or piece.length + SHORTEST_PIECE <= one.room:
            one.add(pool.pop(place))
            return True
        if piece.length > one.room and (parts := cutter.cut(piece, one.room)):
            one.add(parts[0])
            pool[place] = parts[1]
            return True
    return False


def pack(table: np.ndarray, capacity: int, cutter: _Cutter, documents: np.ndarray, seed: int) -> Iterator[list[_Piece]]:
    """Rows of pieces, window by window; inside a window the rows come in random order.

    Args:
        table: [samples, 4] int64, the columns of `_Piece`.
        documents: [documents + 1] int64, boundaries of the documents.
    """
    left: list[_Piece] = []
    for number, begin in enumerate(range(0, len(table), WINDOW)):
        left += [_Piece(*row) for row in table[begin : begin + WINDOW].tolist()]
        bins, left = _fill_gaps(best_fit(left, capacity), cutter, capacity)
        generator = np.random.Generator(np.random.Philox(key=np.array([seed % (1 << 64), number], np.uint64)))
        for place in generator.permutation(len(bins)).tolist():
            yield _grow_into_gaps(bins[place].pieces, bins[place].room, cutter, documents)
    for one in best_fit(left, capacity):
        yield _grow_into_gaps(one.pieces, one.room, cutter, documents)


class _Packed(NamedTuple):
    """The rows of an epoch: row i holds the pieces from `borders[i]` to `borders[i + 1]`."""

    pieces: np.ndarray  # [pieces, 4] int64, the columns of `_Piece`
    borders: np.ndarray  # [rows + 1] int64


class PackedSampleSet:
    """Rows of several samples each; otherwise as `SampleSet`, from whose maps the samples come.

    `len` is the number of rows that the first epoch fills; index i is found in its epoch as there. The first epoch also
    sets the shape of the rows: where a later one has more samples or predictions in a row, the last of them are left
    out.
    """

    def __init__(self, samples: SampleSet) -> None:
        """Pack the first epoch of `samples`."""
        self.samples = samples
        self.seed, self.name, self.data, self.options = samples.seed, samples.name, samples.data, samples.options
        self._first = self._pack(0)
        self._later = (0, self._first)
        pieces, borders = self._first
        predictions = np.add.reduceat(self._quotas(pieces), borders[:-1])
        # A multiple of 8, rounded up: the most places to predict in any row.
        most = -(-int(predictions.max()) // 8) * 8
        self.shape = self._limits = RowShape(samples.shape.positions, most, int(np.diff(borders).max()))

    def _pack(self, epoch: int) -> _Packed:
        samples = self.samples
        # Not kept in the object: workers are handed a copy of it.
        cutter = _Cutter(samples.data.sizes, 2 if samples.paired else 1, samples.specials)
        table = samples.map_of(epoch)
        table = np.column_stack([table.astype(np.int64), samples.lengths(table)])
        numbers, borders = array("q"), array("q", [0])
        for row in pack(table, samples.shape.positions, cutter, samples.documents, samples.seed):
            numbers.extend(itertools.chain.from_iterable(row))
            borders.append(len(numbers) // 4)
        return _Packed(np.frombuffer(numbers, np.int64).reshape(-1, 4), np.frombuffer(borders, np.int64))

    def _packed(self, epoch: int) -> _Packed:
        """The rows of an epoch; those of the first for long ones."""
        if epoch == 0 or self._is_long():
            return self._first
        if self._later[0] != epoch:
            self._later = (epoch, self._pack(epoch))
        return self._later[1]

    def _is_long(self) -> bool:
        return len(self.samples.map) > LONGEST_PACKED

    def _quotas(self, pieces: np.ndarray) -> np.ndarray:
        """Places to predict in each of [pieces, 4]."""
        return masking.quotas(pieces[:, 3], pieces[:, 2], self.options.mask_prob, self.samples.most_predictions)

    def reshaped(self, shape: RowShape) -> PackedSampleSet:
        """The same rows in arrays of another, larger shape."""
        other = copy.copy(self)
        other.shape = shape
        return other

    def __len__(self) -> int:
        """Rows that the first epoch fills."""
        return len(self._first.borders) - 1

    def __iter__(self) -> Iterator[Row]:
        """The rows in order, once."""
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Row:
        """Row `index`; any index from 0 on."""
        # Each sample of each row has a number of its own to draw by.
        parts = [
            self.samples.sample(piece[:3], (index << 16) + number) for number, piece in enumerate(self._row(index))
        ]
        return assemble(parts, self.shape, self.samples.vocabulary.pad_id)

    def _row(self, index: int) -> np.ndarray:
        """[pieces, 4] of a row."""
        epoch, place = divmod(index, len(self))
        pieces, borders = self._packed(epoch)
        rows = len(borders) - 1
        at = reordered(place, rows, self.seed, epoch) if self._is_long() else place % rows
        row = pieces[borders[at] : borders[at + 1]]
        fitting = np.cumsum(self._quotas(row)) <= self._limits.predictions
        row = row[: min(int(fitting.sum()), self._limits.samples)]
        if not len(row):  # a single sample with more predictions than any row of the first epoch
            pieces, borders = self._first
            row = pieces[borders[place] : borders[place + 1]]
        return row

    @property
    def fill(self) -> float:
        """Share of the positions that hold a token."""
        return float(self._first.pieces[:, 3].sum() / (len(self) * self.shape.positions))

    def describe(self, examples: int = 3) -> dict[str, Any]:
        """`SampleSet.describe`, with the rows, their fill and the mean number of samples in a row."""
        lengths = self._first.pieces[:, 3]
        return {
            **self.samples.describe(examples),
            "rows": len(self),
            "samples": len(lengths),
            "tokens": int(lengths.sum()),
            "fill": self.fill,
            "samples_per_row": len(lengths) / len(self),
        }
