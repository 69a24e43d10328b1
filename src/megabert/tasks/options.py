"""What a user can choose about a task. Nothing heavy is imported here, so that `--help` is instant."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from megabert.config import option


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """The task. What is left out is the task's own choice; what does not belong to the task is refused."""

    labels: tuple[str, ...] = option(
        (), "the labels, in the order of their numbers (one value may hold several with commas between them); left "
        "out, those of the training file in order; for words' labels also the name of a --scheme, such as iob2",
        example="negative positive",
    )  # fmt: skip
    max_seq_length: int | None = option(
        None, "tokens of a row, special ones included; left out, 128, for question answering 384", minimum=8,
        example="256",
    )  # fmt: skip
    mentions: Literal["markers", "anonymous"] | None = option(
        None, "relation extraction: what is made of entities that are given by offsets; left out, markers around them"
    )
    order: Literal["context", "choice"] | None = option(
        None, "multiple choice: what comes first in a row; left out, the context, for race the choice as in Megatron-LM"
    )
    scheme: Literal["auto", "iob1", "iob2", "iobes", "io"] | None = option(
        None, "words' labels: how they write entities; left out, the training file shows it", example="iob2"
    )
    label_pieces: Literal["first", "all"] | None = option(
        None,
        "words' labels: the pieces of a word that learn its label: the first, or all as NeMo and BioMegatron did; left "
        "out, the first",
    )
    stride: int | None = option(
        None, "words' labels: pieces that the windows of a long text share; left out, 32", minimum=0
    )
    intent_share: float | None = option(
        None, "intents and slots: the weight of the intents' loss, the slots have the rest; left out, 0.6",
        aliases=("intent-loss-weight",), minimum=0.0, maximum=1.0,
    )  # fmt: skip
    marks: str | None = option(
        None, "punctuation: the marks that plain texts teach; left out, comma, full stop and question mark",
        example='",.?!"',
    )  # fmt: skip
    margin: int | None = option(
        None, "punctuation: pieces of context on both sides of a word, in the windows of a long text; left out, 16",
        minimum=0,
    )  # fmt: skip
    no_answer: bool | None = option(
        None, "question answering: a question may have no answer (SQuAD 2.0)", aliases=("version-2-with-negative",)
    )
    doc_stride: int | None = option(
        None, "question answering: pieces between the begins of two windows; left out, 128", minimum=1
    )
    max_query_length: int | None = option(
        None, "question answering: pieces of a question that are kept; left out, 64", minimum=1
    )
    max_answer_length: int | None = option(
        None, "question answering: pieces of an answer at most; left out, 30", minimum=1
    )
    n_best_size: int | None = option(
        None, "question answering: candidates that are looked at and told; left out, 20", minimum=1
    )
    null_threshold: float | None = option(
        None,
        "question answering: no answer is said when its score is more than this above the best answer's; left out, the "
        "validation file shows the best one",
        aliases=("null-score-diff-threshold",),
    )
    repair: bool | None = option(
        None, "question answering: replace a wrong answer_start by the nearest place where the answer stands",
        aliases=("repair-offsets",),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ZeroShotOptions:
    """Classes that a model of natural language inference was not taught."""

    labels: tuple[str, ...] = option(
        (), "zero-shot: the labels to choose among, for a model that was taught entailment (mnli); one value may hold "
        "several with commas between them", aliases=("candidate-labels",), example="sports,politics",
    )  # fmt: skip
    hypothesis: str | None = option(
        None, "zero-shot: the sentence that a label makes, {} in its place; left out, 'This example is {}.'",
        aliases=("hypothesis-template",), example='"This text is about {}."',
    )  # fmt: skip
    multi_label: bool = option(False, "zero-shot: a text may have any number of the labels; each is judged for itself")
    entailment_label: str | None = option(
        None, "zero-shot: the model's class that means entailment; left out, the one that is called so", example="0"
    )
    contradiction_label: str | None = option(
        None, "zero-shot: the model's class that means contradiction; left out, the one that is called so, if any",
        example="2",
    )  # fmt: skip


def chosen(options: TaskOptions) -> dict[str, Any]:
    """What was chosen, by the names of the tasks' settings.

    Raises:
        ValueError: a label occurs twice.
    """
    labels = separated(options.labels)
    twice = next((label for at, label in enumerate(labels) if label in labels[:at]), None)
    if twice is not None:
        raise ValueError(f"--labels names {twice!r} twice")
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(TaskOptions)}
    return {name: value for name, value in {**values, "labels": labels}.items() if value not in (None, ())}


def separated(labels: tuple[str, ...]) -> tuple[str, ...]:
    """The labels; one value alone, which could not be told from anything, may hold several with commas between them."""
    return tuple(label.strip() for label in labels[0].split(",")) if len(labels) == 1 else labels
