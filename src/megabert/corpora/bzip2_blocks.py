"""Parts of a bzip2 file unpacked on their own, so that many processes share one file.

A bzip2 stream is a chain of blocks that need nothing of each other. Each begins with 48 known bits, at any bit of a
byte. A block is found by these bits and unpacked as if it were a stream of its own, as `bzip2recover` does it. So a
file need not be made of several streams (multistream), and may be.

Source: the format as described in the documentation of bzip2 1.0 and of its `bzip2recover`.
"""

from __future__ import annotations

import bz2
from pathlib import Path

import numpy as np

_BLOCK = 0x314159265359
_END_OF_STREAM = 0x177245385090
_MARK_BITS = 48
# 900,000 bytes that cannot be packed and their tables stay below this.
_LONGEST_BLOCK = 1_200_000
# Text is packed to a tenth; a part far beyond that was made to fill the memory.
_MOST_UNPACKED = 512 << 20


def unpack_part(path: Path, start: int, end: int) -> bytes:
    """The content of the blocks that begin in bytes [start, end) of a bzip2 file.

    The parts of a file that follow each other give, joined, the content of the file.

    Args:
        start, end: of packed bytes, from the start of the file; `end` may lie behind the end of the file.

    Raises:
        ValueError: a block is damaged, or the file is cut short.
    """
    with path.open("rb") as file:
        file.seek(start)
        # A block that begins in the last byte has its mark, and what it holds, behind `end`.
        data = file.read(end - start + _LONGEST_BLOCK)
    marks = _marks(data)
    blocks = [index for index, (bit, is_block) in enumerate(marks) if is_block and bit < 8 * (end - start)]
    parts: list[bytes] = []
    size = 0
    done = 0  # marks before this one lie inside a block already unpacked
    for index in blocks:
        if index < done:
            continue
        for following in range(index + 1, min(index + 4, len(marks))):
            try:
                parts.append(_unpack_block(data, marks[index][0], marks[following][0]))
            except (OSError, EOFError, ValueError):
                continue  # the mark that ends it may be its content by chance
            done = following
            size += len(parts[-1])
            break
        else:
            place = start + marks[index][0] // 8
            raise ValueError(f"{path} is damaged or cut short: the bzip2 block at byte {place:,} cannot be unpacked")
        if size > _MOST_UNPACKED:
            raise ValueError(f"{path}: bytes {start:,} to {end:,} unpack to more than {_MOST_UNPACKED >> 20} MiB")
    return b"".join(parts)


def _marks(data: bytes) -> list[tuple[int, bool]]:
    """(bit, whether a block begins there; else a stream ends) in order."""
    found: list[tuple[int, bool]] = []
    for mark, is_block in ((_BLOCK, True), (_END_OF_STREAM, False)):
        for shift in range(8):
            # The whole bytes inside the mark are searched for, the bits at its two ends compared.
            whole = 6 if shift == 0 else 5
            shifted = (mark << (8 - shift)).to_bytes(7) if shift else mark.to_bytes(6)
            needle = shifted[1 : 1 + whole] if shift else shifted
            place = data.find(needle)
            while place >= 0:
                first = place - (shift > 0)
                if first >= 0 and _bits(data, 8 * first + shift) == mark:
                    found.append((8 * first + shift, is_block))
                place = data.find(needle, place + 1)
    return sorted(found)


def _bits(data: bytes, bit: int) -> int:
    """48 bits of `data` from `bit` on; -1 where it ends before."""
    taken = data[bit // 8 : bit // 8 + 7]
    if len(taken) * 8 - bit % 8 < _MARK_BITS:
        return -1
    return int.from_bytes(taken) >> (8 * len(taken) - bit % 8 - _MARK_BITS) & ((1 << _MARK_BITS) - 1)


def _unpack_block(data: bytes, start: int, end: int) -> bytes:
    """Bits [start, end) of `data`, one block with its mark, made a stream and unpacked."""
    shift = start % 8
    numbers = np.frombuffer(data, np.uint8, min((end + 7) // 8 + 1, len(data)) - start // 8, start // 8)
    aligned = numbers if shift == 0 else (numbers[:-1] << shift) | (numbers[1:] >> (8 - shift))
    length = end - start
    packed = aligned[: (length + 7) // 8].tobytes()
    rest = length % 8
    head, tail = (packed[:-1], packed[-1] >> (8 - rest)) if rest else (packed, 0)
    checksum = int.from_bytes(packed[6:10])
    # With one block, the checksum of the stream is the checksum of the block.
    ending = ((tail << _MARK_BITS) | _END_OF_STREAM) << 32 | checksum
    bits = rest + _MARK_BITS + 32
    ending <<= -bits % 8
    return bz2.decompress(b"BZh9" + head + ending.to_bytes((bits + 7) // 8))
