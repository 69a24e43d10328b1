"""Tar archives and folders as one thing: names of members, and where their bytes lie.

A plain tar is read in place. A gzip'ed one is unpacked into a nameless temporary file that vanishes with its last
reader. Nothing is ever written under a name that an archive gives, and what is not a plain file inside it (links,
devices, sparse files, names that lead outside) refuses the whole archive.
"""

from __future__ import annotations

import gzip
import io
import os
import re
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from megabert.formats.regions import Region

_MOST_MEMBERS = 10_000
_LARGEST_HEADER = 1 << 16
_DEEPEST = 4
_BLOCK = 1 << 20
_LARGEST_RATIO = 50
_ALWAYS_ALLOWED = 64 << 20
_GZIP = b"\x1f\x8b"


def is_archive(path: Path) -> bool:
    """Whether a file begins as a tar or a gzip'ed tar does."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
            if head.startswith(_GZIP):
                file.seek(0)
                with gzip.GzipFile(fileobj=file) as unpacked:
                    head = unpacked.read(512)
    except (OSError, EOFError, zlib.error):
        return False
    return head[257:262] == b"ustar"


def members(path: Path) -> dict[str, Region]:
    """Name -> bytes of each file in an archive or a folder; names are relative and have no `./` before them.

    Raises:
        ValueError: the archive is damaged, or holds what could do harm; it and the member are named.
        OSError: it cannot be read, or the temporary folder is full.
    """
    if path.is_dir():
        return dict(_folder(path, path, 0))
    whole = Region.whole(path)
    if whole.read(0, 2) == _GZIP:
        whole = _unpacked(path)
    return _scan(whole)


def _folder(root: Path, folder: Path, depth: int) -> Iterator[tuple[str, Region]]:
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(".") and entry.name != ".metadata":  # of a distributed checkpoint
            continue
        if entry.is_dir() and not entry.is_symlink() and depth < _DEEPEST:
            yield from _folder(root, entry, depth + 1)
        elif entry.is_file():
            yield entry.relative_to(root).as_posix(), Region.whole(entry)


def _unpacked(path: Path) -> Region:
    """A gzip'ed file in a nameless one, as long as it does not swell without measure.

    The descriptor lives as long as a region that refers to it.
    """
    limit = max(_ALWAYS_ALLOWED, _LARGEST_RATIO * path.stat().st_size)
    out = tempfile.TemporaryFile(prefix="megabert-")  # noqa: SIM115
    size = 0
    try:
        with gzip.open(path, "rb") as file:
            while block := file.read(_BLOCK):
                size += len(block)
                if size > limit:
                    raise ValueError(
                        f"{path} unpacks to more than {_LARGEST_RATIO} times its size, as no checkpoint does; refused"
                    )
                out.write(block)
        out.flush()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        out.close()
        raise ValueError(f"{path} is damaged: {error}") from None
    except BaseException:
        out.close()
        raise
    return Region(path, 0, size, out)


class _Guarded(io.RawIOBase):
    """A file for `tarfile`, which reads extended headers into memory whatever length they claim."""

    def __init__(self, file: IO[bytes], name: str):
        self._file, self._name = file, name

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > _LARGEST_HEADER:
            raise ValueError(f"{self._name} is no good archive: a header of {size:,} bytes")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def _scan(whole: Region) -> dict[str, Region]:
    found: dict[str, Region] = {}
    try:
        with whole.open() as file, tarfile.open(fileobj=_Guarded(file, whole.name), mode="r:") as tar:  # type: ignore[arg-type]
            for number, entry in enumerate(tar):
                if number >= _MOST_MEMBERS:
                    raise ValueError(f"{whole.name} holds more than {_MOST_MEMBERS:,} files; refused")
                name = _checked_name(whole, entry)
                if entry.isdir():
                    continue
                if name in found:
                    raise ValueError(f"{whole.name} holds {name} twice; refused")
                found[name] = whole.part(entry.offset_data, entry.size, name)
    except tarfile.TarError as error:
        raise ValueError(f"{whole.name} is damaged: {error}") from None
    except (UnicodeError, RecursionError, OverflowError) as error:
        raise ValueError(f"{whole.name} is no good archive: {type(error).__name__}") from None
    if not found:
        raise ValueError(f"{whole.name} is an archive without files")
    return found


def _checked_name(whole: Region, entry: tarfile.TarInfo) -> str:
    shown = f"{whole.name}: {entry.name[:80]!r}"
    if not (entry.isreg() or entry.isdir()) or entry.issparse():
        raise ValueError(f"{shown} is a link, a device or another thing that no checkpoint holds; refused")
    parts = [part for part in entry.name.split("/") if part not in ("", ".")]
    outside = entry.name.startswith("/") or ".." in parts
    if outside or "\\" in entry.name or "\0" in entry.name or re.match(r"[A-Za-z]:", entry.name):
        raise ValueError(f"{shown} leads outside the archive; refused")
    if not parts and not entry.isdir():
        raise ValueError(f"{shown} is a file without a name; refused")
    return "/".join(parts)


class Writer:
    """A tar written member by member, in bounded memory and without temporary copies; the same input gives the same
    bytes.

    Args:
        file: opened for writing; seekable unless `compressed`.
        compressed: gzip; members are then kept in a nameless temporary file until their size is known.
    """

    def __init__(self, file: IO[bytes], *, compressed: bool = False):
        self._raw = file
        self._compressed = compressed
        self._file: Any = gzip.GzipFile("", "wb", 1, file, 0) if compressed else file
        self._folders: set[str] = set()

    def add(self, name: str, content: bytes) -> None:
        """Add a file."""
        self._parents(name)
        self._header(name, len(content))
        self._file.write(content)
        self._pad(len(content))

    @contextmanager
    def member(self, name: str) -> Iterator[IO[bytes]]:
        """A file to write the member's bytes to, from where it stands on."""
        self._parents(name)
        if self._compressed:
            with tempfile.TemporaryFile(prefix="megabert-") as kept:
                yield kept
                size = kept.seek(0, os.SEEK_END)
                self._header(name, size)
                kept.seek(0)
                while block := kept.read(_BLOCK):
                    self._file.write(block)
            self._pad(size)
            return
        begin = self._raw.tell()
        self._raw.write(bytes(tarfile.BLOCKSIZE))
        yield self._raw
        end = self._raw.seek(0, os.SEEK_END)
        size = end - begin - tarfile.BLOCKSIZE
        self._raw.seek(begin)
        self._header(name, size)  # now that the size is known
        self._raw.seek(end)
        self._pad(size)

    def finish(self) -> None:
        """Write what ends an archive; the file itself stays open."""
        self._file.write(bytes(2 * tarfile.BLOCKSIZE))
        if self._compressed:
            self._file.close()

    def _parents(self, name: str) -> None:
        folder = name.rpartition("/")[0]
        if folder and folder not in self._folders:
            self._folders.add(folder)
            entry = tarfile.TarInfo(folder + "/")
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            self._file.write(entry.tobuf(tarfile.GNU_FORMAT))

    def _header(self, name: str, size: int) -> None:
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = size, 0o644
        header = entry.tobuf(tarfile.GNU_FORMAT)
        assert len(header) == tarfile.BLOCKSIZE, f"{name} is too long a name"
        self._file.write(header)

    def _pad(self, size: int) -> None:
        self._file.write(bytes(-size % tarfile.BLOCKSIZE))
