"""The contract of a task, and the rows that all of them make.

A task reads examples, turns them into rows for a model, says what is learned from them, turns the model's outputs into
predictions, and scores these. It knows no file of weights and no training loop: commands bring them together.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from megabert.tasks import cases
from megabert.tasks.cases import Case
from megabert.tokenization.base import Tokenizer

if TYPE_CHECKING:
    from megabert.tasks.objectives import TaskObjective

Row = dict[str, np.ndarray]
Prediction = dict[str, Any]
"""What is said about one example: plain values, one line of `predictions.jsonl`; `id` is always there."""

NO_LABEL = -100


@dataclass(frozen=True, kw_only=True)
class Example:
    """One example of a data file.

    Attributes:
        id: as the file has it, else its number in the file.
        place: `FILE:LINE`, for errors.
    """

    id: str
    place: str


@dataclass(frozen=True, kw_only=True)
class Features:
    """A row for the model: an example, or a window of it.

    Attributes:
        example: number of the example.
        input_ids, token_type_ids: int64 [seq]; for several choices [choices, seq].
        attention_mask: as `input_ids`, 1 at tokens; None: 1 everywhere.
        labels: arrays by name, a number or [seq]; empty when the example has none.
        facts: what decoding needs to know of the window.
        cut: the example was too long, and its end is in no window.
    """

    example: int
    input_ids: np.ndarray
    token_type_ids: np.ndarray
    attention_mask: np.ndarray | None = None
    labels: Mapping[str, np.ndarray] = field(default_factory=dict)
    facts: Any = None
    cut: bool = False

    @property
    def length(self) -> int:
        """Tokens, special ones included."""
        return self.input_ids.shape[-1]

    def row(self) -> Row:
        """The row as arrays."""
        mask = np.ones_like(self.input_ids) if self.attention_mask is None else self.attention_mask
        inputs = {"input_ids": self.input_ids, "token_type_ids": self.token_type_ids, "attention_mask": mask}
        return {**inputs, **self.labels}


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """What is asked of an encoder. Its fields are its settings: they are kept with the model that learns it.

    Attributes:
        max_seq_length: tokens of a row, special ones included.
        labels: names of the classes in the order of their numbers; empty when there are none.
    """

    name: ClassVar[str]
    head: ClassVar[str]
    """The model class with the head for it."""
    fresh: ClassVar[tuple[str, ...]] = ("bert.pooler.", "classifier.")
    """Beginnings of the names of weights that a checkpoint need not have."""
    problem_type: ClassVar[str | None] = "single_label_classification"
    """What Transformers calls the kind of loss, for its own classes; None where it has no name."""
    head_is_general: ClassVar[bool] = False
    """The head means the same in every checkpoint, so that it is taken from one whoever trained it."""

    max_seq_length: int = 128
    labels: tuple[str, ...] = ()

    @property
    @abstractmethod
    def objective(self) -> TaskObjective:
        """What is learned."""

    @property
    @abstractmethod
    def main_score(self) -> str:
        """The score by which models are compared; higher is better."""

    @property
    def outputs(self) -> int:
        """How many numbers the head gives: `num_labels` of the model's config."""
        return len(self.labels)

    @property
    def head_parts(self) -> tuple[int, ...]:
        """The outputs of each of several classifiers that share the encoder; empty: there is one."""
        return ()

    @abstractmethod
    def examples(self, path: Path, *, labelled: bool = True) -> list[Any]:
        """Read a file.

        Args:
            labelled: the answers must be there; without, they are taken when they are.

        Raises:
            ValueError: the file is empty, or a broken example, by file and line.
        """

    def files(self, path: Path) -> list[Path]:
        """The files that `examples` reads when it is given this path."""
        return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]

    @abstractmethod
    def asked(self, texts: Sequence[tuple[str, ...]], place: str) -> list[Any]:
        """Examples without answers, of texts or pairs of texts that were typed; `place` is for errors.

        Raises:
            ValueError: one text where two are needed, or the other way round.
        """

    @staticmethod
    def of_width(texts: Sequence[tuple[str, ...]], width: int, place: str) -> Sequence[tuple[str, ...]]:
        """The texts.

        Raises:
            ValueError: one of them has not `width` parts, or is no Unicode text.
        """
        for number, parts in enumerate(texts, 1):
            for part in parts:
                try:
                    part.encode()
                except UnicodeEncodeError:
                    raise ValueError(f"{place}: number {number}: {part[:40]!r} is no Unicode text") from None
            if len(parts) != width:
                wanted = "one text" if width == 1 else "two texts (with a tab between them, or --text and --text-pair)"
                raise ValueError(f"{place}: number {number}: this model reads {wanted}, not {len(parts)}")
        return texts

    @abstractmethod
    def shown(self, prediction: Prediction) -> str:
        """A prediction for people."""

    def learned(self, examples: Sequence[Any]) -> Self:
        """The task with what the training examples show, such as the set of labels.

        Raises:
            ValueError: the examples contradict what was set.
        """
        return self

    def balanced(self, examples: Sequence[Any]) -> Self:
        """The task with class weights that make up for rare classes.

        Raises:
            ValueError: it has no classes to weigh.
        """
        raise ValueError(f"--class-weights: {self.name} has no classes to weigh")

    def calibrated(self, predictions: Sequence[Prediction], examples: Sequence[Any]) -> Self:
        """The task with what is best chosen by the predictions of held-out examples, such as a threshold."""
        return self

    @abstractmethod
    def features(self, examples: Sequence[Any], tokenizer: Tokenizer) -> list[Features]:
        """Rows of all examples, in their order; several for one that needs windows.

        Raises:
            ValueError: an example that cannot be learned from, by file and line.
        """

    @abstractmethod
    def rows_of(self, outputs: Any) -> list[np.ndarray]:
        """One float32 array for each row of a batch, from the model's outputs."""

    @abstractmethod
    def decode(
        self, outputs: Sequence[np.ndarray], features: Sequence[Features], examples: Sequence[Any]
    ) -> list[Prediction]:
        """Predictions for all examples, in their order, from `rows_of` of all features (padding may follow)."""

    @abstractmethod
    def score(self, predictions: Sequence[Prediction], examples: Sequence[Any]) -> dict[str, float]:
        """The task's scores, the standard ones first; those called `nemo_...` are as NeMo 1.x computed them."""

    def details(self, predictions: Sequence[Prediction], examples: Sequence[Any]) -> dict[str, Any]:
        """Tables beside the scores: classes one by one, confusion; plain values."""
        return {}

    def cases(self, predictions: Sequence[Prediction], examples: Sequence[Any]) -> list[Case]:
        """Each prediction beside what is right, for people to look at: a label of a text, unless a task says more."""
        return [cases.of_label(prediction) for prediction in predictions]

    def settings(self) -> dict[str, Any]:
        """The fields as plain values."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in vars(self).items()}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """The task whose `settings()` these are.

        Raises:
            ValueError: a setting that it does not have.
        """
        known = {item.name for item in dataclasses.fields(cls)}
        strange = next((name for name in settings if name not in known), None)
        if strange is not None:
            raise ValueError(f"the task {cls.name} has no setting {strange!r}; it has {', '.join(sorted(known))}")
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()}
        return cls(**values)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last dimension, float64."""
    exact = logits.astype(np.float64)
    powers = np.exp(exact - exact.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def pair_of(first: Sequence[int], second: Sequence[int] | None, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """`[CLS] first [SEP] second [SEP]` and its token types, int64 [seq]."""
    ids = [tokenizer.cls_id, *first, tokenizer.sep_id]
    types = [0] * len(ids)
    if second is not None:
        ids += [*second, tokenizer.sep_id]
        types += [1] * (len(second) + 1)
    return np.array(ids, dtype=np.int64), np.array(types, dtype=np.int64)


def cut_pair(first: int, second: int, room: int) -> tuple[int, int]:
    """Lengths of two texts that together fit: the longer one is cut first."""
    over = first + second - room
    if over <= 0:
        return first, second
    if first > second:
        taken = min(over, first - second)
        first, over = first - taken, over - taken
    else:
        taken = min(over, second - first)
        second, over = second - taken, over - taken
    return first - (over + 1) // 2, second - over // 2


def unknown_label(label: str, place: str, labels: Sequence[str]) -> ValueError:
    """The error for a label outside the set."""
    shown = ", ".join(labels[:20]) + (", ..." if len(labels) > 20 else "")
    return ValueError(f"{place}: label {label!r} is not one of the {len(labels)} labels of this task: {shown}")
