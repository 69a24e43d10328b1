"""A fine-tuned model that answers: its task, its network and its tokenizer, from a run folder or a model's folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import MegatronBertConfig, PreTrainedModel

from megabert import runtime
from megabert.formats import huggingface
from megabert.formats.checkpoint import KEPT_AS
from megabert.formats.encoder import fill, open_encoder
from megabert.formats.open import look, model_folder
from megabert.models.auto import class_of
from megabert.tasks import catalogue
from megabert.tasks.base import Features, Prediction, Task
from megabert.tasks.rows import by_length, padded
from megabert.tokenization import word_piece
from megabert.tokenization.base import Tokenizer

BATCH_TOKENS = 8192


@dataclass(frozen=True)
class Answers:
    """What a model said about examples.

    Attributes:
        predictions: one for each example, in their order.
        losses, accuracies: mean of each term of the objective over all rows with labels; empty without any.
        counts: predictions of each term.
        cut: examples whose end no row holds.
    """

    predictions: list[Prediction]
    losses: dict[str, float]
    accuracies: dict[str, float]
    counts: dict[str, int]
    cut: int


def chosen_device(name: str) -> torch.device:
    """`auto`, `cpu` or `cuda` as a device.

    Raises:
        ValueError: there is no such device.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: this machine has no GPU that PyTorch can use")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


class FineTuned:
    """A model and what it was taught.

    Args:
        batch_tokens: places that go through the model at once, padding included.
    """

    def __init__(self, task: Task, model: PreTrainedModel, tokenizer: Tokenizer, *, batch_tokens: int = BATCH_TOKENS):
        self.task = task
        self.model = model
        self.tokenizer = tokenizer
        self.batch_tokens = batch_tokens

    @classmethod
    def from_path(
        cls, path: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32,
        batch_tokens: int = BATCH_TOKENS,
    ) -> FineTuned:  # fmt: skip
        """Read a model that `finetune` wrote, or a checkpoint of another format that tells its task, such as a `.nemo`.

        Raises:
            ValueError: there is none, it is damaged, or it was not fine-tuned.
        """
        if look(path).kind == "foreign":
            return cls._from_checkpoint(path, device, dtype, batch_tokens)
        folder = model_folder(path)
        facts = huggingface.read_facts(folder)
        if KEPT_AS not in facts.config:
            raise ValueError(
                f"{folder} holds a model that was not fine-tuned for a task; `megabert finetune` does that"
            )
        task = catalogue.restore(facts.config[KEPT_AS], folder)
        if not facts.tokenizer:
            raise ValueError(f"{folder} holds no tokenizer (tokenizer.json or vocab.txt)")
        model, _ = huggingface.load(folder, class_of(task.head), dtype=dtype, device=device)
        return cls(task, model, word_piece.load(folder), batch_tokens=batch_tokens)

    @classmethod
    def _from_checkpoint(
        cls, path: Path, device: torch.device | str, dtype: torch.dtype, batch_tokens: int
    ) -> FineTuned:
        encoder = open_encoder(str(path))
        if KEPT_AS not in encoder.config:
            raise ValueError(f"{path} holds no model that was taught a task (it has no head that is known here); "
                             "`megabert finetune` does that")  # fmt: skip
        task = catalogue.restore(encoder.config[KEPT_AS], path)
        if encoder.tokenizer is None:
            raise ValueError(f"{path} holds no tokenizer: `megabert convert {path} FOLDER --tokenizer vocab.txt` makes "
                             "a model's folder that has one")  # fmt: skip
        model = class_of(task.head)(MegatronBertConfig(**encoder.config))
        fill(model, encoder, head=(), keep_head=True)
        return cls(task, model.to(device=device, dtype=dtype).eval(), encoder.tokenizer, batch_tokens=batch_tokens)  # type: ignore[call-arg]

    @torch.no_grad()
    def answer(self, examples: Sequence[Any], features: Sequence[Features] | None = None) -> Answers:
        """Predictions for examples; rows of about the same length go through the model together, each once.

        Args:
            features: of the examples, when they were made before.

        Raises:
            ValueError: an example that the task does not take.
        """
        features = self.task.features(examples, self.tokenizer) if features is None else features
        outputs: list[np.ndarray] = [np.zeros(0)] * len(features)
        objective = self.task.objective
        totals: dict[str, list[float]] = {}
        was_training = self.model.training
        self.model.eval()
        try:
            for numbers in by_length(features, self.batch_tokens):
                chosen = [features[number] for number in numbers]
                labelled = all(one.labels for one in chosen)
                rows = [one.row() if labelled else _without_labels(one) for one in chosen]
                arrays = padded(rows, pad_id=self.tokenizer.pad_id)
                batch = {name: torch.from_numpy(array).to(self.model.device) for name, array in arrays.items()}
                said = self.model(**{name: value for name, value in batch.items() if name not in objective.targets})
                for number, output in zip(numbers, self.task.rows_of(said), strict=True):
                    outputs[number] = output
                if labelled:
                    _add(totals, objective.counts(batch), objective.sums(said, batch), objective.hits(said, batch))
        finally:
            self.model.train(was_training)
        predictions = self.task.decode(outputs, features, examples)
        seen = {name: values for name, values in totals.items() if values[0]}
        return Answers(
            predictions,
            {name: total / count for name, (count, total, _) in seen.items()},
            {name: right / count for name, (count, _, right) in seen.items()},
            {name: int(count) for name, (count, _, _) in seen.items()},
            len({one.example for one in features if one.cut}),
        )


def _without_labels(one: Features) -> dict[str, np.ndarray]:
    return {name: array for name, array in one.row().items() if name not in one.labels}


def _add(totals: dict[str, list[float]], *values: Mapping[str, torch.Tensor]) -> None:
    for name in values[0]:
        sums = totals.setdefault(name, [0.0, 0.0, 0.0])
        for place, value in enumerate(values):
            sums[place] += float(value[name])


def write_predictions(predictions: Iterable[Prediction], path: Path) -> None:
    """One JSON object a line."""
    with runtime.atomic_write(path) as file:
        file.writelines(json.dumps(prediction, ensure_ascii=False) + "\n" for prediction in predictions)


def write_scores(scores: Mapping[str, Any], path: Path) -> None:
    """A JSON object."""
    with runtime.atomic_write(path) as file:
        file.write(json.dumps(scores, indent=2, ensure_ascii=False) + "\n")


def shown_scores(scores: Mapping[str, float]) -> str:
    """Scores as one line for people; NeMo's own variants are left to the file."""
    return ", ".join(f"{name} {value:.4g}" for name, value in scores.items() if not name.startswith("nemo_"))
