"""Rows of CSV and TSV: where they end, which of them are broken, and their cells.

In CSV a cell may stand in quotation marks, with marks in it written twice (RFC 4180); a mark inside a cell without them
is text. In TSV marks are text everywhere, as in GLUE's tables.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager

_MARKS = re.compile(rb'"+')
_LINE_ENDS = b"\r\n"
# Bytes that may be looked at again behind broken rows, beside four times those that were read: no table's marks are
# wrong by accident so often.
_MOST_LOOKED_AT_AGAIN = 256 << 20
BROKEN = (
    "a cell begins with a quotation mark, but the mark that should end it is missing or text stands behind it "
    '(a mark inside such a cell is written twice, "")'
)


def delimiter(header: bytes) -> str:
    """What stands between the cells of a CSV file whose first line is `header`."""
    return max(",;\t", key=lambda sign: header.count(sign.encode()))


def checked_delimiter(given: str | None) -> str:
    """What stands between the cells as the user says it; empty: it is found from the first line of each table.

    Raises:
        ValueError: it is no single character that can.
    """
    sign = {None: "", r"\t": "\t"}.get(given, given) or ""
    if given is not None and (len(sign) != 1 or not sign.isascii() or sign in '"\r\n\0'):
        raise ValueError(
            f"--delim: {given!r} cannot stand between the cells of a table: one ASCII character is needed, no "
            "quotation mark and no line break; left out, it is found from the first line"
        )
    return sign


class Rows:
    """Where the rows of a CSV file end, found as its bytes arrive.

    A row with a cell that does not end as it must is broken: it is given up at the end of its first line, and the next
    line is a row again. So a mark too many costs its row and not those behind it.
    Positions count from the start of the buffer that is passed; the buffer begins with a row.
    """

    def __init__(self, delimiter: str) -> None:
        self._around = delimiter.encode() + _LINE_ENDS
        # A whole cell at once, which is fast, or else marks.
        around = re.escape(delimiter.encode()) + rb"\r\n"
        self._outside = re.compile(rb'(?<![^%b])("[^"]*+(?:""[^"]*+)*+"(?=[%b]))|"+' % (around, around))
        self._row = 0  # where the row begins that holds the last quoted cell
        self._opening = -1  # where the cell begins that is still open
        self._closing = 0  # behind the last quoted cell that was closed
        self._position = 0
        self._budget = _MOST_LOOKED_AT_AGAIN

    def last_end(self, buffer: bytes | bytearray) -> int:
        """The last place where a row surely ends; 0 if there is none yet."""
        self.scan(buffer, ended=False)
        if self._opening >= 0:
            return self._row
        return buffer.rfind(b"\n", self._closing, self._position) + 1 or self._row

    def scan(self, buffer: bytes | bytearray, *, ended: bool) -> list[tuple[int, int]]:
        """Look at what is new in the buffer; returns (start, end) of the broken rows found.

        Args:
            ended: nothing follows the buffer.

        Raises:
            ValueError: so much is broken that looking for rows would take for ever.
        """
        broken: list[tuple[int, int]] = []
        while True:
            opening_before = self._opening
            marks = (self._outside if self._opening < 0 else _MARKS).search(buffer, self._position)
            if marks is None:
                place = self._position = len(buffer)
                if self._opening < 0 or not ended:
                    return broken
            else:
                place, end = marks.span()
                if end == len(buffer) and not ended:
                    self._position = place
                    return broken
                if self._accept(buffer, place, end, whole=marks.lastindex is not None):
                    self._position = end
                    continue
            if buffer.find(b"\n", self._row) < 0 and not ended:
                self._position, self._opening = place, opening_before
                return broken
            broken.append(self._break(buffer, place))

    def give_up(self, buffer: bytes | bytearray) -> int:
        """The row that begins the buffer is broken, for it is too long; returns where the next begins, 0 if unknown."""
        if self._opening < 0 or buffer.find(b"\n", self._row) < 0:
            return 0
        return self._break(buffer, len(buffer))[1]

    def _accept(self, buffer: bytes | bytearray, begin: int, end: int, *, whole: bool) -> bool:
        """Take in a run of quotation marks, or a whole cell; False if a cell is closed and text follows."""
        count = end - begin
        if self._opening < 0:
            if begin and buffer[begin - 1] not in self._around:
                return True
            line_end = buffer.rfind(b"\n", self._closing, begin)
            self._row = line_end + 1 if line_end >= 0 else self._row
            self._opening = begin
            count -= 1
        if whole or count % 2:
            if end < len(buffer) and buffer[end] not in self._around:
                return False
            self._opening, self._closing = -1, end
        return True

    def _break(self, buffer: bytes | bytearray, place: int) -> tuple[int, int]:
        """The row of the open cell is broken, as is known at `place`; returns where it starts and ends."""
        row = self._row
        end = buffer.find(b"\n", self._row) + 1 or len(buffer)
        self._row = self._position = self._closing = end
        self._opening = -1
        self._budget -= max(0, place - end)
        if self._budget < 0:
            raise ValueError("the quotation marks of its cells are broken too often for it to be read as CSV")
        return row, end

    def drop(self, count: int) -> None:
        """The first `count` bytes of the buffer, whole rows, are gone."""
        self._position = max(0, self._position - count)
        self._row = max(0, self._row - count)
        self._closing = max(0, self._closing - count)
        self._opening = max(-1, self._opening - count)
        self._budget += 4 * count


def columns(header: bytes, delimiter: str, *, quoted: bool) -> list[str]:
    """The names of the columns; arguments as for `rows`.

    Raises:
        UnicodeDecodeError: the line is not UTF-8.
    """
    return next(_reader(header.decode(), delimiter, quoted=quoted, strict=False), [])


def rows(data: bytes, delimiter: str, *, quoted: bool) -> list[tuple[int, list[str] | str]]:
    """(line breaks before it, cells) for each row of `data` that is not empty; for a broken one, what is wrong.

    Bytes that are no UTF-8 become lone surrogates, which no text may hold: their rows are bad, the others are not.

    Args:
        delimiter: what stands between the cells of CSV; those of TSV have tabs between them.
        quoted: cells may stand in quotation marks (CSV).

    Raises:
        ValueError: as `Rows.scan`.
    """
    found: list[tuple[int, list[str] | str]] = []
    start = line = 0
    broken = Rows(delimiter).scan(data, ended=True) if quoted else []
    for begin, end in (*broken, (len(data), len(data))):
        found += ((line + lines, cells) for lines, cells in _cells(data[start:begin], delimiter, quoted=quoted))
        line += data.count(b"\n", start, begin)
        if end > begin:
            found.append((line, BROKEN))
        line += data.count(b"\n", begin, end)
        start = end
    return found


def _cells(data: bytes, delimiter: str, *, quoted: bool) -> list[tuple[int, list[str] | str]]:
    reader = _reader(data.decode("utf-8", "surrogateescape"), delimiter, quoted=quoted, strict=True)
    found: list[tuple[int, list[str] | str]] = []
    with _cells_of(len(data)):
        while True:
            line = reader.line_num
            try:
                row = next(reader)
            except StopIteration:
                return found
            except csv.Error as error:
                found.append((line, str(error)))
            else:
                if row:
                    found.append((line, row))


@contextmanager
def _cells_of(count: int) -> Iterator[None]:
    """Let cells have as many characters: the library's limit is 131,072, and one for the whole process."""
    before = csv.field_size_limit(count + 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _reader(text: str, delimiter: str, *, quoted: bool, strict: bool):
    return csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter if quoted else "\t",
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE, strict=strict,
    )  # fmt: skip
