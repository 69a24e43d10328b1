"""The one type that leaves this room, and its counterpart for what could not be read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """A text whose sentences follow each other.

    Attributes:
        text: valid Unicode, never blank; paragraphs (or sentences, when the corpus is split already) on lines.
        title: what the document is called, or an empty string; not part of `text`.
        line: where it begins in its file, from 1 (a row or a document, where a file has no lines); 0: not known.
    """

    text: str
    title: str = ""
    line: int = dataclasses.field(default=0, compare=False)


@dataclasses.dataclass(frozen=True, slots=True)
class BadLine:
    """A place of a file that holds no document, and why.

    Attributes:
        line: number of the line, from 1.
        unit: what is counted, where a file has no lines: `row`, `document`.
    """

    path: Path
    line: int
    reason: str
    unit: str = "line"

    def __str__(self) -> str:
        return f"{self.path}: {self.unit} {self.line}: {self.reason}"


def good_documents(
    items: Iterable[Document | BadLine], on_bad_line: Callable[[BadLine], None] | None = None
) -> Iterator[Document]:
    """The documents among `items`; each bad line goes to `on_bad_line`.

    Raises:
        ValueError: at the end, when there was no document at all; names the first bad line, if there was one.
    """
    first_bad: BadLine | None = None
    bad = good = 0
    for item in items:
        if isinstance(item, BadLine):
            first_bad = first_bad or item
            bad += 1
            if on_bad_line is not None:
                on_bad_line(item)
        else:
            good += 1
            yield item
    if not good:
        if first_bad is None:
            raise ValueError("the corpus is empty: it holds no document")
        raise ValueError(f"the corpus holds no document; the first of {bad} lines that could not be used: {first_bad}")
