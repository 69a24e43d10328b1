"""Files of sentences with a label for each word: CoNLL columns, CoNLL-U, tables, JSONL, NeMo's pairs of files, plain
texts."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from megabert.tasks import readers, words
from megabert.tasks.readers import Record, Tagged

_SENTENCES = ("words", "tokens", "text", "sentence")
_LABELS = ("labels", "tags", "ner_tags")
_WORD, _LABEL = ("word", "token"), ("label", "tag", "ner", "ner_tag")
_CONLLU_COLUMNS, _FORM, _UPOS, _EMPTY = 10, 1, 3, "_"
_CONLLU_NUMBER = re.compile(r"(\d+)([-.]\d+)?")
_NUMBER = ("sentence", "sentence_id", "sentence_number", "sentence #", "sent_id", "id")


def read(path: Path, *, labelled: bool) -> Iterator[Tagged]:
    """Sentences of a file.

    * CoNLL columns, the word first and its label last; a header that names both is passed over.
    * CoNLL-U (ten columns, or `.conllu`): words with their universal part of speech.
    * A table with a header: a sentence a row (`words` and `labels`, between spaces), or a word a row (`word` and
      `label`, and a column such as `sentence` that changes, or an empty row, between sentences). A `.csv` is one.
    * JSONL with `words` and `labels`; or with `text` and `entities`, objects with `start` and `end` (characters) and
      `label`, of which IOB2 labels are made.
    * NeMo's `text_*.txt` with `labels_*.txt` beside it.
    * To be labelled: `.txt` is a text a line.

    Raises:
        ValueError: a broken line, by file and line.
    """
    suffix = readers.suffix_of(path)
    if suffix in (".jsonl", ".json", ".ndjson"):
        yield from map(_from_json, readers.json_lines(path))
    elif path.name.startswith("text_") and suffix == ".txt":
        beside = readers.labels_beside(path)
        if labelled and beside is None:
            raise ValueError(f"{path}: there is no labels_{path.name.removeprefix('text_')} beside it")
        yield from readers.text_and_labels(path, beside)
    elif suffix == ".txt" and not labelled:
        yield from (split(line, f"{path}:{number}") for number, line in readers.lines(path) if line.strip())
    elif suffix == ".csv" or _columns_of(_header(path)) is not None:
        yield from _from_table(path)
    elif suffix == ".conllu" or _is_conllu(path):
        yield from _conllu(path)
    else:
        _refuse_counted(path)
        yield from readers.columns(path)


def _is_conllu(path: Path) -> bool:
    """Whether the first line that is no comment is a numbered word in CoNLL-U's columns."""
    first = next((line for _, line in readers.lines(path) if line.strip() and not line.startswith("# ")), "")
    cells = first.split("\t")
    return len(cells) == _CONLLU_COLUMNS and _CONLLU_NUMBER.fullmatch(cells[0]) is not None


def _conllu(path: Path) -> Iterator[Tagged]:
    """Sentences of CoNLL-U (https://universaldependencies.org/format.html): its syntactic words, without the ranges
    (`1-2`) and the empty nodes (`1.1`) between them, and their universal part of speech, where one is told.

    Raises:
        ValueError: a line with other columns, words that are not counted from 1, or a word without part of speech
            among words that have one.
    """
    sentence, tagged = Tagged("", [], []), None
    for number, line in itertools.chain(readers.lines(path), [(0, "")]):
        if not line.strip():
            if sentence.words:
                yield sentence
            sentence = Tagged("", [], [])
            continue
        if line.startswith("#"):
            continue
        cells = [cell.strip() for cell in line.split("\t")]
        counted = _CONLLU_NUMBER.fullmatch(cells[0])
        if len(cells) != _CONLLU_COLUMNS or counted is None:
            raise ValueError(f"{path}:{number}: CoNLL-U has ten columns between tabs, the first a number, not "
                             f"{line[:60]!r}")  # fmt: skip
        if counted[2]:
            continue
        if int(counted[1]) != len(sentence.words) + 1 or not cells[_FORM]:
            raise ValueError(f"{path}:{number}: word {len(sentence.words) + 1} of the sentence is expected, not "
                             f"{line[:60]!r}")  # fmt: skip
        has = cells[_UPOS] not in ("", _EMPTY)
        tagged = has if tagged is None else tagged
        if has != tagged:
            raise ValueError(f"{path}:{number}: the word {cells[_FORM]!r:.40} has {'a' if has else 'no'} part of "
                             "speech (column 4), unlike the words before")  # fmt: skip
        if not sentence.words:
            sentence = Tagged(f"{path}:{number}", [], [])
        sentence.words.append(cells[_FORM])
        if has:
            sentence.tags.append(cells[_UPOS])


def _refuse_counted(path: Path) -> None:
    """Refuse columns whose first one counts the words of a sentence: the numbers would be taken for the words."""
    counted, begin = 0, 0
    for number, line in readers.lines(path):
        if not line.strip():
            if counted > 1:
                break
            counted = 0
        elif counted or not line.startswith("# "):
            cells = line.split("\t") if "\t" in line else line.split()
            begin = begin if counted else number
            # From 0 or from 1 on; a sentence of one word tells nothing.
            if len(cells) < 3 or cells[0].strip() not in (str(counted), str(counted + 1)):
                return
            counted += 1
    if counted > 1:
        raise ValueError(f"{path}:{begin}: the first column counts the words of a sentence, where the word is needed: "
                         "leave out that column (CoNLL-U, which has ten between tabs, is read as it is)")  # fmt: skip


def split(text: str, place: str) -> Tagged:
    """The words and punctuation marks of a text."""
    found, offsets = words.found(text, words.words_and_marks())
    return Tagged(place, found, [], text, offsets)


class _Columns(NamedTuple):
    """Numbers of columns: words (or the word), labels (None: none), and what tells sentences apart."""

    words: int
    labels: int | None
    number: int | None
    one_word: bool


def _header(path: Path) -> list[str]:
    return [cell.strip().lower() for _, cells in itertools.islice(readers.cells_of(path), 1) for cell in cells]


def _columns_of(header: Sequence[str]) -> _Columns | None:
    """What a first line says; None when it is no header."""

    def place(names: Sequence[str]) -> int | None:
        return next((header.index(name) for name in names if name in header), None)

    one, label = place(_WORD), place(_LABEL)
    if one is not None and (label is not None or len(header) == 1):
        return _Columns(one, label, place(_NUMBER), True)
    several, labels = place(_SENTENCES), place(_LABELS)
    if several is not None and (labels is not None or len(header) == 1):
        return _Columns(several, labels, None, False)
    return None


def _from_table(path: Path) -> Iterator[Tagged]:
    rows = readers.cells_of(path, blank=True)
    header = next((cells for _, cells in rows if cells), None)
    if header is None:
        return
    columns = _columns_of([cell.strip().lower() for cell in header])
    if columns is None:
        raise ValueError(f"{path}:1: the first line must name the columns: word and label for a word a row, or words "
                         f"and labels for a sentence a row, not {', '.join(header)!r:.60}")  # fmt: skip
    checked = _of_width(rows, len(header))
    if columns.one_word:
        yield from _word_by_word(checked, columns)
        return
    for place, cells in checked:
        if cells:
            tags = [] if columns.labels is None else cells[columns.labels].split()
            yield _together(place, cells[columns.words].split(), tags)


def _of_width(rows: Iterator[tuple[str, list[str]]], width: int) -> Iterator[tuple[str, list[str]]]:
    """The rows, those without any text as no cells."""
    for place, cells in rows:
        if cells and len(cells) != width:
            raise ValueError(f"{place}: {len(cells)} columns, but the first line has {width}")
        yield place, cells if any(cell.strip() for cell in cells) else []


def _word_by_word(rows: Iterator[tuple[str, list[str]]], columns: _Columns) -> Iterator[Tagged]:
    found = Tagged("", [], [])
    number = ""
    for place, cells in rows:
        told = cells[columns.number].strip() if cells and columns.number is not None else ""
        # An empty number goes on with the sentence, as spreadsheets that name it once have it.
        if found.words and (not cells or (told and told != number)):
            yield found
            found = Tagged("", [], [])
        if not cells:
            continue
        number = told or number
        word, tag = cells[columns.words].strip(), "" if columns.labels is None else cells[columns.labels].strip()
        if not word or (columns.labels is not None and not tag):
            raise ValueError(f"{place}: a word and its label are needed, not {word!r:.40} and {tag!r:.40}")
        if not found.words:
            found = Tagged(place, [], [])
        found.words.append(word)
        if tag:
            found.tags.append(tag)
    if found.words:
        yield found


def _together(place: str, parts: list[str], tags: list[str]) -> Tagged:
    if not parts:
        raise ValueError(f"{place}: there is no word")
    if tags and len(tags) != len(parts):
        raise ValueError(f"{place}: {len(parts)} words, but {len(tags)} labels")
    return Tagged(place, parts, tags)


def _from_json(record: Record) -> Tagged:
    parts = next((record.cells[name] for name in _SENTENCES[:2] if name in record.cells), None)
    tags = next((record.cells[name] for name in _LABELS if name in record.cells), None)
    text = record.cells.get("text")
    if parts is None and isinstance(text, str):
        if "entities" in record.cells:
            return _from_spans(record, text)
        if tags is None:
            return split(text, record.place)
        parts = text.split()
    for name, value in (("words", parts), ("labels", tags)):
        listed = isinstance(value, list) and all(isinstance(item, str) and item.strip() for item in value)
        if not listed and not (name == "labels" and value is None):
            raise ValueError(f"{record.place}: {name} must be a list of texts, not {value!r:.60}")
    return _together(record.place, parts or [], tags or [])


def _from_spans(record: Record, text: str) -> Tagged:
    """Labels made of entities: a word that one touches belongs to it."""
    given = record.cells["entities"]
    if not isinstance(given, list):
        raise ValueError(f"{record.place}: `entities` must be a list, not {given!r:.60}")
    found = split(text, record.place)
    assert found.offsets is not None
    tags = ["O"] * len(found.words)
    for entity in given:
        start, end = readers.span_of(entity, text, record.place)
        touched = [at for at, (left, right) in enumerate(found.offsets) if left < end and right > start]
        if not touched or any(tags[at] != "O" for at in touched):
            problem = "holds no word" if not touched else "shares a word with another entity"
            raise ValueError(f"{record.place}: the entity {text[start:end]!r:.40} at {start} {problem}")
        kind = _kind(entity, record.place)
        for at in touched:
            tags[at] = f"{'B' if at == touched[0] else 'I'}-{kind}"
    return found._replace(tags=tags)


def _kind(entity: Any, place: str) -> str:
    kind = entity.get("label", entity.get("type"))
    if not isinstance(kind, str) or not kind.strip():
        raise ValueError(f"{place}: an entity needs a label, not {entity!r:.60}")
    return kind.strip()
