"""The relation of two marked entities in a text: ChemProt and its like.

Three ways to say which two are meant are read: markers around them in the text (`<< A >>` and `[[ B ]]`), words like
`@CHEMICAL$` in their place (as in BioMegatron's notebook), and offsets beside the text, from which either is made.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from megabert.metrics import classification
from megabert.tasks import readers
from megabert.tasks.base import Prediction
from megabert.tasks.readers import Record
from megabert.tasks.sequence_classification import SequenceClassification, TextExample

MARKERS = (("<<", ">>"), ("[[", "]]"))
# Whatever writes marks: << >>, [[ ]], <e1>, [E1], @GENE$, #...#
_MARK = re.compile(r"[<>\[\]@#$*{}|]")
NO_RELATION = ("False", "false", "NA", "NONE", "None", "no_relation", "0")


@dataclass(frozen=True, kw_only=True)
class RelationExtraction(SequenceClassification):
    """A relation for each pair of entities.

    Attributes:
        mentions: how the two entities are written: `markers` around them, or `anonymous` words (`@CHEMICAL$`) in their
            place. Texts that have such words already stay as they are.
    """

    name: ClassVar[str] = "relation-extraction"

    mentions: Literal["markers", "anonymous"] = "markers"

    @property
    def main_score(self) -> str:  # noqa: D102
        return self.ranked_by or "f1"

    def examples(self, path: Path, *, labelled: bool = True) -> list[TextExample]:
        """Read JSONL with text, label and perhaps `entities`; BioMegatron's TSV with columns id, text, True or False,
        relation; or a table as sequence classification does. A file that begins with `{` is JSONL whatever its name."""
        first = next((line for _, line in readers.lines(path) if line.strip()), "")
        if first.startswith("{"):
            records = readers.json_lines(path)
        elif len(first.split("\t")) == 4:
            records = (_notebook(place, cells) for place, cells in readers.cells_of(path))
        else:
            return super().examples(path, labelled=labelled)
        return readers.not_empty([self._example(record, n, labelled) for n, record in enumerate(records, 1)], path)

    def _example(self, record: Record, number: int, labelled: bool) -> TextExample:
        example = super()._example(self._marked(record), number, labelled)
        if not _MARK.search(example.text):
            raise ValueError(f"{record.place}: nothing in the text says which two entities are meant: marks such as "
                             "<< A >> and [[ B ]], words such as @GENE$ in their place, or `entities`")  # fmt: skip
        if self.mentions == "anonymous":
            text = example.text
            for at, (begin, end) in enumerate(MARKERS, 1):
                text = re.sub(rf"{re.escape(begin)}.*?{re.escape(end)}", f"@ENTITY{at}$", text)
            example = dataclasses.replace(example, text=text)
        return example

    def _marked(self, record: Record) -> Record:
        """The record with its entities in the text."""
        given = record.cells.get("entities")
        if given is None:
            return record
        if isinstance(given, str):  # in a cell of a table
            try:
                given = json.loads(given)
            except json.JSONDecodeError as error:
                raise ValueError(f"{record.place}: `entities` is not JSON: {error}") from None
        text = readers.text_of(record, "text") or ""
        if not isinstance(given, list) or len(given) != 2:
            raise ValueError(f"{record.place}: `entities` must be a list of two: whose relation is asked?")
        spans = sorted((*readers.span_of(entity, text, record.place), number) for number, entity in enumerate(given))
        if spans[0][1] > spans[1][0]:
            raise ValueError(f"{record.place}: the two entities overlap")
        for start, end, number in reversed(spans):
            if self.mentions == "anonymous":
                word = f"@{str(given[number].get('type', f'ENTITY{number + 1}')).upper()}$"
            else:
                word = f"{MARKERS[number][0]} {text[start:end]} {MARKERS[number][1]}"
            text = text[:start] + word + text[end:]
        return Record(record.place, {**record.cells, "text": text})

    def score(self, predictions: Sequence[Prediction], examples: Sequence[TextExample]) -> dict[str, float]:
        """Precision, recall and F1 over the relations, the label that says there is none left out; then as sequence
        classification has them."""
        gold, given = self._labels(predictions, examples)
        relations = [label for label in self.labels if label not in NO_RELATION]
        over = classification.micro(gold, given, relations)
        scores = {"precision": over.precision, "recall": over.recall, "f1": over.f1}
        return scores | super().score(predictions, examples)


def _notebook(place: str, cells: Sequence[str]) -> Record:
    """A line of BioMegatron's ChemProt: id, text, True or False, relation."""
    if len(cells) != 4 or cells[2] not in ("True", "False"):
        raise ValueError(f"{place}: id, text, True or False, and the relation are needed, with tabs between them")
    return Record(place, {"id": cells[0], "text": cells[1], "label": cells[3] if cells[2] == "True" else "False"})
