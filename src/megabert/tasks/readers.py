"""Data files as records with their place: tables (CSV, TSV, JSONL, plain text), CoNLL columns, NeMo's pairs of files,
and JSON documents such as SQuAD's.

A reader says what a file holds, not what it means; a broken line is a ValueError that names file and line.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

Cells = Mapping[str, Any]


class Record(NamedTuple):
    """One line of a table: `FILE:LINE`, and its cells by column name."""

    place: str
    cells: Cells


class Tagged(NamedTuple):
    """A sentence: `FILE:LINE` of its first word, its words, and their tags (empty when the file has none).

    Where the words were found in a text, it is `text`, and `offsets` are their characters `[start, end)` in it.
    """

    place: str
    words: list[str]
    tags: list[str]
    text: str = ""
    offsets: list[tuple[int, int]] | None = None


def _open(path: Path) -> IO[str]:
    if path.is_dir():
        raise ValueError(f"{path} is a folder; a data file is needed")
    if not path.exists():
        raise ValueError(f"there is no file {path}")
    # Universal newlines are off: a lone carriage return inside a text is no end of a line.
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="\n")
    return path.open(encoding="utf-8-sig", newline="\n")


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines without their ends, from 1 on; a byte order mark is passed over, `.gz` is unpacked.

    Raises:
        ValueError: there is no such file, or it is not UTF-8.
    """
    try:
        with _open(path) as file:
            for number, line in enumerate(file, 1):
                yield number, line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}:{_undecodable(path)}: not UTF-8 text ({error.reason})") from None
    except (gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def _undecodable(path: Path) -> int:
    """The number of the first line that is no UTF-8; a decoder that reads ahead does not tell it."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    raise ValueError(f"{path} changed while it was read")


def suffix_of(path: Path) -> str:
    """The suffix that tells the format: `.tsv` of `train.tsv.gz`."""
    return (Path(path.stem) if path.suffix == ".gz" else path).suffix.lower()


def read_json(path: Path) -> Any:
    """A JSON document.

    Raises:
        ValueError: there is none, or it is not JSON; the line is named.
    """
    try:
        with _open(path) as file:
            text = file.read()
        content = json.loads(text)
        return _whole(content, str(path)) if "\\u" in text else content
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    except (UnicodeDecodeError, RecursionError, EOFError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None


def _whole(content: Any, place: str) -> Any:
    r"""What JSON holds, if it is Unicode: half of a pair (`\ud800` alone) is a character to JSON and to nobody else.

    Raises:
        ValueError: it has such a half.
    """
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        text = error.object[max(0, error.start - 20) : error.start]
        raise ValueError(f"{place}: half a character, \\u{ord(error.object[error.start]):04x}, stands behind {text!r}: "
                         "the two halves of a character beyond \\uffff belong together") from None  # fmt: skip
    return content


def json_lines(path: Path) -> Iterator[Record]:
    """One JSON object a line, empty lines passed over; a `.json` may also be one list of objects.

    Raises:
        ValueError: a line is no JSON object.
    """
    if suffix_of(path) == ".json" and _begins(path).startswith("["):
        for number, cells in enumerate(read_json(path)):
            if not isinstance(cells, dict):
                raise ValueError(f"{path}: [{number}]: a JSON object is needed, not {cells!r:.40}")
            yield Record(f"{path}: [{number}]", cells)
        return
    for number, line in lines(path):
        if not line.strip():
            continue
        try:
            cells = _whole(json.loads(line), f"{path}:{number}") if "\\u" in line else json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path}:{number}: not JSON: {error}") from None
        if not isinstance(cells, dict):
            raise ValueError(f"{path}:{number}: a JSON object is needed, not {line[:40]!r}")
        yield Record(f"{path}:{number}", cells)


def _begins(path: Path) -> str:
    """The first line that is not empty, without the space before it."""
    return next((line.lstrip() for _, line in lines(path) if line.strip()), "")


def cells_of(path: Path, *, blank: bool = False) -> Iterator[tuple[str, list[str]]]:
    """Places and cells of a `.csv` (quoted as spreadsheets do) or of a file with tabs (never quoted).

    Args:
        blank: give empty lines too, as no cells.

    Raises:
        ValueError: a broken quotation.
    """
    if suffix_of(path) != ".csv":
        for number, line in lines(path):
            if line.strip() or blank:
                yield f"{path}:{number}", line.split("\t") if line.strip() else []
        return
    numbers: list[int] = []

    def text() -> Iterator[str]:
        for number, line in lines(path):
            numbers.append(number)
            yield line + "\n"

    reader = csv.reader(text(), strict=True)
    first = 1
    try:
        for cells in reader:
            if cells or blank:
                yield f"{path}:{first}", cells
            first = len(numbers) + 1
    except csv.Error as error:
        raise ValueError(f"{path}:{first}: not CSV: {error}") from None


def table(path: Path, headers: Sequence[frozenset[str]], otherwise: Mapping[int, Sequence[str]]) -> Iterator[Record]:
    """A table of any kind, by suffix: `.jsonl` and `.json` lines, `.csv`, else cells between tabs.

    Args:
        headers: a first line that has all names of one of these sets is a header.
        otherwise: names of the columns of a file without a header, by how many there are.

    Raises:
        ValueError: lines of different width, columns that nobody names, or as the readers above.
    """
    if suffix_of(path) in (".jsonl", ".json", ".ndjson"):
        yield from json_lines(path)
        return
    names: Sequence[str] | None = None
    for place, cells in cells_of(path):
        if names is None:
            stripped = [cell.strip().lower() for cell in cells]
            if any(wanted <= set(stripped) for wanted in headers):
                names = stripped
                continue
            names = otherwise.get(len(cells))
            if names is None:
                known = " or ".join(" and ".join(sorted(wanted)) for wanted in headers)
                widths = " or ".join(map(str, sorted(otherwise)))
                without = f"; {widths} columns are understood without one, else" if otherwise else ":"
                raise ValueError(
                    f"{place}: {len(cells)} columns without a header{without} the first line must name the columns "
                    f"{known}"
                )
        if len(cells) != len(names):
            raise ValueError(f"{place}: {len(cells)} columns, but the lines before have {len(names)}")
        yield Record(place, dict(zip(names, cells, strict=True)))


def text_of(record: Record, *names: str) -> str | None:
    """The text in the first of the columns that is there; None when none is.

    Raises:
        ValueError: it is no text.
    """
    for name in names:
        value = record.cells.get(name)
        if value is None:
            continue
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str):
            raise ValueError(f"{record.place}: {name} must be text, not {value!r:.60}")
        return value
    return None


def columns(path: Path) -> Iterator[Tagged]:
    """CoNLL columns: a word a line, its tag in the last column, columns between tabs or spaces, a blank line after each
    sentence; lines that begin with `-DOCSTART-` are passed over. One column is words without tags.

    Raises:
        ValueError: a line without tag among lines that have one, or the other way round.
    """
    words: list[str] = []
    tags: list[str] = []
    begin = 1
    width = 0
    for number, line in lines(path):
        parts = line.split("\t") if "\t" in line else line.split()
        parts = [part.strip() for part in parts]
        if not any(parts) or parts[0].startswith("-DOCSTART-"):
            if words:
                yield Tagged(f"{path}:{begin}", words, tags)
            words, tags = [], []
            continue
        if not parts[0] or not parts[-1]:
            raise ValueError(f"{path}:{number}: a word and its tag are needed, not {line[:60]!r}")
        width = width or len(parts)
        if len(parts) != width:
            raise ValueError(f"{path}:{number}: {len(parts)} columns, but the lines before have {width}")
        if not words:
            begin = number
        words.append(parts[0])
        if width > 1:
            tags.append(parts[-1])
    if words:
        yield Tagged(f"{path}:{begin}", words, tags)


def text_and_labels(texts: Path, labels: Path | None) -> Iterator[Tagged]:
    """NeMo's pair of files: line i of one holds words between spaces, line i of the other as many labels.

    Raises:
        ValueError: different numbers of lines, or of words and labels in a line.
    """
    if labels is None:
        yield from (Tagged(f"{texts}:{number}", line.split(), []) for number, line in lines(texts) if line.strip())
        return
    tags = lines(labels)
    number = 0
    for number, line in lines(texts):
        other = next(tags, None)
        if other is None:
            raise ValueError(f"{labels} has {number - 1} lines, but {texts} has more")
        words, found = line.split(), other[1].split()
        if len(words) != len(found):
            raise ValueError(f"{texts}:{number}: {len(words)} words, but {len(found)} labels in {labels}:{number}")
        if words:
            yield Tagged(f"{texts}:{number}", words, found)
    if next(tags, None) is not None:
        raise ValueError(f"{labels} has more lines than the {number} of {texts}")


def labels_beside(path: Path) -> Path | None:
    """NeMo's labels file for a `text_*.txt`: `labels_*.txt` in the same folder; None when it is not there."""
    if not path.name.startswith("text_"):
        return None
    beside = path.with_name("labels_" + path.name.removeprefix("text_"))
    return beside if beside.is_file() else None


def with_labels(path: Path) -> list[Path]:
    """A file, and NeMo's labels file that belongs to it, if there is one."""
    beside = labels_beside(path)
    return [path] if beside is None else [path, beside]


def span_of(entity: Any, text: str, place: str) -> tuple[int, int]:
    """Characters `[start, end)` of an entity: an object with `start`, `end`, and perhaps the `text` between them.

    Raises:
        ValueError: it has none, or they do not fit the text.
    """
    given: list[Any] = [entity.get(name) for name in ("start", "end")] if isinstance(entity, dict) else []
    start, end = given if len(given) == 2 and all(type(one) is int for one in given) else (-1, -1)
    if not 0 <= start < end <= len(text):
        problem = f"{place}: an entity needs start and end, characters of a text of {len(text)}, not {entity!r:.60}"
        if 0 <= start < end <= len(text.encode()):
            problem += "; if these count bytes, characters are needed"
        raise ValueError(problem)
    said = entity.get("text")
    if said is not None and said != text[start:end]:
        problem = f"{place}: the entity {said!r:.40} does not stand at {start}, where {text[start:end]!r:.40} is"
        if text.encode()[start:end] == str(said).encode():
            problem += "; its offsets count bytes, where characters are needed"
        raise ValueError(problem)
    return start, end


def not_empty(examples: list, path: Path) -> list:
    """The examples.

    Raises:
        ValueError: there is none.
    """
    if not examples:
        raise ValueError(f"{path} holds no example")
    return examples
