"""A label for each word: named entities and the like. No word is lost, long texts go through in windows."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

import numpy as np

from megabert.metrics import classification, entities
from megabert.tasks import readers
from megabert.tasks.base import NO_LABEL, Example, Features, Prediction, Task, pair_of, softmax, unknown_label
from megabert.tasks.cases import Case, of_tags
from megabert.tasks.readers import Tagged
from megabert.tokenization.base import Tokenizer

if TYPE_CHECKING:
    from megabert.tasks.objectives import TaskObjective

_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, kw_only=True)
class WordsExample(Example):
    """A sentence in words, their labels when known, and where the words stand in `text`: characters `[start, stop)`."""

    words: list[str]
    tags: list[str]
    text: str
    offsets: list[tuple[int, int]]


class Window(NamedTuple):
    """Which words a row answers for: (number of the word, place of its first piece, places of all its pieces)."""

    words: list[tuple[int, int, int]]


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

    def examples(self, path: Path, *, labelled: bool = True) -> list[WordsExample]:
        """Read CoNLL columns, NeMo's `text_*.txt` with `labels_*.txt` beside it, or JSONL with `words` and `labels`.

        To be labelled: `.txt` is a text a line, split into words and punctuation; a `text_*.txt` is split at spaces.
        """
        found = [self._example(tagged, number, labelled) for number, tagged in enumerate(_read(path, labelled), 1)]
        return readers.not_empty(found, path)

    def asked(self, texts: Sequence[tuple[str, ...]], place: str) -> list[WordsExample]:
        """Texts, split into words and punctuation."""
        found = self.of_width(texts, 1, place)
        return [self._example((place, text), number, False) for number, (text,) in enumerate(found, 1)]

    def shown(self, prediction: Prediction) -> str:  # noqa: D102
        lines = [
            f"    {one['type']}: {one['text']}  {100 * one['probability']:.1f} %" for one in prediction["entities"]
        ]
        return "\n".join([prediction["text"], *lines])

    def _example(self, item: Tagged | tuple[str, str], number: int, labelled: bool) -> WordsExample:
        if not isinstance(item, Tagged):
            place, text = item
            matches = list(_WORD.finditer(text))
            return WordsExample(id=str(number), place=place, words=[match[0] for match in matches], tags=[], text=text,
                                offsets=[match.span() for match in matches])  # fmt: skip
        if labelled and not item.tags:
            raise ValueError(f"{item.place}: words without labels; a label is needed beside each word")
        offsets, at = [], 0
        for word in item.words:
            offsets.append((at, at + len(word)))
            at += len(word) + 1
        example = WordsExample(id=str(number), place=item.place, words=item.words, tags=item.tags,
                               text=" ".join(item.words), offsets=offsets)  # fmt: skip
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
        labels: tuple[str, ...] = self.labels or tuple(sorted(found, key=lambda tag: (tag != "O", tag)))
        if len(labels) < 2:
            raise ValueError(
                f"all words of the training examples have the label {' '.join(labels)!r}: nothing to learn"
            )
        scheme = self.scheme
        if scheme == "auto":
            scheme = entities.find_scheme(example.tags for example in examples)
        return dataclasses.replace(self, labels=labels, scheme=scheme)

    def balanced(self, examples: Sequence[WordsExample]) -> Self:
        """With class weights that make up for rare labels."""
        from megabert.tasks.objectives import balanced

        counts = Counter(tag for example in examples for tag in example.tags)
        return dataclasses.replace(self, class_weights=balanced([counts[label] for label in self.labels]))

    def features(self, examples: Sequence[WordsExample], tokenizer: Tokenizer) -> list[Features]:
        """Rows of whole words. A text that is too long has several, and each word answers where it has most context.

        A word of which the tokenizer leaves nothing (a control character, say) is an unknown piece, so that it has an
        answer too; one that is longer than a row is cut.
        """
        distinct = list(dict.fromkeys(word for example in examples for word in example.words))
        room = self.max_seq_length - 2
        encoded = tokenizer.encode_batch(distinct)
        pieces = {word: (ids or [tokenizer.unknown_id])[:room] for word, ids in zip(distinct, encoded, strict=True)}
        numbers = {label: number for number, label in enumerate(self.labels)}
        made = []
        for number, example in enumerate(examples):
            words = [pieces[word] for word in example.words]
            for start, stop, first, last in windows([len(ids) for ids in words], room, self.stride):
                made.append(self._window(number, example, words, (start, stop, first, last), numbers, tokenizer))
        return made

    def _window(
        self, number: int, example: WordsExample, words: Sequence[list[int]], cut: tuple[int, int, int, int],
        numbers: dict[str, int], tokenizer: Tokenizer,
    ) -> Features:  # fmt: skip
        """One row: words `[start, stop)`, of which `[first, last)` answer here."""
        start, stop, first, last = cut
        ids, types = pair_of([piece for word in words[start:stop] for piece in word], None, tokenizer)
        labels = np.full(len(ids), NO_LABEL, dtype=np.int64)
        answered, at = [], 1
        for place in range(start, stop):
            count = len(words[place])
            if first <= place < last:
                answered.append((place, at, count))
                if example.tags:
                    learners = count if self.label_pieces == "all" else 1
                    labels[at : at + learners] = numbers[example.tags[place]]
            at += count
        return Features(
            example=number, input_ids=ids, token_type_ids=types, facts=Window(answered),
            labels={"labels": labels} if example.tags else {},
        )  # fmt: skip

    def rows_of(self, outputs: Any) -> list[np.ndarray]:  # noqa: D102
        return list(outputs.logits.float().cpu().numpy())

    def decode(
        self, outputs: Sequence[np.ndarray], features: Sequence[Features], examples: Sequence[WordsExample]
    ) -> list[Prediction]:
        """The likeliest label of each word, and the entities with their places in the text."""
        best: list[list[str]] = [["O"] * len(example.words) for example in examples]
        sure = [[0.0] * len(example.words) for example in examples]
        for logits, window in zip(outputs, features, strict=True):
            places = [at for _, at, _ in window.facts.words]
            probabilities = softmax(logits[places]) if places else np.zeros((0, 1))
            for (word, _, _), row in zip(window.facts.words, probabilities, strict=True):
                best[window.example][word] = self.labels[int(row.argmax())]
                sure[window.example][word] = float(row.max())
        predictions = []
        for example, tags, values in zip(examples, best, sure, strict=True):
            said: Prediction = {
                "id": example.id, "text": example.text, "words": example.words, "labels": tags,
                "probabilities": values, "entities": list(self._entities(example, tags, values)),
            }  # fmt: skip
            if example.tags:
                said["gold"] = example.tags
            predictions.append(said)
        return predictions

    def _entities(self, example: WordsExample, tags: list[str], values: list[float]) -> Iterator[dict[str, Any]]:
        """Each entity with its characters in the text; as probable as its least probable word."""
        for span in entities.spans_of(tags, self._scheme()):
            start, stop = example.offsets[span.start][0], example.offsets[span.stop - 1][1]
            yield {
                "type": span.type, "text": example.text[start:stop], "start": start, "end": stop,
                "first_word": span.start, "last_word": span.stop - 1,
                "probability": min(values[span.start : span.stop]),
            }  # fmt: skip

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


def windows(lengths: Sequence[int], room: int, stride: int) -> list[tuple[int, int, int, int]]:
    """Cut words into windows: (first word, past the last word, first and past the last word that answer in it).

    Args:
        lengths: pieces of each word, none above `room`.
        room: pieces of a window.
        stride: pieces that neighbouring windows share at least, as far as whole words allow.

    Returns:
        Windows whose answering words are all words, each once: where two windows overlap, the words before the middle
        of the overlap answer in the first.
    """
    cuts: list[tuple[int, int]] = []
    start = 0
    while start < len(lengths):
        stop, used = start, 0
        while stop < len(lengths) and used + lengths[stop] <= room:
            used += lengths[stop]
            stop += 1
        cuts.append((start, stop))
        if stop == len(lengths):
            break
        shared, back = 0, stop
        while back - 1 > start and shared < stride:
            back -= 1
            shared += lengths[back]
        # A window that would not reach further than the one before shares nothing with it.
        start = back if shared + lengths[stop] <= room else stop
    result = []
    for number, (start, stop) in enumerate(cuts):
        first = start if number == 0 else (start + cuts[number - 1][1] + 1) // 2
        last = stop if number == len(cuts) - 1 else (cuts[number + 1][0] + stop + 1) // 2
        result.append((start, stop, first, last))
    return result


def _read(path: Path, labelled: bool) -> Iterator[Tagged | tuple[str, str]]:
    suffix = readers.suffix_of(path)
    if suffix in (".jsonl", ".json"):
        for record in readers.json_lines(path):
            yield _from_json(record)
    elif path.name.startswith("text_") and suffix == ".txt":
        beside = readers.labels_beside(path)
        if labelled and beside is None:
            raise ValueError(f"{path}: there is no labels_{path.name.removeprefix('text_')} beside it")
        yield from readers.text_and_labels(path, beside)
    elif suffix == ".txt" and not labelled:
        yield from ((f"{path}:{number}", line) for number, line in readers.lines(path) if line.strip())
    else:
        yield from readers.columns(path)


def _from_json(record: readers.Record) -> Tagged | tuple[str, str]:
    words = record.cells.get("words", record.cells.get("tokens"))
    tags = record.cells.get("labels", record.cells.get("tags", record.cells.get("ner_tags")))
    if words is None and isinstance(record.cells.get("text"), str) and tags is None:
        return record.place, record.cells["text"]
    for name, value in (("words", words), ("labels", tags)):
        listed = isinstance(value, list) and all(isinstance(item, str) and item for item in value)
        if not listed and not (name == "labels" and value is None):
            raise ValueError(f"{record.place}: {name} must be a list of texts, not {value!r:.60}")
    if tags is not None and len(tags) != len(words or []):
        raise ValueError(f"{record.place}: {len(words or [])} words, but {len(tags)} labels")
    return Tagged(record.place, words or [], tags or [])
