"""Punctuation and capitals for texts that have neither, such as what a speech recogniser writes: text in, text out.

Each word has the mark that follows it and how it is written. One matrix above the encoder holds both classifiers: its
first columns are the marks, the others the ways to write a word. So the model is Transformers' own class for token
classification, whose labels are `mark:...` and `case:...`. With more layers (`head_layers`) each classifier has its
own, as in NeMo.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np

from megabert.metrics import classification, entities
from megabert.tasks import readers, words
from megabert.tasks.base import Features, Prediction, Task, unknown_label
from megabert.tasks.cases import Case, Passage
from megabert.tasks.words import WordsExample
from megabert.tokenization.base import Tokenizer

if TYPE_CHECKING:
    from megabert.tasks.objectives import TaskObjective

MARK, CASE = "mark:", "case:"
NONE = "O"
# What is written instead of a mark that the task does not have.
_INSTEAD = {"!": ".", "…": ".", ";": ",", ":": ","}
# What stands for a word or belongs to one, although Unicode counts it as punctuation.
_KEPT = "#@&%§"


@dataclass(frozen=True, kw_only=True)
class Punctuation(Task):
    """A mark behind each word, and its capitals.

    Attributes:
        labels: `mark:O`, `mark:,` ..., then `case:O` (as it is), `case:U` (first letter upper), `case:A` (all upper).
        marks: the punctuation marks that plain texts teach; files of pairs bring their own.
        margin: pieces of context that a word has in its window of a long text, about, on both sides.
        label_pieces: which pieces of a word learn its labels: the `first`, which answers, or `all`, as in NeMo.
        class_weights: of each label; empty: all count the same.
    """

    name: ClassVar[str] = "punctuation"
    head: ClassVar[str] = "MegatronBertForTokenClassification"
    problem_type: ClassVar[str | None] = None

    marks: str = ",.?"
    margin: int = 16
    label_pieces: Literal["first", "all"] = "first"
    class_weights: tuple[float, ...] = ()

    def _kinds(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Marks, and ways to write a word, in the order of their numbers."""
        marks, cases = (
            tuple(label.removeprefix(kind) for label in self.labels if label.startswith(kind)) for kind in (MARK, CASE)
        )
        return marks, cases

    @property
    def head_parts(self) -> tuple[int, ...]:  # noqa: D102
        marks, cases = self._kinds()
        return len(marks), len(cases)

    @property
    def objective(self) -> TaskObjective:  # noqa: D102
        from megabert.tasks.objectives import Classes, Together

        middle = len(self._kinds()[0])
        parts = ("mark", slice(0, middle)), ("case", slice(middle, None))
        return Together(
            *(
                Classes(name, target=f"{name}_labels", weights=self.class_weights[columns] or None, columns=columns)
                for name, columns in parts
            )
        )

    @property
    def main_score(self) -> str:  # noqa: D102
        return "f1"

    def examples(self, path: Path, *, labelled: bool = True) -> list[WordsExample]:
        """Read NeMo's `text_*.txt` with `labels_*.txt` beside it (words in small letters; of each a mark and `U` or
        `O`, such as `,U`), or plain texts, of which pairs are made: a `.txt` with one a line, JSONL or a table with
        `text`.

        To be answered, plain texts are taken without their marks and capitals.
        """
        if re.search(r"[\w\s]", self.marks):
            raise ValueError(f"--marks {self.marks!r}: punctuation marks are needed, without letters and spaces")
        found = list(self._read(path, labelled))
        for example in found:
            self._check(example)
        return readers.not_empty(found, path)

    def _read(self, path: Path, labelled: bool) -> Iterator[WordsExample]:
        if path.name.startswith("text_"):
            beside = readers.labels_beside(path)
            if labelled and beside is None:
                raise ValueError(f"{path}: there is no labels_{path.name.removeprefix('text_')} beside it")
            for number, one in enumerate(readers.text_and_labels(path, beside), 1):
                wrong = next((tag for tag in one.tags if len(tag) != 2), None)
                if wrong is not None:
                    raise ValueError(f"{one.place}: label {wrong!r} must be two characters: the mark behind the word "
                                     "(O: none), then U or O for its first letter")  # fmt: skip
                text, offsets = words.joined(one.words)
                yield WordsExample(id=str(number), place=one.place, words=one.words, tags=one.tags, text=text,
                                   offsets=offsets)  # fmt: skip
            return
        if readers.suffix_of(path) in (".jsonl", ".json", ".csv", ".tsv"):
            records = readers.table(path, [frozenset({"text"})], {1: ("text",)})
            texts = ((record.place, readers.text_of(record, "text") or "") for record in records)
        else:
            texts = ((f"{path}:{number}", line) for number, line in readers.lines(path) if line.strip())
        for number, (place, text) in enumerate(texts, 1):
            yield self._plain(text, place, number, labelled)

    def _plain(self, text: str, place: str, number: int, labelled: bool) -> WordsExample:
        """The words of a text as it is usually written, in small letters, and what was taken away as labels."""
        found: list[str] = []
        tags: list[tuple[str, str]] = []
        offsets: words.Offsets = []
        for match in re.finditer(r"\S+", text):
            start, stop = _core(match[0])
            behind = match[0][stop:]
            mark = next((known for known in map(self._mark, behind) if known != NONE), NONE)
            if start == stop:
                # A mark that stands alone belongs to the word before it.
                if tags and tags[-1][0] == NONE:
                    tags[-1] = mark, tags[-1][1]
                continue
            word = match[0][start:stop]
            found.append(word.lower())
            tags.append((mark, _case(word)))
            offsets.append((match.start() + start, match.start() + stop))
        if not found:
            raise ValueError(f"{place}: there is no word")
        return WordsExample(id=str(number), place=place, words=found, text=text, offsets=offsets,
                            tags=[mark + case for mark, case in tags] if labelled else [])  # fmt: skip

    def _mark(self, character: str) -> str:
        """The task's mark for a character of a text, `O` for none."""
        if character in self.marks:
            return character
        other = _INSTEAD.get(character, "")
        return other if other and other in self.marks else NONE

    def _check(self, example: WordsExample) -> None:
        """Refuse a label outside the set."""
        if self.labels:
            known = set(self.labels)
            for label in (name for tag in example.tags for name in (MARK + tag[0], CASE + tag[1])):
                if label not in known:
                    raise unknown_label(label, example.place, self.labels)

    def files(self, path: Path) -> list[Path]:
        """With the labels beside a `text_*.txt`."""
        return readers.with_labels(path)

    def asked(self, texts: Sequence[tuple[str, ...]], place: str) -> list[WordsExample]:
        """Texts; marks and capitals that they have are taken away first."""
        given = self.of_width(texts, 1, place)
        return [self._plain(text, f"{place}: number {n}", n, False) for n, (text,) in enumerate(given, 1)]

    def learned(self, examples: Sequence[WordsExample]) -> Self:
        """With the marks and the ways to write a word that the examples have, O first."""
        if self.labels:
            marks, cases = self._kinds()
            if self.labels != (*(MARK + mark for mark in marks), *(CASE + case for case in cases)) or not marks:
                raise ValueError("--labels: a mark is written mark:X and a way to write a word case:X, all marks first")
            return self
        found = {tag for example in examples for tag in example.tags}
        marks, cases = (sorted({tag[at] for tag in found}, key=lambda one: (one != NONE, one)) for at in (0, 1))
        for kind, names in (("mark", marks), ("case", cases)):
            if len(names) < 2:
                raise ValueError(f"all words of the training examples have the {kind} {names[0]!r}: there is nothing "
                                 "to learn")  # fmt: skip
        return dataclasses.replace(self, labels=(*(MARK + mark for mark in marks), *(CASE + case for case in cases)))

    def balanced(self, examples: Sequence[WordsExample]) -> Self:
        """With class weights that make up for rare marks and rare capitals."""
        from megabert.tasks.objectives import balanced

        weights: list[float] = []
        for at, names in enumerate(self._kinds()):
            counts = Counter(tag[at] for example in examples for tag in example.tags)
            weights += balanced([counts[name] for name in names])
        return dataclasses.replace(self, class_weights=tuple(weights))

    def features(self, examples: Sequence[WordsExample], tokenizer: Tokenizer) -> list[Features]:
        """Rows of whole words, by `words.rows`."""
        numbers = [{name: number for number, name in enumerate(names)} for names in self._kinds()]
        made = []
        texts = [one.words for one in examples]
        for row in words.rows(texts, tokenizer, self.max_seq_length, 2 * self.margin):
            tags = examples[row.text].tags
            names = ("mark_labels", "case_labels") if tags else ()
            every = self.label_pieces == "all"
            labels = {name: row.labels([numbers[at][tag[at]] for tag in tags], all_pieces=every)
                      for at, name in enumerate(names)}  # fmt: skip
            made.append(row.features(labels))
        return made

    def rows_of(self, outputs: Any) -> list[np.ndarray]:  # noqa: D102
        return list(outputs.logits.float().cpu().numpy())

    def decode(
        self, outputs: Sequence[np.ndarray], features: Sequence[Features], examples: Sequence[WordsExample]
    ) -> list[Prediction]:
        """Each text with marks and capitals, and what was said of each word."""
        marks, cases = self._kinds()
        counts = [len(example.words) for example in examples]
        by_kind = [words.probabilities(outputs, features, counts, columns)
                   for columns in (slice(0, len(marks)), slice(len(marks), None))]  # fmt: skip
        predictions = []
        for example, of_marks, of_cases in zip(examples, *by_kind, strict=True):
            mark, sure = words.likeliest(of_marks, marks)
            case, case_sure = words.likeliest(of_cases, cases)
            said: Prediction = {
                "id": example.id, "text": example.text, "restored": restored(example.words, mark, case),
                "words": example.words, "offsets": [list(span) for span in example.offsets], "marks": mark,
                "cases": case, "mark_probabilities": sure, "case_probabilities": case_sure,
            }  # fmt: skip
            if example.tags:
                gold = [tag[0] for tag in example.tags], [tag[1] for tag in example.tags]
                said |= {"gold": restored(example.words, *gold), "gold_marks": gold[0], "gold_cases": gold[1]}
            predictions.append(said)
        return predictions

    def shown(self, prediction: Prediction) -> str:  # noqa: D102
        return prediction["restored"]

    def score(self, predictions: Sequence[Prediction], examples: Sequence[WordsExample]) -> dict[str, float]:
        """Precision, recall and F1 over all marks, then over all words with capitals, O left out of both; their mean F1
        first. NeMo's are the means over the classes, O among them."""
        scores: dict[str, float] = {}
        nemo: dict[str, float] = {}
        for kind, short, (gold, given), names in self._sides(predictions):
            chosen = [name for name in names if name != NONE]
            over = classification.micro(gold, given, chosen)
            table = classification.per_class(gold, given, chosen)
            scores |= {f"{kind}_precision": over.precision, f"{kind}_recall": over.recall, f"{kind}_f1": over.f1,
                       f"{kind}_macro_f1": classification.macro(table.values()).f1,
                       f"{kind}_accuracy": classification.accuracy(gold, given)}  # fmt: skip
            theirs = entities.nemo_tokens(gold, given)
            nemo |= {f"nemo_{short}_precision": theirs.precision, f"nemo_{short}_recall": theirs.recall,
                     f"nemo_{short}_f1": theirs.f1}  # fmt: skip
        return {"f1": (scores["mark_f1"] + scores["case_f1"]) / 2, **scores, **nemo}

    def details(self, predictions: Sequence[Prediction], examples: Sequence[WordsExample]) -> dict[str, Any]:
        """The scores of each mark and each way to write a word, and the confusion of marks."""
        per_class: dict[str, Any] = {}
        confusions = []
        for kind, _, (gold, given), names in self._sides(predictions):
            table = classification.per_class(gold, given, names)
            per_class |= {f"{kind}:{name}": scores._asdict() for name, scores in table.items()}
            confusions.append(classification.confusion(gold, given, names))
        return {"labels": list(self._kinds()[0]), "per_class": per_class, "confusion": confusions[0],
                "case_labels": list(self._kinds()[1]), "case_confusion": confusions[1]}  # fmt: skip

    def cases(self, predictions: Sequence[Prediction], examples: Sequence[WordsExample]) -> list[Case]:
        """The restored text beside the right one; each word's mark and capitals are decisions."""
        return [_case_of(said) for said in predictions]

    def _sides(
        self, predictions: Sequence[Prediction]
    ) -> Iterator[tuple[str, str, tuple[list[str], list[str]], tuple[str, ...]]]:
        """For marks and for capitals: name, NeMo's short name, (right labels, said ones) of all words, the labels."""
        for (kind, short), names in zip((("mark", "punct"), ("case", "capit")), self._kinds(), strict=True):
            gold, given = (
                [label for said in predictions for label in said[key]] for key in (f"gold_{kind}s", f"{kind}s")
            )
            yield kind, short, (gold, given), names


def restored(words: Sequence[str], marks: Sequence[str], cases: Sequence[str]) -> str:
    """The text of words in small letters with their marks and capitals."""
    return " ".join(_written(word, case) + ("" if mark == NONE else mark)
                    for word, mark, case in zip(words, marks, cases, strict=True))  # fmt: skip


def _written(word: str, case: str) -> str:
    if case == "A":
        return word.upper()
    return word[:1].upper() + word[1:] if case == "U" else word


def _core(word: str) -> tuple[int, int]:
    """Where a word begins and ends without the marks, quotes and brackets around it; nowhere (equal) if it has only
    these. The sign of a number stays."""
    around = [unicodedata.category(letter).startswith("P") and letter not in _KEPT for letter in word]
    if all(around):
        return 0, 0
    start, stop = around.index(False), len(word) - around[::-1].index(False)
    signed = start and word[start - 1] == "-" and word[start].isdigit()
    return start - bool(signed), stop


def _case(word: str) -> str:
    """How a word is written: `A` two capitals or more and no small letter, `U` the first letter a capital, else `O`."""
    if word.isupper() and sum(letter.isupper() for letter in word) > 1:
        return "A"
    return "U" if word[:1].isupper() else NONE


def _case_of(said: Prediction) -> Case:
    passages = [Passage(name="text", text=said["text"])]
    gold = said.get("gold")
    sure = [*said["mark_probabilities"], *said["case_probabilities"]]
    beliefs: list[tuple[float, bool]] = []
    if gold is not None:
        right = [left == other for left, other in zip([*said["gold_marks"], *said["gold_cases"]],
                                                      [*said["marks"], *said["cases"]], strict=True)]  # fmt: skip
        beliefs = list(zip(sure, right, strict=True))
    return Case(
        id=said["id"], passages=passages, gold=gold, said=said["restored"],
        right=None if gold is None else gold == said["restored"], off=float(sum(not one for _, one in beliefs)),
        confidence=min(sure, default=None), beliefs=beliefs,
    )  # fmt: skip
