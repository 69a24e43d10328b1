"""Cutting an open corpus file into chunks of whole documents, and reading the documents of a chunk.

`cut` runs in one process and looks at no more than it must; `parse_chunk` is pure and can run in any.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal

from megabert.corpora import lazy_folder
from megabert.corpora.document import BadLine, Document

Kind = Literal["loose", "tight", "paragraphs", "lines", "whole", "csv", "tsv", "lazy", "parquet"]

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
BLANK_LINE = re.compile(rb"\n[ \t\r\f\v]*\n")
_READ_BYTES = 1 << 20
# Memory must not follow the input: a longer JSON document is refused, a longer plain text is cut at a line's end.
_MAXIMUM_RECORD_BYTES = 64 << 20
_MAXIMUM_TEXT_BYTES = 1 << 20
# Strings are jumped over whole, so that their brackets do not count; a quote alone is a string not read to its end.
_JSON_MARK = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["{}\[\]]', re.DOTALL)
_BETWEEN = b" \t\r\n,"


@dataclasses.dataclass(frozen=True, slots=True)
class Chunk:
    """Some whole documents of a file, not yet read.

    Attributes:
        first_line: number of the line on which `data` begins, from 1.
        end_offset: where `data` ends, in unpacked bytes from the start of the file.
        problem: why the bytes up to `end_offset` cannot be used; `data` is empty then.
        header: the first line of a table, with the names of its columns.
        sizes: bytes of each document, where nothing stands between them.
        unit: what `first_line` counts: lines, rows of a Parquet file, documents.
    """

    path: Path
    kind: Kind
    first_line: int
    end_offset: int
    data: bytes
    problem: str = ""
    header: bytes = b""
    sizes: tuple[int, ...] = ()
    unit: str = "line"


class _Array:
    """Where the elements of a JSON array end, found as its bytes arrive; every byte is looked at once.

    Positions count from the start of the buffer that is passed; the buffer begins behind the array's `[`.
    """

    def __init__(self) -> None:
        self.depth = 0
        self.position = 0
        self.last_end = 0

    def ends(self, buffer: bytes | bytearray) -> Iterator[int]:
        """Ends of the elements not given before."""
        for mark in _JSON_MARK.finditer(buffer, self.position):
            token = mark[0]
            if token in (b"{", b"["):
                self.depth += 1
            elif token in (b"}", b"]"):
                self.depth -= 1
            elif token == b'"':
                return
            self.position = mark.end()
            if self.depth <= 0 and token != b"]":
                self.last_end = self.position
                yield self.position

    def drop(self, count: int) -> None:
        """The first `count` bytes of the buffer are gone."""
        self.position -= count
        self.last_end -= count


def _last_end(kind: Kind, buffer: bytearray, array: _Array) -> int:
    """The last place of `buffer` where a document surely ends; 0 if there is none yet."""
    if kind == "tight":
        for _ in array.ends(buffer):
            pass
        return array.last_end
    if kind == "paragraphs":
        found = 0
        for blank in BLANK_LINE.finditer(buffer):
            found = blank.end()
        return found or buffer.find(b"\n", _MAXIMUM_TEXT_BYTES) + 1
    if kind == "csv":
        return _last_row_end(buffer)
    if kind == "whole":
        return buffer.find(b"\n", _MAXIMUM_TEXT_BYTES) + 1
    return buffer.rfind(b"\n") + 1


def _last_row_end(buffer: bytearray) -> int:
    """The last line break of a CSV file that stands outside quotation marks."""
    inside = buffer.count(b'"') % 2 == 1
    end = len(buffer)
    while (place := buffer.rfind(b"\n", 0, end)) >= 0:
        inside ^= buffer.count(b'"', place, end) % 2 == 1
        if not inside:
            return place + 1
        end = place
    return 0


def cut(file: IO[bytes], path: Path, kind: Kind, chunk_bytes: int, start_offset: int) -> Iterator[Chunk]:
    """Chunks of `file` from `start_offset` on; see `files.raw_chunks`."""
    header = b""
    if kind in ("csv", "tsv"):
        header = file.readline(_READ_BYTES)
        start_offset = max(start_offset, len(header))
    offset, line, buffer = _start(file, kind, start_offset, header)
    array = _Array()
    ended = False
    while not ended:
        block = file.read(_READ_BYTES)
        ended = not block
        buffer += block
        end = _last_end(kind, buffer, array)
        if ended:
            end = len(buffer)
        elif end == 0 and len(buffer) > _MAXIMUM_RECORD_BYTES:
            problem = (
                f"is longer than {_MAXIMUM_RECORD_BYTES >> 20} MiB, the most for one document; cut it into several"
            )
            if kind == "tight":
                raise ValueError(f"{path}: line {line}: an element of the array {problem}")
            offset += len(buffer) + _skip_line(file)
            buffer.clear()
            yield Chunk(path, kind, line, offset, b"", problem)
            line += 1
            continue
        elif end < chunk_bytes and (end == 0 or len(buffer) < 2 * chunk_bytes):
            continue
        data = bytes(buffer[:end])
        del buffer[:end]
        array.drop(end)
        offset += end
        if data.strip():
            yield Chunk(path, kind, line, offset, data, header=header)
        line += data.count(b"\n")


def _start(file: IO[bytes], kind: Kind, start_offset: int, header: bytes) -> tuple[int, int, bytearray]:
    """Go to the first document, behind a table's header; returns (offset, number of the line, bytes read already)."""
    lines = header.count(b"\n")
    left = start_offset - len(header)
    while left > 0 and (block := file.read(min(left, _READ_BYTES))):
        lines += block.count(b"\n")
        left -= len(block)
    if start_offset:
        return start_offset, 1 + lines, bytearray()
    head = file.read(_READ_BYTES)
    body = head.removeprefix(BYTE_ORDER_MARK)
    if kind == "tight" and body.lstrip(_BETWEEN).startswith(b"["):
        body = body.lstrip(_BETWEEN)[1:]
    passed = head[: len(head) - len(body)]
    return len(passed), 1 + passed.count(b"\n"), bytearray(body)


def _skip_line(file: IO[bytes]) -> int:
    """Read to the end of the line; returns how many bytes that were."""
    count = 0
    while block := file.readline(_READ_BYTES):
        count += len(block)
        if block.endswith(b"\n"):
            break
    return count


def parse_chunk(chunk: Chunk, *, text_key: str = "text") -> list[Document | BadLine]:
    """The documents of a chunk in order, and a `BadLine` for each line that holds none though it should."""
    if chunk.problem:
        return [BadLine(chunk.path, chunk.first_line, chunk.problem, chunk.unit)]
    if chunk.kind in ("csv", "tsv"):
        return _read_table(chunk, text_key)
    if chunk.kind == "tight":
        records = _elements(chunk)
    elif chunk.kind == "paragraphs":
        records = _paragraphs(chunk)
    elif chunk.kind == "whole":
        records = [(chunk.first_line, chunk.data)]
    elif chunk.kind == "lazy":
        records = lazy_folder.pieces(chunk.data, chunk.sizes, chunk.first_line)
    else:
        records = enumerate(chunk.data.split(b"\n"), chunk.first_line)
    read = _read_json if chunk.kind in ("loose", "tight") else _read_text
    items: list[Document | BadLine] = []
    for line, record in records:
        record = record.strip()
        if record:
            try:
                items.append(read(record, text_key, line))
            except UnicodeDecodeError as error:
                if chunk.unit == "line":
                    line += record.count(b"\n", 0, error.start)
                reason = f"is not UTF-8 (byte {record[error.start]:#04x})"
                items.append(BadLine(chunk.path, line, reason, chunk.unit))
            except ValueError as error:
                items.append(BadLine(chunk.path, line, str(error), chunk.unit))
        elif chunk.kind == "lazy":
            items.append(BadLine(chunk.path, line, "the text is empty", chunk.unit))
    return items


def _elements(chunk: Chunk) -> Iterator[tuple[int, bytes]]:
    """(line, bytes) of each element of an array; what is no element shows as one that is not JSON."""
    start, line, data = 0, chunk.first_line, chunk.data
    for end in (*_Array().ends(data), len(data)):
        element = data[start:end].lstrip(_BETWEEN)
        line += data.count(b"\n", start, end - len(element))
        if element.strip() != b"]":
            yield line, element
        line += element.count(b"\n")
        start = end


def _paragraphs(chunk: Chunk) -> Iterator[tuple[int, bytes]]:
    """(line, bytes) of each text between blank lines, cut again where it is too long."""
    data = chunk.data
    start = 0
    line = chunk.first_line
    blanks = [(blank.start() + 1, blank.end()) for blank in BLANK_LINE.finditer(data)]
    for stop, following in (*blanks, (len(data), len(data))):
        while stop - start > _MAXIMUM_TEXT_BYTES:
            middle = data.find(b"\n", start + _MAXIMUM_TEXT_BYTES, stop) + 1
            if middle in (0, stop):
                break
            yield line, data[start:middle]
            line += data.count(b"\n", start, middle)
            start = middle
        record = data[start:stop]
        yield line + record[: len(record) - len(record.lstrip())].count(b"\n"), record
        line += data.count(b"\n", start, following)
        start = following


def _read_text(record: bytes, _text_key: str, line: int) -> Document:
    lines = (line.strip() for line in record.decode().split("\n"))
    text = "\n".join(line for line in lines if line)
    if not text:
        raise ValueError("the text is empty")
    return Document(text, line=line)


def _read_json(record: bytes, text_key: str, line: int) -> Document:
    try:
        value: Any = json.loads(record.decode())
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg} (character {error.pos + 1} of what must be one object)") from None
    except RecursionError:
        raise ValueError("is JSON nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"is JSON but not an object: {record[:40].decode('utf-8', 'replace')}")
    return _read_object(value, text_key, "key", line)


def _read_object(value: dict[str, Any], text_key: str, what: str, line: int) -> Document:
    if text_key not in value:
        keys = ", ".join(repr(key[:40]) for key in list(value)[:8]) or "none at all"
        raise ValueError(f"has no {what} {text_key!r}; its {what}s are {keys}")
    text, title = value[text_key], value.get("title", "")
    if not isinstance(text, str):
        raise ValueError(f"{what} {text_key!r} holds {type(text).__name__}, not text")
    if not text.strip():
        raise ValueError("the text is empty")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"the text is not valid Unicode: {error.reason}") from None
    return Document(text.strip(), title if isinstance(title, str) else "", line)


def _read_table(chunk: Chunk, text_key: str) -> list[Document | BadLine]:
    """The rows of a table; in CSV a cell in quotation marks may hold line breaks, in TSV marks are text."""
    try:
        header = chunk.header.removeprefix(BYTE_ORDER_MARK).decode()
        delimiter = "\t" if chunk.kind == "tsv" else max(",;\t", key=header.count)
    except UnicodeDecodeError:
        return [BadLine(chunk.path, 1, "is not UTF-8; the names of the columns stand there")]
    quoting = csv.QUOTE_NONE if chunk.kind == "tsv" else csv.QUOTE_MINIMAL
    columns = next(csv.reader([header], delimiter=delimiter, quoting=quoting), [])
    # Bytes that are no UTF-8 become lone surrogates, which no text may hold: their rows are bad, the others are not.
    text = io.StringIO(chunk.data.decode("utf-8", "surrogateescape"), newline="")
    rows = csv.reader(text, delimiter=delimiter, quoting=quoting)
    items: list[Document | BadLine] = []
    line = 0
    while True:
        line = chunk.first_line + rows.line_num
        try:
            row = next(rows)
            if row:
                items.append(_read_object(dict(zip(columns, row, strict=False)), text_key, "column", line))
        except StopIteration:
            return items
        except (ValueError, csv.Error) as error:
            items.append(BadLine(chunk.path, line, str(error)))
