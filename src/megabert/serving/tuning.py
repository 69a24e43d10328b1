"""A model while it is being taught: the one loop, whose evaluations are the task's own scores."""

from __future__ import annotations

import copy
import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from megabert.formats import huggingface
from megabert.models.bert import plan
from megabert.serving.adapters import adapted, write_adapter
from megabert.serving.crew import GPU_MULTIPLE, Crew, Solo
from megabert.serving.fine_tuned import KEPT_AS, FineTuned, shown_scores
from megabert.serving.options import TuningOptions
from megabert.tasks import catalogue
from megabert.tasks.base import Features, Task
from megabert.tasks.budget import BudgetedBatches, only
from megabert.tasks.rows import GROUP_BATCHES, TrainingRows, padding
from megabert.tokenization.base import Tokenizer
from megabert.training import resume
from megabert.training.batch_sizes import divided_among
from megabert.training.embedding_rows import LookedUp
from megabert.training.evaluate import Evaluation
from megabert.training.loader import Rows, Stack
from megabert.training.loop import Outcome, Trainer
from megabert.training.options import TrainingOptions, rows_of
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
        model: with its whole weights; changed in place.
        train: rows to learn from.
        validation: what checkpoints are compared on, when given.
        options: an update has --global-batch-size rows, or places as `teaching` says; --eval-interval 0 evaluates after
            each pass.
        teaching: the flags of fine-tuning.
        crew: who does it; left out, this process.
        base: what the model was before, for whoever reads an adapter.
        patience: evaluations without a better score after which the run ends; None: it goes on to its end.
        group: put rows of about the same length into one batch.
        batch_tokens: places that go through the model at once in an evaluation.
        prepare: called with the model as it is here: sets recomputation, for example.

    The rest as `Trainer`.

    Raises:
        ValueError: flags that exclude each other.
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
        teaching: TuningOptions,
        crew: Crew | None = None,
        base: str = "",
        patience: int | None = None,
        group: bool = True,
        batch_tokens: int,
        identity: Mapping[str, str] | None = None,
        prepare: Callable[[nn.Module], None] = lambda _: None,
    ):
        self.task = task
        self.kind, self.config = type(model), copy.deepcopy(model.config)
        self.tokenizer = tokenizer
        self.validation = validation
        self.patience = patience
        self.batch_tokens = batch_tokens
        self.scores: dict[int, float] = {}
        self.crew = crew = crew or Solo()
        self.adapt = partial(adapted, options=teaching, base=base) if teaching.lora_rank is not None else None
        if self.adapt is not None:
            _check_adapted(crew)
            self.adapt(model)
        rows, stack, options = _batches(train, options, teaching, crew, tokenizer.pad_id, task, group)
        held_out = TrainingRows(validation[1], batch=1, seed=0, group=0) if validation else None
        rates = partial(_rate, decay=teaching.layer_decay, layers=model.config.num_hidden_layers)
        looked_up = _looked_up(model, train, tokenizer.pad_id)
        step, team = crew.step(model, task.objective, options, rates=rates, prepare=prepare, looked_up=looked_up)
        super().__init__(
            model, task.objective, rows, held_out, options, folder=folder, identity=identity, device=step.device,
            stack=stack, count_tokens=lambda batch: int(batch["attention_mask"].sum()), train_step=step, team=team,
        )  # fmt: skip
        self.network = model

    def _write(self, record: dict[str, Any]) -> None:
        """As `Trainer`, whose rows may be whole batches here: metrics count examples' rows."""
        if isinstance(self.train_rows, BudgetedBatches) and "samples" in record:
            record = record | {"samples": self.train_rows.features_before(record["samples"])}
        super()._write(record)

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
        model = FineTuned(
            self.task, self.network, self.tokenizer, batch_tokens=self.batch_tokens, crew=self.crew,
            engine=self.train_step.engine,
        )  # fmt: skip
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
        finished = FineTuned(
            self.task, self._whole(self.config).to(self.device), self.tokenizer,  # type: ignore[arg-type]
            batch_tokens=self.batch_tokens, crew=self.crew,
        )  # fmt: skip
        if calibrate and self.validation is not None:
            answers = finished.answer(*self.validation)
            finished.task = self.task.calibrated(answers.predictions, self.validation[0])
        return finished

    def _whole(self, config: PreTrainedConfig, adapter: Path | None = None) -> PreTrainedModel:
        """The best weights in a model of one process, an adapter merged into it (and written, where to is said)."""
        model = self.kind(copy.deepcopy(config))
        view = self.adapt(model) if self.adapt is not None else None
        model.load_state_dict(resume.read(self._chosen()).weights)
        if view is None:
            return model
        if adapter is not None:
            write_adapter(view, adapter)
        return view.merge_and_unload()  # type: ignore[operator]

    def export(self, finished: FineTuned, folder: Path) -> None:
        """Write the best weights as a Transformers folder with its tokenizer; the task is in `config.json`.

        An adapter is merged into it, and lies beside it in `adapter/` as well. Of several processes one writes.
        """
        if not self.crew.leads:
            return
        config = copy.deepcopy(self.config)
        setattr(config, KEPT_AS, catalogue.kept(finished.task))
        huggingface.write(self._whole(config, folder.parent / "adapter"), self.tokenizer, folder)


def _check_adapted(crew: Crew) -> None:
    if not crew.whole:
        raise ValueError(
            "--lora-rank goes with processes that each hold the whole model: leave out --tensor-model-parallel-size, "
            "--pipeline-model-parallel-size and --data-parallel-sharding (small matrices need little memory)"
        )


def _rate(name: str, *, decay: float, layers: int) -> float:
    """What a weight's learning rate is of the run's: 1 above the layers, and a `decay` less for each layer below."""
    layer = re.match(plan.LAYER, name)
    if layer is not None:
        return decay ** (layers - int(layer[1]))
    return decay**layers if ".embeddings." in f".{name}" else 1.0


def _looked_up(model: PreTrainedModel, train: Sequence[Features], pad_id: int) -> LookedUp:
    """The words that the training rows have."""
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    seen = np.zeros(embedding.num_embeddings, dtype=bool)
    seen[pad_id] = True
    for one in train:
        seen[one.input_ids] = True
    return LookedUp(embedding, torch.from_numpy(seen.nonzero()[0]))


def _batches(
    train: Sequence[Features], options: TrainingOptions, teaching: TuningOptions, crew: Crew, pad_id: int, task: Task,
    group: bool,
) -> tuple[Rows, Stack, TrainingOptions]:  # fmt: skip
    """The training rows as the loop reads them, how they become a batch, and the options that count in such rows."""
    rows: Rows
    if teaching.batch_tokens is None:
        options = divided_among(options, crew.data)
        rows = TrainingRows(train, batch=rows_of(options), seed=options.seed, group=GROUP_BATCHES if group else 0)
        stack = padding(pad_id, multiple=crew.multiple, length=task.max_seq_length if crew.stages > 1 else 0)
    else:
        options = dataclasses.replace(options, batch_size=1, global_batch_size=_in_update(options, teaching, crew))
        # Lengths decide what a batch holds: they must not depend on how many share the model.
        rows = BudgetedBatches(
            train,
            tokens=teaching.batch_tokens,
            seed=options.seed,
            pad_id=pad_id,
            multiple=math.lcm(GPU_MULTIPLE, crew.multiple),
        )
        stack = only
    interval = options.eval_interval or -(-len(rows) // rows_of(options))
    return rows, stack, dataclasses.replace(options, eval_interval=interval)


def _in_update(options: TrainingOptions, teaching: TuningOptions, crew: Crew) -> int:
    """Budgeted batches in an update."""
    assert teaching.batch_tokens is not None
    if options.global_batch_size is not None or options.rampup_batch_size is not None:
        raise ValueError("--global-batch-size counts rows and --batch-tokens places: say --global-batch-tokens")
    if options.train_samples is not None:
        raise ValueError("--train-samples counts rows and --batch-tokens places: say --train-iters or --epochs")
    if crew.stages > 1:
        raise ValueError(
            "--batch-tokens makes batches of different shapes, and the stages of --pipeline-model-parallel-size take "
            "one: say --batch-size"
        )
    each = teaching.batch_tokens * crew.data
    whole = teaching.global_batch_tokens or each
    if whole % each:
        raise ValueError(
            f"--global-batch-tokens {whole} is not a multiple of {each} (--batch-tokens {teaching.batch_tokens} on "
            f"{crew.data} data-parallel processes); the next one is {-(-whole // each) * each}"
        )
    return whole // teaching.batch_tokens
