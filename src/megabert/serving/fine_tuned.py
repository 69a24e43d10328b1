"""A fine-tuned model that answers: its task, its network and its tokenizer, from a run folder or a model's folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from transformers import MegatronBertConfig, PreTrainedModel

from megabert import runtime
from megabert.formats import huggingface
from megabert.formats.checkpoint import KEPT_AS
from megabert.formats.encoder import fill, open_encoder
from megabert.formats.open import look, model_folder
from megabert.models.auto import class_of
from megabert.models.bert.packed import pack
from megabert.parallel.options import ParallelOptions
from megabert.serving.crew import Crew, Solo, crew_for
from megabert.tasks import catalogue
from megabert.tasks.base import Features, Prediction, Task
from megabert.tasks.rows import by_length, enough_tokens, padded
from megabert.tokenization import opening
from megabert.tokenization.base import Tokenizer
from megabert.training.engine import Engine
from megabert.training.objective import Batch

if TYPE_CHECKING:
    from megabert.training.distributed import World

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


class FineTuned:
    """A model and what it was taught.

    Args:
        batch_tokens: places that go through the model at once, padding included.
        crew: the processes that share the model; left out, this one.
        engine: what runs the model; left out, the crew's, which may change the model in place.
    """

    def __init__(
        self,
        task: Task,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        *,
        batch_tokens: int = BATCH_TOKENS,
        crew: Crew | None = None,
        engine: Engine | None = None,
    ):
        self.task = task
        self.model = model
        self.tokenizer = tokenizer
        self.batch_tokens = batch_tokens
        self.crew = crew or Solo(model.device)
        self.engine = engine or self.crew.engine(model, task.objective)

    @classmethod
    def from_path(
        cls, path: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32,
        batch_tokens: int = BATCH_TOKENS, parallel: ParallelOptions | None = None, world: World | None = None,
    ) -> FineTuned:  # fmt: skip
        """Read a model that `finetune` wrote, or a checkpoint of another format that tells its task, such as a `.nemo`.

        Args:
            parallel, world: how the processes of the world share it; left out, this one has all of it.

        Raises:
            ValueError: there is none, it is damaged, it was not fine-tuned, or it does not divide so.
        """
        task, model, tokenizer = open_taught(path, dtype)
        model = model.to(dtype=dtype).eval()  # type: ignore[call-arg]
        here = torch.device(device)
        crew: Crew = Solo(here)
        if parallel is not None:
            crew = crew_for(parallel, world, model.config, longest=task.max_seq_length, device=here)
        if world is None:
            # What many share is moved when it is cut.
            pack(model.to(here))  # type: ignore[arg-type]
        return cls(task, model, tokenizer, batch_tokens=batch_tokens, crew=crew)

    def answer(self, examples: Sequence[Any], features: Sequence[Features] | None = None) -> Answers:
        """Predictions for examples; rows of about the same length go through the model together, each once.

        All processes of the crew call this with the same examples, and have the same answers.

        Args:
            features: of the examples, when they were made before.

        Raises:
            ValueError: an example that the task does not take.
        """
        features = self.task.features(examples, self.tokenizer) if features is None else features
        modes = [module.training for module in self.engine.modules]
        for module in self.engine.modules:
            module.eval()
        try:
            mine = self._run(features)
        finally:
            for module, mode in zip(self.engine.modules, modes, strict=True):
                module.train(mode)
        outputs: list[np.ndarray] = [np.zeros(0)] * len(features)
        found = sorted((one for said in self.crew.gather(mine) for one in said), key=lambda one: one.batch)
        # In the order of the batches, whoever ran them: sums are then the same in every layout.
        totals: dict[str, list[float]] = {}
        for one in found:
            for number, output in zip(one.numbers, one.outputs, strict=True):
                outputs[number] = output
            for name, values in one.sums.items():
                totals[name] = [a + b for a, b in zip(totals.get(name, (0.0, 0.0, 0.0)), values, strict=True)]
        predictions = self.task.decode(outputs, features, examples)
        seen = {name: values for name, values in totals.items() if values[0]}
        return Answers(
            predictions,
            {name: total / count for name, (count, total, _) in seen.items()},
            {name: right / count for name, (count, _, right) in seen.items()},
            {name: int(count) for name, (count, _, _) in seen.items()},
            len({one.example for one in features if one.cut}),
        )

    def _run(self, features: Sequence[Features]) -> list[_Said]:
        """What this process answers for: its share of the batches, unless another one hands them on."""
        enough = enough_tokens(self.batch_tokens, self.model.device.type)
        batches = by_length([one.input_ids.size for one in features], self.batch_tokens, enough=enough)
        rank, ranks = self.crew.share
        said: list[_Said] = []
        for turn in range(-(-len(batches) // ranks)):
            number = turn * ranks + rank
            # A process that has none left runs one that is another's: a shared model needs all of them.
            numbers = batches[number if number < len(batches) else 0]
            chosen = [features[at] for at in numbers]
            labelled = all(one.labels for one in chosen)
            rows = [one.row() if labelled else _without_labels(one) for one in chosen]
            arrays = padded(rows, pad_id=self.tokenizer.pad_id, multiple=self.crew.multiple)
            batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
            targets = {name: batch.pop(name) for name in self.task.objective.targets if name in batch}
            kept: list[_Said] = []
            self.engine.evaluate(batch, partial(self._read, number, numbers, targets if labelled else None, kept))
            if self.crew.keeps and number < len(batches):
                said += kept
        return said

    def _read(
        self, number: int, numbers: list[int], targets: Batch | None, kept: list[_Said], outputs: Any, batch: Batch
    ) -> dict[str, torch.Tensor]:
        sums: dict[str, tuple[float, float, float]] = {}
        if targets is not None:
            objective, device = self.task.objective, batch["input_ids"].device
            batch = {**batch, **{name: target.to(device) for name, target in targets.items()}}
            parts = (objective.counts(batch), objective.sums(outputs, batch), objective.hits(outputs, batch))
            sums = {name: (float(parts[0][name]), float(parts[1][name]), float(parts[2][name])) for name in parts[0]}
        kept.append(_Said(number, numbers, self.task.rows_of(outputs), sums))
        return {}


def open_taught(path: Path, dtype: torch.dtype = torch.float32) -> tuple[Task, PreTrainedModel, Tokenizer]:
    """A model and its task as they lie in a folder or a checkpoint, on the CPU.

    Raises:
        ValueError: as `FineTuned.from_path`.
    """
    return _open_checkpoint(path) if look(path).kind == "foreign" else _open_folder(path, dtype)


def _open_folder(path: Path, dtype: torch.dtype) -> tuple[Task, PreTrainedModel, Tokenizer]:
    """What `finetune` wrote."""
    folder = model_folder(path)
    facts = huggingface.read_facts(folder)
    if KEPT_AS not in facts.config:
        raise ValueError(f"{folder} holds a model that was not fine-tuned for a task; `megabert finetune` does that")
    task = catalogue.restore(facts.config[KEPT_AS], folder)
    if not facts.tokenizer:
        raise ValueError(f"{folder} holds no tokenizer (tokenizer.json or vocab.txt)")
    model, _ = huggingface.load(folder, class_of(task.head), dtype=dtype, device="cpu")
    return task, model, opening.load(folder)


def _open_checkpoint(path: Path) -> tuple[Task, PreTrainedModel, Tokenizer]:
    """What another system wrote."""
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
    return task, model, encoder.tokenizer


class _Said(NamedTuple):
    """What was said about a batch: its number, those of its rows, their outputs, and (count, loss, hits) by term."""

    batch: int
    numbers: list[int]
    outputs: list[np.ndarray]
    sums: dict[str, tuple[float, float, float]]


def _without_labels(one: Features) -> dict[str, np.ndarray]:
    return {name: array for name, array in one.row().items() if name not in one.labels}


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
