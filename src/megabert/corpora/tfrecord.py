"""TFRecord files and the `tf.train.Example` messages in them, without TensorFlow.

A file is a row of frames: length (uint64), masked CRC-32C of the length (uint32), payload, masked CRC-32C of the
payload (uint32), all little endian (tensorflow/core/lib/io/record_writer.h). A payload is a protobuf message, a map of
names to lists of numbers or bytes (tensorflow/core/example/example.proto). Only lists of numbers are read here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, NamedTuple

import google_crc32c
import numpy as np

HEAD = struct.Struct("<QI")
_SUM = struct.Struct("<I")
_MASK_DELTA = 0xA282EAD8
_LARGEST_RECORD = 64 << 20
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FLOAT_LIST, _INT64_LIST = 2, 3  # fields of Feature; 1 is a list of bytes


class Record(NamedTuple):
    """A frame of a file.

    Attributes:
        number: of the record, from 1.
        end: where the frame ends, in unpacked bytes from the start of the file.
        sound: whether the payload has the checksum that was written behind it.
    """

    number: int
    end: int
    payload: bytes
    sound: bool


def checksum(content: bytes) -> int:
    """The masked CRC-32C that stands in a frame."""
    value = google_crc32c.value(content)
    return (((value >> 15) | (value << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def begins_frame(head: bytes) -> bool:
    """Whether these first 12 bytes or more of a file are the head of a frame."""
    if len(head) < HEAD.size:
        return False
    length, expected = HEAD.unpack_from(head)
    return length <= _LARGEST_RECORD and checksum(head[:8]) == expected


def frames(file: IO[bytes], path: Path, *, number: int = 0, offset: int = 0) -> Iterator[Record]:
    """The records of an open file from its present place on.

    Args:
        path: for errors.
        number: of the records before that place.
        offset: the place, in unpacked bytes.

    Raises:
        ValueError: the length of a record is damaged, or the last one is cut short: what follows cannot be found.
    """
    while head := file.read(HEAD.size):
        number += 1
        if not begins_frame(head):
            what = "is cut short" if len(head) < HEAD.size else "has a length whose checksum is wrong"
            raise ValueError(
                f"{path}: record {number} (byte {offset}) {what}: the file is damaged from there on, or is no TFRecord"
            )
        length = HEAD.unpack(head)[0]
        body = file.read(length + _SUM.size)
        if len(body) < length + _SUM.size:
            raise ValueError(f"{path}: record {number} (byte {offset}) is cut short: the file ends in its middle")
        offset += HEAD.size + len(body)
        payload = body[:length]
        yield Record(number, offset, payload, checksum(payload) == _SUM.unpack_from(body, length)[0])


def frame(payload: bytes) -> bytes:
    """A payload as it stands in a file."""
    head = len(payload).to_bytes(8, "little")
    return b"".join((head, _SUM.pack(checksum(head)), payload, _SUM.pack(checksum(payload))))


def parse_example(payload: bytes) -> dict[str, np.ndarray]:
    """The lists of numbers in an Example: name -> int64 or float32 [values]. Lists of bytes are left out.

    Raises:
        ValueError: not an Example.
    """
    found: dict[str, np.ndarray] = {}
    try:
        for field, kind, features in _fields(payload):
            if (field, kind) != (1, _BYTES):
                continue
            for entry_field, entry_kind, entry in _fields(features):
                if (entry_field, entry_kind) == (1, _BYTES):
                    name, values = _entry(entry)
                    if values is not None:
                        found[name] = values
    except (IndexError, struct.error, UnicodeDecodeError):
        raise ValueError("is not a whole Example message") from None
    return found


def _entry(entry: bytes) -> tuple[str, np.ndarray | None]:
    """One name of the map and its list."""
    name, values = "", None
    for field, kind, content in _fields(entry):
        if (field, kind) == (1, _BYTES):
            name = content.decode()
        elif (field, kind) == (2, _BYTES):
            for which, which_kind, numbers in _fields(content):
                if which_kind == _BYTES and which in (_FLOAT_LIST, _INT64_LIST):
                    values = _numbers(numbers, np.dtype("<f4" if which == _FLOAT_LIST else "<i8"))
    return name, values


def _numbers(message: bytes, dtype: np.dtype) -> np.ndarray:
    """The values of an Int64List or a FloatList: written packed (one field) or one field each, or both."""
    parts: list[np.ndarray] = []
    for field, kind, content in _fields(message):
        if field != 1:
            continue
        if kind == _VARINT or (kind == _BYTES and dtype.kind == "i"):
            parts.append(_varints(content))
        elif kind in (_BYTES, _FIXED32) and dtype.kind == "f":
            if len(content) % 4:
                raise ValueError("holds a list of floats of a broken length")
            parts.append(np.frombuffer(content, dtype))
        else:
            raise ValueError("holds a list whose values are of another kind than its name says")
    return parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, dtype), *parts])


def _varints(content: bytes) -> np.ndarray:
    """Numbers of 7 bits a byte, the lowest first, each but the last byte of a number with its high bit set: int64."""
    data = np.frombuffer(content, np.uint8)
    last = data < 128
    if last.all():
        return data.astype(np.int64)
    ends = np.flatnonzero(last)
    if not len(ends) or ends[-1] != len(data) - 1:
        raise ValueError("holds a number that is cut short")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 10:
        raise ValueError("holds a number of more than 64 bits")
    values = np.zeros(len(ends), np.uint64)
    for place in range(int(lengths.max())):
        some = lengths > place
        bits = (data[starts[some] + place] & 127).astype(np.uint64)
        values[some] |= bits << np.uint64(7 * place)
    return values.view(np.int64)


def _fields(message: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(number, wire type, content) of a message's fields; IndexError where it ends in the middle of one."""
    place, end = 0, len(message)
    while place < end:
        tag, place = _varint(message, place)
        kind = tag & 7
        start = place
        if kind == _VARINT:
            _, place = _varint(message, place)
        elif kind == _BYTES:
            length, start = _varint(message, place)
            place = start + length
        elif kind in (_FIXED32, _FIXED64):
            place += 4 if kind == _FIXED32 else 8
        else:
            raise ValueError("is not a protobuf message")
        if place > end:
            raise IndexError
        yield tag >> 3, kind, message[start:place]


def _varint(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[place]
        value |= (byte & 127) << shift
        place += 1
        if byte < 128:
            return value, place
        shift += 7
        if shift > 63:
            raise ValueError("holds a number of more than 64 bits")


def make_example(features: Mapping[str, np.ndarray]) -> bytes:
    """An Example of lists of numbers: whole ones (not below 0) as int64, others as float32; lists are packed."""
    entries = []
    for name, values in features.items():
        whole = values.dtype.kind in "iu"
        packed = _packed(values) if whole else values.astype("<f4").tobytes()
        numbers = _field(1, packed) if packed else b""
        feature = _field(_INT64_LIST if whole else _FLOAT_LIST, numbers)
        entries.append(_field(1, _field(1, name.encode()) + _field(2, feature)))
    return _field(1, b"".join(entries))


def _packed(values: np.ndarray) -> bytes:
    assert not len(values) or values.min() >= 0
    if not len(values) or values.max() < 128:
        return values.astype(np.uint8).tobytes()
    return b"".join(map(_as_varint, values.tolist()))


def _as_varint(value: int) -> bytes:
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _field(number: int, content: bytes) -> bytes:
    return bytes((number << 3 | _BYTES,)) + _as_varint(len(content)) + content


def write_frames(file: IO[bytes], payloads: Iterable[bytes]) -> int:
    """Write records to an open file; returns how many."""
    count = 0
    for payload in payloads:
        file.write(frame(payload))
        count += 1
    return count
