"""One of several endings or answers: SWAG and RACE."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from megabert.metrics import classification
from megabert.tasks import readers
from megabert.tasks.base import Example, Features, Prediction, Task, cut_pair, pair_of, softmax
from megabert.tasks.cases import Case, of_choice
from megabert.tasks.readers import Record
from megabert.tokenization.base import Tokenizer

if TYPE_CHECKING:
    from megabert.tasks.objectives import TaskObjective

_LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True, kw_only=True)
class ChoiceExample(Example):
    """A text, what may follow it or answer it, and the number of the right one."""

    context: str
    choices: list[str]
    right: int | None = None


@dataclass(frozen=True, kw_only=True)
class MultipleChoice(Task):
    """One of several choices.

    Attributes:
        order: which of the two comes first in a row: the `context`, or the `choice` as Megatron's RACE has it.
        max_choice_length: pieces of a choice (with its question) that are kept, as Megatron's RACE keeps 128.
    """

    name: ClassVar[str] = "multiple-choice"
    head: ClassVar[str] = "MegatronBertForMultipleChoice"
    problem_type: ClassVar[str | None] = None

    order: Literal["context", "choice"] = "context"
    max_choice_length: int = 128

    @property
    def objective(self) -> TaskObjective:  # noqa: D102
        from megabert.tasks.objectives import Classes

        return Classes("choice")

    @property
    def main_score(self) -> str:  # noqa: D102
        return "accuracy"

    @property
    def outputs(self) -> int:  # noqa: D102
        return 1

    def examples(self, path: Path, *, labelled: bool = True) -> list[ChoiceExample]:
        """Read SWAG's CSV (startphrase or sent1 and sent2, ending0, ..., label), RACE's files or a folder of them
        (article, questions, options, answers), or JSONL with context, choices and label."""
        found = [example for file in self.files(path) for example in _read(file, labelled)]
        if found:
            count = len(found[0].choices)
            odd = next((one for one in found if len(one.choices) != count), None)
            if odd is not None:
                raise ValueError(f"{odd.place}: {len(odd.choices)} choices, but the examples before have {count}")
        return readers.not_empty(found, path)

    def files(self, path: Path) -> list[Path]:
        """Of a folder the `.txt` files in it, as RACE has them."""
        return sorted(path.rglob("*.txt")) if path.is_dir() else [path]

    def asked(self, texts: Sequence[tuple[str, ...]], place: str) -> list[ChoiceExample]:
        """A text and its choices, all with tabs between them."""
        few = next((number for number, parts in enumerate(texts, 1) if len(parts) < 3), None)
        if few is not None:
            raise ValueError(
                f"{place}: number {few}: a text and two choices or more are needed, with tabs between them"
            )
        return [
            ChoiceExample(id=str(number), place=place, context=parts[0], choices=list(parts[1:]))
            for number, parts in enumerate(texts, 1)
        ]

    def shown(self, prediction: Prediction) -> str:  # noqa: D102
        return f"{prediction['context']}\n    {prediction['text']}  {100 * prediction['probability']:.1f} %"

    def learned(self, examples: Sequence[ChoiceExample]) -> MultipleChoice:  # noqa: D102
        if self.labels:
            raise ValueError("multiple choice has no --labels")
        return self

    def features(self, examples: Sequence[ChoiceExample], tokenizer: Tokenizer) -> list[Features]:
        """One row for each example, [choices, seq]; a text that is too long is cut at its end."""
        contexts = tokenizer.encode_batch([example.context for example in examples])
        choices = iter(tokenizer.encode_batch([choice for example in examples for choice in example.choices]))
        made = []
        for number, (example, context) in enumerate(zip(examples, contexts, strict=True)):
            rows, cut = [], False
            for _ in example.choices:
                choice = next(choices)[: self.max_choice_length]
                kept, other = cut_pair(len(context), len(choice), self.max_seq_length - 3)
                cut |= kept < len(context) or other < len(choice)
                first, second = context[:kept], choice[:other]
                if self.order == "choice":
                    first, second = second, first
                rows.append(pair_of(first, second, tokenizer))
            labels = {} if example.right is None else {"labels": np.array(example.right, dtype=np.int64)}
            ids, types, mask = _stacked(rows, tokenizer.pad_id)
            made.append(Features(example=number, input_ids=ids, token_type_ids=types, attention_mask=mask,
                                 labels=labels, cut=cut))  # fmt: skip
        return made

    def rows_of(self, outputs: Any) -> list[np.ndarray]:  # noqa: D102
        return list(outputs.logits.float().cpu().numpy())

    def decode(
        self, outputs: Sequence[np.ndarray], features: Sequence[Features], examples: Sequence[ChoiceExample]
    ) -> list[Prediction]:
        """The likeliest choice of each example."""
        predictions = []
        for logits, example in zip(outputs, examples, strict=True):
            probabilities = softmax(logits)
            best = int(probabilities.argmax())
            said: Prediction = {
                "id": example.id, "context": example.context, "choices": example.choices, "choice": best,
                "text": example.choices[best], "probability": float(probabilities[best]),
                "probabilities": [float(value) for value in probabilities],
            }  # fmt: skip
            predictions.append(said if example.right is None else {**said, "gold": example.right})
        return predictions

    def score(self, predictions: Sequence[Prediction], examples: Sequence[ChoiceExample]) -> dict[str, float]:
        """The share of right choices."""
        right = [example.right for example in examples]
        return {"accuracy": classification.accuracy(right, [prediction["choice"] for prediction in predictions])}

    def cases(self, predictions: Sequence[Prediction], examples: Sequence[ChoiceExample]) -> list[Case]:  # noqa: D102
        return [of_choice(prediction) for prediction in predictions]


def _stacked(rows: Sequence[tuple[np.ndarray, np.ndarray]], pad_id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, token types and mask, [choices, seq] each."""
    shape = len(rows), max(len(ids) for ids, _ in rows)
    input_ids, types, mask = np.full(shape, pad_id), np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for line, (ids, kinds) in enumerate(rows):
        input_ids[line, : len(ids)], types[line, : len(ids)], mask[line, : len(ids)] = ids, kinds, 1
    return input_ids, types, mask


def _read(path: Path, labelled: bool) -> Iterator[ChoiceExample]:
    if readers.suffix_of(path) in (".csv", ".tsv"):
        records = readers.table(path, [frozenset({"ending0", "ending1"})], {})
    else:
        records = readers.json_lines(path)
    number = 0
    for record in records:
        for context, choices, right in _questions(record, labelled):
            number += 1
            if len(choices) < 2 or not all(isinstance(choice, str) and choice.strip() for choice in choices):
                raise ValueError(f"{record.place}: two choices or more are needed, none empty, not {choices!r:.80}")
            if right is not None and not 0 <= right < len(choices):
                raise ValueError(f"{record.place}: the right choice is {right}, but there are {len(choices)} choices, "
                                 "counted from 0")  # fmt: skip
            name = record.cells.get("id", record.cells.get("fold-ind"))
            unique = f"{name or path.stem}-{number}" if "questions" in record.cells or name is None else str(name)
            yield ChoiceExample(id=unique, place=record.place, context=context, choices=choices, right=right)


def _questions(record: Record, labelled: bool) -> Iterator[tuple[str, list[str], int | None]]:
    cells = record.cells
    if "article" in cells and "questions" in cells:
        yield from _race(record, labelled)
        return
    context = readers.text_of(record, "context", "startphrase", "sent1")
    if context is None:
        raise ValueError(f"{record.place}: a text is needed: context, startphrase or sent1 (RACE: article)")
    start = "" if "startphrase" in cells else (readers.text_of(record, "question", "sent2") or "")
    endings = cells.get("choices", [cells[f"ending{n}"] for n in range(10) if f"ending{n}" in cells])
    label = readers.text_of(record, "label", "answer")
    if labelled and (label is None or not label.strip()):
        raise ValueError(f"{record.place}: there is no label: the number of the right choice, from 0 on")
    right = None if label is None or not label.strip() else _number(label.strip(), record.place)
    if not isinstance(endings, list) or not all(isinstance(one, str) and one.strip() for one in endings):
        raise ValueError(f"{record.place}: choices must be a list of texts, none empty, not {endings!r:.60}")
    yield context, [f"{start} {ending}".strip() for ending in endings], right


def _race(record: Record, labelled: bool) -> Iterator[tuple[str, list[str], int | None]]:
    """RACE: a `_` in the question is replaced by the option, else the option follows the question."""
    cells = record.cells
    questions, options, answers = (cells.get(name) for name in ("questions", "options", "answers"))
    if not isinstance(questions, list) or not isinstance(options, list) or len(questions) != len(options):
        raise ValueError(f"{record.place}: RACE needs as many lists of options as questions")
    if (answers is None and labelled) or (answers is not None and len(answers) != len(questions)):
        raise ValueError(
            f"{record.place}: RACE needs an answer (A, B, C or D) for each of its {len(questions)} questions"
        )
    article = " ".join(str(cells["article"]).split())
    for place, (question, choices) in enumerate(zip(questions, options, strict=True)):
        if not isinstance(question, str) or not isinstance(choices, list):
            raise ValueError(f"{record.place}: question {place + 1} must be text, with a list of options")
        filled = [
            question.replace("_", str(choice)) if "_" in question else f"{question} {choice}" for choice in choices
        ]
        yield article, filled, None if answers is None else _number(str(answers[place]), record.place)


def _number(label: str, place: str) -> int:
    if label in _LETTERS:
        return _LETTERS.index(label)
    if not label.isdecimal():
        raise ValueError(f"{place}: the right choice is a number from 0 on or a letter, not {json.dumps(label)}")
    return int(label)
