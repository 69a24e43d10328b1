"""Texts as words, and rows of whole words: what the tasks that say something of each word share.

A text that is too long has several rows (windows), and each word answers in the one where it has most context.
"""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from megabert.metrics import entities
from megabert.tasks.base import NO_LABEL, Example, Features, pair_of, softmax
from megabert.tokenization.base import Tokenizer

Offsets = list[tuple[int, int]]
_WORD_BREAK = "\u200b"
# What stands behind a character to change it, beyond what Unicode's categories tell: skin tones of emoji.
_TONES = "\U0001f3fb-\U0001f3ff"
_FLAG = "[\U0001f1e6-\U0001f1ff]{2}"


@dataclass(frozen=True, kw_only=True)
class WordsExample(Example):
    """A sentence in words, their labels when known, and where the words stand in `text`: characters `[start, stop)`."""

    words: list[str]
    tags: list[str]
    text: str
    offsets: Offsets


class Answer(NamedTuple):
    """A word that a row answers for: its number in the text, the place of its first piece, and how many it has."""

    word: int
    place: int
    pieces: int


class WordRow(NamedTuple):
    """Words of one text as a row `[CLS] ... [SEP]`: number of the text, int64 [seq] twice, and who answers in it.

    `first` is True for the first row of a text.
    """

    text: int
    input_ids: np.ndarray
    token_type_ids: np.ndarray
    answers: list[Answer]
    first: bool

    def labels(self, numbers: Sequence[int], *, all_pieces: bool = False) -> np.ndarray:
        """int64 [seq]: at the first piece of each word that answers (or at all of them) its number of `numbers`, which
        has one for each word of the text; -100 elsewhere."""
        labels = np.full(len(self.input_ids), NO_LABEL, dtype=np.int64)
        for word, place, pieces in self.answers:
            labels[place : place + (pieces if all_pieces else 1)] = numbers[word]
        return labels

    def features(self, labels: dict[str, np.ndarray]) -> Features:
        """The row as it is trained on, with its labels."""
        return Features(
            example=self.text, input_ids=self.input_ids, token_type_ids=self.token_type_ids, labels=labels,
            facts=self.answers,
        )  # fmt: skip


@functools.cache
def _attached() -> str:
    """Characters that belong to the one before them (accents, vowel signs, joiners), as the inside of a class."""
    codes = itertools.chain([0xAD], range(0x300, 0x20000), range(0xE0001, 0xE01F0))
    kinds = ("Mn", "Mc", "Me", "Cf")
    several = [code for code in codes if unicodedata.category(chr(code)) in kinds and chr(code) != _WORD_BREAK]
    starts = [code for at, code in enumerate(several) if not at or several[at - 1] != code - 1]
    stops = [code for at, code in enumerate(several) if at + 1 == len(several) or several[at + 1] != code + 1]
    return "".join(f"{chr(start)}-{chr(stop)}" for start, stop in zip(starts, stops, strict=True)) + _TONES


@functools.cache
def words_and_marks(*, inner_marks: bool = False) -> re.Pattern[str]:
    """Words, and each punctuation mark for itself; accents and the like belong to what they stand behind, and so do
    the parts of a flag or of an emoji of several.

    Args:
        inner_marks: marks inside a word (o'clock, a.m) belong to it.
    """
    attached = _attached()
    word = rf"\w[\w{attached}]*"
    mark = rf"[^\w\s{attached}]"
    more = rf"(?:(?:{mark}[{attached}]*)+{word})*" if inner_marks else ""
    return re.compile(rf"{word}{more}|{_FLAG}|{mark}(?:[{attached}]|(?<=\u200d){mark})*|[{attached}]+")


def found(text: str, pattern: re.Pattern[str]) -> tuple[list[str], Offsets]:
    """The words that a pattern finds in a text, and where."""
    matches = list(pattern.finditer(text))
    return [match[0] for match in matches], [match.span() for match in matches]


def with_marks(text: str, offsets: Offsets) -> Offsets:
    """The characters of a text's pieces, with the accents behind them that a tokenizer takes away."""
    if text.isascii():
        return offsets
    whole = []
    for (start, end), (limit, _) in itertools.pairwise([*offsets, (len(text), len(text))]):
        while start < end < limit and unicodedata.category(text[end]).startswith("M"):
            end += 1
        whole.append((start, end))
    return whole


def joined(words: Sequence[str]) -> tuple[str, Offsets]:
    """The text of words with spaces between them, and where they stand in it."""
    offsets, at = [], 0
    for word in words:
        offsets.append((at, at + len(word)))
        at += len(word) + 1
    return " ".join(words), offsets


def rows(texts: Sequence[Sequence[str]], tokenizer: Tokenizer, length: int, stride: int) -> Iterator[WordRow]:
    """Rows of whole words, in the order of the texts.

    A word of which the tokenizer leaves nothing (a control character, say) is an unknown piece, so that it has an
    answer too; one that is longer than a row is cut.

    Args:
        length: tokens of a row at most, special ones included.
        stride: pieces that the windows of a long text share.
    """
    distinct = list(dict.fromkeys(word for words in texts for word in words))
    room = length - 2
    encoded = tokenizer.encode_batch(distinct)
    pieces = {word: (ids or [tokenizer.unknown_id])[:room] for word, ids in zip(distinct, encoded, strict=True)}
    for number, text in enumerate(texts):
        words = [pieces[word] for word in text]
        for start, stop, first, last in windows([len(ids) for ids in words], room, stride):
            ids, types = pair_of([piece for word in words[start:stop] for piece in word], None, tokenizer)
            answers, at = [], 1
            for word in range(start, stop):
                if first <= word < last:
                    answers.append(Answer(word, at, len(words[word])))
                at += len(words[word])
            yield WordRow(number, ids, types, answers, start == 0)


def probabilities(
    outputs: Sequence[np.ndarray], features: Sequence[Features], counts: Sequence[int], columns: slice = slice(None)
) -> list[np.ndarray]:
    """For each text, the probabilities of its words' classes, float64 [words, classes].

    Args:
        outputs: logits [seq or more, all classes] of each row; padding may follow.
        features: rows whose `facts` are the answers of a `WordRow`.
        counts: words of each text.
        columns: the classes that are asked for.
    """
    said: list[np.ndarray] = [np.zeros((count, 0)) for count in counts]
    for logits, row in zip(outputs, features, strict=True):
        if not row.facts:
            continue
        chosen = softmax(logits[[answer.place for answer in row.facts]][:, columns])
        if not said[row.example].shape[1]:
            said[row.example] = np.zeros((counts[row.example], chosen.shape[1]))
        said[row.example][[answer.word for answer in row.facts]] = chosen
    return said


def entities_of(
    example: WordsExample, tags: Sequence[str], sure: Sequence[float], scheme: entities.Scheme
) -> Iterator[dict[str, Any]]:
    """The entities that tags write, each with its characters in the text; as probable as its least probable word."""
    for span in entities.spans_of(tags, scheme):
        start, stop = example.offsets[span.start][0], example.offsets[span.stop - 1][1]
        yield {
            "type": span.type, "text": example.text[start:stop], "start": start, "end": stop,
            "first_word": span.start, "last_word": span.stop - 1, "probability": min(sure[span.start : span.stop]),
        }  # fmt: skip


def likeliest(classes: np.ndarray, labels: Sequence[str]) -> tuple[list[str], list[float]]:
    """The label of each word and its probability, from probabilities [words, classes]."""
    if not len(classes):
        return [], []
    return [labels[int(best)] for best in classes.argmax(axis=1)], [float(value) for value in classes.max(axis=1)]


def windows(lengths: Sequence[int], room: int, stride: int) -> list[tuple[int, int, int, int]]:
    """Cut words into windows: (first word, past the last word, first and past the last word that answer in it).

    Args:
        lengths: pieces of each word, none above `room`.
        room: pieces of a window.
        stride: pieces that neighbouring windows share at least, as far as whole words allow.

    Returns:
        Windows whose answering words are all words, each once: where two windows overlap, the words before the middle
        of the overlap answer in the first.
    """
    cuts: list[tuple[int, int]] = []
    start = 0
    while start < len(lengths):
        stop, used = start, 0
        while stop < len(lengths) and used + lengths[stop] <= room:
            used += lengths[stop]
            stop += 1
        cuts.append((start, stop))
        if stop == len(lengths):
            break
        shared, back = 0, stop
        while back - 1 > start and shared < stride:
            back -= 1
            shared += lengths[back]
        # A window that would not reach further than the one before shares nothing with it.
        start = back if shared + lengths[stop] <= room else stop
    result = []
    for number, (start, stop) in enumerate(cuts):
        first = start if number == 0 else (start + cuts[number - 1][1] + 1) // 2
        last = stop if number == len(cuts) - 1 else (cuts[number + 1][0] + stop + 1) // 2
        result.append((start, stop, first, last))
    return result
