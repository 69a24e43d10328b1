"""`X.lazy/`, as Megatron-LM's lazy loader of 2019 left it beside `X.json`: `data` holds the texts of all documents back
to back, `data.len.pkl` a pickled list of their lengths in bytes.

The pickle is not unpickled: its opcodes are listed, and nothing but a list of whole numbers is taken from them.
"""

from __future__ import annotations

import itertools
import pickletools
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

import numpy as np

NAME, LENGTHS = "data", "data.len.pkl"
_NUMBERS = frozenset({"BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1"})
_AROUND = frozenset({"PROTO", "FRAME", "EMPTY_LIST", "LIST", "MARK", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE",
                     "APPEND", "APPENDS", "STOP"})  # fmt: skip
_LONGEST_NUMBER = 32  # bytes that a length may take in the pickle


def is_data(path: Path) -> bool:
    """Whether a file is the `data` of such a folder."""
    return path.name == NAME and path.with_name(LENGTHS).is_file()


def lengths(path: Path) -> np.ndarray:
    """The length of each document of the `data` file at `path`, in bytes: [documents] int64.

    Raises:
        ValueError: the lengths are something else than a list of numbers, or do not add up to the file.
    """
    listed = path.with_name(LENGTHS)
    found = array("q")
    try:
        with listed.open("rb") as file:
            for opcode, argument, place in pickletools.genops(cast("IO[bytes]", _Bounded(file))):
                if opcode.name in _NUMBERS and isinstance(argument, int):
                    found.append(argument)
                elif opcode.name not in _AROUND:
                    raise ValueError(f"holds {opcode.name} at byte {place}, which no list of numbers does")
    except (ValueError, OverflowError, TypeError) as error:
        raise ValueError(f"{listed}: is not the list of lengths that Megatron-LM wrote: {error}") from None
    sizes = np.frombuffer(found, np.int64) if found else np.zeros(0, np.int64)
    present = path.stat().st_size
    if (len(sizes) and sizes.min() < 0) or int(sizes.sum()) != present:
        raise ValueError(f"{listed}: its lengths add up to {int(sizes.sum())} bytes, but {path.name} has {present}")
    return sizes


class _Bounded:
    """A file that gives no more at once than a number needs: the pickle says itself how much to read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, count: int) -> bytes:
        if count > _LONGEST_NUMBER:
            raise ValueError(f"a value of {count} bytes")
        return self._file.read(count)

    def readline(self) -> bytes:
        return self._file.readline(_LONGEST_NUMBER)

    def tell(self) -> int:
        return self._file.tell()


def spans(path: Path, chunk_bytes: int, start_offset: int) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """(number of the first document from 1, its offset, lengths of documents) for runs of about `chunk_bytes`."""
    sizes = lengths(path)
    ends = np.cumsum(sizes)
    first = int(np.searchsorted(ends, start_offset, side="right")) if start_offset else 0
    while first < len(sizes):
        begin = int(ends[first] - sizes[first])
        last = max(int(np.searchsorted(ends, begin + chunk_bytes, side="left")) + 1, first + 1)
        yield first + 1, begin, tuple(sizes[first:last].tolist())
        first = last


def pieces(data: bytes, sizes: tuple[int, ...], first: int) -> Iterator[tuple[int, bytes]]:
    """(number, bytes) of the documents in `data`."""
    for number, (begin, end) in enumerate(itertools.pairwise((0, *itertools.accumulate(sizes))), first):
        yield number, data[begin:end]
