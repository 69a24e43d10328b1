"""From NeMo's settings to the config of `megabert finetune`.

Every setting is either translated, known to change nothing here, or refused when it is not at its default: a run never
trains on something other than what was asked for.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from megabert import config as configuration
from megabert.commands import finetune
from megabert.compat.nemo.defaults import LAYOUT, WANTED
from megabert.compat.nemo.encoder import encoder_of, tensor_ranks
from megabert.compat.nemo.settings import Settings
from megabert.compat.nemo.trainer import place
from megabert.parallel.options import ParallelOptions

SCHEDULES = {
    "WarmupAnnealing": "linear", "SquareRootAnnealing": "square-root", "SquareAnnealing": "square",
    "CosineAnnealing": "cosine", "InverseSquareRootAnnealing": "inverse-square-root",
    "PolynomialDecayAnnealing": "linear", "WarmupPolicy": "constant",
}  # fmt: skip
"""NeMo's schedule -> `--lr-decay-style`."""
OPTIMIZERS = {"adam": "adam", "adamw": "adam", "adam_w": "adam", "fused_adam": "adam", "sgd": "sgd", "lamb": "lamb"}
_SETS = ("train_ds", "validation_ds", "test_ds")
_LONGEST_WARMUP = 0.99

# What may be set to anything: it changes how NeMo works, not what is learned, or stands for what is always so here.
_NO_MATTER = {
    *(f"model.{group}.{name}" for group in (*_SETS, "dataset") for name in ("num_workers", "pin_memory", "use_cache")),
    *(f"model.{group}.{name}" for group in ("validation_ds", "test_ds") for name in ("batch_size", "shuffle")),
    *(f"trainer.{name}" for name in (
        "amp_level", "amp_backend", "accelerator", "strategy", "num_sanity_val_steps", "logger", "benchmark",
        "checkpoint_callback", "enable_checkpointing", "use_distributed_sampler", "replace_sampler_ddp",
        "deterministic", "progress_bar_refresh_rate")),
    "model.dataset.do_lower_case", "model.dataset.num_classes", "model.label_ids", "model.supported_tasks",
    "model.token_classifier.log_softmax", "model.optim.sched.last_epoch", "model.optim.sched.monitor",
    "exp_manager.create_checkpoint_callback", "exp_manager.summary_writer_kwargs",
}  # fmt: skip
_NOTICED = {
    "exp_manager.create_wandb_logger": "Weights & Biases is not written; metrics.jsonl and TensorBoard are",
    "exp_manager.wandb_logger_kwargs": "Weights & Biases is not written",
    "exp_manager.files_to_copy": "no files are copied; run.toml holds what was run",
    "exp_manager.resume_past_end": "a run that has ended stays as it is",
    "model.dataset.ignore_start_end": "[CLS] and [SEP] learn no label here",
    "model.class_labels.class_labels_file": "labels are kept with the model, in config.json and in the archive",
    "model.output_dir": "predictions.jsonl in the run folder holds the predictions",
    "trainer.check_val_every_n_epoch": "each pass ends with an evaluation",
}


class Translated(NamedTuple):
    """A run of `finetune`, and what is to be said before it starts."""

    config: finetune.Config
    notices: list[str]


def translated(tree: Settings, script: Settings, values: Mapping[str, Any], *, start: Path | None = None) -> Translated:
    """The run that a script's settings ask for.

    Args:
        tree: all settings, references resolved.
        script: the script's defaults.
        values: fields of the config that the task decides: `task`, files, its settings, `head_layers`, ...; the names
            of the settings that they were made of are under `read`.
        start: begin with this archive or folder instead of what `language_model` says.

    Raises:
        ValueError: a setting that has no counterpart is not at its default, or is missing.
    """
    values = dict(values)
    read = {"exp_manager.name", *(f"model.{name}" for name in LAYOUT), *values.pop("read")}
    notices: list[str] = []
    folder = run_folder(tree, read)
    found: dict[str, Any] = {"save": folder, **_schedule(tree, read, notices), **_trainer(tree, read, notices)}
    found |= values
    encoder = {"model": str(start)} if start is not None else encoder_of(tree, read, notices, folder)
    if start is not None:
        read.update(path for path, _ in tree.leaves() if path.startswith(("model.language_model", "model.tokenizer")))
    found |= encoder
    _batches(tree, found, notices)
    _check(tree, script, read, notices)
    return Translated(finetune.Config(**found), notices)


def run_folder(tree: Settings, read: set[str]) -> Path:
    """The folder of a run, by exp_manager's rules.

    Raises:
        ValueError: a run shall be resumed where none is.
    """
    names = ("explicit_log_dir", "exp_dir", "version", "use_datetime_version", "resume_if_exists",
             "resume_ignore_no_checkpoint", "create_tensorboard_logger")  # fmt: skip
    read.update(f"exp_manager.{name}" for name in names)
    told = Settings(tree.get("exp_manager") or {})
    resumes = bool(told.get("resume_if_exists"))
    if told.get("explicit_log_dir"):
        folder = Path(told.explicit_log_dir)
    else:
        folder = Path(told.get("exp_dir") or "nemo_experiments") / str(told.get("name") or "default")
        version = told.get("version") or os.environ.get("NEMO_EXPM_VERSION")
        if version is None and not resumes:
            numbered = f"version_{len(list(folder.glob('version_*')))}"
            version = _moment(folder) if told.get("use_datetime_version", True) else numbered
        folder = folder / str(version) if version is not None else folder
    there = _begun(folder)
    if resumes and not there and not told.get("resume_ignore_no_checkpoint"):
        raise ValueError(f"exp_manager.resume_if_exists: {folder} holds no checkpoints; "
                         "exp_manager.resume_ignore_no_checkpoint=true starts anew then")  # fmt: skip
    if there and not resumes:
        raise ValueError(f"{folder} holds a run already: exp_manager.resume_if_exists=true goes on with it; or name "
                         "another folder")  # fmt: skip
    return folder


def _begun(folder: Path) -> bool:
    from megabert.training.resume import Checkpoints

    return bool(Checkpoints(folder / "checkpoints").steps())


def _moment(folder: Path) -> str:
    """A version named by the time; the second run of a second is another one."""
    stamp, number = time.strftime("%Y-%m-%d_%H-%M-%S"), 1
    version = stamp
    while _begun(folder / version):
        number += 1
        version = f"{stamp}_{number}"
    return version


def _trainer(tree: Settings, read: set[str], notices: list[str]) -> dict[str, Any]:
    told = Settings(tree.get("trainer") or {})
    read.update(f"trainer.{name}" for name in (
        "gpus", "devices", "num_nodes", "max_epochs", "max_steps", "accumulate_grad_batches", "gradient_clip_val",
        "precision", "log_every_n_steps", "val_check_interval"))  # fmt: skip
    steps = told.get("max_steps")
    by_steps = steps is not None and steps >= 0
    found: dict[str, Any] = {"train_iters": steps, "epochs": None} if by_steps else {"epochs": told.get("max_epochs")}
    found["clip_grad"] = float(told.get("gradient_clip_val") or 0.0)
    found["log_interval"] = int(told.get("log_every_n_steps") or 50)
    interval = told.get("val_check_interval", 1.0)
    if isinstance(interval, int) and interval > 1:
        found["eval_interval"] = interval
    elif interval != 1.0:
        notices.append(f"trainer.val_check_interval={interval}: each pass ends with an evaluation; a whole number is "
                       "updates between two")  # fmt: skip
    return found | _device(told, notices)


def _device(told: Settings, notices: list[str]) -> dict[str, Any]:
    from megabert.training.launch import chosen_device

    wanted = told.get("gpus") if told.get("devices") is None else told.get("devices")
    on_cpu = wanted in (0, "0", []) or (told.get("accelerator") == "cpu")
    device = "cpu" if on_cpu else chosen_device("auto").type
    if not on_cpu and device == "cpu":
        notices.append("there is no GPU here: the run is on the CPU")
    precision = str(told.get("precision", 32)).split("-")[0]
    if precision not in ("16", "bf16", "32"):
        raise ValueError(f"trainer.precision: {told.precision!r} is not one of 16, bf16, 32")
    if precision == "16" and device == "cpu":
        notices.append("trainer.precision=16 is for GPUs: this run computes in float32")
    return {"device": device, "bf16": precision == "bf16", "fp16": precision == "16" and device == "cuda"}


def processes_of(told: Mapping[str, Any]) -> int:
    """How many GPUs the settings ask for: at least 1."""
    wanted = told.get("gpus") if told.get("devices") is None else told.get("devices")
    if isinstance(wanted, str) and "," in wanted:
        wanted = wanted.split(",")
    count = len(wanted) if isinstance(wanted, list) else int(str(wanted)) if str(wanted).isdecimal() else 1
    return max(1, count) * int(told.get("num_nodes") or 1)


def _batches(tree: Settings, found: dict[str, Any], notices: list[str]) -> None:
    """Rows of an update: as many as all of NeMo's processes would have taken together."""
    told = tree.get("trainer") or {}
    ranks, world = tensor_ranks(found["model"]), place()[1]
    replicas = max(1, processes_of(told) // ranks)
    layout = _layout(tree)
    found |= layout
    if world > 1:
        tensor = found.setdefault("tensor_model_parallel_size", ranks if world % ranks == 0 else 1)
        replicas = max(1, world // (tensor * layout.get("pipeline_model_parallel_size", 1)))
    elif processes_of(told) > 1:
        notices.append(f"{processes_of(told)} processes are asked for: this one makes the same updates alone; torchrun "
                       f"--nproc-per-node {processes_of(told)} starts as many")  # fmt: skip
    found["global_batch_size"] = found["batch_size"] * replicas * int(told.get("accumulate_grad_batches") or 1)


def _layout(tree: Settings) -> dict[str, Any]:
    """What is said of many processes, read as the flags of that name are.

    Raises:
        ValueError: a value that the flag does not take.
    """
    flags = []
    told = {name: tree.find(f"model.{name}") for name in LAYOUT}
    told = {name: value for name, value in told.items() if value is not None}
    for name, value in told.items():
        flag = configuration.flag_name(name)
        flags += [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    found = configuration.parse(ParallelOptions, flags, program="model", description="")
    return {name: getattr(found, name) for name in told}


def _schedule(tree: Settings, read: set[str], notices: list[str]) -> dict[str, Any]:
    told = Settings(tree.find("model.optim") or {})
    told = told.merged(told.pop("args", {}).get("params", {}) if isinstance(told.get("args"), Mapping) else {})
    read.update(path for path, _ in tree.leaves() if path.startswith("model.optim"))
    name = told.get("name")
    if name not in OPTIMIZERS:
        raise ValueError(f"model.optim.name: {name} is not here; one of {', '.join(OPTIMIZERS)} is needed")
    found = {"optimizer": OPTIMIZERS[name], "lr": float(told.lr), "weight_decay": float(told.get("weight_decay") or 0)}
    if name == "adam" and found["weight_decay"]:
        notices.append("model.optim.name=adam: the weight decay is decoupled here, as in adamw")
    if OPTIMIZERS[name] == "adam" and told.get("betas"):
        found["adam_beta1"], found["adam_beta2"] = map(float, told.betas)
    elif "momentum" in told:
        found["sgd_momentum"] = float(told.momentum)
    schedule = told.get("sched")
    if not schedule:
        return {**found, "lr_decay_style": "constant", "warmup": 0.0}
    if schedule.get("name") not in SCHEDULES or schedule.get("reduce_on_plateau"):
        raise ValueError(f"model.optim.sched.name: {schedule.get('name')} is not here; one of {', '.join(SCHEDULES)} "
                         "is needed")  # fmt: skip
    if schedule.get("power") not in (None, 1, 1.0):
        raise ValueError(f"model.optim.sched.power: {schedule.power} is not here; 1.0 is needed")
    found |= {"lr_decay_style": SCHEDULES[schedule.name], "min_lr": float(schedule.get("min_lr") or 0.0)}
    if schedule.get("warmup_steps") is not None:
        return {**found, "lr_warmup_iters": int(schedule.warmup_steps)}
    return {**found, "warmup": min(float(schedule.get("warmup_ratio") or 0.0), _LONGEST_WARMUP)}


def _check(tree: Settings, script: Settings, read: set[str], notices: list[str]) -> None:
    """Refuse, or tell of, what was set and has no counterpart."""
    defaults = dict(script.resolved().leaves())
    for path, value in tree.leaves():
        if path in read or path in _NO_MATTER or any(path.startswith(f"{name}.") for name in read):
            continue
        if value == WANTED:
            raise ValueError(f"{path} is missing: give {path}=...")
        if path in defaults and value == defaults[path]:
            continue
        shown = json.dumps(value, default=str, ensure_ascii=False)
        noticed = _NOTICED.get(path)
        if path.startswith("exp_manager.checkpoint_callback_params"):
            noticed = "the best and the newest checkpoints are kept"
        if noticed is None:
            raise ValueError(f"{path}={shown} has no counterpart here; leave it out")
        notices.append(f"{path}={shown}: {noticed}")


def said(notices: list[str]) -> Iterator[str]:
    """The notices as lines, each once."""
    yield from (f"notice: {notice}" for notice in dict.fromkeys(notices))
