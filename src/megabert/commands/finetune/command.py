"""The command from its flags to its run, top to bottom."""

from __future__ import annotations

import dataclasses
import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from megabert import config as configuration
from megabert.commands.finetune.parts import (
    changed,
    check_length,
    examples_of,
    freeze,
    identity_of,
    model_for,
    tokenizer_for,
)
from megabert.commands.finetune.results import described, say, score, summarise
from megabert.config import option
from megabert.models.options import RecomputeOptions
from megabert.parallel.options import ParallelOptions
from megabert.serving.options import TuningOptions, check_tuning
from megabert.tasks.options import TaskOptions, chosen
from megabert.training.options import (
    BatchOptions,
    OptimizerOptions,
    PrecisionOptions,
    RunOptions,
    TrainingOptions,
    other_default,
)

if TYPE_CHECKING:
    import torch

    from megabert.training.distributed import World

SUMMARY = "teach a pretrained encoder a task: questions, classes, entities, GLUE"


EPOCHS = 3


@dataclass(frozen=True, kw_only=True)
class Config(TaskOptions, TrainingOptions, TuningOptions, RecomputeOptions, ParallelOptions):
    """The command."""

    task: str = option(dataclasses.MISSING, "what to teach: a kind of task, or the name of a data set", positional=True)
    model: str | None = option(
        None, "where to begin: a checkpoint of any format that `convert` reads, a run folder, or a published name",
        metavar="PATH|NAME", example="runs/small",
    )  # fmt: skip
    train_file: Path | None = option(None, "examples to learn from", example="train.tsv")
    validation_file: Path | None = option(
        None, "examples to compare checkpoints by: the best one becomes model/", aliases=("eval-file",),
        example="dev.tsv",
    )  # fmt: skip
    test_file: Path | None = option(None, "examples that the finished model is scored on", example="test.tsv")
    tokenizer: str | None = option(
        None, "a vocab.txt, a tokenizer's folder or a name, where the checkpoint holds none", metavar="PATH|NAME",
        aliases=("vocab-file",), example="vocab.txt",
    )  # fmt: skip
    cased: bool | None = option(None, "keep upper case and accents; left out, as the tokenizer's files say")
    num_attention_heads: int | None = option(
        None, "heads, for a checkpoint that does not tell them", example="16", minimum=1
    )
    config_file: Path | None = option(
        None, "a JSON file with the encoder's sizes (Transformers' config.json, or NeMo's with hidden-size and its "
        "like): it tells the heads, and is compared with the weights", metavar="FILE", aliases=("bert-config",),
        example="config.json",
    )  # fmt: skip
    head_layers: int | None = option(
        None, "a head of so many matrices with ReLU between them, as NeMo's are (they can be written as .nemo); left "
        "out, Transformers' head", minimum=1, maximum=100, example="2",
    )  # fmt: skip
    head_dropout: float | None = option(
        None, "dropout before the head; left out, that of the encoder, for question answering none", minimum=0,
        maximum=0.99, example="0.5",
    )  # fmt: skip
    from_scratch: bool = option(False, "begin with random weights in the shape of --model: what pretraining is worth")
    class_weights: Literal["none", "balanced"] = option(
        "none", "balanced: examples of rare classes count more, examples / (classes x count) as NeMo's weighted_loss"
    )
    freeze_layers: int = option(
        0, "leave the embeddings and this many of the first layers as they are", minimum=0, example="6"
    )
    freeze_encoder: bool = option(False, "leave the whole encoder as it is and train the head only")
    patience: int | None = option(
        None, "stop after this many evaluations without a better score", aliases=("early-stopping-patience",),
        minimum=1, example="3",
    )  # fmt: skip
    seeds: int = option(1, "train so often, from --seed on, and tell mean and deviation of the scores", minimum=1)
    group_by_length: bool = option(True, "put rows of about the same length into one batch: less padding")
    eval_batch_tokens: int = option(
        8192, "places that go through the model at once in an evaluation, padding included", minimum=8
    )
    device: Literal["auto", "cpu", "cuda"] = option("auto", "where to train; auto takes a GPU when there is one")
    batch_size: int = other_default(BatchOptions, "batch_size", 32)
    epochs: int | None = option(
        None, f"length of the run in passes over the training examples; left out, {EPOCHS}, unless --train-iters or "
        "--train-samples says the length; with --train-iters N the run has N updates in each of them", example="5",
        minimum=1,
    )  # fmt: skip
    lr: float = other_default(OptimizerOptions, "lr", 5e-5)
    # Tables are only looked up here: a half copy of them would be rounded and widened again in each update for nothing.
    fp32_embedding: bool = other_default(PrecisionOptions, "fp32_embedding", True)
    warmup: float = other_default(OptimizerOptions, "warmup", 0.1)
    log_interval: int = other_default(RunOptions, "log_interval", 50)
    eval_interval: int = option(
        0, "updates between two evaluations on the validation file; 0 evaluates after each pass", minimum=0
    )
    num_workers: int = other_default(BatchOptions, "num_workers", 0)


def run(config: Config) -> Path:
    """Train with each seed and tell the scores.

    Returns:
        The run folder, the same on all processes; what is in it is written.

    Raises:
        ValueError, OSError: as told by the part that found it.
    """
    _check(config)
    if config.epochs is None and config.train_iters is None and config.train_samples is None:
        config = dataclasses.replace(config, epochs=EPOCHS)
    from megabert.serving.crew import joined

    with joined(config, os.environ, config.device) as (world, device):
        folder = _run_all(config, world, device)
        if world is not None:
            world.gather("")  # the first process writes
        return folder


def _run_all(config: Config, world: World | None, device: torch.device) -> Path:
    """Each seed, one after the other; the run folder."""
    folder = config.save or Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{config.task}"
    if world is not None:
        folder = Path(world.gather(str(folder))[0])
    if config.seeds == 1:
        _run_one(dataclasses.replace(config, save=folder), folder, world, device)
        return folder
    found = []
    for seed in range(config.seed, config.seed + config.seeds):
        place = folder / f"seed-{seed}"
        print(f"seed {seed}", flush=True)
        scores = _run_one(dataclasses.replace(config, save=place, seed=seed, seeds=1), place, world, device)
        if scores is None:
            return folder  # stopped; the same command goes on
        found.append(scores)
    if world is None or world.rank == 0:
        summarise(config, found, folder)
    return folder


def _check(config: Config) -> None:
    """What no single flag shows, before any work is done."""
    from megabert.tasks import catalogue
    from megabert.training.options import check_precision

    check_precision(config)
    check_tuning(config)
    catalogue.make(config.task, chosen(config))
    for name in ("model", "train_file"):
        if getattr(config, name) is None:
            raise ValueError(f"--{configuration.flag_name(name)} is missing")
    if config.patience and config.validation_file is None:
        raise ValueError("--patience needs a --validation-file to compare checkpoints by")
    if config.seeds > 1 and config.validation_file is None and config.test_file is None:
        raise ValueError("--seeds compares scores: a --validation-file or a --test-file is needed")


def _run_one(config: Config, folder: Path, world: World | None, device: torch.device) -> dict[str, Any] | None:
    """One training from begin to end: its scores, or None when it was stopped before."""
    import torch

    from megabert.formats.encoder import check_vocabulary, open_encoder
    from megabert.models.bert.recompute import recomputation_of, set_recomputation
    from megabert.serving.crew import crew_for
    from megabert.serving.tuning import Tuning
    from megabert.training.resume import Checkpoints

    begun = bool(Checkpoints(folder / "checkpoints").steps())
    if config.resume == "never" and begun:
        raise ValueError(f"--resume never: {folder} already holds checkpoints; choose another --save folder, or say "
                         "--resume auto to go on from them")  # fmt: skip
    # The examples first: what is wrong with them is told before a large checkpoint is read.
    task, found = examples_of(config)
    encoder = open_encoder(str(config.model), config.num_attention_heads, config.config_file)
    tokenizer = tokenizer_for(config, encoder)
    say(f"note: {note}" for note in encoder.notes)
    say(f"warning: {warning}" for warning in check_vocabulary(encoder, tokenizer))
    check_length(task, encoder)
    sets = {name: (examples, task.features(examples, tokenizer)) for name, examples in found.items()}
    torch.manual_seed(config.seed)
    model = model_for(config, task, encoder)
    freeze(config, model)
    crew = crew_for(config, world, model.config, longest=task.max_seq_length, device=device)
    identity = identity_of(config, task, tokenizer, crew.data)
    if world is not None:
        from megabert.training.distributed import agree_to_start

        agree_to_start(world, config, identity, device)
    recomputed = recomputation_of(config, model.config.num_hidden_layers // crew.stages)

    folder.mkdir(parents=True, exist_ok=True)
    say(changed(config, folder) if begun else ())
    say(described(config, task, model, sets, crew))
    tuning = Tuning(
        task, model, tokenizer, sets["train"][1], sets.get("validation"), config, folder=folder, teaching=config,
        crew=crew, base=str(config.model), patience=config.patience, group=config.group_by_length,
        batch_tokens=config.eval_batch_tokens, identity=identity,
        prepare=partial(set_recomputation, chosen=recomputed),
    )  # fmt: skip
    # Another run's folder keeps its run.toml: it is written once the checkpoint there was found to fit.
    comment = f"megabert finetune --config {folder / 'run.toml'}"
    outcome = tuning.fit(lambda: configuration.save(config, folder / "run.toml", comment=comment))
    if not outcome.finished:
        return None
    finished = tuning.best(calibrate=config.null_threshold is None)
    tuning.export(finished, folder / "model")
    return score(config, tuning.best_step(), finished, sets, folder)
