"""WordPiece by looking words up: the ids of each run of letters are found once and then remembered.

BERT's cleaning and splitting never look across a space or an ASCII punctuation mark, so a text can be cut there and its
parts read one by one; most of them were met before. What is remembered is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import numpy as np

_MARKS = r"!-/:-@\[-`{-~"
# Other white space and control characters are for the tokenizer: it drops some of them, so words may go on behind them.
_PARTS = re.compile(rf"[^ \t\n\r{_MARKS}]+|[{_MARKS}]")
_BORDER = re.compile(rf"[ \t\n\r{_MARKS}\u3001\u3002\uff01\uff0c\uff1f]")
_MOST_PARTS = 1 << 18  # about 40 MB
_MOST_REMEMBERED = 1 << 24  # characters of them
_MOST_CHARACTERS = 1 << 20  # read at a time


class _Numbers(dict[str, int]):
    """Part -> its number; a part that is asked for the first time gets the next one."""

    def __init__(self) -> None:
        super().__init__()
        self.new: list[str] = []

    def __missing__(self, part: str) -> int:
        number = len(self)
        self[part] = number
        self.new.append(part)
        return number


class WordCache:
    """Texts to ids, for a tokenizer whose words end at spaces and punctuation marks."""

    def __init__(self, encode: Callable[[list[str]], list[list[int]]], *, lower_case: bool) -> None:
        """Remember what `encode` gives.

        Args:
            encode: the tokenizer proper.
            lower_case: upper-case letters have the ids of lower-case ones.
        """
        self._encode, self._lower_case = encode, lower_case
        self._forget()

    def __getstate__(self) -> dict[str, object]:
        """What was learned stays here: another process learns its own."""
        return {"_encode": self._encode, "_lower_case": self._lower_case}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._forget()

    def _forget(self) -> None:
        self._numbers = _Numbers()
        self._remembered = 0
        self._ids = np.zeros(0, np.int32)
        self._starts = self._lengths = np.zeros(0, np.int64)

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all texts, one after the other, [tokens] int32, and how many each text has, [texts] int32."""
        ids: list[np.ndarray] = []
        lengths = np.zeros(len(texts), np.int32)
        for numbers, parts in self._groups(texts):
            found, counts = self._look_up(parts)
            ids.append(found)
            np.add.at(lengths, numbers, counts)
        return np.concatenate(ids) if ids else np.zeros(0, np.int32), lengths

    def _groups(self, texts: Sequence[str]) -> Iterator[tuple[list[int], list[list[str]]]]:
        """(numbers of some texts, the parts of each); a long text comes in several pieces."""
        numbers: list[int] = []
        parts: list[list[str]] = []
        size = 0
        for number, text in enumerate(texts):
            for piece in _pieces(text):
                size += len(piece)
                if self._lower_case and piece.isascii():
                    piece = piece.lower()
                numbers.append(number)
                parts.append(_PARTS.findall(piece))
                if size >= _MOST_CHARACTERS:
                    yield numbers, parts
                    numbers, parts, size = [], [], 0
        if numbers:
            yield numbers, parts

    def _look_up(self, parts: list[list[str]]) -> tuple[np.ndarray, np.ndarray]:
        if len(self._numbers) > _MOST_PARTS or self._remembered > _MOST_REMEMBERED:
            self._forget()
        counts = np.fromiter(map(len, parts), np.int64, len(parts))
        get = self._numbers.__getitem__
        numbers = np.fromiter(map(get, chain.from_iterable(parts)), np.int64, int(counts.sum()))
        if self._numbers.new:
            self._learn()
        lengths = self._lengths[numbers]
        ends = np.cumsum(lengths)
        total = int(ends[-1]) if len(ends) else 0
        places = np.repeat(self._starts[numbers] - (ends - lengths), lengths) + np.arange(total)
        reached = np.concatenate([[0], ends])[np.concatenate([[0], np.cumsum(counts)])]
        return self._ids[places], np.diff(reached)

    def _learn(self) -> None:
        encoded = self._encode(self._numbers.new)
        self._remembered += sum(map(len, self._numbers.new))
        self._numbers.new = []
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        ids = np.fromiter(chain.from_iterable(encoded), np.int32, int(lengths.sum()))
        self._starts = np.concatenate([self._starts, len(self._ids) + np.cumsum(lengths) - lengths])
        self._lengths = np.concatenate([self._lengths, lengths])
        self._ids = np.concatenate([self._ids, ids])


def _pieces(text: str) -> Iterator[str]:
    """A text, cut where no word is if it is long."""
    at = 0
    while len(text) - at > _MOST_CHARACTERS:
        border = _BORDER.search(text, at + _MOST_CHARACTERS // 2)
        if border is None:
            break
        yield text[at : border.start()]
        at = border.start()
    yield text[at:] if at else text
