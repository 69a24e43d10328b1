"""Megatron-LM's scripts that cut checkpoints anew, on `megabert convert`.

  WORLD_SIZE=2 python tools/merge_mp_partitions.py --model-type BERT --tensor-model-parallel-size 2 \\
      --tokenizer-type BertWordPieceLowerCase --vocab-file bert-vocab.txt --load checkpoints/bert --save merged ...
  python tools/checkpoint_util.py --model-type BERT --load-dir checkpoints/bert --save-dir new \\
      --target-tensor-parallel-size 4 --target-pipeline-parallel-size 2

Every generation is read, whatever its number of ranks; what is written is what v2.0 to v2.6 read, or Megatron-core.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megabert import config as configuration
from megabert.commands import convert, pretrain
from megabert.config import option
from megabert.training.options import other_default

MERGE, RESHARD = "merge_mp_partitions.py", "checkpoint_util.py"
_SIZES = ("num_layers", "hidden_size", "num_attention_heads", "max_position_embeddings", "intermediate_size")
_SAVED = {"megatron": "megatron", "legacy": "megatron", "mcore": "megatron-core", "core": "megatron-core"}


@dataclass(frozen=True, kw_only=True)
class Merge(pretrain.Config):
    """The script: the flags of pretrain_bert.py, and what only the script had."""

    model_type: Literal["BERT", "MNLI", "QQP", "RACE", "GPT"] = option("BERT", "what the checkpoint holds")
    target_pipeline_model_parallel_size: int = option(1, "stages of the new checkpoint", minimum=1)
    num_layers: int | None = other_default(pretrain.Config, "num_layers", None)  # type: ignore[assignment]
    hidden_size: int | None = other_default(pretrain.Config, "hidden_size", None)  # type: ignore[assignment]
    num_attention_heads: int | None = other_default(pretrain.Config, "num_attention_heads", None)  # type: ignore[assignment]
    max_position_embeddings: int | None = other_default(pretrain.Config, "max_position_embeddings", None)  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class Reshard:
    """The script."""

    model_type: Literal["BERT", "GPT", "T5"] = option("BERT", "what the checkpoint holds")
    load_dir: Path | None = option(None, "the checkpoint", aliases=("load",), metavar="FOLDER")
    save_dir: Path | None = option(None, "the new checkpoint", aliases=("save",), metavar="FOLDER")
    target_tensor_parallel_size: int | None = option(
        None, "tensor ranks of the new checkpoint; left out, as before", minimum=1
    )
    target_pipeline_parallel_size: int | None = option(
        None, "stages of the new checkpoint; left out, as before", minimum=1
    )
    loader: str = option("megatron", "the format is found by looking at the checkpoint", hidden=True)
    saver: Literal["megatron", "legacy", "mcore", "core"] = option("megatron", "mcore writes Megatron-core's names")
    true_vocab_size: int | None = option(None, "entries of the vocabulary, less its padding", minimum=1)
    vocab_file: str | None = option(None, "the vocabulary, whose entries are counted")
    megatron_path: str | None = option(None, "no code of Megatron-LM is needed", hidden=True)
    max_queue_size: int = option(50, "tensors are read as they are written", hidden=True)
    checking: bool = option(True, "names and sizes are always checked", hidden=True)


def merge(arguments: Sequence[str]) -> None:
    """Join the tensor ranks of a checkpoint, as `merge_mp_partitions.py` did.

    Raises:
        ValueError, OSError: a flag is missing or contradicts the checkpoint; else as `convert.run`.
    """
    config = configuration.parse(Merge, arguments, program=MERGE, description=__doc__ or "")
    _check_model(config.model_type)
    source, target = _ends("--load", config.load, "--save", config.save)
    _check_sizes(source, config)
    vocabulary = [] if config.vocab_file is None else _cut_to(str(config.vocab_file))
    _convert(source, target, 1, config.target_pipeline_model_parallel_size, "--to", "megatron", *vocabulary)


def reshard(arguments: Sequence[str]) -> None:
    """Cut a checkpoint for other numbers of ranks, as `checkpoint_util.py` and `checkpoint/convert.py` do.

    Raises:
        ValueError, OSError: a flag is missing; else as `convert.run`.
    """
    config = configuration.parse(Reshard, arguments, program=RESHARD, description=__doc__ or "")
    _check_model(config.model_type)
    source, target = _ends("--load-dir", config.load_dir, "--save-dir", config.save_dir)
    more = [] if config.vocab_file is None else _cut_to(config.vocab_file)
    if config.true_vocab_size is not None:
        more = ["--vocab-size", str(config.true_vocab_size)]
    tensor, pipeline = _ranks(source)
    _convert(
        source, target, config.target_tensor_parallel_size or tensor, config.target_pipeline_parallel_size or pipeline,
        "--to", _SAVED[config.saver], *more,
    )  # fmt: skip


def _cut_to(vocabulary: str) -> list[str]:
    # The rows that pad a vocabulary depend on the tensor ranks: they are cut, and added anew as the target needs them.
    return ["--tokenizer", vocabulary, "--unpad-vocab"]


def _ranks(source: Path) -> tuple[int, int]:
    """Tensor ranks and stages of a checkpoint, as the names of its folders tell; 1 and 1 where they do not."""
    ranks = [match for path in (*source.glob("mp_rank_*"), *source.glob("*/mp_rank_*"))
             if (match := re.fullmatch(r"mp_rank_(\d+)(?:_(\d+))?", path.name))]  # fmt: skip
    return tuple(1 + max((int(match[part] or 0) for match in ranks), default=0) for part in (1, 2))  # type: ignore[return-value]


def _check_model(kind: str) -> None:
    if kind in ("GPT", "T5"):
        raise ValueError(f"--model-type {kind} is not here: BERT checkpoints are read, with the heads of its tasks")


def _ends(load_flag: str, load: Path | None, save_flag: str, save: Path | None) -> tuple[Path, Path]:
    for flag, path in ((load_flag, load), (save_flag, save)):
        if path is None:
            raise ValueError(f"{flag} is missing: name a checkpoint folder")
    assert load is not None and save is not None
    return load, save


def _check_sizes(source: Path, config: Merge) -> None:
    """Refuse sizes that are not those of the checkpoint: the ranks would be joined, and the model be another."""
    from megabert.formats.checkpoints import open_checkpoint

    found = open_checkpoint(str(source), heads=config.num_attention_heads).config
    names = {"num_layers": "num_hidden_layers"}
    for field in _SIZES:
        asked, there = getattr(config, field), found.get(names.get(field, field))
        if asked is not None and there is not None and asked != there:
            raise ValueError(f"--{configuration.flag_name(field)}: {asked}, but {source} has {there}")


def _convert(source: Path, target: Path, tensor: int, pipeline: int, *more: str) -> None:
    ranks = ["--tensor-model-parallel-size", str(tensor), "--pipeline-model-parallel-size", str(pipeline)]
    flags = [str(source), str(target), *ranks, *more]
    convert.run(configuration.parse(convert.Config, flags, program="megabert convert"))
