"""Files of utterances with an intent and a slot for each word: those of ATIS and SNIPS, NeMo's, tables, JSONL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from megabert.tasks import readers
from megabert.tasks.readers import Record

_PARTS = ("seq.in", "seq.out", "label")


class Utterance(NamedTuple):
    """`FILE:LINE`; the words, or a text that is still to be split; slots and intent, None where unknown."""

    place: str
    words: list[str] | str
    slots: list[str] | None
    intent: str | None


def read(path: Path, *, labelled: bool) -> Iterator[Utterance]:
    """Utterances of a file or a folder.

    * A folder with `seq.in`, `seq.out` and `label` (or its `seq.in`): words, slots and intent, line by line.
    * NeMo's `train.tsv` (`sentence` and `label`, a number) with `train_slots.tsv`, `dict.intents.csv` and
      `dict.slots.csv` beside it.
    * JSONL or a table with a header: `words` (or `text`, or `sentence`), `slots` (or `labels`) and `intent`; in a
      table words and slots are separated by spaces.
    * To be labelled: also a `.txt` with a text a line.

    Raises:
        ValueError: a broken line, by file and line; files that do not fit together.
    """
    if path.is_dir() or path.name == _PARTS[0]:
        yield from _lines_of_three(path if path.is_dir() else path.parent, labelled)
    elif (slots := _slots_beside(path)) is not None:
        yield from _nemo(path, slots)
    elif readers.suffix_of(path) == ".txt":
        if labelled:
            raise ValueError(f"{path}: a .txt holds no intents and slots; for learning and scoring give a folder with "
                             "seq.in, seq.out and label, NeMo's files, a table or JSONL")  # fmt: skip
        yield from (Utterance(f"{path}:{n}", line, None, None) for n, line in readers.lines(path) if line.strip())
    else:
        for record in readers.table(path, [frozenset({name}) for name in ("words", "text", "sentence")], {1: ["text"]}):
            yield _of_record(record)


def files(path: Path) -> list[Path]:
    """The files that `read` takes for a path."""
    if path.is_dir() or path.name == _PARTS[0]:
        folder = path if path.is_dir() else path.parent
        return [folder / name for name in _PARTS if (folder / name).is_file()]
    if (slots := _slots_beside(path)) is not None:
        return [path, slots, path.with_name("dict.intents.csv"), path.with_name("dict.slots.csv")]
    return [path]


def _slots_beside(path: Path) -> Path | None:
    """NeMo's `train_slots.tsv` of a `train.tsv`."""
    slots = path.with_name(f"{path.stem}_slots.tsv")
    return slots if path.suffix == ".tsv" and slots.is_file() else None


def _lines_of_three(folder: Path, labelled: bool) -> Iterator[Utterance]:
    words, slots, intents = (folder / name for name in _PARTS)
    if not words.is_file():
        raise ValueError(f"{folder} holds no seq.in; a folder needs {', '.join(_PARTS)}")
    if not slots.is_file() or not intents.is_file():
        if labelled:
            raise ValueError(f"{folder} needs {' and '.join(_PARTS[1:])} beside seq.in")
        yield from (Utterance(f"{words}:{n}", line.split(), None, None)
                    for n, line in readers.lines(words) if line.split())  # fmt: skip
        return
    found = [[line for _, line in readers.lines(path)] for path in (words, slots, intents)]
    if len({len(one) for one in found}) > 1:
        raise ValueError(f"{folder}: seq.in, seq.out and label have {', '.join(str(len(one)) for one in found)} lines; "
                         "they must have equally many")  # fmt: skip
    for number, (text, tags, intent) in enumerate(zip(*found, strict=True), 1):
        if text.strip() or tags.strip() or intent.strip():
            place = f"{words}:{number}"
            if not intent.strip():
                raise ValueError(f"{intents}:{number}: there is no intent")
            yield Utterance(place, text.split(), tags.split(), intent.strip())


def _nemo(path: Path, slots: Path) -> Iterator[Utterance]:
    """NeMo's numbers as names."""
    intents, tags = (_names(path.with_name(f"dict.{kind}.csv")) for kind in ("intents", "slots"))
    numbers = readers.lines(slots)
    for number, line in readers.lines(path):
        if number == 1 and line.split("\t")[0].strip().lower() == "sentence":
            continue
        if not line.strip():
            continue
        other = next(((at, text) for at, text in numbers if text.strip()), None)
        if other is None:
            raise ValueError(f"{path}:{number}: {slots} has no line for it: it ends before")
        text, _, intent = line.rpartition("\t")
        place = f"{path}:{number}"
        if not text:
            raise ValueError(f"{place}: a text, a tab and the number of its intent are needed, not {line[:60]!r}")
        chosen = [_name(tag, tags, f"{slots}:{other[0]}", "slot") for tag in other[1].split()]
        yield Utterance(place, text.split(), chosen, _name(intent.strip(), intents, place, "intent"))
    left = next((at for at, text in numbers if text.strip()), None)
    if left is not None:
        raise ValueError(f"{slots}:{left}: there is no line for it in {path}")


def _names(path: Path) -> list[str]:
    if not path.is_file():
        raise ValueError(f"there is no {path}: NeMo's files need it, a name a line in the order of the numbers")
    names = [line.strip() for _, line in readers.lines(path) if line.strip()]
    return readers.not_empty(names, path)


def _name(number: str, names: list[str], place: str, kind: str) -> str:
    if not number.isdecimal() or int(number) >= len(names):
        raise ValueError(f"{place}: {kind} {number!r} is no number from 0 to {len(names) - 1} (dict.{kind}s.csv)")
    return names[int(number)]


def _of_record(record: Record) -> Utterance:
    cells = record.cells
    words = next((cells[name] for name in ("words", "tokens") if cells.get(name) is not None), None)
    text = readers.text_of(record, "text", "sentence", "utterance")
    slots = next((cells[name] for name in ("slots", "labels", "tags") if cells.get(name) is not None), None)
    listed = words if words is not None else text
    if listed is None:
        raise ValueError(f"{record.place}: there is no text; words, text or sentence is needed")
    if isinstance(words, str) or (slots is not None and isinstance(listed, str)):
        listed = str(listed).split()
    if isinstance(slots, str):
        slots = slots.split() or None
    for name, value in (("words", listed), ("slots", slots)):
        if isinstance(value, list) and not all(isinstance(item, str) and item.strip() for item in value):
            raise ValueError(f"{record.place}: {name} must be a list of texts, none empty, not {value!r:.60}")
        if value is not None and not isinstance(value, str | list):
            raise ValueError(f"{record.place}: {name} must be a list of texts, not {value!r:.60}")
    intent = readers.text_of(record, "intent", "label")
    return Utterance(record.place, listed, slots, intent.strip() if intent and intent.strip() else None)
