"""The elements of a JSON array that is too long to be read at once."""

from __future__ import annotations

import re
from collections.abc import Iterator

# Strings are jumped over whole, so that their brackets do not count; a quote alone is a string not read to its end.
_MARK = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["{}\[\]]', re.DOTALL)
# Numbers, words and null are no marks: the scan takes them for a part of the element behind them.
_WORD = re.compile(rb'[^\s,"{}\[\]]++(?=\s*[,\]])')
_NEXT_OBJECT = re.compile(rb'["}\]]\s*+,\s*+(?=\{)')
_BETWEEN = re.compile(rb"[\s,]*+(?:\][\s,]*+(?:\[[\s,]*+)?)?")


class Array:
    """Where the elements of a JSON array end, found as its bytes arrive; every byte is looked at once.

    Positions count from the start of the buffer that is passed; the buffer begins behind the array's `[`, or behind an
    element. What another array behind the first one holds counts as the same array's.
    """

    def __init__(self) -> None:
        self._closed = False  # the array's `]` stands behind the last element
        self._depth = self._position = self._last_end = 0

    def ends(self, buffer: bytes | bytearray) -> Iterator[int]:
        """Ends of the elements not given before."""
        for mark in _MARK.finditer(buffer, self._position):
            token = mark[0]
            if token == b'"':
                return
            self._position = mark.end()
            if self._depth == 0 and (token == b"]" or (token == b"[" and self._closed)):
                self._closed = token == b"]"
                continue
            if token in (b"{", b"["):
                self._depth += 1
            elif token in (b"}", b"]"):
                self._depth = max(0, self._depth - 1)
            if self._depth == 0:
                self._last_end = self._position
                self._closed = False
                yield self._position

    def last_end(self, buffer: bytes | bytearray) -> int:
        """The last place where an element surely ends; 0 if there is none yet."""
        for _ in self.ends(buffer):
            pass
        return self._last_end

    def drop(self, count: int) -> None:
        """The first `count` bytes of the buffer are gone."""
        self._position -= count
        self._last_end -= count


def elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(place, bytes) of each element; what is no element shows as one that is not JSON."""
    start = 0
    for end in (*Array().ends(data), len(data)):
        start = _behind(data, start)
        while word := _WORD.match(data, start, end):
            yield start, word[0]
            start = _behind(data, word.end())
        if start < end:
            yield start, data[start:end]
        start = max(start, end)


def _behind(data: bytes, start: int) -> int:
    between = _BETWEEN.match(data, start)
    assert between is not None
    return between.end()


def objects_within(element: bytes) -> Iterator[tuple[int, bytes]]:
    """(place, bytes) of what may be elements in one that is not JSON.

    A missing mark hides what follows it: a quotation mark or bracket too few joins an element with those behind it.
    """
    start = 0
    for border in _NEXT_OBJECT.finditer(element):
        yield start, element[start : border.start() + 1]
        start = border.end()
    yield start, element[start:].rstrip().removesuffix(b"]")  # the end of the array, where all of it was joined
