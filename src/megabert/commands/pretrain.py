"""Train a Megatron BERT from text or from indexed token files.

  megabert pretrain --train-data wiki.jsonl --tokenizer bert-large-uncased --num-layers 6 --hidden-size 384 \\
      --num-attention-heads 6 --seq-length 128 --batch-size 32 --train-iters 20000 --save runs/small
  megabert pretrain --config recipes/bert-small-cpu.toml --train-data notes/*.txt

The same command again goes on from the newest checkpoint of its run folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from megabert import config as configuration
from megabert.config import option
from megabert.data.options import DataOptions
from megabert.models.options import ModelOptions, RecomputeOptions
from megabert.tokenization.options import TokenizerOptions
from megabert.training.former_flags import FormerFlags, check_former_flags
from megabert.training.options import TrainingOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from megabert import MegatronBertForPreTraining
    from megabert.data.blend import DataSets, Source
    from megabert.data.sources import Named
    from megabert.tokenization.word_piece import WordPiece
    from megabert.training.loop import Trainer

_CUTTING = ("split", "seq_length", "mask_prob", "max_preds_per_seq", "short_seq_prob", "masking", "pack")
"""Options that decide which rows the data gives."""

SUMMARY = "train a Megatron BERT from text or indexed files"


@dataclass(frozen=True, kw_only=True)
class Config(TrainingOptions, DataOptions, TokenizerOptions, ModelOptions, RecomputeOptions, FormerFlags):
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
    _check(config)
    folder = config.save or _fresh_folder(config)
    config = dataclasses.replace(config, save=folder)
    _check_folder(config, folder)

    import torch

    from megabert.data.collate import trimmed
    from megabert.models.bert.config import check_kernel
    from megabert.models.losses import PretrainingObjective
    from megabert.training import resume
    from megabert.training.loader import stacked
    from megabert.training.loop import Trainer
    from megabert.training.scaler import nothing_learned

    device = _device(config)
    check_kernel(config.attention_implementation, device, config.attention_dropout)
    # A --load that is not there is said now, not after the text was tokenized.
    resume.beginning(resume.Checkpoints(folder / "checkpoints"), config.load, say=lambda _: None)

    cache = config.data_cache_path or folder.parent / "cache"
    named = _named(config, cache)
    tokenizer = _tokenizer(config, named["train_data"], folder)
    sources, sets = _data(config, named, tokenizer, cache)
    torch.manual_seed(config.seed)
    model = _model(config, tokenizer)
    trainer = Trainer(
        model, PretrainingObjective(config.pairs), sets.train, sets.valid, config, folder=folder, device=device,
        identity=_identity(config, tokenizer, sources),
        # Full rows have nothing to trim, and compiled code wants one shape.
        stack=stacked if config.pack or config.compile else trimmed,
    )  # fmt: skip

    for line in _describe(model, tokenizer, sets, config, device):
        print(line, flush=True)
    outcome = trainer.fit(accepted=lambda: _write_settings(config, tokenizer, folder))
    if outcome.step and not trainer.progress.learned:
        print(nothing_learned(outcome.step, trainer.train_step.scaler.scale), flush=True)
    if outcome.finished:
        _test(trainer, sets, sources, config, folder)
    _export(model, trainer, tokenizer, config.pairs != "none", folder)


def _write_settings(config: Config, tokenizer: WordPiece, folder: Path) -> None:
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
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--save: {folder} is a file, not a folder")
    if not any((folder / "checkpoints").glob("step-*")) or not (folder / "run.toml").is_file():
        return
    before = configuration.load(Config, folder / "run.toml")
    for field in dataclasses.fields(ModelOptions):
        there, here = getattr(before, field.name), getattr(config, field.name)
        if there != here and field.name not in ("attention_implementation", "hidden_dropout", "attention_dropout"):
            raise ValueError(
                f"{folder} belongs to another model: {field.name} is {there} there and {here} here; "
                "choose another --save folder, or give the same value"
            )


def _named(config: Config, cache: Path) -> dict[str, Named]:
    """What each data flag names; the first thing that is not there stops the run here."""
    from megabert.data import sources

    fields = ("train_data", "valid_data", "test_data")
    return {field: sources.resolve(getattr(config, field), field, config, cache) for field in fields}


def _tokenizer(config: Config, named: Named, folder: Path) -> WordPiece:
    """The tokenizer that was named, or the run folder's, or one trained on the training text."""
    from megabert.data import sources
    from megabert.tokenization import named as named_tokenizers
    from megabert.tokenization import trainer, word_piece

    tokenizer = named_tokenizers.open_tokenizer(config)
    if tokenizer is not None:
        return tokenizer
    kept = folder / "tokenizer"
    if (kept / "tokenizer.json").is_file():
        return word_piece.load(kept)
    begin = time.monotonic()
    print("no --tokenizer: training a WordPiece vocabulary on the training text", flush=True)
    lower_case = named_tokenizers.wanted_lower_case(config) is not False
    tokenizer = trainer.train(sources.texts_of(named, config), config.vocab_size, lower_case=lower_case)
    print(f"vocabulary: {tokenizer.vocabulary_size:,} entries in {time.monotonic() - begin:.0f} s", flush=True)
    return tokenizer


def _data(
    config: Config, named: dict[str, Named], tokenizer: WordPiece, cache: Path
) -> tuple[dict[str, list[Source]], DataSets]:
    """Indexed data for each flag, and the rows made of it."""
    from megabert.data import sources
    from megabert.data.blend import make_sets

    indexed = {
        field: sources.index(what, tokenizer, config.of(field), cache=cache, workers=config.workers) if what else []
        for field, what in named.items()
    }
    sets = make_sets(
        config, tokenizer, seed=config.seed, train=indexed["train_data"], valid=indexed["valid_data"],
        test=indexed["test_data"],
    )  # fmt: skip
    return indexed, sets


def _identity(config: Config, tokenizer: WordPiece, indexed: dict[str, list[Source]]) -> dict[str, str]:
    """What a run is made of: its checkpoints go on with nothing else."""
    from megabert.data import sources

    return {
        "tokenizer": tokenizer.fingerprint()[:16],
        "data": sources.digest(indexed["train_data"]),
        "seed": str(config.seed),
        "pair task": config.pairs,
        **{name.replace("_", " "): str(getattr(config, name)) for name in _CUTTING},
    }


def _device(config: Config) -> torch.device:
    import torch

    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: this machine has no GPU that PyTorch can use")
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(config.device)


def _model(config: Config, tokenizer: WordPiece) -> MegatronBertForPreTraining:
    from megabert import MegatronBertForPreTraining
    from megabert.models.bert.config import make_config
    from megabert.models.bert.recompute import recomputation_of, set_recomputation

    paired = config.pairs != "none"
    model = MegatronBertForPreTraining(
        make_config(config, tokenizer.vocabulary_size, pad_token_id=tokenizer.pad_id, add_binary_head=paired)
    )
    model.config.pair_task = config.pairs  # what the sentence-pair head was asked; `predict` says it
    set_recomputation(model, recomputation_of(config, config.num_layers))
    return model


def _describe(
    model: MegatronBertForPreTraining, tokenizer: WordPiece, sets: DataSets, config: Config, device: torch.device
) -> Iterator[str]:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    precision = "fp16" if config.fp16 else "bf16" if config.bf16 else "fp32"
    yield (
        f"model: {config.num_layers} layers x {config.hidden_size}, {parameters / 1e6:.1f} M parameters, {precision} "
        f"on {device}, vocabulary of {tokenizer.vocabulary_size:,}"
    )
    counts = [f"{name} {len(rows):,}" for name, rows in zip(("train", "valid", "test"), sets, strict=False) if rows]
    yield f"rows in one pass of {config.seq_length} tokens: {', '.join(counts)}"
    fill = getattr(sets.train, "fill", None)
    if fill is not None:
        yield f"packed rows hold tokens in {fill:.1%} of their places"
    yield from sets.notes
    yield f"run folder: {config.save}"


def _test(trainer: Trainer, sets: DataSets, sources: dict[str, list[Source]], config: Config, folder: Path) -> None:
    """Measure the finished model on the documents that training never saw, beside the guess that knows no context."""
    from megabert.data import baseline
    from megabert.training.options import evaluation_rows_of
    from megabert.training.sinks import JsonLines, read_lines

    rows = sets.test if sets.test is not None else sets.valid
    step, identity = trainer.progress.step, _identity_of_test(config, sources)
    for line in read_lines(folder / "metrics.jsonl"):
        if line["step"] == step and line.get("test_identity") == identity:
            return  # the run was finished before, and asks for the same test
    evaluation = trainer.evaluate(rows) if rows is not None and config.eval_iters else None
    if rows is None or evaluation is None:
        return
    record = evaluation.record("test")
    limit = evaluation_rows_of(config)
    record["test_lm_unigram_accuracy"] = baseline.unigram_accuracy(
        baseline.commonest_token(sources["train_data"]), rows, limit
    )
    metrics = JsonLines(folder / "metrics.jsonl", after=step)
    metrics.write({"step": step, **record, "test_identity": identity})
    metrics.close()
    if "test_lm_loss" not in record:
        print(f"test: none of the {min(limit, len(rows))} rows has a masked token", flush=True)
        return
    print(
        f"test: lm loss {record['test_lm_loss']:.4f}, perplexity {record['test_perplexity']:.2f}, masked tokens right: "
        f"{record['test_lm_accuracy']:.1%} (by guessing the commonest one: {record['test_lm_unigram_accuracy']:.1%})",
        flush=True,
    )


def _identity_of_test(config: Config, sources: dict[str, list[Source]]) -> str:
    """A short name for what is asked in a test: the same model gives the same result to it."""
    from megabert.data import sources as data
    from megabert.training.options import evaluation_rows_of

    options = config.of("test_data")
    cutting = [getattr(options, name) for name in _CUTTING]
    digests = [data.digest(part) for part in sources.values()]
    asked = [digests, evaluation_rows_of(config), config.seed, config.pairs, cutting]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:12]


def _export(
    model: MegatronBertForPreTraining, trainer: Trainer, tokenizer: WordPiece, paired: bool, folder: Path
) -> None:
    """Write the weights in fp32, as training keeps them, as a Transformers folder."""
    from megabert import MegatronBertForMaskedLM, MegatronBertForPreTraining
    from megabert.formats import huggingface

    # Without the pair head the weights are those of the masked-word model: the folder says so.
    exported = (MegatronBertForPreTraining if paired else MegatronBertForMaskedLM)(model.config)
    exported.load_state_dict(trainer.train_step.weights.state_dict())
    huggingface.write(exported, tokenizer, folder / "model")
    for setting in huggingface.foreign_settings(exported.config):
        print(f"warning: {folder / 'model'} is for megabert; plain Transformers computes other numbers: {setting}")
    print(
        f"model: {folder / 'model'} (a Transformers folder); metrics.jsonl, loss.png, checkpoints: {folder}", flush=True
    )
