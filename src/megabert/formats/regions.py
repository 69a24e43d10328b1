"""Stretches of files: what lies inside a container is read in place, never unpacked unless it is compressed."""

from __future__ import annotations

import io
import math
import mmap
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

_CHECKED_AT_ONCE = 1 << 26
_MAPPED_FROM = 1 << 17  # below, reading is faster than mapping
_POPULATE_READ = 22  # MADV_POPULATE_READ of Linux 5.14; elsewhere refused, which is harmless


@dataclass(frozen=True)
class Region:
    """Bytes `start` to `start + length` of a file.

    Attributes:
        path: the file, for opening it and for error texts.
        file: an open nameless file to read instead of `path` (what had to be unpacked); it lives as long as this.
        inner: what the region is inside `path`, for error texts.
        checksum: the CRC-32 that its bytes must have; None: not known.
    """

    path: Path
    start: int
    length: int
    file: IO[bytes] | None = None
    inner: str = ""
    checksum: int | None = None

    @classmethod
    def whole(cls, path: Path) -> Region:
        """A whole file.

        Raises:
            OSError: it cannot be read.
        """
        return cls(path, 0, path.stat().st_size)

    @property
    def name(self) -> str:
        """File, and what it is inside."""
        return f"{self.path}!{self.inner}" if self.inner else str(self.path)

    def part(self, offset: int, length: int, inner: str = "") -> Region:
        """A stretch of this one.

        Raises:
            ValueError: it ends behind the end of this one.
        """
        if offset < 0 or length < 0 or offset + length > self.length:
            raise ValueError(f"{self.name} is damaged: it ends before its contents do (cut short)")
        joined = f"{self.inner}!{inner}" if self.inner and inner else self.inner or inner
        return Region(self.path, self.start + offset, length, self.file, joined)

    @contextmanager
    def _descriptor(self) -> Iterator[int]:
        if self.file is not None:
            yield self.file.fileno()
            return
        descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        """Bytes of it; fewer at its end."""
        if offset < 0:
            raise ValueError(f"{self.name} is damaged: it refers to bytes before its begin")
        wanted = self.length - offset if length is None else min(length, self.length - offset)
        pieces = []
        with self._descriptor() as descriptor:
            while wanted > 0:
                piece = os.pread(descriptor, min(wanted, 1 << 30), self.start + offset)
                if not piece:
                    break
                pieces.append(piece)
                offset, wanted = offset + len(piece), wanted - len(piece)
        return b"".join(pieces)

    def check(self) -> None:
        """Compare the bytes with their checksum, where there is one.

        Raises:
            ValueError: they are not those that were written.
        """
        if self.checksum is None or self.length == 0:
            return
        found = 0
        for offset in range(0, self.length, _CHECKED_AT_ONCE):
            part = self.tensor(torch.uint8, (min(_CHECKED_AT_ONCE, self.length - offset),), offset=offset)
            found = zlib.crc32(part.numpy().data, found)
        if found != self.checksum:
            raise ValueError(f"{self.name} is damaged: its bytes do not have the checksum that the file records")

    def open(self) -> io.BufferedReader:
        """A seekable file that ends where the region ends."""
        return io.BufferedReader(_Reader(self), 1 << 16)

    def tensor(self, dtype: torch.dtype, shape: tuple[int, ...], *, offset: int = 0,
               strides: tuple[int, ...] | None = None) -> Tensor:  # fmt: skip
        """A tensor of the bytes from `offset` on; changing it does not change the file.

        Args:
            strides: in numbers; None: contiguous.

        Raises:
            ValueError: the file is shorter than the tensor.
        """
        numbers = math.prod(shape)
        if numbers and strides is not None:
            numbers = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        length = numbers * dtype.itemsize
        if length == 0:
            return torch.empty(shape, dtype=dtype)
        if offset + length > self.length:
            raise ValueError(f"{self.name} is damaged: it ends before its tensor does (cut short)")
        flat = self._numbers(dtype, offset, length)
        return flat.view(shape) if strides is None else flat.as_strided(shape, strides)

    def _numbers(self, dtype: torch.dtype, offset: int, length: int) -> Tensor:
        begin = self.start + offset
        if length < _MAPPED_FROM or begin % dtype.itemsize:
            data = bytearray(self.read(offset, length))
            if len(data) != length:
                raise ValueError(f"{self.name} is damaged: it ends before its tensor does (cut short)")
            return torch.frombuffer(data, dtype=dtype)
        lead = begin % mmap.ALLOCATIONGRANULARITY
        with self._descriptor() as descriptor:
            if os.fstat(descriptor).st_size < begin + length:
                raise ValueError(f"{self.name} is damaged: it ends before its tensor does (cut short)")
            mapped = mmap.mmap(descriptor, lead + length, access=mmap.ACCESS_COPY, offset=begin - lead)
        with suppress(OSError, ValueError):
            mapped.madvise(_POPULATE_READ)  # one call instead of a fault for every few pages
        return torch.frombuffer(mapped, dtype=dtype, offset=lead, count=length // dtype.itemsize)


class _Reader(io.RawIOBase):
    def __init__(self, region: Region):
        self._region = region
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._region.length}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._region.read(self._at, len(buffer)) if self._at < self._region.length else b""
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
