"""Which sentences make a sample: Megatron's sample map, and the cut of a sample into its two segments.

The map is a list of (first sentence, one past the last, most tokens), in the order of training. It is Megatron-LM's
`build_mapping` (megatron/data/helpers.cpp) number for number. What is done with a sample's tokens afterwards is in
`samples.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from megabert.data import sample_loops, sample_walk

LONGEST_SENTENCE = 512  # tokens; Megatron leaves out documents with a longer sentence
_TWIST_SHIFT = 156
_TWIST_SIZE = 312


def draws_64(seed: int, count: int) -> np.ndarray:
    """The first outputs of C++'s `std::mt19937_64(seed)`: [count] uint64.

    Source: Nishimura and Matsumoto, "Tables of 64-bit Mersenne Twisters" (2000), with the parameters of the C++
    standard.
    """
    state = np.empty(_TWIST_SIZE, np.uint64)
    value = seed
    for place in range(_TWIST_SIZE):
        state[place] = value
        value = (6364136223846793005 * (value ^ (value >> 62)) + place + 1) & 0xFFFFFFFFFFFFFFFF
    upper, lower, matrix = (np.uint64(n) for n in (0xFFFFFFFF80000000, 0x7FFFFFFF, 0xB5026F5AA96619E9))
    blocks = -(-count // _TWIST_SIZE)
    out = np.empty((blocks, _TWIST_SIZE), np.uint64)

    def twist(high: np.ndarray, low: np.ndarray, far: np.ndarray) -> np.ndarray:
        mixed = (high & upper) | (low & lower)
        return far ^ (mixed >> np.uint64(1)) ^ ((mixed & np.uint64(1)) * matrix)

    half = _TWIST_SHIFT
    for row in out:
        # Each new word needs the old word half the state further on; for the second half that is a new word, and
        # the last word's neighbour is the first new word.
        state[:half] = twist(state[:half], state[1 : half + 1], state[half:])
        state[half:-1] = twist(state[half:-1], state[half + 1 :], state[: half - 1])
        state[-1:] = twist(state[-1:], state[:1], state[half - 1 : half])
        row[:] = state
    out = out.reshape(-1)[:count]
    out ^= (out >> np.uint64(29)) & np.uint64(0x5555555555555555)
    out ^= (out << np.uint64(17)) & np.uint64(0x71D67FFFEDA60000)
    out ^= (out << np.uint64(37)) & np.uint64(0xFFF7EEE000000000)
    out ^= out >> np.uint64(43)
    return out


def usable_documents(documents: np.ndarray, sizes: np.ndarray, least_sentences: int) -> np.ndarray:
    """[documents] bool: has enough sentences, and no overlong one among several."""
    counts = np.diff(documents)
    usable = (counts >= least_sentences) & (counts > 0)
    overlong = np.flatnonzero(sizes[documents[0] : documents[-1]] > LONGEST_SENTENCE) + documents[0]
    # Of documents that begin at the same sentence the last one holds it; the others are empty.
    holders = np.searchsorted(documents, overlong, "right") - 1
    usable[holders[counts[holders] > 1]] = False
    return usable


def build_sample_map(
    documents: np.ndarray,
    sizes: np.ndarray,
    *,
    length: int,
    short_seq_prob: float,
    seed: int,
    least_sentences: int,
    num_samples: int | None = None,
    shuffle: bool = True,
    compiled: bool | None = None,
) -> np.ndarray:
    """Megatron's `build_mapping`: cut every document into samples of about `length` tokens, epoch after epoch.

    Args:
        documents: [documents + 1] int64, first sentence of each document and, last, where the last one ends. Need not
            begin at 0: a split of a data set is a part of its boundaries.
        sizes: [sentences] int32, tokens of every sentence of the data set.
        length: most text tokens in a sample (the sequence length less its special tokens).
        short_seq_prob: probability of a random, shorter length; used as one in round(1 / p), as Megatron does.
        least_sentences: 2 when samples are split in two segments, else 1.
        num_samples: epochs are added until there are so many samples, so there are somewhat more. None: one epoch.
        compiled: by numba's loops instead of numpy, for the same numbers. None: where it is installed and saves time.

    Returns:
        [samples, 3] uint32 (uint64 beyond 2**32 sentences): first sentence, one past the last, target length.
        Empty when no document is usable.
    """
    usable = usable_documents(documents, sizes, least_sentences)
    dtype = np.uint32 if len(sizes) <= 0xFFFFFFFF else np.uint64
    if not usable.any():
        return np.zeros((0, 3), dtype)
    firsts, lasts = documents[:-1][usable].astype(np.int64), documents[1:][usable].astype(np.int64)
    if compiled is None:
        compiled = len(sizes) >= sample_loops.WORTHWHILE and sample_loops.usable()
    every = round(1 / short_seq_prob) if short_seq_prob > 0 else 0
    if compiled:
        rows = sample_loops.walk(
            firsts, lasts, sizes, dtype, length=length, every=every, seed=seed, least_sentences=least_sentences,
            num_samples=num_samples,
        )  # fmt: skip
        if shuffle:
            sample_loops.shuffle(rows, draws_64(seed + 1, len(rows) - 1))
        return rows
    rows = _walked(
        documents, firsts, lasts, sizes, usable, dtype, length=length, every=every, seed=seed,
        least_sentences=least_sentences, num_samples=num_samples,
    )  # fmt: skip
    return rows[_shuffled_order(len(rows), seed + 1)] if shuffle else rows


def _walked(
    documents: np.ndarray, firsts: np.ndarray, lasts: np.ndarray, sizes: np.ndarray, usable: np.ndarray,
    dtype: type[np.unsignedinteger], **numbers: Any,
) -> np.ndarray:  # fmt: skip
    """`sample_loops.walk` in numpy, by `sample_walk.walk` (which `numbers` are for)."""
    # Usable documents are laid back to back, so that the walk never jumps.
    ends = np.cumsum(lasts - firsts)
    shifts = lasts - ends
    totals = np.zeros(int(ends[-1]) + 1, np.int64)
    kept = sizes[documents[0] : documents[-1]]
    if not usable.all():
        kept = kept[np.repeat(usable, np.diff(documents))]
    np.cumsum(kept, dtype=np.int64, out=totals[1:])
    begun, ended, targets = sample_walk.walk(totals, ends, **numbers)
    moved = shifts[np.searchsorted(ends, begun, "right")]
    rows = np.empty((len(begun), 3), dtype)
    rows[:, 0] = begun + moved
    rows[:, 1] = ended + moved
    rows[:, 2] = targets
    return rows


def _shuffled_order(count: int, seed: int) -> np.ndarray:
    """Fisher and Yates' shuffle from the end, as Megatron draws it: [count] int64.

    Step t exchanges what lies at `places[t]`, which is final then, with what lies at `partners[t]`. So a place ends
    with what its partner held: the partner's own number, or what the last step before that named this partner too has
    put there, which came from that step's place, and so on. All chains are followed to their begin at a time.
    """
    index = np.int32 if count < 1 << 31 else np.int64  # memory is what this waits for
    places = np.arange(count - 1, 0, -1, dtype=index)
    keys = (draws_64(seed, len(places)) % (places.astype(np.uint64) + np.uint64(1))).view(np.int64)
    partners, steps = keys.astype(index), np.arange(len(places), dtype=index)
    keys = np.sort(keys << 32 | steps)  # a place and a step fit 32 bits each: a map of more would not fit memory
    partner, step = (keys >> 32).astype(index), (keys & 0xFFFFFFFF).astype(index)
    again = np.flatnonzero(partner[1:] == partner[:-1])
    before = np.full(len(steps), -1, index)  # the last step before with the same partner
    before[step[again + 1]] = step[again]
    last = np.full(count, -1, index)  # the last step with this place as its partner
    last[partner] = step
    source = last[:0:-1].copy()
    itself = source == steps
    source[itself] = before[itself]
    begin = np.where(source < 0, steps, source)
    while not np.array_equal(further := begin[begin], begin):
        begin = further
    held = places[begin]  # at a step's place, before it
    order = np.arange(count)
    order[1:] = np.where(before < 0, partners, held[before])[::-1]
    if len(steps) and last[0] >= 0:
        order[0] = held[last[0]]
    return order


def cut_in_two(sizes: np.ndarray, generator: np.random.Generator) -> int:
    """How many of a sample's sentences make its first segment: 1 up to all but one, each as likely."""
    return 1 if len(sizes) <= 2 else int(generator.integers(1, len(sizes)))


def truncate(first: int, second: int, most: int, generator: np.random.Generator) -> tuple[slice, slice]:
    """What remains of two segments of `first` and `second` tokens when both together may have `most`.

    Megatron takes tokens one at a time from the longer segment (from the second when they are equal), from its front
    or its back with equal chances. How many each segment loses is thus fixed, and the losses at its front are
    binomial: two draws.
    """
    excess = max(first + second - most, 0)
    if not excess:
        return slice(0, first), slice(0, second)
    from_longer = min(excess, abs(first - second))
    from_first = from_longer if first > second else 0
    # Equal lengths now: the second segment loses first, then they take turns.
    from_first += (excess - from_longer) // 2
    from_second = excess - from_first
    front_first, front_second = (int(n) for n in generator.binomial([from_first, from_second], 0.5))
    return (
        slice(front_first, first - (from_first - front_first)),
        slice(front_second, second - (from_second - front_second)),
    )


def random_second(
    documents: np.ndarray, sizes: np.ndarray, avoid: int, tokens: int, generator: np.random.Generator
) -> tuple[int, int]:
    """The random second segment of next-sentence prediction (Devlin et al. 2018): (first sentence, one past the last).

    Args:
        documents: [documents + 1] int64, boundaries of the documents to choose from.
        avoid: a sentence of the document that is not chosen.
        tokens: sentences are taken until there are so many tokens or the document ends. Where too little would follow
            the start, it is moved towards the document's: random and real pairs are to be about equally long, or the
            length would give the answer away.
    """
    own = int(np.searchsorted(documents, avoid, "right")) - 1
    while True:
        chosen = int(generator.integers(0, len(documents) - 2))
        chosen += chosen >= own
        begin, end = int(documents[chosen]), int(documents[chosen + 1])
        if begin < end:
            break
    totals = np.concatenate([[0], np.cumsum(sizes[begin:end])])
    latest = max(int(np.searchsorted(totals, totals[-1] - tokens, "right")) - 1, 0)
    start = min(int(generator.integers(0, end - begin)), latest)
    stop = min(int(np.searchsorted(totals, totals[start] + tokens)), end - begin)
    return begin + start, begin + max(stop, start + 1)
