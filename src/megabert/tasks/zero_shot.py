"""Classes that nobody taught: a model of natural language inference says which label makes a true sentence.

For each text and each label there is a row: the text, and a hypothesis such as `This example is sports.`; the label
whose hypothesis follows most from the text is the answer (Yin et al. 2019, arXiv 1909.00161).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from megabert.metrics import classification
from megabert.tasks.base import Features, Prediction, Task, pair_of, softmax, unknown_label
from megabert.tasks.cases import Case, Passage
from megabert.tasks.options import ZeroShotOptions, separated
from megabert.tasks.readers import Record
from megabert.tasks.sequence_classification import Regression, SequenceClassification, TextExample
from megabert.tokenization.base import Tokenizer

BETWEEN = "|"
"""Stands between the labels of a text that has several."""
_PLACE = "{}"
_HYPOTHESIS = "This example is {}."
_UNTAUGHT = ("zero-shot classification is not taught; teach natural language inference (megabert finetune mnli), then "
             "give --labels to evaluate and predict")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ZeroShot(SequenceClassification):
    """One label of several for each text, or each label for itself, by a model that was taught entailment.

    Attributes:
        hypothesis: the sentence that a label makes, with `{}` in the label's place.
        several: a text may have any number of labels; each has a probability of its own.
        entailment, contradiction: numbers of these classes of the model; -1: it has no contradiction.
    """

    name: ClassVar[str] = "zero-shot"

    hypothesis: str = _HYPOTHESIS
    several: bool = False
    entailment: int = 1
    contradiction: int = -1

    @property
    def main_score(self) -> str:  # noqa: D102
        return "f1" if self.several else super().main_score

    def learned(self, examples: Sequence[TextExample]) -> Self:
        """Nothing is learned.

        Raises:
            ValueError: always.
        """
        raise ValueError(_UNTAUGHT)

    def examples(self, path: Path, *, labelled: bool = True) -> list[TextExample]:
        """Read texts as sequence classification does; several labels of one text are a list, or have `|` between."""
        if not self.labels:
            raise ValueError(_UNTAUGHT)
        found = super().examples(path, labelled=labelled)
        pair = next((one for one in found if one.text_pair is not None), None)
        if pair is not None:
            raise ValueError(f"{pair.place}: with --labels a text is classified, but here are two")
        return found

    def _example(self, record: Record, number: int, labelled: bool) -> TextExample:
        given = record.cells.get("labels", record.cells.get("label"))
        if self.several and isinstance(given, list) and all(isinstance(one, str) for one in given):
            record = Record(record.place, {**record.cells, "label": BETWEEN.join(given), "labels": None})
            if not given:  # that no label fits is an answer, too
                return dataclasses.replace(super()._example(record, number, False), label="")
        return super()._example(record, number, labelled)

    def _check(self, example: TextExample) -> None:
        for label in self._wanted(example):
            if label not in self.labels:
                raise unknown_label(label, example.place, self.labels)

    def _wanted(self, example: TextExample) -> list[str]:
        label = example.label or ""
        return [one.strip() for one in (label.split(BETWEEN) if self.several else [label]) if one.strip()]

    def features(self, examples: Sequence[TextExample], tokenizer: Tokenizer) -> list[Features]:
        """A row for each label of each example; a text that is too long is cut at its end, never the hypothesis.

        Raises:
            ValueError: a hypothesis leaves no room for a text.
        """
        asked = tokenizer.encode_batch([self.hypothesis.replace(_PLACE, label) for label in self.labels])
        longest = max(map(len, asked))
        if longest + 3 >= self.max_seq_length:
            raise ValueError(f"--labels: the longest hypothesis has {longest} tokens, which leaves no room for a text "
                             f"in a row of {self.max_seq_length}")  # fmt: skip
        made = []
        for number, ids in enumerate(tokenizer.encode_batch([example.text for example in examples])):
            for label, hypothesis in enumerate(asked):
                kept = self.max_seq_length - 3 - len(hypothesis)
                row, types = pair_of(ids[:kept], hypothesis, tokenizer)
                made.append(Features(example=number, input_ids=row, token_type_ids=types, facts=label,
                                     cut=kept < len(ids)))  # fmt: skip
        return made

    def decode(
        self, outputs: Sequence[np.ndarray], features: Sequence[Features], examples: Sequence[TextExample]
    ) -> list[Prediction]:
        """The likeliest label of each text, or all that are likelier than not, with the probabilities of all."""
        scores = np.zeros((len(examples), len(self.labels)))
        for logits, row in zip(outputs, features, strict=True):
            scores[row.example, row.facts] = self._likely(logits) if self.several else logits[self.entailment]
        predictions = []
        for example, row in zip(examples, scores if self.several else softmax(scores), strict=True):
            best = int(row.argmax())
            said: Prediction = {
                "id": example.id, "text": example.text, "label": self.labels[best], "probability": float(row[best]),
                "probabilities": dict(zip(self.labels, map(float, row), strict=True)),
            }  # fmt: skip
            if self.several:
                said["labels"] = [label for label, value in zip(self.labels, row, strict=True) if value > 0.5]
                said |= {"gold_labels": self._wanted(example)} if example.label is not None else {}
            elif example.label is not None:
                said["gold"] = example.label
            predictions.append(said)
        return predictions

    def _likely(self, logits: np.ndarray) -> float:
        """How likely one hypothesis is for itself: entailment against contradiction, or against all other classes."""
        if self.contradiction < 0:
            return float(softmax(logits)[self.entailment])
        return float(softmax(logits[[self.contradiction, self.entailment]])[1])

    def shown(self, prediction: Prediction) -> str:  # noqa: D102
        chosen = prediction.get("labels", [prediction["label"]])
        told = ", ".join(f"{label}  {100 * prediction['probabilities'][label]:.1f} %" for label in chosen)
        return f"{prediction['text']}\n    {told or '(none of the labels)'}"

    def score(self, predictions: Sequence[Prediction], examples: Sequence[TextExample]) -> dict[str, float]:
        """As sequence classification; where a text has several labels, precision, recall and F1 over all decisions, the
        mean F1 of the labels, and the share of texts whose labels are all right."""
        if not self.several:
            return super().score(predictions, examples)
        gold, given = self._decisions(predictions, examples)
        over = classification.micro(gold, given, [True])
        table = self._by_label(predictions, examples)
        exact = [set(self._wanted(one)) == set(said["labels"]) for one, said in zip(examples, predictions, strict=True)]
        return {"precision": over.precision, "recall": over.recall, "f1": over.f1,
                "macro_f1": classification.macro(table.values()).f1,
                "exact_match": sum(exact) / len(exact)}  # fmt: skip

    def details(self, predictions: Sequence[Prediction], examples: Sequence[TextExample]) -> dict[str, Any]:  # noqa: D102
        if not self.several:
            return super().details(predictions, examples)
        table = self._by_label(predictions, examples)
        return {"per_class": {label: scores._asdict() for label, scores in table.items()}}

    def cases(self, predictions: Sequence[Prediction], examples: Sequence[TextExample]) -> list[Case]:  # noqa: D102
        if not self.several:
            return super().cases(predictions, examples)
        return [self._case(said) for said in predictions]

    def _case(self, said: Prediction) -> Case:
        gold, sure = said.get("gold_labels"), said["probabilities"]
        given = set(said["labels"])
        decisions = [(sure[label] if label in given else 1 - sure[label], label) for label in self.labels]
        wrong = set() if gold is None else given ^ set(gold)
        return Case(
            id=said["id"], passages=[Passage(name="text", text=said["text"])], said=", ".join(said["labels"]),
            gold=None if gold is None else ", ".join(gold), right=None if gold is None else not wrong,
            off=float(len(wrong)), confidence=min(value for value, _ in decisions),
            beliefs=[] if gold is None else [(value, label not in wrong) for value, label in decisions],
        )  # fmt: skip

    def _decisions(
        self, predictions: Sequence[Prediction], examples: Sequence[TextExample], labels: Sequence[str] = ()
    ) -> tuple[list[bool], list[bool]]:
        """For each text and each label whether it is right, and whether it was said."""
        pairs = [
            (label in self._wanted(one), label in said["labels"])
            for one, said in zip(examples, predictions, strict=True)
            for label in labels or self.labels
        ]
        return [left for left, _ in pairs], [right for _, right in pairs]

    def _by_label(
        self, predictions: Sequence[Prediction], examples: Sequence[TextExample]
    ) -> dict[str, classification.ClassScores]:
        return {label: classification.micro(*self._decisions(predictions, examples, [label]), [True])
                for label in self.labels}  # fmt: skip


def of(task: Task, options: ZeroShotOptions) -> Task:
    """The task that a model is asked: its own, or with --labels a choice among these.

    Raises:
        ValueError: the model was not taught entailment; labels or hypothesis that make no sense.
    """
    labels = separated(options.labels)
    if not labels:
        if options.hypothesis is not None or options.multi_label:
            raise ValueError("--hypothesis and --multi-label need --labels to choose among")
        return task
    if len(set(labels)) < len(labels) or not all(labels) or (len(labels) < 2 and not options.multi_label):
        raise ValueError(
            f"--labels: two different labels or more are needed, none empty, not {', '.join(labels)!r:.80}"
        )
    hypothesis = options.hypothesis or _HYPOTHESIS
    if hypothesis.count(_PLACE) != 1:
        raise ValueError(f"--hypothesis {hypothesis!r:.80}: write {{}} once, where the label is to stand")
    if not isinstance(task, SequenceClassification) or isinstance(task, Regression) or not task.pair:
        raise ValueError("--labels asks a model of natural language inference, of pairs of texts (megabert finetune "
                         f"mnli), but this one was fine-tuned for {task.name}")  # fmt: skip
    return ZeroShot(
        max_seq_length=task.max_seq_length, labels=labels, hypothesis=hypothesis, several=options.multi_label,
        entailment=_number(task, options.entailment_label, "entailment"),
        contradiction=_number(task, options.contradiction_label, "contradiction"),
    )  # fmt: skip


def _number(task: Task, name: str | None, usual: str) -> int:
    """The number of a class of the model; -1 for a contradiction that it has not."""
    lowered = [label.lower() for label in task.labels]
    if (name or usual).lower() in lowered:
        return lowered.index((name or usual).lower())
    if name is None and usual == "contradiction":
        return -1
    raise ValueError(f"the model has no class {name or usual!r}, only {', '.join(task.labels)}; --{usual}-label says "
                     "which of them it is")  # fmt: skip
