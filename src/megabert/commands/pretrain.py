"""Train a Megatron BERT from text or from indexed token files.

  megabert pretrain --train-data wiki.jsonl --tokenizer bert-large-uncased --num-layers 6 --hidden-size 384 \\
      --num-attention-heads 6 --seq-length 128 --batch-size 32 --train-iters 20000 --save runs/small
  megabert pretrain --config recipes/bert-small-cpu.toml --train-data notes/*.txt

The same command again goes on from the newest checkpoint of its run folder.
"""

from __future__ import annotations

import dataclasses
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from megabert import config as configuration
from megabert.config import option
from megabert.data.options import DataOptions
from megabert.models.options import ModelOptions
from megabert.tokenization.options import TokenizerOptions
from megabert.training.options import TrainingOptions

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from megabert.data.sources import Sets
    from megabert.tokenization.word_piece import WordPiece
    from megabert.training.loop import Outcome, Trainer

SUMMARY = "train a Megatron BERT from text or indexed files"


@dataclass(frozen=True, kw_only=True)
class Config(TrainingOptions, DataOptions, TokenizerOptions, ModelOptions):
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

    from megabert.data import sources
    from megabert.models.losses import PretrainingObjective
    from megabert.training.loop import Trainer

    texts = sources.resolve(config)
    tokenizer = _tokenizer(config, texts, folder)
    cache = config.data_cache_path or folder.parent / "cache"
    sets = sources.open_sets(texts, tokenizer, config, cache=cache, **_amounts(config))
    device = _device(config)
    torch.manual_seed(config.seed)
    model = _model(config, tokenizer)
    trainer = Trainer(
        model, PretrainingObjective(config.pairs), sets.train, sets.valid, config, folder=folder, device=device,
        identity={"tokenizer": tokenizer.fingerprint()[:16], **sets.identity},
    )  # fmt: skip

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder / "tokenizer")
    configuration.save(config, folder / "run.toml", comment=f"megabert pretrain --config {folder / 'run.toml'}")
    print(_describe(model, tokenizer, sets, config, device), flush=True)
    outcome = trainer.fit()
    _finish(trainer, outcome, tokenizer, sets, config, folder)


def _check(config: Config) -> None:
    """What no single flag shows."""
    if not config.train_data:
        raise ValueError("--train-data is missing: name text files, prefixes of indexed data, or builtin")
    if config.seq_length > config.max_position_embeddings:
        raise ValueError(
            f"--seq-length {config.seq_length} is longer than the {config.max_position_embeddings} positions that have an "
            f"embedding; lower it, or say --max-position-embeddings {config.seq_length}"
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
    if not (folder / "checkpoints" / "latest").is_file() or not (folder / "run.toml").is_file():
        return
    before = configuration.load(Config, folder / "run.toml")
    for field in dataclasses.fields(ModelOptions):
        there, here = getattr(before, field.name), getattr(config, field.name)
        if there != here and field.name not in ("attention_implementation", "hidden_dropout", "attention_dropout"):
            raise ValueError(
                f"{folder} belongs to another model: {field.name} is {there} there and {here} here; "
                "choose another --save folder, or give the same value"
            )


def _tokenizer(config: Config, texts: Any, folder: Path) -> WordPiece:
    """The tokenizer that was named, or the run folder's, or one trained on the training text."""
    from megabert.tokenization import named, trainer, word_piece

    tokenizer = named.open_tokenizer(config)
    if tokenizer is not None:
        return tokenizer
    kept = folder / "tokenizer"
    if (kept / "tokenizer.json").is_file():
        return word_piece.load(kept)
    begin = time.monotonic()
    print("no --tokenizer: training a WordPiece vocabulary on the training text", flush=True)
    tokenizer = trainer.train(
        texts.training_texts(config), config.vocab_size, lower_case=named.wanted_lower_case(config) is not False
    )
    kept.mkdir(parents=True, exist_ok=True)
    tokenizer.save(kept)
    print(f"vocabulary: {tokenizer.vocabulary_size:,} entries, {time.monotonic() - begin:.0f} s, {kept}", flush=True)
    return tokenizer


def _amounts(config: Config) -> dict[str, int]:
    """How many rows the run will ask each set for."""
    from megabert.training.options import rows_of, steps_of

    evaluated = config.eval_iters * (config.eval_batch_size or config.batch_size)
    return {"train_rows": steps_of(config) * rows_of(config), "valid_rows": evaluated, "test_rows": evaluated}


def _device(config: Config) -> torch.device:
    import torch

    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: this machine has no GPU that PyTorch can use")
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(config.device)


def _model(config: Config, tokenizer: WordPiece) -> PreTrainedModel:
    from megabert import MegatronBertForPreTraining
    from megabert.models.bert.config import make_config

    paired = config.pairs != "none"
    # Without the sentence-pair head the weights are those of the masked-word model: the folder says so.
    architecture = "MegatronBertForPreTraining" if paired else "MegatronBertForMaskedLM"
    model = MegatronBertForPreTraining(
        make_config(
            config, tokenizer.vocabulary_size, pad_token_id=tokenizer.pad_id, add_binary_head=paired,
            architectures=(architecture,),
        )
    )  # fmt: skip
    if config.checkpoint_activations:
        model.gradient_checkpointing_enable()
    return model


def _describe(
    model: PreTrainedModel, tokenizer: WordPiece, sets: Sets, config: Config, device: torch.device
) -> str:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    precision = "fp16" if config.fp16 else "bf16" if config.bf16 else "fp32"
    return "\n".join(
        [
            f"model: {config.num_layers} layers x {config.hidden_size}, {parameters / 1e6:.1f} M parameters, {precision} "
            f"on {device}, vocabulary of {tokenizer.vocabulary_size:,}",
            *(f"data: {line}" for line in sets.describe()),
            f"run folder: {config.save}",
        ]
    )


def _finish(
    trainer: Trainer, outcome: Outcome, tokenizer: WordPiece, sets: Sets, config: Config, folder: Path
) -> None:
    """After the loop: the model as a Transformers folder, and, when the run is done, the test."""
    from megabert.formats import huggingface

    if outcome.finished and sets.test is not None and config.eval_iters:
        evaluation = trainer.evaluate(sets.test)
        if evaluation is not None:
            record = evaluation.record("test")
            trainer.record(record)
            print("test | " + " | ".join(f"{name.removeprefix('test_')} {value:.4f}" for name, value in record.items()))
    huggingface.write(trainer.export(), tokenizer, folder / "model")
    print(f"model: {folder / 'model'} (a Transformers folder); checkpoints, metrics.jsonl and loss.png: {folder}")
