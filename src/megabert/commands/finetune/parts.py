"""What a fine-tuning is made of: the task and its examples, the tokenizer, the model with its head, the identity."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megabert import config as configuration
from megabert.commands.finetune.results import say
from megabert.tasks.options import chosen
from megabert.training.options import BatchOptions, OptimizerOptions

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from transformers import PreTrainedModel

    from megabert.commands.finetune.command import Config
    from megabert.formats.encoder import Encoder
    from megabert.tasks.base import Task
    from megabert.tokenization.base import Tokenizer


_HEAD = ("head_layers", "head_dropout")
"""Fields of a config that belong to the head and are chosen; a head that starts afresh does not inherit them."""


def examples_of(config: Config) -> tuple[Task, dict[str, list]]:
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


def tokenizer_for(config: Config, encoder: Encoder) -> Tokenizer:
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


def check_length(task: Task, encoder: Encoder) -> None:
    """Refuse rows that are longer than the encoder's positions.

    Raises:
        ValueError: they are.
    """
    positions = int(encoder.config["max_position_embeddings"])
    if task.max_seq_length > positions:
        raise ValueError(f"rows of {task.max_seq_length} tokens are longer than the {positions} positions of "
                         f"{encoder.source}; say --max-seq-length {positions} or less")  # fmt: skip


def model_for(config: Config, task: Task, encoder: Encoder) -> PreTrainedModel:
    """The network with the task's head; what starts afresh is told."""
    from transformers import MegatronBertConfig

    from megabert.formats.encoder import fill
    from megabert.models.auto import class_of
    from megabert.serving.fine_tuned import KEPT_AS
    from megabert.tasks import catalogue

    before = encoder.config.get(KEPT_AS) or {}
    same = before.get("task") == task.name and tuple(before.get("labels", ())) == task.labels
    labels = dict(enumerate(task.labels)) if task.labels else {at: f"LABEL_{at}" for at in range(task.outputs)}
    own = ("id2label", "label2id", "num_labels", "problem_type", "architectures", "head_parts", *_HEAD)
    settings = {name: value for name, value in encoder.config.items() if name not in own}
    settings |= {
        "id2label": labels, "label2id": {label: number for number, label in labels.items()},
        "problem_type": task.problem_type, "architectures": [task.head], KEPT_AS: catalogue.kept(task),
    }  # fmt: skip
    keeps = same or (task.head_is_general and encoder.config.get("architectures") == [task.head])
    chosen_head = {name: getattr(config, name) for name in _HEAD if getattr(config, name) is not None}
    settings |= ({name: encoder.config.get(name) for name in _HEAD} if keeps else {}) | chosen_head
    dropouts = {"hidden_dropout_prob": config.hidden_dropout, "attention_probs_dropout_prob": config.attention_dropout}
    settings |= {name: value for name, value in dropouts.items() if value is not None}
    same_layers = keeps and settings.get("head_layers") == encoder.config.get("head_layers")
    parts = list(task.head_parts) if settings.get("head_layers") else None
    settings["head_parts"] = encoder.config.get("head_parts") if same_layers else parts or None
    model = class_of(task.head)(MegatronBertConfig(**settings))
    if config.from_scratch:
        say(["--from-scratch: all weights are random"])
        return model
    fresh, left = fill(model, encoder, head=task.fresh, keep_head=keeps)
    if fresh:
        say([f"fresh, with random weights: {', '.join(fresh)}"])
    if left:
        parts = sorted({".".join(name.split(".")[:2]) for name in left})
        say([f"not needed of {encoder.source}: {', '.join(parts)}"])
    return model


def freeze(config: Config, model: PreTrainedModel) -> None:
    """Leave layers as they are.

    Raises:
        ValueError: more layers than there are, or flags that contradict each other.
    """
    if config.lora_rank is not None and (config.freeze_encoder or config.freeze_layers):
        raise ValueError("--lora-rank leaves all weights of the encoder as they are: leave out --freeze-encoder and "
                         "--freeze-layers")  # fmt: skip
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


def changed(config: Config, folder: Path) -> Iterator[str]:
    """Notices of what a run that goes on does otherwise than it began: its optimizer, its batches, its dropout."""
    try:
        before = configuration.load(type(config), folder / "run.toml")
    except (ValueError, OSError):
        return  # of another version, or not there: nothing is known of it
    names = {field.name for options in (OptimizerOptions, BatchOptions) for field in dataclasses.fields(options)}
    names |= {"class_weights", "hidden_dropout", "attention_dropout"}
    for name in sorted(names - {"num_workers", "eval_batch_size"}):
        there, here = getattr(before, name), getattr(config, name)
        if there != here:
            flag = configuration.flag_name(name)
            yield f"notice: --{flag} is {here} from here on; the run in {folder} was begun with {there}"


def identity_of(config: Config, task: Task, tokenizer: Tokenizer, readers: int) -> dict[str, str]:
    """What a run is made of: its checkpoints go on with nothing else.

    Args:
        readers: processes that read different rows.
    """
    assert config.train_file is not None
    settings = json.dumps(task.settings(), sort_keys=True, ensure_ascii=False)
    if config.batch_tokens is None:
        batch = f"{config.global_batch_size or config.batch_size * readers}"
    else:
        batch = f"{config.global_batch_tokens or config.batch_tokens * readers} places by {config.batch_tokens}"
    adapter = {} if config.lora_rank is None else {"adapter": f"{config.lora_rank} {' '.join(config.lora_modules)}"}
    return {
        "task": config.task, "settings": hashlib.sha256(settings.encode()).hexdigest()[:16],
        "tokenizer": tokenizer.fingerprint()[:16], "seed": str(config.seed),
        "train file": _digest(task.files(config.train_file)),
        "batch size": batch, "group by length": str(config.group_by_length), **adapter,
    }  # fmt: skip


def _digest(files: Iterable[Path]) -> str:
    whole = hashlib.sha256()
    for file in files:
        whole.update(file.read_bytes())
    return whole.hexdigest()[:16]
