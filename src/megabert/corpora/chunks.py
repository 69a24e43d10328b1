"""Cutting an open corpus file into chunks of whole documents, and reading the documents of a chunk.

`cut` runs in one process and looks at no more than it must; `parse_chunk` is pure and can run in any.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from megabert.corpora import json_array, lazy_folder, tables
from megabert.corpora.document import BadLine, Document
from megabert.corpora.json_array import Array
from megabert.corpora.tables import Rows

Kind = Literal["loose", "tight", "paragraphs", "lines", "whole", "csv", "tsv", "lazy", "parquet"]

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
BLANK_LINE = re.compile(rb"\n[ \t\r\f\v]*\n")
_READ_BYTES = 1 << 20
# Memory must not follow the input: a longer JSON document is refused, a longer plain text is cut at a line's end.
_MAXIMUM_RECORD_BYTES = 64 << 20
_MAXIMUM_TEXT_BYTES = 1 << 20
_TOO_LONG = f"is longer than {_MAXIMUM_RECORD_BYTES >> 20} MiB, the most for one document; cut it into several"


@dataclasses.dataclass(frozen=True, slots=True)
class Chunk:
    """Some whole documents of a file, not yet read.

    Attributes:
        first_line: number of the line on which `data` begins, from 1.
        end_offset: where `data` ends, in unpacked bytes from the start of the file.
        problem: why the bytes up to `end_offset` cannot be used; `data` is empty then.
        header: the first line of a table, with the names of its columns.
        delimiter: what stands between the cells of a table.
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
    delimiter: str = ""


def _last_end(kind: Kind, buffer: bytearray, scan: Array | Rows | None) -> int:
    """The last place of `buffer` where a document surely ends; 0 if there is none yet."""
    if scan is not None:
        return scan.last_end(buffer)
    if kind == "paragraphs":
        found = 0
        for blank in BLANK_LINE.finditer(buffer):
            found = blank.end()
        return found or buffer.find(b"\n", _MAXIMUM_TEXT_BYTES) + 1
    if kind == "whole":
        return buffer.find(b"\n", _MAXIMUM_TEXT_BYTES) + 1
    return buffer.rfind(b"\n") + 1


def cut(
    file: IO[bytes], path: Path, kind: Kind, chunk_bytes: int, start_offset: int, delimiter: str = ""
) -> Iterator[Chunk]:
    """Chunks of `file` from `start_offset` on; see `files.raw_chunks`."""
    header = b""
    if kind in ("csv", "tsv"):
        header = file.readline(_READ_BYTES)
        start_offset = max(start_offset, len(header))
        delimiter = delimiter or tables.delimiter(header)
    offset, line, buffer, last, in_array = _start(file, kind, start_offset, header)
    scan = Array() if kind == "tight" else Rows(delimiter) if kind == "csv" else None
    ended = False
    while not ended:
        block = file.read(_READ_BYTES)
        ended = not block
        buffer += block
        try:
            end = _last_end(kind, buffer, scan)
            if end == 0 and isinstance(scan, Rows) and len(buffer) > _MAXIMUM_RECORD_BYTES:
                end = scan.give_up(buffer)
        except ValueError as error:
            raise ValueError(f"{path}: near line {line}: {error}") from None
        if ended:
            end = len(buffer)
            _check_end(path, in_array, bytes(buffer.rstrip()[-1:]) or last)
        elif end == 0 and len(buffer) > _MAXIMUM_RECORD_BYTES:
            if kind == "tight":
                raise ValueError(f"{path}: line {line}: an element of the array {_TOO_LONG}")
            offset += len(buffer) + _skip_line(file)
            if scan is not None:
                scan.drop(len(buffer))
            buffer.clear()
            yield Chunk(path, kind, line, offset, b"", _TOO_LONG)
            line += 1
            continue
        elif end < chunk_bytes and (end == 0 or len(buffer) < 2 * chunk_bytes):
            continue
        data = bytes(buffer[:end])
        del buffer[:end]
        if scan is not None:
            scan.drop(end)
        offset += end
        last = data.rstrip()[-1:] or last
        if data.strip():
            yield Chunk(path, kind, line, offset, data, header=header, delimiter=delimiter)
        line += data.count(b"\n")


def _check_end(path: Path, in_array: bool, last: bytes) -> None:
    """Refuse an array that was cut short: what it lost cannot be counted."""
    if in_array and last != b"]":
        raise ValueError(
            f"{path} is damaged or cut short: it begins with [ and does not end with ]; get it anew, or mend its end"
        )


class _Start(NamedTuple):
    """Where reading begins: `line` is the number of the line, `buffer` what was read already."""

    offset: int
    line: int
    buffer: bytearray
    last: bytes  # the last byte before it that is not white space
    in_array: bool  # the file begins with `[`


def _start(file: IO[bytes], kind: Kind, start_offset: int, header: bytes) -> _Start:
    """Go to the first document, behind a table's header."""
    head = file.read(_READ_BYTES if start_offset == 0 else min(start_offset - len(header), _READ_BYTES))
    body = head.removeprefix(BYTE_ORDER_MARK)
    in_array = kind == "tight" and body.lstrip().startswith(b"[")
    if start_offset == 0:
        body = body.lstrip()[1:] if in_array else body
        passed = head[: len(head) - len(body)]
        return _Start(len(passed), 1 + passed.count(b"\n"), bytearray(body), b"", in_array)
    lines, last = header.count(b"\n"), b""
    left = start_offset - len(header) - len(head)
    while head:
        lines += head.count(b"\n")
        last = head.rstrip()[-1:] or last
        head = file.read(min(left, _READ_BYTES))
        left -= len(head)
    return _Start(start_offset, 1 + lines, bytearray(), last, in_array)


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
        return _read_array(chunk, text_key)
    if chunk.kind == "paragraphs":
        records = _paragraphs(chunk)
    elif chunk.kind == "whole":
        records = [(chunk.first_line, chunk.data)]
    elif chunk.kind == "lazy":
        records = lazy_folder.pieces(chunk.data, chunk.sizes, chunk.first_line)
    else:
        records = enumerate(chunk.data.split(b"\n"), chunk.first_line)
    read = _read_json if chunk.kind == "loose" else _read_text
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
    value = _decode(record)
    if not isinstance(value, dict):
        raise ValueError(f"is JSON but not an object: {record[:40].decode('utf-8', 'replace')}")
    return _read_object(value, text_key, "key", line)


def _decode(record: bytes) -> Any:
    try:
        # Files that each begin with the mark are joined at times.
        return json.loads(record.removeprefix(BYTE_ORDER_MARK).decode())
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg} (character {error.pos + 1} of what must be one object)") from None
    except RecursionError:
        raise ValueError("is JSON nested too deeply") from None


def _read_array(chunk: Chunk, text_key: str) -> list[Document | BadLine]:
    """The elements of an array: objects with a text, or texts. Lines may be long, so a bad one's byte is told too."""
    items: list[Document | BadLine] = []
    line, counted = chunk.first_line, 0
    for place, element, value in _values(chunk.data):
        line += chunk.data.count(b"\n", counted, place)
        counted = place
        bad_line = line
        try:
            if isinstance(value, UnicodeDecodeError):
                bad_line += element.count(b"\n", 0, value.start)
                raise ValueError(f"is not UTF-8 (byte {element[value.start]:#04x})")
            if isinstance(value, ValueError):
                raise value
            if isinstance(value, str):
                value = {text_key: value}
            if not isinstance(value, dict):
                raise ValueError(f"is JSON but neither an object nor a text: {element[:40].decode('utf-8', 'replace')}")
            items.append(_read_object(value, text_key, "key", line))
        except ValueError as error:
            at = chunk.end_offset - len(chunk.data) + place
            items.append(BadLine(chunk.path, bad_line, f"{error}; it begins at byte {at} of the file"))
    return items


def _values(data: bytes) -> Iterator[tuple[int, bytes, Any]]:
    """(place, bytes, value) of each element of an array; the error in place of a value where it is not JSON."""
    for place, element in json_array.elements(data):
        value = _value(element)
        within = list(json_array.objects_within(element)) if isinstance(value, ValueError) else []
        if len(within) < 2:
            yield place, element, value
        else:
            for start, part in within:
                yield place + start, part, _value(part)


def _value(element: bytes) -> Any:
    try:
        return _decode(element)
    except ValueError as error:
        return error


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
    quoted = chunk.kind == "csv"
    try:
        columns = tables.columns(chunk.header.removeprefix(BYTE_ORDER_MARK), chunk.delimiter, quoted=quoted)
    except UnicodeDecodeError:
        return [BadLine(chunk.path, 1, "is not UTF-8; the names of the columns stand there")]
    if columns.count(text_key) > 1:
        raise ValueError(f"{chunk.path}: the first line names the column {text_key} {columns.count(text_key)} times")
    items: list[Document | BadLine] = []
    try:
        rows = tables.rows(chunk.data, chunk.delimiter, quoted=quoted)
    except ValueError as error:
        raise ValueError(f"{chunk.path}: near line {chunk.first_line}: {error}") from None
    for lines, cells in rows:
        line = chunk.first_line + lines
        try:
            if isinstance(cells, str):
                raise ValueError(cells)
            if any(cells[len(columns) :]):
                raise ValueError(f"has {len(cells)} cells, but the first line names {len(columns)} columns")
            items.append(_read_object(dict(zip(columns, cells, strict=False)), text_key, "column", line))
        except ValueError as error:
            items.append(BadLine(chunk.path, line, str(error)))
    return items
