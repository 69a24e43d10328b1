"""GLUE's nine tasks: the columns of their files, their labels, and the score each is published with.

Source: Wang et al. 2018, "GLUE: A Multi-Task Benchmark and Analysis Platform" (arXiv 1804.07461), and the files of its
download script. Files are read without quoting; a first line with the columns' names is passed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

from megabert.tasks import readers
from megabert.tasks.sequence_classification import Regression, SequenceClassification, TextExample


class Columns(NamedTuple):
    """Columns from 0 on: the texts, the label (-1: the last one), and names that tell a header or find the columns."""

    first: int
    second: int | None
    label: int
    header: str
    width: int
    """How many columns a labelled file has; MNLI's have 12 or 15, STS-B's 10."""


_NLI = ("contradiction", "entailment", "neutral")
_ENTAILMENT = ("entailment", "not_entailment")
_BINARY = ("0", "1")


class Row(NamedTuple):
    """One task of GLUE; `positive` is the label whose F1 is reported."""

    columns: Columns
    labels: tuple[str, ...]
    ranked_by: str
    positive: str = ""


ROWS: Mapping[str, Row] = {
    "cola": Row(Columns(3, None, 1, "sentence", 4), _BINARY, "matthews"),
    "sst-2": Row(Columns(0, None, 1, "sentence", 2), _BINARY, "accuracy"),
    "mrpc": Row(Columns(3, 4, 0, "Quality", 5), _BINARY, "accuracy_and_f1", "1"),
    "sts-b": Row(Columns(7, 8, -1, "sentence1", 10), (), "pearson_and_spearman"),
    "qqp": Row(Columns(3, 4, 5, "question1", 6), _BINARY, "accuracy_and_f1", "1"),
    "mnli": Row(Columns(8, 9, -1, "sentence1", 11), _NLI, "accuracy"),
    "qnli": Row(Columns(1, 2, -1, "question", 4), _ENTAILMENT, "accuracy"),
    "rte": Row(Columns(1, 2, -1, "sentence1", 4), _ENTAILMENT, "accuracy"),
    "wnli": Row(Columns(1, 2, -1, "sentence1", 4), _BINARY, "accuracy"),
}
NAMES = tuple(ROWS)


def _examples(path: Path, name: str, labelled: bool) -> list[TextExample]:
    columns = ROWS[name].columns
    found: list[TextExample] = []
    texts = [columns.first] if columns.second is None else [columns.first, columns.second]
    width = 0
    for number, (place, cells) in enumerate(readers.cells_of(path)):
        if number == 0 and columns.header in cells:
            continue
        width = width or len(cells)
        if len(cells) != width:
            raise ValueError(f"{place}: {len(cells)} columns, but the lines before have {width}")
        whole = width >= columns.width
        if labelled and not whole:
            raise ValueError(f"{place}: {width} columns between tabs, but {name}'s files with labels have "
                             f"{columns.width}{' or more' if columns.label < 0 else ''}")  # fmt: skip
        # GLUE's files without labels: an index, then the texts.
        chosen = [cells[at] for at in texts] if whole else cells[-len(texts) :]
        label = cells[columns.label].strip() if whole else None
        if any(not text.strip() for text in chosen):
            raise ValueError(f"{place}: a text is empty")
        pair = chosen[1] if len(chosen) > 1 else None
        found.append(TextExample(id=str(len(found)), place=place, text=chosen[0], text_pair=pair, label=label))
    return readers.not_empty(found, path)


@dataclass(frozen=True, kw_only=True)
class OwnFiles(SequenceClassification):
    """A task whose `.tsv` files have GLUE's columns.

    Attributes:
        row: its name, one of `NAMES`.
    """

    row: str = ""

    def examples(self, path: Path, *, labelled: bool = True) -> list[TextExample]:
        """Read one of the task's own files; others (`.csv`, `.jsonl`, `.txt`) as the general task does."""
        if readers.suffix_of(path) != ".tsv":
            return super().examples(path, labelled=labelled)
        found = _examples(path, self.row, labelled)
        for example in found:
            self._check(example)
        return found


@dataclass(frozen=True, kw_only=True)
class GlueClassification(OwnFiles):
    """A GLUE task with classes."""

    name: ClassVar[str] = "glue"


@dataclass(frozen=True, kw_only=True)
class GlueRegression(OwnFiles, Regression):
    """GLUE's STS-B: how similar two sentences are, from 0 to 5."""

    name: ClassVar[str] = "glue-regression"

    row: str = "sts-b"


def make(name: str, *, max_seq_length: int) -> GlueClassification | GlueRegression:
    """The task of a name in `NAMES`."""
    row = ROWS[name]
    pair = row.columns.second is not None
    if not row.labels:
        return GlueRegression(max_seq_length=max_seq_length, pair=pair)
    return GlueClassification(
        max_seq_length=max_seq_length, labels=row.labels, pair=pair, positive=row.positive, ranked_by=row.ranked_by,
        row=name,
    )  # fmt: skip
