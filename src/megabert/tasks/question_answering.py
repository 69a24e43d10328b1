"""Extractive question answering: the part of a text that answers a question, as SQuAD 1.1 and 2.0 ask it.

Windows with a stride, the rule of most context, n-best lists and the null score are those of BERT's SQuAD (Devlin et
al. 2018); answers are cut out of the text itself, by character offsets.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np

from megabert.metrics import spans
from megabert.tasks import squad_files, words
from megabert.tasks.base import Features, Prediction, Task, pair_of, softmax
from megabert.tasks.cases import Case, Mark, Passage
from megabert.tasks.squad_files import Paragraph, Question
from megabert.tokenization.base import Tokenizer

if TYPE_CHECKING:
    from megabert.tasks.objectives import TaskObjective

Offsets = list[tuple[int, int]]


class Window(NamedTuple):
    """A piece of the text: pieces `[start, stop)` of it, from place `begin` of the row on.

    `best` [stop - start] says where a piece has the most context of all windows; `offsets` are those of the whole text.
    """

    start: int
    stop: int
    begin: int
    best: np.ndarray
    offsets: Offsets


class Candidate(NamedTuple):
    """A span that may be the answer: characters `[start, end)` and both ends' logits."""

    start: int
    end: int
    start_logit: float
    end_logit: float

    @property
    def score(self) -> float:
        """The sum of the logits."""
        return self.start_logit + self.end_logit


@dataclass(frozen=True, kw_only=True)
class QuestionAnswering(Task):
    """A span of the text for each question.

    Attributes:
        doc_stride: pieces from the begin of a window to that of the next.
        max_query_length: pieces of the question that are kept.
        max_answer_length: pieces of an answer.
        n_best_size: candidates that are looked at, and told.
        no_answer: a question may have no answer (SQuAD 2.0).
        null_threshold: "no answer" is said when its score is more than this above the best answer's.
        repair: wrong offsets are replaced by the nearest place where the answer stands.
    """

    name: ClassVar[str] = "question-answering"
    head: ClassVar[str] = "MegatronBertForQuestionAnswering"
    fresh: ClassVar[tuple[str, ...]] = ("qa_outputs.",)
    problem_type: ClassVar[str | None] = None
    head_is_general: ClassVar[bool] = True

    max_seq_length: int = 384
    doc_stride: int = 128
    max_query_length: int = 64
    max_answer_length: int = 30
    n_best_size: int = 20
    no_answer: bool = False
    null_threshold: float = 0.0
    repair: bool = False

    @property
    def objective(self) -> TaskObjective:  # noqa: D102
        from megabert.tasks.objectives import Ends

        return Ends()

    @property
    def main_score(self) -> str:  # noqa: D102
        # With questions without answer the threshold is chosen at the end, so models are compared by their best one.
        return "best_f1" if self.no_answer else "f1"

    @property
    def outputs(self) -> int:  # noqa: D102
        return 2

    def examples(self, path: Path, *, labelled: bool = True) -> list[Question]:
        """Read SQuAD's JSON, or JSONL with question, context, and answers when they are known."""
        return squad_files.read(path, labelled=labelled, repair=self.repair)

    def asked(self, texts: Sequence[tuple[str, ...]], place: str) -> list[Question]:
        """Questions, each with the text that it asks about."""
        return [
            Question(id=str(number), place=place, question=text, paragraph=Paragraph(context))
            for number, (text, context) in enumerate(self.of_width(texts, 2, place), 1)
        ]

    def shown(self, prediction: Prediction) -> str:  # noqa: D102
        answer = prediction["text"] or "(no answer)"
        return f"{prediction['question']}\n    {answer}  {100 * prediction['probability']:.1f} %"

    def learned(self, examples: Sequence[Question]) -> Self:
        """The same.

        Raises:
            ValueError: a question without answer, where the task has none.
        """
        if self.labels:
            raise ValueError("question answering has no --labels")
        empty = next((one for one in examples if not one.answers), None)
        if empty is not None and not self.no_answer:
            raise ValueError(f"{empty.place} has no answer; --version-2-with-negative learns from such questions")
        return self

    def calibrated(self, predictions: Sequence[Prediction], examples: Sequence[Question]) -> Self:
        """With the null threshold that makes the best F1 of these predictions."""
        if not self.no_answer:
            return self
        texts = {prediction["id"]: prediction["best_text"] for prediction in predictions}
        nulls = {prediction["id"]: prediction["null_score_diff"] for prediction in predictions}
        answers = _answers(examples)

        def f1(threshold: float) -> float:
            said = {question: "" if nulls[question] > threshold else text for question, text in texts.items()}
            return spans.squad2(said, answers)["f1"]

        # The official script says 0 where it is best to answer nothing.
        nothing = math.nextafter(min(nulls.values()), -math.inf)
        best = spans.squad2(texts, answers, nulls)["best_f1_thresh"]
        return dataclasses.replace(self, null_threshold=max((best, nothing), key=f1))

    def features(self, examples: Sequence[Question], tokenizer: Tokenizer) -> list[Features]:
        """Windows of each example.

        Raises:
            ValueError: no window holds an answer, or there is no room for the text.
        """
        contexts = {id(example.paragraph): example.context for example in examples}
        found = zip(contexts.items(), tokenizer.encode_with_offsets(list(contexts.values())), strict=True)
        encoded = {key: (ids, words.with_marks(context, offsets)) for (key, context), (ids, offsets) in found}
        questions = tokenizer.encode_batch([example.question for example in examples])
        made: list[Features] = []
        for number, (example, question) in enumerate(zip(examples, questions, strict=True)):
            ids, offsets = encoded[id(example.paragraph)]
            if not ids:
                raise ValueError(f"{example.place}: the text {example.context[:40]!r} holds nothing to answer with")
            made.extend(self._windows(number, example, question[: self.max_query_length], ids, offsets, tokenizer))
        return made

    def _windows(
        self, number: int, example: Question, question: list[int], ids: list[int], offsets: Offsets,
        tokenizer: Tokenizer,
    ) -> Iterator[Features]:  # fmt: skip
        begin = len(question) + 2
        room = self.max_seq_length - begin - 1
        if room < 1 or len(ids) > room < self.doc_stride:
            raise ValueError(
                f"--doc-stride {self.doc_stride} leaves out text: with a question of {len(question)} tokens a window "
                f"of --max-seq-length {self.max_seq_length} holds {max(room, 0)} of it; lower the stride or "
                "--max-query-length"
            )
        cuts = [(0, min(room, len(ids)))]
        while cuts[-1][1] < len(ids):
            start = cuts[-1][0] + self.doc_stride
            cuts.append((start, min(start + room, len(ids))))
        span = _pieces(example.answers[0], offsets, example) if example.answers else None
        if span is not None and not any(start <= span[0] and span[1] < stop for start, stop in cuts):
            raise ValueError(
                f"{example.place}: its answer is {span[1] - span[0] + 1} tokens long and no window of {room} tokens "
                f"holds it; raise --max-seq-length (now {self.max_seq_length}) or lower --doc-stride (now "
                f"{self.doc_stride})"
            )
        for start, stop in cuts:
            row, types = pair_of(question, ids[start:stop], tokenizer)
            labels = {}
            if example.answered:
                inside = span is not None and start <= span[0] and span[1] < stop
                ends = (span[0] - start + begin, span[1] - start + begin) if inside and span is not None else (0, 0)
                names = ("start_positions", "end_positions")
                labels = {name: np.array(end, dtype=np.int64) for name, end in zip(names, ends, strict=True)}
            window = Window(start, stop, begin, _best(start, stop, cuts), offsets)
            yield Features(example=number, input_ids=row, token_type_ids=types, labels=labels, facts=window)

    def rows_of(self, outputs: Any) -> list[np.ndarray]:
        """[2, seq]: start and end logits."""
        start, end = outputs.start_logits.float().cpu().numpy(), outputs.end_logits.float().cpu().numpy()
        return list(np.stack([start, end], axis=1))

    def decode(
        self, outputs: Sequence[np.ndarray], features: Sequence[Features], examples: Sequence[Question]
    ) -> list[Prediction]:
        """The answer of each question, with its characters in the text, and the n best."""
        groups: list[list[tuple[np.ndarray, Window]]] = [[] for _ in examples]
        for logits, row in zip(outputs, features, strict=True):
            groups[row.example].append((logits, row.facts))
        return [self._answer(example, group) for example, group in zip(examples, groups, strict=True)]

    def _answer(self, example: Question, windows: Iterable[tuple[np.ndarray, Window]]) -> Prediction:
        found: list[Candidate] = []
        null: tuple[float, float] = (np.inf, np.inf)
        for logits, window in windows:
            found += _candidates(logits, window, self.n_best_size, self.max_answer_length)
            ends = float(logits[0, 0]), float(logits[1, 0])
            null = min(null, ends, key=sum)
        best = self._n_best(example, found)
        listed = [(example.context[one.start : one.end], one) for one in best]
        if self.no_answer or not listed:
            listed.append(("", Candidate(0, 0, *null)))
        order = sorted(range(len(listed)), key=lambda index: -listed[index][1].score)
        probabilities = softmax(np.array([one.score for _, one in listed]))
        said: Prediction = {"id": example.id, "question": example.question}
        difference = sum(null) - best[0].score if best else np.inf
        none = not best or (self.no_answer and difference > self.null_threshold)
        chosen = len(listed) - 1 if none else 0
        text, span = listed[chosen]
        said |= {"text": text, "start": span.start, "end": span.end, "probability": float(probabilities[chosen])}
        if self.no_answer:
            said |= {"best_text": listed[0][0], "null_score_diff": float(min(difference, 1e9))}
        said["n_best"] = [
            {"text": listed[index][0], "start": listed[index][1].start, "end": listed[index][1].end,
             "probability": float(probabilities[index]), "start_logit": listed[index][1].start_logit,
             "end_logit": listed[index][1].end_logit}
            for index in order
        ]  # fmt: skip
        if example.answered:
            said["gold"] = [text for text, _ in example.answers]
        return said

    def _n_best(self, example: Question, found: list[Candidate]) -> list[Candidate]:
        """The best candidates of different text."""
        best: dict[str, Candidate] = {}
        for one in sorted(found, key=lambda candidate: -candidate.score):
            best.setdefault(example.context[one.start : one.end], one)
            if len(best) == self.n_best_size:
                break
        return list(best.values())

    def score(self, predictions: Sequence[Prediction], examples: Sequence[Question]) -> dict[str, float]:
        """The official scores in per cent: exact match and F1; with questions without answer those of version 2.0."""
        texts, answers = {said["id"]: said["text"] for said in predictions}, _answers(examples)
        nemo = {f"nemo_{name}": value for name, value in spans.nemo_squad(texts, answers).items()}
        if not self.no_answer and all(answers.values()):
            return spans.squad1(texts, answers) | nemo
        scores = spans.squad2(texts, answers)
        if self.no_answer:
            best = {said["id"]: said["best_text"] for said in predictions}
            nulls = {said["id"]: said["null_score_diff"] for said in predictions}
            searched = spans.squad2(best, answers, nulls)
            scores |= {name: value for name, value in searched.items() if name.startswith("best_")}
        return scores | nemo

    def cases(self, predictions: Sequence[Prediction], examples: Sequence[Question]) -> list[Case]:
        """Answers marked in the text; right is an exact match, off is what is missing of F1."""
        return [_case(said, example) for said, example in zip(predictions, examples, strict=True)]


def _case(said: Prediction, example: Question) -> Case:
    golds = [text for text, _ in example.answers] or [""]
    marks = {Mark(start, start + len(text), "answer", "gold") for text, start in example.answers}
    if said["text"]:
        marks.add(Mark(said["start"], said["end"], "answer", "said"))
    right = any(spans.exact_match(said["text"], gold) for gold in golds) if example.answered else None
    f1 = max(spans.overlap_f1(said["text"], gold, empty_matches=True) for gold in golds)
    return Case(
        id=example.id, gold=" | ".join(dict.fromkeys(golds)) or "no answer" if example.answered else None,
        passages=[Passage(name="question", text=example.question),
                  Passage(name="text", text=example.context, marks=sorted(marks))],
        said=said["text"] or "no answer", right=right, off=1 - f1 if example.answered else 0.0,
        confidence=said["probability"], beliefs=[] if right is None else [(said["probability"], right)],
    )  # fmt: skip


def _answers(examples: Sequence[Question]) -> dict[str, list[str]]:
    return {example.id: [text for text, _ in example.answers] for example in examples}


def _pieces(answer: tuple[str, int], offsets: Offsets, example: Question) -> tuple[int, int]:
    """First and last piece of an answer: those that share a character with it."""
    text, start = answer
    start += len(text) - len(text.lstrip())
    end = start + len(text.strip())
    touched = [number for number, (left, right) in enumerate(offsets) if left < end and right > start]
    if not touched:
        raise ValueError(f"{example.place}: the tokenizer leaves nothing of the answer {text[:40]!r}")
    return touched[0], touched[-1]


def _best(start: int, stop: int, cuts: Sequence[tuple[int, int]]) -> np.ndarray:
    """bool [stop - start]: the window is, of those that hold a piece, the first with most context around it.

    Context is the smaller of the pieces before and after, and a hundredth of the window's length.
    """
    places = np.arange(start, stop)

    def context(cut: tuple[int, int]) -> np.ndarray:
        inside = (places >= cut[0]) & (places < cut[1])
        value = np.minimum(places - cut[0], cut[1] - 1 - places) + 0.01 * (cut[1] - cut[0])
        return np.where(inside, value, -np.inf)

    near = [cut for cut in cuts if cut[0] < stop and cut[1] > start]
    return np.stack([context(cut) for cut in near]).argmax(axis=0) == near.index((start, stop))


def _candidates(logits: np.ndarray, window: Window, count: int, longest: int) -> list[Candidate]:
    """Spans of the `count` best starts with the `count` best ends that are in order, not too long, and begin where this
    window has the most context."""
    width = window.stop - window.start
    places = slice(window.begin, window.begin + width)
    # The best of the whole row, as BERT chooses them: places outside of the text use up a place each.
    used = window.begin + width + 1
    starts = np.argsort(-logits[0, :used], kind="stable")[:count] - window.begin
    ends = np.argsort(-logits[1, :used], kind="stable")[:count] - window.begin
    start_logits, end_logits = logits[0, places], logits[1, places]
    found = []
    for start in starts:
        if not 0 <= start < width or not window.best[start]:
            continue
        for end in ends:
            if start <= end < min(width, start + longest):
                left, right = window.offsets[window.start + start][0], window.offsets[window.start + end][1]
                found.append(Candidate(left, right, float(start_logits[start]), float(end_logits[end])))
    return found
