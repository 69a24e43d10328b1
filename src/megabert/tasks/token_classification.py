"""A label for each word: named entities and the like. No word is lost, long texts go through in windows."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args

import numpy as np

from megabert.metrics import classification, entities
from megabert.tasks import readers, word_files, words
from megabert.tasks.base import Features, Prediction, Task, unknown_label
from megabert.tasks.cases import Case, of_tags
from megabert.tasks.readers import Tagged
from megabert.tasks.words import WordsExample
from megabert.tokenization.base import Tokenizer

if TYPE_CHECKING:
    from megabert.tasks.objectives import TaskObjective

_MANY_LABELS = 30


@dataclass(frozen=True, kw_only=True)
class TokenClassification(Task):
    """A label for each word.

    Attributes:
        scheme: how labels write entities; `auto` looks at the training labels.
        label_pieces: which pieces of a word learn its label: the `first`, or `all` (as NeMo and BioMegatron did).
            Either way the first one answers.
        stride: words of context that the windows of a long text share, in pieces.
        class_weights: of each label; empty: all count the same.
    """

    name: ClassVar[str] = "token-classification"
    head: ClassVar[str] = "MegatronBertForTokenClassification"
    problem_type: ClassVar[str | None] = None

    scheme: Literal["auto", "iob1", "iob2", "iobes", "io"] = "auto"
    label_pieces: Literal["first", "all"] = "first"
    stride: int = 32
    class_weights: tuple[float, ...] = ()

    @property
    def objective(self) -> TaskObjective:  # noqa: D102
        from megabert.tasks.objectives import Classes

        return Classes("tag", weights=self.class_weights or None)

    @property
    def main_score(self) -> str:  # noqa: D102
        return "f1"

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """As `Task.from_settings`; a single label that is the name of a scheme (`--labels iob2`) means the scheme."""
        labels = settings.get("labels") or ()
        if len(labels) == 1 and labels[0].lower() in get_args(entities.Scheme) and "scheme" not in settings:
            settings = {**settings, "labels": (), "scheme": labels[0].lower()}
        return super().from_settings(settings)

    def examples(self, path: Path, *, labelled: bool = True) -> list[WordsExample]:
        """Read what `word_files.read` tells."""
        found = word_files.read(path, labelled=labelled)
        return readers.not_empty([self._example(one, number, labelled) for number, one in enumerate(found, 1)], path)

    def files(self, path: Path) -> list[Path]:
        """With the labels beside a `text_*.txt`."""
        return readers.with_labels(path)

    def asked(self, texts: Sequence[tuple[str, ...]], place: str) -> list[WordsExample]:
        """Texts, split into words and punctuation."""
        found = self.of_width(texts, 1, place)
        return [self._example(word_files.split(text, place), number, False) for number, (text,) in enumerate(found, 1)]

    def shown(self, prediction: Prediction) -> str:  # noqa: D102
        lines = [
            f"    {one['type']}: {one['text']}  {100 * one['probability']:.1f} %" for one in prediction["entities"]
        ]
        return "\n".join([prediction["text"], *lines])

    def _example(self, item: Tagged, number: int, labelled: bool) -> WordsExample:
        if labelled and not item.tags:
            raise ValueError(f"{item.place}: words without labels; a label is needed beside each word")
        text, offsets = words.joined(item.words) if item.offsets is None else (item.text, item.offsets)
        example = WordsExample(id=str(number), place=item.place, words=item.words, tags=item.tags, text=text,
                               offsets=offsets)  # fmt: skip
        self._check(example)
        return example

    def _check(self, example: WordsExample) -> None:
        if self.labels:
            known = set(self.labels)
            strange = next((tag for tag in example.tags if tag not in known), None)
            if strange is not None:
                raise unknown_label(strange, example.place, self.labels)
        if self.scheme not in ("auto", "io"):
            for tag in example.tags:
                try:
                    prefix, _ = entities.split_tag(tag)
                except ValueError as error:
                    raise ValueError(f"{example.place}: {error} (--scheme {self.scheme})") from None
                if prefix in ("E", "S") and self.scheme != "iobes":
                    raise ValueError(f"{example.place}: tag {tag!r} is of IOBES, not of --scheme {self.scheme}")

    def learned(self, examples: Sequence[WordsExample]) -> Self:
        """With the labels of the examples, O first, and their scheme."""
        for example in examples:
            self._check(example)
        found = {tag for example in examples for tag in example.tags}
        count = sum(len(example.tags) for example in examples)
        if not self.labels and len(found) > max(_MANY_LABELS, count / 4):
            raise ValueError(f"the training examples have {len(found)} different labels for {count} words: is the last "
                             "column the label? (--labels says which there are)")  # fmt: skip
        labels: tuple[str, ...] = self.labels or tuple(sorted(found, key=lambda tag: (tag != "O", tag)))
        if len(labels) < 2:
            raise ValueError(
                f"all words of the training examples have the label {' '.join(labels)!r}: nothing to learn"
            )
        scheme = self.scheme
        if scheme == "auto":
            scheme = entities.find_scheme(example.tags for example in examples)
        elif scheme == "iobes" and not any(tag[:1] in "ESLU" for tag in found):
            raise ValueError("--scheme iobes: no label of the training examples ends an entity (E-..., S-...): they "
                             f"are {', '.join(labels[:10])}")  # fmt: skip
        return dataclasses.replace(self, labels=labels, scheme=scheme)

    def balanced(self, examples: Sequence[WordsExample]) -> Self:
        """With class weights that make up for rare labels."""
        from megabert.tasks.objectives import balanced

        counts = Counter(tag for example in examples for tag in example.tags)
        return dataclasses.replace(self, class_weights=balanced([counts[label] for label in self.labels]))

    def features(self, examples: Sequence[WordsExample], tokenizer: Tokenizer) -> list[Features]:
        """Rows of whole words, by `words.rows`."""
        numbers = {label: number for number, label in enumerate(self.labels)}
        made = []
        for row in words.rows([one.words for one in examples], tokenizer, self.max_seq_length, self.stride):
            tags = [numbers[tag] for tag in examples[row.text].tags]
            labels = {"labels": row.labels(tags, all_pieces=self.label_pieces == "all")} if tags else {}
            made.append(row.features(labels))
        return made

    def rows_of(self, outputs: Any) -> list[np.ndarray]:  # noqa: D102
        return list(outputs.logits.float().cpu().numpy())

    def decode(
        self, outputs: Sequence[np.ndarray], features: Sequence[Features], examples: Sequence[WordsExample]
    ) -> list[Prediction]:
        """The likeliest label of each word, and the entities with their places in the text."""
        predictions = []
        found = words.probabilities(outputs, features, [len(example.words) for example in examples])
        for example, classes in zip(examples, found, strict=True):
            tags, values = words.likeliest(classes, self.labels)
            said: Prediction = {
                "id": example.id, "text": example.text, "words": example.words, "labels": tags,
                "probabilities": values, "entities": list(words.entities_of(example, tags, values, self._scheme())),
            }  # fmt: skip
            if example.tags:
                said["gold"] = example.tags
            predictions.append(said)
        return predictions

    def _scheme(self) -> entities.Scheme:
        assert self.scheme != "auto", "`learned` comes first"
        return self.scheme

    def score(self, predictions: Sequence[Prediction], examples: Sequence[WordsExample]) -> dict[str, float]:
        """Precision, recall and F1 of entities as `conlleval` has them, of strictly written ones, and of tags."""
        gold, given = [example.tags for example in examples], [prediction["labels"] for prediction in predictions]
        scores = entities.entity_scores(gold, given, self._scheme())
        strict = entities.entity_scores(gold, given, self._scheme(), strict=True)
        nemo = entities.nemo_tokens([tag for tags in gold for tag in tags], [tag for tags in given for tag in tags])
        return {
            "precision": scores.micro.precision, "recall": scores.micro.recall, "f1": scores.micro.f1,
            "macro_f1": scores.macro.f1, "strict_f1": strict.micro.f1, "accuracy": scores.tag_accuracy,
            "nemo_precision": nemo.precision, "nemo_recall": nemo.recall, "nemo_f1": nemo.f1,
        }  # fmt: skip

    def details(self, predictions: Sequence[Prediction], examples: Sequence[WordsExample]) -> dict[str, Any]:
        """Each type's scores, and the confusion of words' labels."""
        gold, given = [example.tags for example in examples], [prediction["labels"] for prediction in predictions]
        scores = entities.entity_scores(gold, given, self._scheme())
        flat = [tag for tags in gold for tag in tags], [tag for tags in given for tag in tags]
        return {
            "labels": list(self.labels),
            "per_class": {kind: one._asdict() for kind, one in scores.by_type.items()},
            "confusion": classification.confusion(*flat, self.labels),
        }

    def cases(self, predictions: Sequence[Prediction], examples: Sequence[WordsExample]) -> list[Case]:
        """Entities of the data and of the model, marked in the text; each word is a decision."""
        scheme = self._scheme()
        return [
            of_tags(said, example.offsets, entities.spans_of(example.tags, scheme) if example.tags else None,
                    entities.spans_of(said["labels"], scheme))
            for said, example in zip(predictions, examples, strict=True)
        ]  # fmt: skip
