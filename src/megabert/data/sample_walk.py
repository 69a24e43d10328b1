"""The walk behind Megatron's sample map, mostly in numpy: which sentences go into one sample.

The definition is a walk from sentence to sentence. One random number is drawn for each sample and one more behind each
document's last; one in `every` makes its sample short. So samples depend on all samples before them, but only by the
count of the numbers drawn. Hence: first every document is cut as if no number made a sample short, all documents at a
time. Then only the short samples are visited: from each on samples are cut one by one, until a cut falls where one of
the first kind lies; up to the next short sample these hold again.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

_FEW = 32  # documents under way at once; fewer are cut one by one


class Walk(NamedTuple):
    """Samples in order."""

    begins: np.ndarray  # [samples] int64, the first sentence
    ends: np.ndarray  # [samples] int64, one past the last sentence
    targets: np.ndarray  # [samples] int64, most tokens


def draws_32(seed: int, block: int = 1 << 16) -> Iterator[np.ndarray]:
    """The outputs of C++'s `std::mt19937(seed)`, in blocks of uint32."""
    state = np.random.RandomState(seed)
    while True:
        yield state.randint(0, 1 << 32, block, np.uint32)


def walk(
    totals: np.ndarray, document_ends: np.ndarray, *, length: int, every: int, seed: int, least_sentences: int,
    num_samples: int | None,
) -> Walk:  # fmt: skip
    """Cut epochs of back-to-back documents into samples.

    Args:
        totals: [sentences + 1] int64, tokens before each sentence.
        document_ends: [documents] int64, one past the last sentence of each; each has `least_sentences` or more.
        length: most tokens of a sample that is not short.
        every: one number in so many makes a sample short; 0: none does.
        num_samples: epochs are added until there are so many samples; None: one epoch.
    """
    cutter = _Cutter(totals, document_ends, length, least_sentences)
    if not every:
        epochs = 1 if num_samples is None else max(-(-num_samples // len(cutter.begins)), 1)
        begins, ends = np.tile(cutter.begins, epochs), np.tile(cutter.ends, epochs)
        return Walk(begins, ends, np.full(len(begins), length, np.int64))
    shorts = _Shorts(seed, every, length)
    parts = [cutter.epoch(shorts)]
    while num_samples is not None and sum(len(part.begins) for part in parts) < num_samples:
        parts.append(cutter.epoch(shorts))
    return Walk(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


class _Shorts:
    """The numbers that make a sample short, one at a time: `place` counts those drawn before it."""

    def __init__(self, seed: int, every: int, length: int) -> None:
        self._coming = self._all(seed, every, length)
        self.drawn = 0  # so far, by all samples
        self.place, self.target = next(self._coming)

    @staticmethod
    def _all(seed: int, every: int, length: int) -> Iterator[tuple[int, int]]:
        before = 0
        for block in draws_32(seed):
            places = np.flatnonzero(block % every == 0)
            yield from zip((places + before).tolist(), (2 + block[places] % (length - 1)).tolist(), strict=True)
            before += len(block)

    def pass_by(self, drawn: int) -> None:
        """So many numbers are drawn by now; the next one counts from there."""
        self.drawn = drawn
        while self.place < drawn:
            self.place, self.target = next(self._coming)


class _Cutter:
    """The samples of full length, and what short ones make of them.

    Attributes:
        begins, ends: [samples] int64, in order: a sample is the sentences from `begins` up to, without, `ends`.
    """

    def __init__(self, totals: np.ndarray, document_ends: np.ndarray, length: int, least: int) -> None:
        self.length, self.least, self._totals = length, least, totals.data
        self._document_ends, self._sentences = document_ends, len(totals) - 1
        self.begins, self.ends = self._cut(totals)
        # How many numbers are drawn before a sample's own, where no sample is short.
        self._draws = np.arange(len(self.begins)) + np.searchsorted(document_ends, self.begins, "right")

    def _cut(self, totals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cut all documents into samples of full length, a sample of each document at a time."""
        last = self._document_ends
        at = np.concatenate([[0], last[:-1]])
        begins: list[np.ndarray] = []
        ends: list[np.ndarray] = []
        while len(at) > _FEW:
            end = np.maximum(np.searchsorted(totals, totals[at] + self.length), at + self.least)
            end = np.where(end >= last - 1, last, end)  # one sentence is never left over
            begins.append(at)
            ends.append(end)
            more = end < last
            at, last = end[more], last[more]
        single_begins, single_ends = array("q"), array("q")
        for place, stop in zip(at.tolist(), last.tolist(), strict=True):
            while place < stop:
                single_begins.append(place)
                place = self._end(place, stop, self.length)
                single_ends.append(place)
        all_begins = np.concatenate([*begins, np.frombuffer(single_begins, np.int64)])
        order = np.argsort(all_begins)
        return all_begins[order], np.concatenate([*ends, np.frombuffer(single_ends, np.int64)])[order]

    def _end(self, at: int, stop: int, target: int) -> int:
        """Where a sample of `target` tokens ends that begins at sentence `at` of a document that ends at `stop`."""
        totals = self._totals
        end = bisect_left(totals, totals[at] + target, min(at + self.least, stop), stop)
        return stop if end >= stop - 1 else end

    def epoch(self, shorts: _Shorts) -> Walk:
        """One pass over all documents; `shorts` goes on with it."""
        draws, begins, stops, count = self._draws.data, self.begins.data, self._document_ends.data, len(self.begins)
        runs = array("q")  # of samples that hold: first, one past the last, how many were cut anew before
        cuts = array("q")  # of samples that were cut anew: begin, end, target
        sample = document = 0
        while sample < count:
            # The number at `shorts.place` belongs to the sample at this distance.
            distance = shorts.place - shorts.drawn
            wanted = draws[sample] + distance
            reach = bisect_left(draws, wanted, sample, min(count, sample + distance + 1))
            runs.extend((sample, reach, len(cuts) // 3))
            if reach == count:
                shorts.pass_by(shorts.drawn + count + len(stops) - draws[sample])
                break
            shorts.pass_by(shorts.drawn + draws[reach] - draws[sample])
            document = bisect_right(stops, begins[reach], document, min(len(stops), document + reach - sample + 2))
            sample = reach
            if draws[reach] == wanted:  # else it was drawn behind a document's last sample, and decides nothing
                sample = self._cut_anew(reach, stops[document], shorts, cuts)
        return self._joined(np.frombuffer(runs, np.int64).reshape(-1, 3), np.frombuffer(cuts, np.int64).reshape(-1, 3))

    def _cut_anew(self, reach: int, stop: int, shorts: _Shorts, cuts: array) -> int:
        """Cut samples from the place of sample `reach` on, the first of them short; returns the next that holds."""
        begins, totals, count = self.begins.data, self._totals, len(self.begins)
        length, least, drawn, at = self.length, self.least, shorts.drawn, begins[reach]
        while True:
            target = shorts.target if shorts.place == drawn else length
            end = bisect_left(totals, totals[at] + target, min(at + least, stop), stop)
            if end >= stop - 1:
                end = stop
            cuts.extend((at, end, target))
            drawn += 2 if end == stop else 1
            if shorts.place < drawn:
                shorts.pass_by(drawn)
            while reach < count and begins[reach] < end:
                reach += 1
            if end == stop or (reach < count and begins[reach] == end):
                shorts.drawn = drawn
                return reach
            at = end

    def _joined(self, runs: np.ndarray, cuts: np.ndarray) -> Walk:
        """Runs of samples that hold, and between them those that were cut anew."""
        first, last, before = runs.T
        lengths = last - first
        held = np.arange(int(lengths.sum()))
        places = held + np.repeat(before, lengths)
        sources = held + np.repeat(first - (np.cumsum(lengths) - lengths), lengths)
        is_cut = np.ones(len(held) + len(cuts), bool)
        is_cut[places] = False
        joined = np.full((3, len(is_cut)), self.length, np.int64)
        joined[0, places], joined[1, places] = self.begins[sources], self.ends[sources]
        joined[:, is_cut] = cuts.T
        return Walk(*joined)
