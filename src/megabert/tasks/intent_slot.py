"""What an utterance wants and which words say the details: its intent, and a slot for each word, by one model.

One matrix above the encoder holds both classifiers: its first columns are the intents, read at [CLS] (the hidden state
itself, as NeMo's sequence classifier reads it), the others the slots, read at each word. So the model is Transformers'
own class for token classification, whose labels are `intent:...` and `slot:...`. With more layers (`head_layers`) each
classifier has its own, as in NeMo.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np

from megabert.metrics import classification, entities
from megabert.tasks import intent_slot_files, readers, words
from megabert.tasks.base import NO_LABEL, Features, Prediction, Task, softmax, unknown_label
from megabert.tasks.cases import Case, of_tags
from megabert.tasks.intent_slot_files import Utterance
from megabert.tasks.words import WordsExample
from megabert.tokenization.base import Tokenizer

if TYPE_CHECKING:
    from megabert.tasks.objectives import TaskObjective

INTENT, SLOT = "intent:", "slot:"


@dataclass(frozen=True, kw_only=True)
class UtteranceExample(WordsExample):
    """An utterance; its `tags` are the slots."""

    intent: str | None = None


@dataclass(frozen=True, kw_only=True)
class IntentSlot(Task):
    """An intent for each utterance, and a slot for each of its words.

    Attributes:
        labels: `intent:NAME` for each intent, then `slot:TAG` for each slot tag.
        scheme: how slot tags write entities; `auto` looks at the training examples.
        stride: pieces that the windows of a long text share; its first window answers for the intent.
        intent_share: the weight of the intent's loss; the slots' is what is missing to 1. NeMo's was 0.6.
        label_pieces: which pieces of a word learn its slot: the `first`, which answers, or `all`, as in NeMo.
        class_weights: of each label; empty: all count the same.
    """

    name: ClassVar[str] = "intent-slot"
    head: ClassVar[str] = "MegatronBertForTokenClassification"
    problem_type: ClassVar[str | None] = None

    scheme: Literal["auto", "iob1", "iob2", "iobes", "io"] = "auto"
    stride: int = 32
    intent_share: float = 0.6
    label_pieces: Literal["first", "all"] = "first"
    class_weights: tuple[float, ...] = ()

    @property
    def intents(self) -> tuple[str, ...]:
        """Names of the intents in the order of their numbers."""
        return tuple(label.removeprefix(INTENT) for label in self.labels if label.startswith(INTENT))

    @property
    def slots(self) -> tuple[str, ...]:
        """Slot tags in the order of their numbers."""
        return tuple(label.removeprefix(SLOT) for label in self.labels if label.startswith(SLOT))

    @property
    def head_parts(self) -> tuple[int, ...]:  # noqa: D102
        return len(self.intents), len(self.slots)

    @property
    def objective(self) -> TaskObjective:  # noqa: D102
        from megabert.tasks.objectives import Classes, Together

        middle = len(self.intents)
        parts = ("intent", slice(0, middle), self.intent_share), ("slot", slice(middle, None), 1 - self.intent_share)
        return Together(
            *(
                Classes(name, target=f"{name}_labels", weights=self.class_weights[columns] or None, columns=columns,
                        share=share)
                for name, columns, share in parts
            )
        )  # fmt: skip

    @property
    def main_score(self) -> str:  # noqa: D102
        return "intent_and_slot"

    def examples(self, path: Path, *, labelled: bool = True) -> list[UtteranceExample]:
        """Read what `intent_slot_files.read` tells.

        Labels that the training examples did not have are taken: ATIS has some in its test set. No answer can be right
        then, and scores count it so.
        """
        found = intent_slot_files.read(path, labelled=labelled)
        return readers.not_empty([self._example(one, number, labelled) for number, one in enumerate(found, 1)], path)

    def files(self, path: Path) -> list[Path]:
        """With those that lie beside it and belong to it."""
        return intent_slot_files.files(path)

    def asked(self, texts: Sequence[tuple[str, ...]], place: str) -> list[UtteranceExample]:
        """Texts, split into words and punctuation."""
        given = self.of_width(texts, 1, place)
        return [self._example(Utterance(place, text, None, None), n, False) for n, (text,) in enumerate(given, 1)]

    def _example(self, one: Utterance, number: int, labelled: bool) -> UtteranceExample:
        if isinstance(one.words, str):
            text = one.words
            # As in the texts of ATIS and SNIPS, which are split at spaces.
            parts, offsets = words.found(text, words.words_and_marks(inner_marks=True))
        else:
            parts = one.words
            text, offsets = words.joined(parts)
        if labelled and (one.slots is None or one.intent is None):
            missing = "slots" if one.slots is None else "intent"
            raise ValueError(f"{one.place}: there is no {missing}; an intent and a slot for each word are needed")
        if not parts:
            raise ValueError(f"{one.place}: there is no word")
        if one.slots is not None and len(one.slots) != len(parts):
            raise ValueError(f"{one.place}: {len(parts)} words, but {len(one.slots)} slots")
        self._check_tags(one.slots or [], one.place)
        return UtteranceExample(id=str(number), place=one.place, words=parts, tags=one.slots or [], text=text,
                                offsets=offsets, intent=one.intent)  # fmt: skip

    def learned(self, examples: Sequence[UtteranceExample]) -> Self:
        """With the intents and slot tags of the examples, in order, O first, and their scheme."""
        intents = sorted({str(example.intent) for example in examples})
        slots = sorted({tag for example in examples for tag in example.tags}, key=lambda tag: (tag != "O", tag))
        for kind, names in (("intent", intents), ("slot", slots)):
            if len(names) < 2:
                raise ValueError(f"all training examples have the {kind} {names[0]!r}: there is nothing to tell apart")
        if self.labels:
            self._check_labels(examples)
        labels = self.labels or (*(INTENT + name for name in intents), *(SLOT + tag for tag in slots))
        scheme = entities.find_scheme(one.tags for one in examples) if self.scheme == "auto" else self.scheme
        task = dataclasses.replace(self, labels=labels, scheme=scheme)
        for example in examples:
            task._check_tags(example.tags, example.place)
        return task

    def _check_tags(self, tags: Sequence[str], place: str) -> None:
        """Refuse slots that are not written as the scheme has them."""
        if self.scheme in ("auto", "io"):
            return
        for tag in tags:
            try:
                entities.split_tag(tag, self.scheme)
            except ValueError as error:
                raise ValueError(f"{place}: {error} (--scheme {self.scheme})") from None

    def _check_labels(self, examples: Sequence[UtteranceExample]) -> None:
        """Refuse --labels that are out of order, and training examples with others."""
        if self.labels != (*(INTENT + name for name in self.intents), *(SLOT + tag for tag in self.slots)):
            raise ValueError("--labels: an intent is written intent:NAME and a slot slot:TAG, all intents before all "
                             "slots")  # fmt: skip
        known = set(self.labels)
        for example in examples:
            for label in (f"{INTENT}{example.intent}", *(SLOT + tag for tag in example.tags)):
                if label not in known:
                    raise unknown_label(label, example.place, self.labels)

    def balanced(self, examples: Sequence[UtteranceExample]) -> Self:
        """With class weights that make up for rare intents and rare slots."""
        from megabert.tasks.objectives import balanced

        intents = Counter(example.intent for example in examples)
        slots = Counter(tag for example in examples for tag in example.tags)
        weights = (*balanced([intents[name] for name in self.intents]), *balanced([slots[tag] for tag in self.slots]))
        return dataclasses.replace(self, class_weights=weights)

    def features(self, examples: Sequence[UtteranceExample], tokenizer: Tokenizer) -> list[Features]:
        """Rows of whole words, by `words.rows`; labels that were never learned are left out."""
        intents = {name: number for number, name in enumerate(self.intents)}
        slots = {tag: number for number, tag in enumerate(self.slots)}
        made = []
        for row in words.rows([one.words for one in examples], tokenizer, self.max_seq_length, self.stride):
            example, labels = examples[row.text], {}
            if example.tags and example.intent is not None:
                intent = np.full(len(row.input_ids), NO_LABEL, dtype=np.int64)
                intent[0] = intents.get(example.intent, NO_LABEL) if row.first else NO_LABEL
                numbers = [slots.get(tag, NO_LABEL) for tag in example.tags]
                labels = {
                    "intent_labels": intent,
                    "slot_labels": row.labels(numbers, all_pieces=self.label_pieces == "all"),
                }
            made.append(row.features(labels))
        return made

    def rows_of(self, outputs: Any) -> list[np.ndarray]:  # noqa: D102
        return list(outputs.logits.float().cpu().numpy())

    def decode(
        self, outputs: Sequence[np.ndarray], features: Sequence[Features], examples: Sequence[UtteranceExample]
    ) -> list[Prediction]:
        """The likeliest intent of each text, the likeliest slot of each word, and what the slots hold."""
        middle = len(self.intents)
        at_start: dict[int, np.ndarray] = {}
        for logits, row in zip(outputs, features, strict=True):
            at_start.setdefault(row.example, softmax(logits[0, :middle]))
        found = words.probabilities(outputs, features, [len(one.words) for one in examples], slice(middle, None))
        predictions = []
        for number, (example, classes) in enumerate(zip(examples, found, strict=True)):
            tags, values = words.likeliest(classes, self.slots)
            best = int(at_start[number].argmax())
            said: Prediction = {
                "id": example.id, "text": example.text, "label": self.intents[best],
                "probability": float(at_start[number][best]),
                "probabilities": dict(zip(self.intents, map(float, at_start[number]), strict=True)),
                "words": example.words, "labels": tags, "word_probabilities": values,
                "entities": list(words.entities_of(example, tags, values, self._scheme())),
            }  # fmt: skip
            if example.intent is not None:
                said |= {"gold": example.intent, "gold_labels": example.tags}
            predictions.append(said)
        return predictions

    def _scheme(self) -> entities.Scheme:
        assert self.scheme != "auto", "`learned` comes first"
        return self.scheme

    def shown(self, prediction: Prediction) -> str:  # noqa: D102
        lines = [f"{prediction['text']}\n    {prediction['label']}  {100 * prediction['probability']:.1f} %"]
        for one in prediction["entities"]:
            lines.append(f"    {one['type']}: {one['text']}  {100 * one['probability']:.1f} %")
        return "\n".join(lines)

    def score(self, predictions: Sequence[Prediction], examples: Sequence[UtteranceExample]) -> dict[str, float]:
        """Intent accuracy, slots' precision, recall and F1 as `conlleval` has them, the mean of accuracy and F1, and
        the share of utterances of which everything is right; how many have a label that was never learned, if any."""
        intents = [one.intent for one in examples], [said["label"] for said in predictions]
        slots = [one.tags for one in examples], [said["labels"] for said in predictions]
        accuracy = classification.accuracy(*intents)
        scores = entities.entity_scores(*slots, self._scheme())
        whole = [left == right and tags == others
                 for left, right, tags, others in zip(*intents, *slots, strict=True)]  # fmt: skip
        unseen = sum(bool(self._unseen(example)) for example in examples)
        nemo = [[tag for tags in side for tag in tags] for side in slots]
        return {
            "intent_accuracy": accuracy, "slot_precision": scores.micro.precision,
            "slot_recall": scores.micro.recall, "slot_f1": scores.micro.f1,
            "intent_and_slot": (accuracy + scores.micro.f1) / 2, "joint_accuracy": sum(whole) / len(whole),
            **({"examples_with_labels_never_learned": float(unseen)} if unseen else {}),
            "nemo_intent_f1": accuracy, "nemo_slot_f1": classification.accuracy(*nemo),
        }  # fmt: skip

    def details(self, predictions: Sequence[Prediction], examples: Sequence[UtteranceExample]) -> dict[str, Any]:
        """Each intent's and each slot's scores, the confusion of intents, and the labels that were never learned."""
        gold, given = [str(one.intent) for one in examples], [said["label"] for said in predictions]
        unseen = Counter(label for example in examples for label in self._unseen(example))
        names = [*self.intents, *sorted({name for name in gold if name not in self.intents})]
        table = classification.per_class(gold, given, names)
        slots = entities.entity_scores([one.tags for one in examples], [said["labels"] for said in predictions],
                                       self._scheme()).by_type  # fmt: skip
        return {
            "labels": names,
            "per_class": {
                **{f"{INTENT}{name}": scores._asdict() for name, scores in table.items()},
                **{f"{SLOT}{kind}": scores._asdict() for kind, scores in slots.items()},
            },
            "confusion": classification.confusion(gold, given, names),
            "never_learned": dict(sorted(unseen.items())),
        }

    def cases(self, predictions: Sequence[Prediction], examples: Sequence[UtteranceExample]) -> list[Case]:
        """The intents, and the slots marked in the text; the intent and each slot are decisions."""
        scheme, found = self._scheme(), []
        for said, example in zip(predictions, examples, strict=True):
            tags = {"id": said["id"], "text": said["text"], "labels": said["labels"], "gold": example.tags,
                    "probabilities": said["word_probabilities"]}  # fmt: skip
            gold = entities.spans_of(example.tags, scheme) if example.intent is not None else None
            case = of_tags(tags, example.offsets, gold, entities.spans_of(said["labels"], scheme))
            right = None if example.intent is None else example.intent == said["label"]
            beliefs = [] if right is None else [(said["probability"], right), *case.beliefs]
            found.append(dataclasses.replace(
                case, gold=example.intent, said=said["label"], right=case.right and right,
                off=case.off + float(right is False), beliefs=beliefs,
                confidence=min(said["probability"], *said["word_probabilities"]),
            ))  # fmt: skip
        return found

    def _unseen(self, example: UtteranceExample) -> set[str]:
        """Labels of an example that the training examples did not have."""
        return {f"{INTENT}{example.intent}", *(SLOT + tag for tag in example.tags)} - set(self.labels)
