"""The older index of tokens, magic `TNTIDX`, that fairseq invented and Megatron-LM wrote as `cached` and `lazy`.

Header: magic (8 bytes), version 1, dtype code, bytes of an element, sequences n, sizes s, document boundaries m, each 8
bytes; then, all int64: n + 1 dimension offsets, n + 1 places in elements, s sizes, m boundaries. Only read.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

MAGIC = b"TNTIDX\x00\x00"
_HEADER = struct.Struct("<8s6Q")


class LegacyIndex(NamedTuple):
    """What the file says."""

    dtype: np.dtype
    sizes: np.ndarray  # [sequences] int32, tokens
    starts: np.ndarray  # [sequences] int64, bytes
    documents: np.ndarray  # [documents + 1] int64


def read(path: Path, dtypes: Mapping[int, np.dtype]) -> LegacyIndex:
    """Read the index of a `.bin` file.

    Args:
        dtypes: dtype code -> dtype of those that tokens may have.

    Raises:
        ValueError: damaged, of another version, or of data that is not a list of tokens for each sequence.
    """
    content = np.memmap(path, np.uint8, "r")
    if len(content) < _HEADER.size:
        raise ValueError(f"{path}: damaged: {len(content)} bytes, where the header alone has {_HEADER.size}")
    _, version, code, itemsize, sequences, sizes, boundaries = _HEADER.unpack(content[: _HEADER.size].tobytes())
    if version != 1:
        raise ValueError(f"{path}: version {version} of the index format is unknown; 1 can be read")
    if code not in dtypes or dtypes[code].itemsize != itemsize:
        raise ValueError(f"{path}: dtype code {code} of {itemsize} bytes does not stand for whole numbers")
    needed = _HEADER.size + 8 * (2 * (sequences + 1) + sizes + boundaries)
    if len(content) != needed:
        raise ValueError(f"{path}: damaged: {len(content)} bytes, but its header needs {needed}")
    if sizes != sequences:
        raise ValueError(
            f"{path}: holds arrays of several dimensions, no tokens: {sizes} sizes of {sequences} sequences"
        )
    if not boundaries and sequences:
        raise ValueError(f"{path}: says nothing about documents; tokenize the text again (megabert tokenize)")
    numbers = np.frombuffer(content, "<i8", offset=_HEADER.size)
    places, lengths, documents = np.split(numbers[sequences + 1 :], [sequences + 1, 2 * sequences + 1])
    if not np.array_equal(np.diff(places), lengths) or (len(lengths) and lengths.max() > np.iinfo(np.int32).max):
        raise ValueError(f"{path}: damaged: sizes and places of the sentences contradict each other")
    if not boundaries:
        documents = np.zeros(1, np.int64)
    return LegacyIndex(dtypes[code], lengths.astype(np.int32), places[:-1] * itemsize, documents)
