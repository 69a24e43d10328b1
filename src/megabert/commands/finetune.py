"""Teach a pretrained encoder a task.

  megabert finetune squad --model out/ --train-file train-v1.1.json --validation-file dev-v1.1.json
  megabert finetune token-classification --model biomegatron.pt --tokenizer vocab.txt --num-attention-heads 16 \\
      --train-file train.tsv --validation-file devel.tsv --test-file test.tsv --save runs/ner
  megabert finetune mnli --model iter_0080000 --tokenizer bert-large-uncased --train-file train.tsv \\
      --validation-file dev_matched.tsv --bf16 --seeds 5

The run folder then holds model/, scores.json and predictions.jsonl; `megabert evaluate` and `megabert predict` take it.
The same command again goes on from the newest checkpoint of its run folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from megabert import config as configuration
from megabert.config import option
from megabert.tasks.options import TaskOptions, chosen
from megabert.training.options import BatchOptions, OptimizerOptions, RunOptions, TrainingOptions, other_default

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from transformers import PreTrainedModel

    from megabert.formats.encoder import Encoder
    from megabert.serving.fine_tuned import FineTuned
    from megabert.tasks.base import Features, Task
    from megabert.tokenization.base import Tokenizer

SUMMARY = "teach a pretrained encoder a task: questions, classes, entities, GLUE"


@dataclass(frozen=True, kw_only=True)
class Config(TaskOptions, TrainingOptions):
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
    epochs: int | None = other_default(BatchOptions, "epochs", 3)
    lr: float = other_default(OptimizerOptions, "lr", 5e-5)
    warmup: float = other_default(OptimizerOptions, "warmup", 0.1)
    log_interval: int = other_default(RunOptions, "log_interval", 50)
    eval_interval: int = option(
        0, "updates between two evaluations on the validation file; 0 evaluates after each pass", minimum=0
    )
    num_workers: int = other_default(BatchOptions, "num_workers", 0)


def run(config: Config) -> None:
    """Train with each seed and tell the scores.

    Raises:
        ValueError, OSError: as told by the part that found it.
    """
    _check(config)
    folder = config.save or Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{config.task}"
    if config.seeds == 1:
        _run_one(dataclasses.replace(config, save=folder), folder)
        return
    found = []
    for seed in range(config.seed, config.seed + config.seeds):
        place = folder / f"seed-{seed}"
        print(f"seed {seed}", flush=True)
        scores = _run_one(dataclasses.replace(config, save=place, seed=seed, seeds=1), place)
        if scores is None:
            return  # stopped; the same command goes on
        found.append(scores)
    _summarise(config, found, folder)


def _check(config: Config) -> None:
    """What no single flag shows, before any work is done."""
    from megabert.tasks import catalogue
    from megabert.training.options import check_precision

    check_precision(config)
    catalogue.make(config.task, chosen(config))
    for name in ("model", "train_file"):
        if getattr(config, name) is None:
            raise ValueError(f"--{configuration.flag_name(name)} is missing")
    if config.patience and config.validation_file is None:
        raise ValueError("--patience needs a --validation-file to compare checkpoints by")
    if config.seeds > 1 and config.validation_file is None and config.test_file is None:
        raise ValueError("--seeds compares scores: a --validation-file or a --test-file is needed")


def _run_one(config: Config, folder: Path) -> dict[str, Any] | None:
    """One training from begin to end: its scores, or None when it was stopped before."""
    import torch

    from megabert.formats.encoder import check_vocabulary, open_encoder
    from megabert.serving.fine_tuned import chosen_device
    from megabert.serving.tuning import Tuning

    # The examples first: what is wrong with them is told before a large checkpoint is read.
    task, read = _read(config)
    encoder = open_encoder(str(config.model), config.num_attention_heads)
    tokenizer = _tokenizer(config, encoder)
    _say(f"note: {note}" for note in encoder.notes)
    _say(f"warning: {warning}" for warning in check_vocabulary(encoder, tokenizer))
    _check_length(task, encoder)
    sets = {name: (examples, task.features(examples, tokenizer)) for name, examples in read.items()}
    device = chosen_device(config.device)
    torch.manual_seed(config.seed)
    model = _model(config, task, encoder)
    _freeze(config, model)
    config = _with_interval(config, len(sets["train"][1]))

    folder.mkdir(parents=True, exist_ok=True)
    _say(_described(config, task, model, sets))
    tuning = Tuning(
        task, model, tokenizer, sets["train"][1], sets.get("validation"), config, folder=folder, device=device,
        patience=config.patience, group=config.group_by_length, batch_tokens=config.eval_batch_tokens,
        identity=_identity(config, task, tokenizer),
    )  # fmt: skip
    # Another run's folder keeps its run.toml: it is written once the checkpoint there was found to fit.
    comment = f"megabert finetune --config {folder / 'run.toml'}"
    outcome = tuning.fit(lambda: configuration.save(config, folder / "run.toml", comment=comment))
    if not outcome.finished:
        return None
    finished = tuning.best(calibrate=config.null_threshold is None)
    tuning.export(finished, folder / "model")
    return _score(config, tuning.best_step(), finished, sets, folder)


def _read(config: Config) -> tuple[Task, dict[str, list]]:
    """The task as the training file shows it, and the examples of all files."""
    from megabert.tasks import catalogue

    task = catalogue.make(config.task, chosen(config))
    files = {"train": config.train_file, "validation": config.validation_file, "test": config.test_file}
    named = {name: path for name, path in files.items() if path is not None}
    read = {"train": task.examples(named.pop("train"))}
    task = task.learned(read["train"])
    # Only now: a label that training never sees is found here.
    read |= {name: task.examples(path) for name, path in named.items()}
    if config.class_weights == "balanced":
        task = task.balanced(read["train"])
    return task, read


def _tokenizer(config: Config, encoder: Encoder) -> Tokenizer:
    """The tokenizer that was named, or the checkpoint's own."""
    from megabert.tokenization import named, opening

    lower_case = None if config.cased is None else not config.cased
    if config.tokenizer is not None:
        return opening.load(named.find(config.tokenizer), lower_case)
    if encoder.tokenizer is None:
        raise ValueError(
            f"{config.model} holds no tokenizer; name the one that it was trained with: --tokenizer vocab.txt"
        )
    if lower_case is not None and lower_case != encoder.tokenizer.lower_case:
        raise ValueError(
            f"--{'' if config.cased else 'no-'}cased contradicts the tokenizer that lies in {config.model}"
        )
    return encoder.tokenizer


def _check_length(task: Task, encoder: Encoder) -> None:
    positions = int(encoder.config["max_position_embeddings"])
    if task.max_seq_length > positions:
        raise ValueError(f"rows of {task.max_seq_length} tokens are longer than the {positions} positions of "
                         f"{encoder.source}; say --max-seq-length {positions} or less")  # fmt: skip


def _model(config: Config, task: Task, encoder: Encoder) -> PreTrainedModel:
    """The network with the task's head; what starts afresh is told."""
    from transformers import MegatronBertConfig

    from megabert.formats.encoder import fill
    from megabert.models.auto import class_of
    from megabert.serving.fine_tuned import KEPT_AS
    from megabert.tasks import catalogue

    before = encoder.config.get(KEPT_AS) or {}
    same = before.get("task") == task.name and tuple(before.get("labels", ())) == task.labels
    labels = dict(enumerate(task.labels)) if task.labels else {at: f"LABEL_{at}" for at in range(task.outputs)}
    settings = {name: value for name, value in encoder.config.items()
                if name not in ("id2label", "label2id", "num_labels", "problem_type", "architectures")}  # fmt: skip
    settings |= {
        "id2label": labels, "label2id": {label: number for number, label in labels.items()},
        "problem_type": task.problem_type, "architectures": [task.head], KEPT_AS: catalogue.kept(task),
    }  # fmt: skip
    model = class_of(task.head)(MegatronBertConfig(**settings))
    if config.from_scratch:
        _say(["--from-scratch: all weights are random"])
        return model
    fresh, left = fill(model, encoder, head=task.fresh, keep_head=same or task.head_is_general)
    if fresh:
        _say([f"fresh, with random weights: {', '.join(fresh)}"])
    if left:
        parts = sorted({".".join(name.split(".")[:2]) for name in left})
        _say([f"not needed of {encoder.source}: {', '.join(parts)}"])
    return model


def _freeze(config: Config, model: PreTrainedModel) -> None:
    """Leave layers as they are."""
    encoder = model.get_submodule("bert")
    layers: Any = encoder.get_submodule("encoder.layer")
    if config.freeze_layers > len(layers):
        raise ValueError(f"--freeze-layers {config.freeze_layers}: the model has {len(layers)} layers")
    if config.freeze_encoder:
        frozen = [encoder]
    elif config.freeze_layers:
        frozen = [encoder.get_submodule("embeddings"), *list(layers)[: config.freeze_layers]]
    else:
        frozen = []
    for module in frozen:
        module.requires_grad_(False)


def _with_interval(config: Config, rows: int) -> Config:
    """With --eval-interval in updates: a pass, where it is 0."""
    from megabert.training.options import rows_of

    return config if config.eval_interval else dataclasses.replace(config, eval_interval=-(-rows // rows_of(config)))


def _identity(config: Config, task: Task, tokenizer: Tokenizer) -> dict[str, str]:
    """What a run is made of: its checkpoints go on with nothing else."""
    assert config.train_file is not None
    settings = json.dumps(task.settings(), sort_keys=True, ensure_ascii=False)
    return {
        "task": config.task, "settings": hashlib.sha256(settings.encode()).hexdigest()[:16],
        "tokenizer": tokenizer.fingerprint()[:16], "seed": str(config.seed),
        "train file": _digest(config.train_file),
        "batch size": str(config.batch_size), "group by length": str(config.group_by_length),
    }  # fmt: skip


def _digest(path: Path) -> str:
    """Of a file, or of all files of a folder."""
    whole = hashlib.sha256()
    for file in sorted(path.rglob("*.txt")) if path.is_dir() else [path]:
        whole.update(file.read_bytes())
    return whole.hexdigest()[:16]


def _described(
    config: Config, task: Task, model: PreTrainedModel, sets: dict[str, tuple[list, list[Features]]]
) -> Iterator[str]:
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    yield f"task: {task.name}, {len(task.labels)} labels; {trained / 1e6:.1f} M weights to train"
    yield f"run folder: {config.save}"
    for name, (examples, features) in sets.items():
        cut = len({one.example for one in features if one.cut})
        told = f"; {cut:,} are cut to {task.max_seq_length} tokens" if cut else ""
        yield f"{name}: {len(examples):,} examples in {len(features):,} rows{told}"


def _score(
    config: Config, step: int, finished: FineTuned, sets: dict[str, tuple[list, list[Features]]], folder: Path
) -> dict[str, Any]:
    """Score the finished model, write scores.json and predictions, and tell the scores."""
    from megabert.serving import fine_tuned

    scores: dict[str, Any] = {"task": config.task, "model": str(config.model), "seed": config.seed, "step": step}
    for name, file in (("validation", "predictions.jsonl"), ("test", "predictions-test.jsonl")):
        if name not in sets:
            continue
        examples, features = sets[name]
        answers = finished.answer(examples, features)
        scores[name] = finished.task.score(answers.predictions, examples)
        scores[f"{name}_details"] = finished.task.details(answers.predictions, examples)
        fine_tuned.write_predictions(answers.predictions, folder / file)
        _say([f"{name}: {fine_tuned.shown_scores(scores[name])}"])
    fine_tuned.write_scores(scores, folder / "scores.json")
    _say([f"model: {folder / 'model'}; scores.json, predictions.jsonl, metrics.jsonl: {folder}"])
    return scores


def _summarise(config: Config, found: list[dict[str, Any]], folder: Path) -> None:
    """Mean and deviation of each score over the seeds."""
    from statistics import mean, stdev

    from megabert.serving import fine_tuned

    summary: dict[str, Any] = {"task": config.task, "model": str(config.model), "seeds": [one["seed"] for one in found]}
    for part in ("validation", "test"):
        if part not in found[0]:
            continue
        values = {name: [one[part][name] for one in found] for name in found[0][part]}
        summary[part] = {
            name: {"mean": mean(each), "deviation": stdev(each), "each": each} for name, each in values.items()
        }
        told = [f"{name} {mean(each):.4g} +- {stdev(each):.2g}" for name, each in values.items() if "nemo" not in name]
        _say([f"{part}, {len(found)} seeds: {', '.join(told)}"])
    fine_tuned.write_scores(summary, folder / "scores.json")


def _say(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, flush=True)
