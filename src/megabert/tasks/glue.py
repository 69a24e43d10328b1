"""GLUE's nine tasks: the columns of their files, their labels, and the score each is published with.

Source: Wang et al. 2018, "GLUE: A Multi-Task Benchmark and Analysis Platform" (arXiv 1804.07461), and the files of its
download script. Files are read without quoting; a first line with the columns' names is passed over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

from megabert.tasks import readers
from megabert.tasks.sequence_classification import Regression, SequenceClassification, TextExample


class Columns(NamedTuple):
    """Columns of a file with labels, from 0 on: the texts, and the label (-1: the last one); their names in a header.

    `width`: how many there are at least; `widest`: at most (MNLI's files have 12 or 15), 0: no more.
    """

    texts: tuple[int, ...]
    label: int
    width: int
    names: tuple[str, ...]
    label_name: str
    widest: int = 0


_NLI = ("contradiction", "entailment", "neutral")
_ENTAILMENT = ("entailment", "not_entailment")
_BINARY = ("0", "1")
_SENTENCES = ("sentence1", "sentence2")


class Row(NamedTuple):
    """One task of GLUE; `positive` is the label whose F1 is reported."""

    columns: Columns
    labels: tuple[str, ...]
    ranked_by: str
    positive: str = ""


ROWS: Mapping[str, Row] = {
    "cola": Row(Columns((3,), 1, 4, ("sentence",), "label"), _BINARY, "matthews"),
    "sst-2": Row(Columns((0,), 1, 2, ("sentence",), "label"), _BINARY, "accuracy"),
    "mrpc": Row(Columns((3, 4), 0, 5, ("#1 String", "#2 String"), "Quality"), _BINARY, "accuracy_and_f1", "1"),
    "sts-b": Row(Columns((7, 8), -1, 10, _SENTENCES, "score"), (), "pearson_and_spearman"),
    "qqp": Row(Columns((3, 4), 5, 6, ("question1", "question2"), "is_duplicate"), _BINARY, "accuracy_and_f1", "1"),
    "mnli": Row(Columns((8, 9), -1, 11, _SENTENCES, "gold_label", 15), _NLI, "accuracy"),
    "qnli": Row(Columns((1, 2), -1, 4, ("question", "sentence"), "label"), _ENTAILMENT, "accuracy"),
    "rte": Row(Columns((1, 2), -1, 4, _SENTENCES, "label"), _ENTAILMENT, "accuracy"),
    "wnli": Row(Columns((1, 2), -1, 4, _SENTENCES, "label"), _BINARY, "accuracy"),
}
NAMES = tuple(ROWS)


def _examples(path: Path, name: str, labelled: bool) -> list[TextExample]:
    columns = ROWS[name].columns
    found: list[TextExample] = []
    texts: Sequence[int] = ()
    at_label: int | None = None
    width = 0
    for place, cells in readers.cells_of(path):
        if not width:
            width = len(cells)
            if set(columns.names) <= set(cells):
                texts, at_label = _named(columns, cells)
            elif columns.width <= width <= max(columns.width, columns.widest):
                texts, at_label = columns.texts, columns.label
            else:  # a file without labels: an index, then the texts
                texts, at_label = range(width - len(columns.texts), width), None
            if (labelled and at_label is None) or texts[0] < 0:
                more = f" to {columns.widest}" if columns.widest else ""
                raise ValueError(f"{place}: {width} columns between tabs, but {name}'s files with labels have "
                                 f"{columns.width}{more}, {columns.label_name} among them; `megabert predict` takes "
                                 "files without labels")  # fmt: skip
            if set(columns.names) <= set(cells):
                continue
        if len(cells) != width:
            raise ValueError(f"{place}: {len(cells)} columns, but the lines before have {width}")
        chosen = [cells[at] for at in texts]
        label = None if at_label is None else cells[at_label].strip()
        if any(not text.strip() for text in chosen):
            raise ValueError(f"{place}: a text is empty")
        pair = chosen[1] if len(chosen) > 1 else None
        found.append(TextExample(id=str(len(found)), place=place, text=chosen[0], text_pair=pair, label=label))
    return readers.not_empty(found, path)


def _named(columns: Columns, header: Sequence[str]) -> tuple[list[int], int | None]:
    """Where a header says that the texts and the label are; None: there is no label."""
    label = header.index(columns.label_name) if columns.label_name in header else None
    return [header.index(name) for name in columns.names], label


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
    pair = len(row.columns.texts) == 2
    if not row.labels:
        return GlueRegression(max_seq_length=max_seq_length, pair=pair)
    return GlueClassification(
        max_seq_length=max_seq_length, labels=row.labels, pair=pair, positive=row.positive, ranked_by=row.ranked_by,
        row=name,
    )  # fmt: skip
