"""A prediction beside what is right, in the form in which people look at it, whatever the task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from megabert.metrics.entities import Span

Prediction = Mapping[str, Any]
Side = Literal["gold", "said"]


class Mark(NamedTuple):
    """Characters `[start, end)` of a passage that somebody named: the data (`gold`) or the model (`said`)."""

    start: int
    end: int
    label: str
    side: Side


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A text that was read, with what is marked in it.

    Attributes:
        name: what it is, such as "question".
    """

    name: str
    text: str
    marks: Sequence[Mark] = ()


@dataclass(frozen=True, kw_only=True)
class Case:
    """One example.

    Attributes:
        passages: what the model read.
        gold, said: what is right and what was said, in short; None where the marks say it.
        right: whether they agree; None where that is a matter of degree only, or nobody knows what is right.
        off: how far what was said is from what is right; 0 when it is right, larger is worse.
        confidence: the probability of what was said, 0 to 1; None where there is none.
        beliefs: every single decision: its probability, and whether it is right.
        numbers: gold and said, where the answer is a number.
    """

    id: str
    passages: Sequence[Passage]
    gold: str | None
    said: str | None
    right: bool | None
    off: float = 0.0
    confidence: float | None = None
    beliefs: Sequence[tuple[float, bool]] = ()
    numbers: tuple[float, float] | None = None


def of_label(prediction: Prediction) -> Case:
    """A label for a text or a pair of texts: `text`, `text_pair`, `label`, `probability`, `gold`."""
    gold, said, sure = prediction.get("gold"), prediction["label"], prediction.get("probability")
    right = None if gold is None else gold == said
    return Case(
        id=prediction["id"], passages=_texts(prediction), gold=gold, said=said, right=right, off=float(right is False),
        confidence=sure, beliefs=() if right is None or sure is None else [(sure, right)],
    )  # fmt: skip


def of_number(prediction: Prediction) -> Case:
    """A number for a text or a pair of texts: `text`, `text_pair`, `number`, `gold`."""
    said = float(prediction["number"])
    gold = None if prediction.get("gold") is None else float(prediction["gold"])
    return Case(
        id=prediction["id"], passages=_texts(prediction), gold=None if gold is None else f"{gold:.4g}",
        said=f"{said:.4g}", right=None, off=0.0 if gold is None else abs(said - gold),
        numbers=None if gold is None else (gold, said),
    )  # fmt: skip


def of_tags(
    prediction: Prediction, offsets: Sequence[tuple[int, int]], gold: Iterable[Span] | None, said: Iterable[Span]
) -> Case:
    """Entities in a text.

    Args:
        prediction: with `text`, `labels` and `probabilities` of its words, and `gold`, the words' labels.
        offsets: characters of each word.
        gold, said: entities by words; `gold` is None where nobody knows.
    """
    wanted, given = None if gold is None else set(gold), set(said)
    marks = [
        *(_mark(span, offsets, "gold") for span in sorted(wanted or ())),
        *(_mark(span, offsets, "said") for span in sorted(given)),
    ]
    sure = prediction["probabilities"]
    beliefs = []
    if wanted is not None:
        beliefs = [
            (probability, left == right)
            for probability, left, right in zip(sure, prediction["labels"], prediction["gold"], strict=True)
        ]
    return Case(
        id=prediction["id"], passages=[Passage(name="text", text=prediction["text"], marks=marks)], gold=None,
        said=None, right=None if wanted is None else wanted == given,
        off=0.0 if wanted is None else float(len(wanted ^ given)), confidence=min(sure, default=None), beliefs=beliefs,
    )  # fmt: skip


def of_choice(prediction: Prediction) -> Case:
    """One of several choices: `context`, `choices`, `choice`, `probabilities`, `gold`."""
    gold, said = prediction.get("gold"), prediction["choice"]
    right, sure = None if gold is None else gold == said, prediction["probability"]
    passages = [Passage(name="text", text=prediction["context"])]
    for number, text in enumerate(prediction["choices"]):
        sides: list[Side] = []
        if number == gold:
            sides.append("gold")
        if number == said:
            sides.append("said")
        marks = [Mark(0, len(text), "", side) for side in sides]
        passages.append(Passage(name=f"choice {number}", text=text, marks=marks))
    return Case(
        id=prediction["id"], passages=passages, gold=None if gold is None else f"choice {gold}", said=f"choice {said}",
        right=right, off=float(right is False), confidence=sure, beliefs=() if right is None else [(sure, right)],
    )  # fmt: skip


def _mark(span: Span, offsets: Sequence[tuple[int, int]], side: Side) -> Mark:
    return Mark(offsets[span.start][0], offsets[span.stop - 1][1], span.type, side)


def _texts(prediction: Prediction) -> list[Passage]:
    return [
        Passage(name=name.replace("_", " "), text=prediction[name])
        for name in ("text", "text_pair")
        if name in prediction
    ]
