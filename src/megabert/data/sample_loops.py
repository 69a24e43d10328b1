"""Megatron's sample map as its own plain loops, compiled by numba where that is installed (`megabert[compiled]`).

The numbers are those of `sample_walk.py` and of the shuffle in `pairs.py`, several times as soon on many sentences; on
few, the time to load the compiled loops is more than they save. numba keeps them in its cache between runs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

WORTHWHILE = 1 << 22  # sentences; with fewer, numpy is done before numba is loaded and, the first time, has compiled


class Loops(NamedTuple):
    """The compiled functions."""

    cut: Callable[..., tuple[int, int]]
    shuffle: Callable[[np.ndarray, np.ndarray], None]


def usable() -> bool:
    """Whether numba is there, and works with this numpy: it refuses to be imported otherwise."""
    try:
        import numba  # noqa: F401
    except ImportError:
        return False
    return True


@functools.cache
def _loops() -> Loops:
    import numba

    compiled = numba.njit(cache=True, nogil=True)
    return Loops(compiled(_cut), compiled(_shuffle))


def walk(
    firsts: np.ndarray, lasts: np.ndarray, sizes: np.ndarray, dtype: type[np.unsignedinteger], *, length: int,
    every: int, seed: int, least_sentences: int, num_samples: int | None,
) -> np.ndarray:  # fmt: skip
    """Cut epochs of documents into samples.

    Args:
        firsts, lasts: [documents] int64, first sentence and one past the last; each has `least_sentences` or more.
        sizes: [sentences] integers, tokens of each.
        dtype: of the result.
        length, every, seed, num_samples: as for `sample_walk.walk`.

    Returns:
        [samples, 3] of `dtype`: first sentence, one past the last, most tokens.
    """
    # All samples of a document but its last have `least_sentences` or more.
    most = int((-((firsts - lasts) // max(least_sentences, 1))).sum())
    state, draws = np.random.RandomState(seed), np.zeros(0, np.uint32)
    epochs: list[np.ndarray] = []
    while not epochs or (num_samples is not None and sum(map(len, epochs)) < num_samples):
        if every:
            fresh = state.randint(0, 1 << 32, most + len(firsts) - len(draws), np.uint32)
            draws = np.concatenate([draws, fresh])
        rows = np.empty((most, 3), dtype)  # of these pages only those that are written to take memory
        count, used = _loops().cut(firsts, lasts, sizes, draws, length, every, least_sentences, rows)
        epochs.append(rows[:count])
        draws = draws[used:]
    return epochs[0] if len(epochs) == 1 else np.concatenate(epochs)


def shuffle(rows: np.ndarray, draws: np.ndarray) -> None:
    """Fisher and Yates' shuffle of rows in place, from the end; `draws`: [rows - 1] uint64."""
    _loops().shuffle(rows, draws)


def _cut(
    firsts: np.ndarray, lasts: np.ndarray, sizes: np.ndarray, draws: np.ndarray, length: int, every: int, least: int,
    rows: np.ndarray,
) -> tuple[int, int]:  # fmt: skip
    """One epoch into `rows`: (samples, numbers drawn)."""
    count = used = 0
    for document in range(len(firsts)):
        begin, last = firsts[document], lasts[document]
        tokens, target = 0, length
        for sentence in range(begin, last + 1):
            if sentence == begin:
                # A number is drawn for each sample, and one more behind each document's last.
                target = length
                if every:
                    draw = np.int64(draws[used])
                    used += 1
                    if draw % every == 0:
                        target = 2 + draw % (length - 1)
            if sentence == last:
                break
            tokens += sizes[sentence]
            left = last - sentence - 1
            if left == 0 or (left > 1 and tokens >= target and sentence + 1 - begin >= least):
                rows[count, 0], rows[count, 1], rows[count, 2] = begin, sentence + 1, target
                count += 1
                begin, tokens = sentence + 1, 0
    return count, used


def _shuffle(rows: np.ndarray, draws: np.ndarray) -> None:
    for step in range(len(rows) - 1):
        place = len(rows) - 1 - step
        partner = np.int64(draws[step] % np.uint64(place + 1))
        for column in range(rows.shape[1]):
            held = rows[place, column]
            rows[place, column] = rows[partner, column]
            rows[partner, column] = held
