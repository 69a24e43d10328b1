"""SQuAD's JSON: questions with their paragraph, answers checked against it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megabert.tasks import readers
from megabert.tasks.base import Example


class Paragraph:
    """A paragraph's text; questions of one paragraph share it, so that it is cut into pieces once."""

    __slots__ = ("text",)

    def __init__(self, text: str):
        self.text = text


@dataclass(frozen=True, kw_only=True)
class Question(Example):
    """A question about a text.

    Attributes:
        answers: right answers, (text, character at which it begins); none when there is none, or none is known.
        answered: the file says what is right: `answers`, or that there is no answer.
    """

    question: str
    paragraph: Paragraph
    answers: list[tuple[str, int]] = field(default_factory=list)
    answered: bool = False

    @property
    def context(self) -> str:
        """The text."""
        return self.paragraph.text


def read(path: Path, *, labelled: bool, repair: bool) -> list[Question]:
    """Questions of a SQuAD file (`data`, `paragraphs`, `qas`), of JSONL with question, context and answers, or of a
    table with these columns, or with question, context, answer and answer_start.

    Args:
        labelled: answers must be there.
        repair: take the nearest place where an answer stands when its offset is wrong.

    Raises:
        ValueError: the file has another shape; an answer does not stand at its offset; a question's id occurs twice.
    """
    suffix = readers.suffix_of(path)
    if suffix == ".jsonl":
        found = list(_from_lines(path))
    elif suffix in (".csv", ".tsv"):
        found = list(_from_table(path, labelled))
    else:
        found = list(_from_document(path))
    seen: set[str] = set()
    questions = []
    for example in found:
        if example.id in seen:
            raise ValueError(f"{example.place}: the id {example.id!r} occurs twice")
        seen.add(example.id)
        if labelled and not example.answered:
            raise ValueError(f"{example.place}: there is neither an answer nor is_impossible")
        answers = [(text, _checked(example, text, start, repair)) for text, start in example.answers]
        questions.append(
            Question(id=example.id, place=example.place, question=example.question, paragraph=example.paragraph,
                     answers=answers, answered=example.answered)
        )  # fmt: skip
    return readers.not_empty(questions, path)


def _from_document(path: Path) -> Iterator[Question]:
    document = readers.read_json(path)
    articles = document.get("data") if isinstance(document, dict) else None
    if not isinstance(articles, list):
        raise ValueError(f"{path}: a SQuAD file is an object with a list `data`; this one has none")
    for number, article in enumerate(articles):
        where = f"{path}: data[{number}]"
        for place, paragraph in enumerate(_list(article, "paragraphs", where)):
            spot = f"{where}.paragraphs[{place}]"
            text = Paragraph(_text(paragraph, "context", spot))
            for index, entry in enumerate(_list(paragraph, "qas", spot)):
                yield _question(entry, text, f"{spot}.qas[{index}]", "")


def _from_lines(path: Path) -> Iterator[Question]:
    for number, record in enumerate(readers.json_lines(path), 1):
        entry = dict(record.cells)
        yield _question(entry, Paragraph(_text(entry, "context", record.place)), record.place, str(number))


def _from_table(path: Path, labelled: bool) -> Iterator[Question]:
    """A row for each question. An empty answer is none; an answer that occurs once needs no answer_start; several are
    in a cell `answers`, as JSON."""
    shapes = {} if labelled else {2: ("question", "context")}
    for number, record in enumerate(readers.table(path, [frozenset({"question", "context"})], shapes), 1):
        cells = {name: cell for name, cell in record.cells.items() if cell or name == "answer"}
        context, place = _text(cells, "context", record.place), record.place
        if "answers" in cells:
            try:
                cells["answers"] = json.loads(cells["answers"])
            except json.JSONDecodeError as error:
                raise ValueError(f"{place}: answers is not JSON: {error}") from None
        elif "answer" in cells:
            answer = cells["answer"]
            start = _start(cells.get("answer_start"), answer, context, place) if answer else 0
            cells["answers"] = [{"text": answer, "answer_start": start}] if answer else []
        yield _question(cells, Paragraph(context), place, str(number))


def _start(told: str | None, answer: str, context: str, place: str) -> int:
    if told is not None:
        if not told.strip().isdecimal():
            raise ValueError(f"{place}: answer_start must be a whole number, not {told!r}")
        return int(told)
    count = context.count(answer)
    if count > 1:
        raise ValueError(f"{place}: the answer {answer!r:.40} stands {count} times in the context: a column "
                         "answer_start must say where")  # fmt: skip
    return max(0, context.find(answer))


def _question(entry: Any, paragraph: Paragraph, place: str, number: str) -> Question:
    question = _text(entry, "question", place)
    name = entry.get("id", number)
    if not isinstance(name, str | int) or name == "":
        raise ValueError(f"{place}: an id is needed")
    place = f"{place} (id {name})"
    # One documentation page wrote the boolean as text.
    impossible = entry.get("is_impossible", False) in (True, "true", "True")
    listed = entry.get("answers")
    if isinstance(listed, dict):  # as the hub's copies of SQuAD have it
        texts, starts = listed.get("text"), listed.get("answer_start")
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            raise ValueError(f"{place}: answers needs as many numbers in answer_start as texts in text")
        listed = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
    if listed is not None and not isinstance(listed, list):
        raise ValueError(f"{place}: answers must be a list of objects with text and answer_start, not {listed!r:.60}")
    answers = []
    for answer in [] if impossible else (listed or []):
        text, start = _text(answer, "text", f"{place}: answers"), answer.get("answer_start")
        if not isinstance(start, int) or isinstance(start, bool):
            raise ValueError(f"{place}: answer_start must be a whole number, not {start!r}")
        answers.append((text, start))
    answered = impossible or listed is not None
    return Question(id=str(name), place=place, question=question, paragraph=paragraph, answers=answers,
                    answered=answered)  # fmt: skip


def _list(value: Any, name: str, place: str) -> list:
    found = value.get(name) if isinstance(value, dict) else None
    if not isinstance(found, list):
        raise ValueError(f"{place}: a list `{name}` is needed")
    return found


def _text(value: Any, name: str, place: str) -> str:
    found = value.get(name) if isinstance(value, dict) else None
    if not isinstance(found, str) or not found.strip():
        raise ValueError(f"{place}: a text `{name}` is needed")
    return found


def _checked(example: Question, text: str, start: int, repair: bool) -> int:
    """Where the answer begins."""
    context = example.context
    if start >= 0 and context.startswith(text, start):
        return start
    places = []
    at = context.find(text)
    while at >= 0:
        places.append(at)
        at = context.find(text, at + 1)
    if repair and places:
        return min(places, key=lambda place: abs(place - start))
    shown = text if len(text) <= 40 else text[:37] + "..."
    there = context[max(start, 0) : max(start, 0) + len(shown)]
    problem = (
        f"{example.place}: the answer {shown!r} does not stand at character {start} of the context, where {there!r} is"
    )
    if context.encode()[max(start, 0) :].startswith(text.encode()):
        problem += "; its offset counts bytes, where characters are needed"
    elif places:
        nearest = min(places, key=lambda place: abs(place - start))
        problem += f"; it stands at {nearest}"
    else:
        raise ValueError(f"{problem}; it is nowhere in the context")
    raise ValueError(f"{problem}: --repair-offsets takes the nearest place")
