"""A model while it is being taught: the one loop, whose evaluations are the task's own scores."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from megabert.formats import huggingface
from megabert.serving.fine_tuned import KEPT_AS, FineTuned, shown_scores
from megabert.tasks import catalogue
from megabert.tasks.base import Features, Task
from megabert.tasks.rows import GROUP_BATCHES, TrainingRows, padding
from megabert.tokenization.base import Tokenizer
from megabert.training import resume
from megabert.training.evaluate import Evaluation
from megabert.training.loader import Rows
from megabert.training.loop import Outcome, Trainer
from megabert.training.options import TrainingOptions
from megabert.training.sinks import read_lines

Examples = tuple[list[Any], list[Features]]
"""Examples, and all rows of them."""


@dataclass(frozen=True)
class Scored(Evaluation):
    """An evaluation that is compared by a score instead of the loss.

    Attributes:
        scores: of the task.
        main: the name of the one that decides; higher is better.
    """

    scores: dict[str, float] = field(default_factory=dict)
    main: str = ""

    @property
    def loss(self) -> float:
        """What the best checkpoint has least of: the score's opposite."""
        return -self.scores[self.main]

    def record(self, prefix: str = "valid") -> dict[str, float]:
        """Losses, accuracies and scores by name."""
        scores = {f"{prefix}_{name}": value for name, value in self.scores.items()}
        return {**super().record(prefix), **scores, f"{prefix}_loss": sum(self.losses.values())}


class Tuning(Trainer):
    """Teaches a model a task.

    Args:
        train: rows to learn from.
        validation: what checkpoints are compared on, when given.
        patience: evaluations without a better score after which the run ends; None: it goes on to its end.
        group: put rows of about the same length into one batch.
        batch_tokens: places that go through the model at once in an evaluation.

    The rest as `Trainer`.
    """

    def __init__(
        self,
        task: Task,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        train: Sequence[Features],
        validation: Examples | None,
        options: TrainingOptions,
        *,
        folder: Path,
        device: torch.device,
        patience: int | None = None,
        group: bool = True,
        batch_tokens: int,
        identity: Mapping[str, str] | None = None,
    ):
        rows = TrainingRows(train, batch=options.batch_size, seed=options.seed, group=GROUP_BATCHES if group else 0)
        held_out = TrainingRows(validation[1], batch=1, seed=0, group=0) if validation else None
        super().__init__(
            model, task.objective, rows, held_out, options, folder=folder, identity=identity, device=device,
            stack=padding(tokenizer.pad_id), count_tokens=lambda batch: int(batch["attention_mask"].sum()),
        )  # fmt: skip
        self.task = task
        self.network = model
        self.tokenizer = tokenizer
        self.validation = validation
        self.patience = patience
        self.batch_tokens = batch_tokens
        self.scores: dict[int, float] = {}

    def fit(self, accepted: Callable[[], None] | None = None) -> Outcome:
        """As `Trainer.fit`; a run whose patience was at its end stays there."""
        latest = self.checkpoints.named("latest")
        if latest is not None:
            step = int(latest.name.removeprefix("step-"))
            name = f"valid_{self.task.main_score}"
            lines = read_lines(self.folder / "metrics.jsonl")
            self.scores = {line["step"]: line[name] for line in lines if name in line and line["step"] <= step}
            self._stop_if_exhausted(step)
        return super().fit(accepted)

    def evaluate(self, rows: Rows, *, stop: Callable[[], bool] | None = None) -> Scored | None:
        """The scores on all validation examples, each once, whatever `rows` are."""
        assert self.validation is not None
        examples, features = self.validation
        model = FineTuned(self.task, self.network, self.tokenizer, batch_tokens=self.batch_tokens)
        answers = model.answer(examples, features)
        scores = self.task.score(answers.predictions, examples)
        self.say(f"step {self.progress.step}/{self.steps} | {shown_scores(scores)}")
        self.scores[self.progress.step] = scores[self.task.main_score]
        self._stop_if_exhausted(self.progress.step)
        return Scored(answers.losses, answers.accuracies, answers.counts, scores, self.task.main_score)

    def _stop_if_exhausted(self, step: int) -> None:
        """Let the run end at `step` when its patience is at its end."""
        if self.patience is None or not self.scores:
            return
        best = max(self.scores, key=lambda at: (self.scores[at], -at))
        if sum(at > best for at in self.scores) >= self.patience:
            self.say(f"no better score in {self.patience} evaluations: the run ends here")
            self.steps = step

    def best_step(self) -> int:
        """The step of the weights that `best` gives."""
        return int(self._chosen().name.removeprefix("step-"))

    def _chosen(self) -> Path:
        found = self.checkpoints.named("best") or self.checkpoints.named("latest")
        assert found is not None, "a run that has ended has a checkpoint"
        return found

    def best(self, *, calibrate: bool) -> FineTuned:
        """The model with the weights that scored best, in float32, and its task.

        Args:
            calibrate: let the validation examples choose what is best chosen by them (a threshold).
        """
        config = copy.deepcopy(self.network.config)
        model = type(self.network)(config)
        model.load_state_dict(resume.read(self._chosen()).weights)
        finished = FineTuned(self.task, model.to(self.device), self.tokenizer, batch_tokens=self.batch_tokens)  # type: ignore[arg-type]
        if calibrate and self.validation is not None:
            answers = finished.answer(*self.validation)
            finished.task = self.task.calibrated(answers.predictions, self.validation[0])
            setattr(config, KEPT_AS, catalogue.kept(finished.task))
        return finished

    def export(self, finished: FineTuned, folder: Path) -> None:
        """Write a model as a Transformers folder with its tokenizer; its task is in `config.json`."""
        huggingface.write(finished.model, self.tokenizer, folder)
