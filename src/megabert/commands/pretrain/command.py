"""The command from its flags to its run, top to bottom."""

from __future__ import annotations

import dataclasses
import os
import re
import time
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from megabert import config as configuration
from megabert.commands.pretrain.beginning import foreign, weights_of, with_pretrained
from megabert.commands.pretrain.parts import alone, bare_model, check_accelerator, layout_for, together
from megabert.commands.pretrain.results import describe, export, test, whole_weights
from megabert.commands.pretrain.rows import identity_of, indexed_data, named_data, stack_for, tokenizer_for
from megabert.config import option
from megabert.data.options import DataOptions
from megabert.models.options import ModelOptions, RecomputeOptions
from megabert.parallel.options import ParallelOptions
from megabert.tokenization.options import TokenizerOptions
from megabert.training.former_flags import FormerFlags, check_former_flags
from megabert.training.options import AcceleratorOptions, TrainingOptions

if TYPE_CHECKING:
    from megabert.data.blend import DataSets, Source
    from megabert.tokenization.base import Tokenizer
    from megabert.training.distributed import World

SUMMARY = "train a Megatron BERT from text or indexed files"


@dataclass(frozen=True, kw_only=True)
class Config(
    TrainingOptions,
    AcceleratorOptions,
    DataOptions,
    TokenizerOptions,
    ModelOptions,
    RecomputeOptions,
    ParallelOptions,
    FormerFlags,
):
    """The command."""

    device: Literal["auto", "cpu", "cuda"] = option("auto", "where to train; auto takes a GPU when there is one")
    workers: int | None = option(
        None, "processes that tokenize text; left out, one for each core", example="8", minimum=1
    )


def run(config: Config) -> None:
    """Make the parts, top to bottom, and hand them to the loop.

    Raises:
        ValueError, OSError: as told by the part that found it.
    """
    from megabert.training.launch import chosen_device, launched

    launch = launched(os.environ)
    if launch is None:
        _train(config, None)
        return

    from megabert.training.distributed import backend_of, started

    backend = backend_of(config.distributed_backend, chosen_device(config.device, launch.local_rank))
    with started(launch, backend=backend, timeout=timedelta(minutes=config.distributed_timeout_minutes)) as world:
        _train(config, world, launch.local_rank)


def _train(config: Config, world: World | None, local_rank: int = 0) -> None:
    """The part of a run that this process has; all of it without a world."""
    _check(config)
    config = with_pretrained(config)
    layout = layout_for(config, world)
    if layout.data > 1:
        from megabert.training.batch_sizes import divided_among

        config = divided_among(config, layout.data)
    folder = config.save or _fresh_folder(config)
    if world is not None:
        folder = Path(world.gather(str(folder))[0])
    config = dataclasses.replace(config, save=folder)
    _check_folder(config, folder)

    from megabert.models.bert.config import check_kernel
    from megabert.parallel.mesh import remarks
    from megabert.training import resume
    from megabert.training.launch import chosen_device
    from megabert.training.loop import Trainer
    from megabert.training.scaler import nothing_learned

    device = chosen_device(config.device, local_rank)
    check_kernel(config.attention_implementation, device, config.attention_dropout)
    check_accelerator(config, device, world.size if world else 1)
    # A --load that is not there is said now, not after the text was tokenized.
    source = foreign(config)
    own = config if source is None else dataclasses.replace(config, load=None)
    checkpoints = resume.Checkpoints(folder / "checkpoints")
    resume.beginning(checkpoints, own.load, say=lambda _: None)

    tokenizer, sources, sets = _data(config, folder, world)
    identity = identity_of(config, tokenizer, sources)
    if world is not None:
        from megabert.training.distributed import agree_to_start

        agree_to_start(world, config, identity, device)
    model = bare_model(config, tokenizer)
    described = list(describe(model, tokenizer, sets, config, device, layout))
    make = partial(alone, device=device) if world is None else partial(together, layout, world, device=device)
    given, told = ({}, []) if source is None or checkpoints.steps() else weights_of(source, config, model, tokenizer)
    objective, step, team = make(model, config, given)
    trainer = Trainer(
        model, objective, sets.train, sets.valid, own, folder=folder, device=device, identity=identity,
        stack=stack_for(config, layout), train_step=step, team=team,
    )  # fmt: skip
    for line in (*told, *described, *remarks(config, layout, world.hosts if world else ())):
        print(line, flush=True)
    outcome = trainer.fit(accepted=partial(_write_settings, config, tokenizer, folder))
    if outcome.step and not trainer.progress.learned:
        print(nothing_learned(outcome.step, trainer.train_step.scaler.scale), flush=True)
    if outcome.finished:
        test(trainer, sets, sources, config, folder)
    if trainer.team.leads:
        export(model, whole_weights(trainer, world), tokenizer, config.pairs != "none", folder)


def _data(config: Config, folder: Path, world: World | None) -> tuple[Tokenizer, dict[str, list[Source]], DataSets]:
    """The tokenizer and the indexed data; rank 0 makes what is not there while the others wait."""
    cache = config.data_cache_path or folder.parent / "cache"
    with world.first() if world else nullcontext():
        named = named_data(config, cache)
        tokenizer = tokenizer_for(config, named["train_data"], folder)
        sources, sets = indexed_data(config, named, tokenizer, cache)
        if world is not None and world.rank == 0 and not (folder / "tokenizer").exists():
            tokenizer.save(folder / "tokenizer")  # where the others look before they train one
    return tokenizer, sources, sets


def _write_settings(config: Config, tokenizer: Tokenizer, folder: Path) -> None:
    """The first that is written into a run folder: the run has begun, or goes on with what is there."""
    tokenizer.save(folder / "tokenizer")
    configuration.save(config, folder / "run.toml", comment=f"megabert pretrain --config {folder / 'run.toml'}")


def _check(config: Config) -> None:
    """What no single flag shows, before any work is done."""
    from megabert.data.blend import parse_split
    from megabert.data.masking import check_share
    from megabert.training.batch_sizes import counts_passes
    from megabert.training.options import check_precision
    from megabert.training.schedule import make_schedule, make_weight_decay

    check_former_flags(
        config, head_width=config.hidden_size / config.num_attention_heads, log_interval=config.log_interval,
        half=config.fp16 or config.bf16,
    )  # fmt: skip
    check_precision(config)
    if not counts_passes(config):  # else the data tells the length; the trainer looks then
        make_schedule(config)
        make_weight_decay(config)
    if not config.train_data:
        raise ValueError("--train-data is missing: name text files, prefixes of indexed data, or builtin")
    parse_split(config.split)
    for data in (config, config.of("valid_data")):
        check_share(data.mask_prob, data.seq_length)
    for flag, length in (("--seq-length", config.seq_length), ("--eval-seq-length", config.eval_seq_length or 0)):
        if length > config.max_position_embeddings:
            raise ValueError(
                f"{flag} {length} is longer than the {config.max_position_embeddings} positions that have an "
                f"embedding; lower it, or say --max-position-embeddings {length}"
            )
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"--num-attention-heads {config.num_attention_heads} does not divide --hidden-size {config.hidden_size}"
        )


def _fresh_folder(config: Config) -> Path:
    name = re.sub(r"[^\w.-]+", "-", Path(config.train_data[-1]).name.split(".")[0]) or "pretrain"
    return Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"


def _check_folder(config: Config, folder: Path) -> None:
    """Refuse a run folder that holds a model of another shape, before anything is written into it."""
    from megabert.training.resume import Checkpoints

    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--save: {folder} is a file, not a folder")
    if not Checkpoints(folder / "checkpoints").steps() or not (folder / "run.toml").is_file():
        return
    before = configuration.load(Config, folder / "run.toml")
    for field in dataclasses.fields(ModelOptions):
        there, here = getattr(before, field.name), getattr(config, field.name)
        if there != here and field.name not in ("attention_implementation", "hidden_dropout", "attention_dropout"):
            raise ValueError(
                f"{folder} belongs to another model: {field.name} is {there} there and {here} here; "
                "choose another --save folder, or give the same value"
            )
