"""What a corpus file is, found from its content: compression, and loose JSON, tight JSON or plain text.

Opening and recognising live here; cutting a file into chunks and reading documents from them lives in `chunks`.
"""

from __future__ import annotations

import bz2
import glob
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

from megabert.corpora import chunks, lazy_folder, parquet
from megabert.corpora.document import BadLine, Document

_SNIFFED_BYTES = 1 << 20
_ZSTD = b"\x28\xb5\x2f\xfd"
_BYTE_ORDER = (b"\xff\xfe", b"\xfe\xff")
_REFUSED = {
    b"PK\x03\x04": "a zip archive", b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive", b"Rar!": "a RAR archive",
    b"\x89HDF": "an HDF5 file",
    b"%PDF": "a PDF", b"\xff\xfe": "UTF-16 text", b"\xfe\xff": "UTF-16 text", b"\x80": "a pickle",
    b"ARROW1": "an Arrow file",
}  # fmt: skip
_TIGHT_START = re.compile(rb"\[\s*[{\]]")
_TEXTS_START = re.compile(rb'\[\s*"(?:[^"\\\n]|\\.)*+(?:"\s*(?:,|\]\s*\Z)|\Z)')
# An article a line is far longer than a line of wrapped or sentence-a-line text.
_ARTICLE_CHARACTERS = 250

_LAYOUTS: dict[str, chunks.Kind] = {"file": "whole", "blank-lines": "paragraphs", "lines": "lines"}

TextLayout = Literal["auto", "file", "blank-lines", "lines"]


def _open_zstd(path: Path, _mode: str) -> IO[bytes]:
    try:
        import zstandard  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            f"{path} is compressed by zstd, which needs another package: pip install 'megabert[corpora]'"
        ) from None
    return io.BufferedReader(_Zstd(path.open("rb"), zstandard), _SNIFFED_BYTES)


class _Zstd(io.RawIOBase):
    """A zstd file of one frame or many; one that is cut short raises, which the library's own reader does not do."""

    def __init__(self, file: IO[bytes], zstandard: Any) -> None:
        self._file, self._zstandard = file, zstandard
        self._frame: Any = None
        self._packed = self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            self._packed = self._packed or self._file.read(128 << 10)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("the last zstd frame is not whole")
                return 0
            self._frame = self._frame or self._zstandard.ZstdDecompressor().decompressobj()
            try:
                self._ready = self._frame.decompress(self._packed)
            except self._zstandard.ZstdError as error:
                raise EOFError(str(error)) from None
            self._packed = b""
            if self._frame.eof:
                self._packed, self._frame = self._frame.unused_data, None
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


_OPENERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open, _ZSTD: _open_zstd}


def is_packed(head: bytes) -> bool:
    """Whether a file that begins with these bytes is packed in a way that is unpacked here."""
    return head.startswith(tuple(_OPENERS))


def first_bytes(path: Path, count: int = 16) -> bytes:
    """The beginning of a file as it lies on the disk."""
    with path.open("rb") as file:
        return file.read(count)


def foreign(head: bytes) -> str:
    """What a file is that begins with these bytes, if its content is of a kind that is not read here."""
    return next((what for magic, what in _REFUSED.items() if head.startswith(magic)), "")


@contextmanager
def unpacking(path: Path) -> Iterator[None]:
    """Name the file whose packed content turns out to be damaged.

    Raises:
        ValueError: in place of what the libraries raise, each its own.
    """
    try:
        yield
    except (EOFError, lzma.LZMAError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the file system
        raise ValueError(f"{path} is damaged or cut short: {error}") from None


def matching(names: Iterable[str | Path]) -> list[Path]:
    """The files that names and patterns (`wiki/*.jsonl`, `**` for folders in between) stand for, in their order.

    A name that is a file is that file, whatever signs are in it. What a pattern stands for is sorted. A `.lazy` folder
    stands for the texts in it.

    Raises:
        ValueError: a pattern stands for no file.
    """
    paths: list[Path] = []
    for name in names:
        path = Path(name).expanduser()
        if path.exists() or not glob.has_magic(str(path)):
            paths.append(_of_folder(path))
            continue
        matches = (_of_folder(Path(item)) for item in glob.iglob(str(path), recursive=True))
        found = sorted(path for path in matches if path.is_file())
        if not found:
            raise ValueError(f"no file matches {name}")
        paths += found
    return paths


def _of_folder(path: Path) -> Path:
    """The texts in a `.lazy` folder; any other path as it is."""
    texts = path / lazy_folder.NAME
    return texts if path.is_dir() and lazy_folder.is_data(texts) else path


def open_bytes(path: Path, *, any_encoding: bool = False, any_content: bool = False) -> IO[bytes]:
    """Open a file for reading, unpacked if its content is gzip, bzip2, xz or zstd.

    Args:
        any_encoding: do not refuse UTF-16.
        any_content: refuse nothing; the caller knows what the bytes are.

    Raises:
        ValueError: there is no such file, it is a folder, or its content is of a kind that is not read here.
    """
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}") from None
    except IsADirectoryError:
        raise ValueError(f"{path} is a folder; name the files in it ({path}/*)") from None
    for magic, opener in _OPENERS.items():
        if head.startswith(magic):
            return opener(path, "rb")  # type: ignore[return-value]
    what = foreign(head)
    if what and not any_content and not (any_encoding and head.startswith(_BYTE_ORDER)):
        raise ValueError(
            f"{path} is {what}; loose JSON, tight JSON, CSV, TSV, Parquet or plain UTF-8 text is needed, plain or "
            "packed by gzip, bzip2, xz or zstd"
        )
    return path.open("rb")


def detect(path: Path, loose_json: bool | None = None, text_layout: TextLayout = "auto") -> chunks.Kind:
    """What lies in a file: `loose` or `tight` JSON, a table (`csv`, `tsv`), or text of `paragraphs` or `lines`.

    The content decides: `[` and then `{` or a JSON string is a tight array, `{` is loose JSON, anything else is
    text. A name that ends in `.jsonl` (before `.gz` and the like) is JSON although its first line may be damaged,
    one in `.csv` or `.tsv` a table whose first line names its columns. Text is what BERT's own tools expect: a
    blank line ends a document. Where the first MiB has no blank line, every line is a document if lines are long
    (250 bytes on average, an article a line), and the whole file is one document otherwise (a sentence a line).

    Args:
        loose_json: True or False when the user says that the file is loose or tight JSON.
        text_layout: for plain text, what separates documents; `auto` as above.

    Raises:
        ValueError: as `open_bytes`; the content is binary or damaged.
    """
    if lazy_folder.is_data(path):
        return "lazy"
    try:
        with open_bytes(path, any_content=True) as file:
            if file.read(len(parquet.MAGIC)) == parquet.MAGIC:
                return "parquet"
        with open_bytes(path) as file:
            head = file.read(_SNIFFED_BYTES) if loose_json is None else b""
    except (EOFError, lzma.LZMAError, zlib.error, OSError) as error:
        raise ValueError(f"{path} cannot be unpacked: {error}") from None
    if loose_json is not None:
        return "loose" if loose_json else "tight"
    if b"\0" in head[:4096]:
        raise ValueError(f"{path} is a binary file; loose JSON, tight JSON or plain UTF-8 text is needed")
    for suffix in path.suffixes[-2:]:
        if suffix in (".csv", ".tsv"):
            return suffix[1:]  # type: ignore[return-value]
    start = head.removeprefix(chunks.BYTE_ORDER_MARK).lstrip()
    if start.startswith((b"<?xml", b"<mediawiki", b"<!DOCTYPE", b"<html")):
        raise ValueError(f"{path} is XML or HTML, not text; take the text out of it first")
    if _TIGHT_START.match(start):
        return "tight"
    if start.startswith(b"{") or any(suffix in (".jsonl", ".ndjson") for suffix in path.suffixes[-2:]):
        return "loose"
    if _TEXTS_START.match(start):
        return "tight"
    if text_layout != "auto":
        return _LAYOUTS[text_layout]
    body = start.rstrip()
    if chunks.BLANK_LINE.search(body) or len(body) < _ARTICLE_CHARACTERS * (body.count(b"\n") + 1):
        return "paragraphs"
    return "lines"


def raw_chunks(
    path: Path,
    chunk_bytes: int = 1 << 20,
    start_offset: int = 0,
    *,
    loose_json: bool | None = None,
    text_layout: TextLayout = "auto",
    text_key: str = "text",
    delimiter: str = "",
) -> Iterator[chunks.Chunk]:
    """Cut a file into chunks of whole documents, so that a pool can parse them (`parse_chunk`).

    Memory stays near `chunk_bytes` however large the file is, unless one document is larger.

    Args:
        chunk_bytes: a chunk is at least this long, but the last.
        start_offset: `end_offset` of the last chunk that was finished earlier: reading goes on behind it. Counted in
            unpacked bytes (in rows of a Parquet file); what lies before is read again, quickly, to count its lines.
        text_key: the column of a Parquet file that holds the text.
        delimiter: what stands between the cells of CSV; empty: found from a table's first line.

    Raises:
        ValueError: as `detect`; plain text, and a delimiter is given; a packed file that is damaged or cut short.
    """
    kind = detect(path, loose_json, text_layout)
    if delimiter and kind in _LAYOUTS.values():
        raise ValueError(
            f"--delim stands between the cells of tables, but {path} would be read as plain text: give a table a name "
            "in .csv, or leave --delim out"
        )
    with unpacking(path), open_bytes(path, any_content=kind in ("lazy", "parquet")) as file:
        if kind == "lazy":
            yield from _cut_lazy(file, path, chunk_bytes, start_offset)
        elif kind == "parquet":
            packed = file if is_packed(first_bytes(path)) else None
            for rows in parquet.rows(path, packed, text_key, start_offset, chunk_bytes):
                yield chunks.Chunk(path, "loose", rows.first + 1, rows.last, rows.lines, unit="row")
        else:
            yield from chunks.cut(file, path, kind, chunk_bytes, start_offset, delimiter)


def _cut_lazy(file: IO[bytes], path: Path, chunk_bytes: int, start_offset: int) -> Iterator[chunks.Chunk]:
    for number, begin, sizes in lazy_folder.spans(path, chunk_bytes, start_offset):
        file.seek(begin)
        data = file.read(sum(sizes))
        yield chunks.Chunk(path, "lazy", number, begin + len(data), data, sizes=sizes, unit="document")


def read_documents(
    path: Path,
    *,
    text_key: str = "text",
    loose_json: bool | None = None,
    text_layout: TextLayout = "auto",
    delimiter: str = "",
) -> Iterator[Document | BadLine]:
    """The documents of a file in order, and a `BadLine` for each line that holds none though it should.

    Args:
        path: loose JSON (one object a line), tight JSON (one array of objects) or plain text, packed or not.
        text_key: the key of an object that holds the text; `title` is read as well, other keys are left alone.
        loose_json, text_layout: see `detect`; delimiter: see `raw_chunks`.

    Raises:
        ValueError: as `raw_chunks`.
    """
    reading = {"loose_json": loose_json, "text_layout": text_layout, "text_key": text_key, "delimiter": delimiter}
    for chunk in raw_chunks(path, **reading):  # type: ignore[arg-type]
        yield from chunks.parse_chunk(chunk, text_key=text_key)
