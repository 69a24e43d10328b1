"""Which tokens of a sample are to be predicted, and what stands in their place.

Everything here is a pure function of its arguments and the generator. Three ways to choose: single tokens (BERT 2018,
Megatron 2019), whole words, and n-grams of 1 to 3 whole words (Megatron from v1.0 on). Chosen tokens become [MASK] with
probability 0.8, a random token with 0.1, and stay with 0.1, each for itself.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

LONGEST_NGRAM = 3


def most_predictions(seq_length: int, mask_prob: float) -> int:
    """Places to predict in a row: a share of the sequence, rounded up to a multiple of 10 (80 for 512 and 0.15)."""
    return min(math.ceil(round(seq_length * mask_prob, 6) / 10) * 10, seq_length)


def quota(tokens: int, target: int, mask_prob: float, most: int) -> int:
    """How many tokens of a sample are predicted, as Megatron counts.

    Args:
        tokens: of the sample, special ones included.
        target: the sample's target length from the map.
        most: the limit of the row.
    """
    return int(min(mask_prob * target, max(1, round(mask_prob * tokens)), most))


def quotas(tokens: np.ndarray, targets: np.ndarray, mask_prob: float, most: int) -> np.ndarray:
    """`quota` of many samples: [samples] int64."""
    wanted = np.minimum(mask_prob * targets, np.maximum(1, np.round(mask_prob * tokens)))
    return np.minimum(wanted, most).astype(np.int64)


def check_share(mask_prob: float, seq_length: int) -> None:
    """Refuse a share that leaves nothing to predict, even in the longest sample.

    Raises:
        ValueError: names the least share that does.
    """
    tokens = seq_length - 3
    if not quota(seq_length, tokens, mask_prob, seq_length):
        least = math.ceil(1e4 / tokens) / 1e4
        raise ValueError(
            f"--mask-prob: {mask_prob:g} of the {tokens} tokens of a sample is less than one, so that nothing would be "
            f"predicted; {least:g} is the least for samples of {seq_length}"
        )


def choose_tokens(candidates: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """`count` of the `candidates`, each as likely: [chosen] int64, ascending."""
    return np.sort(generator.permutation(candidates)[:count])


def _words(candidates: np.ndarray, continues: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First index (into `candidates`) and length of each word. A special token between two pieces parts the words."""
    starts_word = ~continues
    starts_word[1:] |= np.diff(candidates) > 1
    starts_word[:1] = True
    starts = np.flatnonzero(starts_word)
    return starts, np.diff(starts, append=len(candidates))


def choose_words(
    candidates: np.ndarray, continues: np.ndarray, count: int, generator: np.random.Generator
) -> np.ndarray:
    """Whole words in random order until `count` tokens are chosen; a word that does not fit is passed over.

    Args:
        candidates: [candidates] int64, places that may be chosen, ascending.
        continues: [candidates] bool, whether the piece there continues the word before it.

    Returns:
        [chosen] int64, ascending.
    """
    if not len(candidates):
        return candidates
    starts, lengths = _words(candidates, continues)
    order = generator.permutation(len(starts))
    sizes = lengths[order]
    totals = np.cumsum(sizes)
    whole = int(np.searchsorted(totals, count, "right"))  # so many words fit without a choice
    chosen = order[:whole].tolist()
    room = count - (int(totals[whole - 1]) if whole else 0)
    while room and whole < len(order):
        fitting = np.flatnonzero(sizes[whole:] <= room)
        if not len(fitting):
            break
        whole += int(fitting[0])
        chosen.append(int(order[whole]))
        room -= int(sizes[whole])
        whole += 1
    marked = np.zeros(len(starts), bool)
    marked[chosen] = True
    return candidates[np.repeat(marked, lengths)]


def choose_ngrams(
    candidates: np.ndarray, continues: np.ndarray, count: int, generator: np.random.Generator
) -> np.ndarray:
    """Runs of 1 to 3 whole words until `count` tokens are chosen, as Megatron does; arguments as `choose_words`.

    Words come in random order as starts of a run; its length n is drawn with p ~ 1/n among those that stay in the text,
    made smaller until the run fits the count, and the run is passed over when a part of it is chosen already.
    """
    if not len(candidates):
        return candidates
    starts, _ = _words(candidates, continues)
    words = len(starts)
    edges = [*starts.tolist(), len(candidates)]
    weights = 1 / np.arange(1, LONGEST_NGRAM + 1)
    bounds = [(np.cumsum(weights[:n]) / weights[:n].sum()).tolist() for n in range(1, LONGEST_NGRAM + 1)]
    marked = bytearray(len(candidates))
    room = count
    for start, draw in zip(generator.permutation(words).tolist(), generator.random(words).tolist(), strict=True):
        if room <= 0:
            break
        begin = edges[start]
        bound = bounds[min(words - start, LONGEST_NGRAM) - 1]
        end = start + 1
        for limit in bound[:-1]:
            end += draw >= limit
        while end > start and edges[end] - begin > room:
            end -= 1
        taken = edges[end] - begin
        if taken and not any(marked[begin : begin + taken]):
            marked[begin : begin + taken] = b"\x01" * taken
            room -= taken
    return candidates[np.frombuffer(marked, bool)]


def mask(
    ids: np.ndarray,
    maskable: np.ndarray,
    continuation: np.ndarray,
    count: int,
    generator: np.random.Generator,
    *,
    method: Literal["token", "whole-word", "ngram"],
    mask_id: int,
    vocabulary_size: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Choose tokens to predict and replace them.

    Args:
        ids: [tokens] int64; left as it is.
        maskable: [tokens] bool, False at special tokens.
        continuation: [vocabulary] bool, whether an entry continues the word before it.
        count: tokens to choose at most.
        vocabulary_size: random replacements are drawn from all entries, as Megatron does.

    Returns:
        the ids with replacements [tokens], the chosen places [chosen], ascending, and the ids that stood there
        [chosen].
    """
    candidates = np.flatnonzero(maskable)
    if method == "token":
        places = choose_tokens(candidates, count, generator)
    elif method == "whole-word":
        places = choose_words(candidates, continuation[ids[candidates]], count, generator)
    else:
        places = choose_ngrams(candidates, continuation[ids[candidates]], count, generator)
    labels = ids[places]
    fate = generator.random(len(places))
    other = generator.integers(0, vocabulary_size, len(places))
    masked = ids.copy()
    masked[places] = np.where(fate < 0.8, mask_id, np.where(fate < 0.9, labels, other))
    return masked, places, labels
