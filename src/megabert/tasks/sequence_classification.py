"""A class, or a number, for a text or a pair of texts."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from megabert.metrics import classification
from megabert.tasks import readers
from megabert.tasks.base import Example, Features, Prediction, Task, cut_pair, pair_of, softmax, unknown_label
from megabert.tasks.cases import Case, of_number
from megabert.tasks.readers import Record
from megabert.tokenization.base import Tokenizer

if TYPE_CHECKING:
    from megabert.tasks.objectives import TaskObjective

_FIRST = ("text", "text_a", "sentence", "sentence1", "premise", "question1", "question", "query")
_SECOND = ("text_b", "text_pair", "sentence2", "hypothesis", "question2", "passage")
_LABEL = ("label", "gold_label", "score", "class", "labels")
_HEADERS = [frozenset({first}) for first in _FIRST]
_MANY_LABELS = 30


@dataclass(frozen=True, kw_only=True)
class TextExample(Example):
    """A text, perhaps a second one, and perhaps what is to be said of them."""

    text: str
    text_pair: str | None = None
    label: str | None = None


@dataclass(frozen=True, kw_only=True)
class SequenceClassification(Task):
    """A class for each text.

    Attributes:
        pair: examples are pairs of texts.
        class_weights: of each label; empty: all count the same.
        positive: the label whose F1 is reported (`f1`), where there are two; empty: none.
        ranked_by: the score by which models are compared; empty: the accuracy.
    """

    name: ClassVar[str] = "sequence-classification"
    head: ClassVar[str] = "MegatronBertForSequenceClassification"

    pair: bool = False
    class_weights: tuple[float, ...] = ()
    positive: str = ""
    ranked_by: str = ""

    @property
    def objective(self) -> TaskObjective:  # noqa: D102
        from megabert.tasks.objectives import Classes

        return Classes("label", weights=self.class_weights or None)

    @property
    def main_score(self) -> str:  # noqa: D102
        return self.ranked_by or "accuracy"

    def examples(self, path: Path, *, labelled: bool = True) -> list[TextExample]:
        """Read a table with columns text (sentence, sentence1, premise, ...), text_pair (sentence2, ...) and label.

        Without a header: text and label, or both texts and label; in a file to be labelled: the texts.
        """
        shapes = {2: ("text", "label"), 3: ("text", "text_b", "label")}
        if not labelled:
            shapes = {2: ("text", "text_b"), 3: shapes[3]} if self.pair else {1: ("text",), 2: shapes[2]}
        found = []
        for number, record in enumerate(readers.table(path, _HEADERS, shapes), 1):
            found.append(self._example(record, number, labelled))
        return readers.not_empty(found, path)

    def asked(self, texts: Sequence[tuple[str, ...]], place: str) -> list[TextExample]:
        """Texts, or pairs of texts."""
        width = 2 if self.pair else 1
        return [
            TextExample(id=str(number), place=place, text=parts[0], text_pair=parts[1] if self.pair else None)
            for number, parts in enumerate(self.of_width(texts, width, place), 1)
        ]

    def shown(self, prediction: Prediction) -> str:  # noqa: D102
        texts = " -> ".join(prediction[name] for name in ("text", "text_pair") if name in prediction)
        return f"{texts}\n    {prediction['label']}  {100 * prediction['probability']:.1f} %"

    def _example(self, record: Record, number: int, labelled: bool) -> TextExample:
        text, label = readers.text_of(record, *_FIRST), readers.text_of(record, *_LABEL)
        pair = readers.text_of(record, *_SECOND)
        if text is None:
            raise ValueError(f"{record.place}: there is no text; a column {', '.join(_FIRST[:4])} or ... is needed")
        if not text.strip() or (pair is not None and not pair.strip()):
            raise ValueError(f"{record.place}: a text is empty")
        if labelled and (label is None or not label.strip()):
            raise ValueError(f"{record.place}: there is no label; a column {', '.join(_LABEL[:3])} or ... is needed")
        example = TextExample(
            id=readers.text_of(record, "id", "index") or str(number), place=record.place, text=text, text_pair=pair,
            label=label.strip() if label else None,
        )  # fmt: skip
        self._check(example)
        return example

    def _check(self, example: TextExample) -> None:
        """Refuse a label outside the set."""
        if self.labels and example.label is not None and example.label not in self.labels:
            raise unknown_label(example.label, example.place, self.labels)

    def learned(self, examples: Sequence[TextExample]) -> Self:
        """With the labels of the examples, in order (numbers by value), and whether they are pairs."""
        pair = examples[0].text_pair is not None
        odd = next((one for one in examples if (one.text_pair is not None) != pair), None)
        if odd is not None:
            raise ValueError(f"{odd.place}: {'one text' if pair else 'two texts'}, but the lines before have "
                             f"{'two' if pair else 'one'}")  # fmt: skip
        for example in examples:
            self._check(example)
        found = {example.label for example in examples if example.label is not None}
        labels = self.labels or tuple(sorted(found, key=_by_value))
        if not self.labels and len(found) > max(_MANY_LABELS, len(examples) / 4):
            numbers = all(_by_value(label)[0] == 0 for label in found)
            raise ValueError(f"the training examples have {len(found)} different labels for {len(examples)} texts: is "
                             f"that column the label?{' `regression` learns numbers.' if numbers else ''} (--labels "
                             "says which there are)")  # fmt: skip
        if len(found) < 2:
            raise ValueError(f"all {len(examples)} training examples have the label {found.pop()!r}: there is nothing "
                             "to tell apart")  # fmt: skip
        return dataclasses.replace(self, labels=labels, pair=pair)

    def balanced(self, examples: Sequence[TextExample]) -> Self:
        """With class weights that make up for rare classes."""
        from megabert.tasks.objectives import balanced

        counts = Counter(example.label for example in examples)
        return dataclasses.replace(self, class_weights=balanced([counts[label] for label in self.labels]))

    def features(self, examples: Sequence[TextExample], tokenizer: Tokenizer) -> list[Features]:
        """One row for each example; what is too long is cut at its end, of a pair the longer text first."""
        for example in examples:
            if (example.text_pair is not None) != self.pair:
                ours, theirs = ("pairs of texts", "one text") if self.pair else ("single texts", "two texts")
                raise ValueError(f"{example.place}: this model reads {ours}, not {theirs}")
        first = tokenizer.encode_batch([example.text for example in examples])
        second = tokenizer.encode_batch([example.text_pair or "" for example in examples]) if self.pair else None
        made = []
        for number, (example, ids) in enumerate(zip(examples, first, strict=True)):
            other = second[number] if second is not None else None
            room = self.max_seq_length - 2 - (other is not None)
            ours, theirs = cut_pair(len(ids), len(other or ()), room)
            cut = ours + theirs < len(ids) + len(other or ())
            row, types = pair_of(ids[:ours], None if other is None else other[:theirs], tokenizer)
            labels = {} if example.label is None else {"labels": self._target(example)}
            made.append(Features(example=number, input_ids=row, token_type_ids=types, labels=labels, cut=cut))
        return made

    def _target(self, example: TextExample) -> np.ndarray:
        self._check(example)
        return np.array(self.labels.index(str(example.label)), dtype=np.int64)

    def rows_of(self, outputs: Any) -> list[np.ndarray]:  # noqa: D102
        return list(outputs.logits.float().cpu().numpy())

    def decode(
        self, outputs: Sequence[np.ndarray], features: Sequence[Features], examples: Sequence[TextExample]
    ) -> list[Prediction]:
        """The likeliest label of each example, with the probabilities of all."""
        predictions = []
        for logits, example in zip(outputs, examples, strict=True):
            probabilities = softmax(logits)
            best = int(probabilities.argmax())
            predictions.append(
                {
                    **self._said(example), "label": self.labels[best], "probability": float(probabilities[best]),
                    "probabilities": dict(zip(self.labels, map(float, probabilities), strict=True)),
                }
            )  # fmt: skip
        return predictions

    def _said(self, example: TextExample) -> Prediction:
        said: Prediction = {"id": example.id, "text": example.text}
        if example.text_pair is not None:
            said["text_pair"] = example.text_pair
        if example.label is not None:
            said["gold"] = example.label
        return said

    def score(self, predictions: Sequence[Prediction], examples: Sequence[TextExample]) -> dict[str, float]:
        """Accuracy, macro and weighted F1, Matthews' correlation; F1 of the positive class where there is one."""
        gold, given = self._labels(predictions, examples)
        table = classification.per_class(gold, given, self.labels)
        macro, weighted = classification.macro(table.values()), classification.weighted(table.values())
        scores = {"accuracy": classification.accuracy(gold, given)}
        if self.positive:
            scores["f1"] = table[self.positive].f1
            scores["accuracy_and_f1"] = (scores["accuracy"] + scores["f1"]) / 2
        scores |= {
            "macro_precision": macro.precision, "macro_recall": macro.recall, "macro_f1": macro.f1,
            "weighted_f1": weighted.f1, "matthews": classification.matthews(gold, given),
        }  # fmt: skip
        micro = classification.micro(gold, given, self.labels)
        return scores | {"nemo_precision": micro.precision, "nemo_recall": micro.recall, "nemo_f1": micro.f1}

    def details(self, predictions: Sequence[Prediction], examples: Sequence[TextExample]) -> dict[str, Any]:
        """Each class's scores, and the confusion of classes."""
        gold, given = self._labels(predictions, examples)
        table = classification.per_class(gold, given, self.labels)
        return {
            "labels": list(self.labels),
            "per_class": {str(label): scores._asdict() for label, scores in table.items()},
            "confusion": classification.confusion(gold, given, self.labels),
        }

    @staticmethod
    def _labels(predictions: Sequence[Prediction], examples: Sequence[TextExample]) -> tuple[list[str], list[str]]:
        return [str(example.label) for example in examples], [prediction["label"] for prediction in predictions]


@dataclass(frozen=True, kw_only=True)
class Regression(SequenceClassification):
    """A number for each text or pair of texts."""

    name: ClassVar[str] = "regression"
    problem_type: ClassVar[str | None] = "regression"

    @property
    def objective(self) -> TaskObjective:  # noqa: D102
        from megabert.tasks.objectives import Number

        return Number()

    @property
    def main_score(self) -> str:  # noqa: D102
        return self.ranked_by or "pearson_and_spearman"

    @property
    def outputs(self) -> int:  # noqa: D102
        return 1

    def shown(self, prediction: Prediction) -> str:  # noqa: D102
        texts = " -> ".join(prediction[name] for name in ("text", "text_pair") if name in prediction)
        return f"{texts}\n    {prediction['number']:.4g}"

    def _check(self, example: TextExample) -> None:
        if example.label is None:
            return
        try:
            number = float(example.label)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"{example.place}: {example.label!r} is no number, and regression learns numbers")

    def learned(self, examples: Sequence[TextExample]) -> Self:
        """With whether they are pairs."""
        if self.labels:
            raise ValueError("regression learns numbers and has no --labels")
        return dataclasses.replace(self, pair=examples[0].text_pair is not None)

    def balanced(self, examples: Sequence[TextExample]) -> Self:
        """Numbers have no classes.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"--class-weights: {self.name} has no classes to weigh")

    def _target(self, example: TextExample) -> np.ndarray:
        return np.array(float(str(example.label)), dtype=np.float32)

    def decode(
        self, outputs: Sequence[np.ndarray], features: Sequence[Features], examples: Sequence[TextExample]
    ) -> list[Prediction]:
        """The number of each example."""
        return [
            {**self._said(example), "number": float(logits[0])}
            for logits, example in zip(outputs, examples, strict=True)
        ]

    def score(self, predictions: Sequence[Prediction], examples: Sequence[TextExample]) -> dict[str, float]:
        """Pearson's and Spearman's correlation, their mean, and the mean squared error."""
        gold = [float(str(example.label)) for example in examples]
        given = [prediction["number"] for prediction in predictions]
        pearson, spearman = classification.pearson(gold, given), classification.spearman(gold, given)
        error = sum((left - right) ** 2 for left, right in zip(gold, given, strict=True)) / len(gold)
        return {"pearson": pearson, "spearman": spearman, "pearson_and_spearman": (pearson + spearman) / 2,
                "mean_squared_error": error}  # fmt: skip

    def details(self, predictions: Sequence[Prediction], examples: Sequence[TextExample]) -> dict[str, Any]:
        """None."""
        return {}

    def cases(self, predictions: Sequence[Prediction], examples: Sequence[TextExample]) -> list[Case]:  # noqa: D102
        return [of_number(prediction) for prediction in predictions]


def _by_value(label: str) -> tuple[int, float, str]:
    try:
        return (0, float(label), label)
    except ValueError:
        return (1, 0.0, label)
