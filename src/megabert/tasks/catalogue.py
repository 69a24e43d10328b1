"""The tasks by the names that users give them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megabert import config as configuration
from megabert.tasks import glue
from megabert.tasks.base import Task
from megabert.tasks.intent_slot import IntentSlot
from megabert.tasks.multiple_choice import MultipleChoice
from megabert.tasks.punctuation import Punctuation
from megabert.tasks.question_answering import QuestionAnswering
from megabert.tasks.relation_extraction import RelationExtraction
from megabert.tasks.sequence_classification import Regression, SequenceClassification
from megabert.tasks.token_classification import TokenClassification
from megabert.tasks.zero_shot import ZeroShot

CLASSES: Mapping[str, type[Task]] = {
    kind.name: kind
    for kind in (
        QuestionAnswering, SequenceClassification, Regression, TokenClassification, glue.GlueClassification,
        glue.GlueRegression, RelationExtraction, MultipleChoice, IntentSlot, Punctuation, ZeroShot,
    )
}  # fmt: skip
"""A task's own name -> its class."""

PRESETS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "question-answering": ("question-answering", {}),
    "squad": ("question-answering", {}),
    "squad2": ("question-answering", {"no_answer": True}),
    "sequence-classification": ("sequence-classification", {}),
    "text-classification": ("sequence-classification", {}),
    "regression": ("regression", {}),
    "token-classification": ("token-classification", {}),
    "ner": ("token-classification", {}),
    "relation-extraction": ("relation-extraction", {}),
    "chemprot": ("relation-extraction", {}),
    "intent-slot": ("intent-slot", {}),
    "atis": ("intent-slot", {}),
    "snips": ("intent-slot", {}),
    "punctuation": ("punctuation", {}),
    "punctuation-capitalization": ("punctuation", {}),
    "zero-shot": ("zero-shot", {}),
    "multiple-choice": ("multiple-choice", {}),
    "swag": ("multiple-choice", {}),
    "race": ("multiple-choice", {"order": "choice", "max_seq_length": 512}),
}
"""A user's name -> the task's own name, and settings that go with it; GLUE's names come beside these."""

NAMES = (*PRESETS, *glue.NAMES)


def make(name: str, settings: Mapping[str, Any]) -> Task:
    """The task that a user names.

    Args:
        settings: chosen ones; they win over the name's.

    Raises:
        ValueError: no such task, or a setting that it does not have.
    """
    if name in PRESETS:
        kind, fixed = PRESETS[name]
        return CLASSES[kind].from_settings({**fixed, **settings})
    if name in glue.NAMES:
        task = glue.make(name, max_seq_length=128)
        return type(task).from_settings({**task.settings(), **settings})
    raise ValueError(f"unknown task {name!r}{configuration.nearest(name, NAMES)}; tasks: {', '.join(NAMES)}")


def restore(kept: Any, place: object) -> Task:
    """The task whose name and settings were kept with a model.

    Raises:
        ValueError: they are those of no task that is known here.
    """
    if not isinstance(kept, dict) or kept.get("task") not in CLASSES:
        raise ValueError(f"{place} was fine-tuned for no task that is known here; tasks: {', '.join(CLASSES)}")
    settings = {name: value for name, value in kept.items() if name != "task"}
    if kept["task"].startswith("glue") and "labels" not in kept:
        # Another program's model, which tells the row only.
        return make(str(settings.pop("row", "")), settings)
    return CLASSES[kept["task"]].from_settings(settings)


def kept(task: Task) -> dict[str, Any]:
    """What `restore` makes the task of."""
    return {"task": task.name, **task.settings()}
