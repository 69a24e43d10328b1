"""What tensors a safetensors file holds, read from its header alone, and checked.

The format (https://github.com/huggingface/safetensors): 8 bytes with the length of a JSON text, little endian, that
text, then the bytes of all tensors without gaps.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

_MAXIMUM_HEADER_BYTES = 100_000_000
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32,
    "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
}  # fmt: skip


class Stored(NamedTuple):
    """A tensor on disk; `dtype` as the format names it (`F32`, `BF16`, ...)."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def numbers(self) -> int:
        """How many it holds."""
        return math.prod(self.shape)


def read(path: Path) -> dict[str, Stored]:
    """Name -> tensor of a file; its numbers are not read.

    Raises:
        ValueError: the file is cut short or damaged; it is named.
    """
    return {name: stored for name, (stored, _) in read_places(path).items()}


def read_places(path: Path) -> dict[str, tuple[Stored, int]]:
    """Name -> (tensor, the place of its first byte in the file).

    Raises:
        ValueError: as `read`.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAXIMUM_HEADER_BYTES):
            raise ValueError(f"{path} is damaged: its header is longer than the file (cut short, or no safetensors)")
        try:
            header = json.loads(file.read(length).decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is damaged: its header is not JSON ({error})") from None
    if not isinstance(header, dict):
        raise ValueError(f"{path} is damaged: its header is no table of tensors")
    header.pop("__metadata__", None)
    tensors = {name: _entry(path, name, entry) for name, entry in header.items()}
    last = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if 8 + length + last != size:
        raise ValueError(f"{path} is damaged: {size:,} bytes, where its header needs {8 + length + last:,}")
    return {name: (stored, 8 + length + header[name]["data_offsets"][0]) for name, stored in tensors.items()}


def _entry(path: Path, name: str, entry: Any) -> Stored:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        good = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
        if good and (end - begin) * 8 == math.prod(shape) * _BITS[dtype]:
            return Stored(dtype, shape)
    except (KeyError, TypeError, ValueError):
        pass
    raise ValueError(f"{path} is damaged: the entry of {name[:80]!r} in its header is wrong")
