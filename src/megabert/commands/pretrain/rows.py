"""The tokenizer and the rows of a pretraining run."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megabert.commands.pretrain.command import Config
    from megabert.data.blend import DataSets, Source
    from megabert.data.sources import Named
    from megabert.parallel.mesh import Layout
    from megabert.tokenization.base import Tokenizer
    from megabert.training.loader import Stack

CUTTING = ("split", "seq_length", "mask_prob", "max_preds_per_seq", "short_seq_prob", "masking", "pack")
"""Options that decide which rows the data gives."""


def named_data(config: Config, cache: Path) -> dict[str, Named]:
    """What each data flag names; the first thing that is not there stops the run here."""
    from megabert.data import sources

    fields = ("train_data", "valid_data", "test_data")
    return {field: sources.resolve(getattr(config, field), field, config, cache) for field in fields}


def tokenizer_for(config: Config, named: Named, folder: Path) -> Tokenizer:
    """The tokenizer that was named, or the run folder's, or one trained on the training text."""
    from megabert.data import sources
    from megabert.tokenization import chosen, opening

    tokenizer = chosen.open_tokenizer(config)
    if tokenizer is not None:
        return tokenizer
    kept = folder / "tokenizer"
    if (kept / "tokenizer.json").is_file():
        return opening.load(kept)
    say = partial(print, flush=True)
    return chosen.train_tokenizer(config, sources.texts_of(named, config), say=say)


def indexed_data(
    config: Config, named: dict[str, Named], tokenizer: Tokenizer, cache: Path
) -> tuple[dict[str, list[Source]], DataSets]:
    """Indexed data for each flag, and the rows made of it."""
    from megabert.data import sources
    from megabert.data.blend import make_sets

    indexed = {
        field: sources.index(what, tokenizer, config.of(field), cache=cache, workers=config.workers) if what else []
        for field, what in named.items()
    }
    sets = make_sets(
        dataclasses.replace(config, data_cache_path=cache), tokenizer, seed=config.seed, train=indexed["train_data"],
        valid=indexed["valid_data"], test=indexed["test_data"],
    )  # fmt: skip
    return indexed, sets


def identity_of(config: Config, tokenizer: Tokenizer, indexed: dict[str, list[Source]]) -> dict[str, str]:
    """What a run is made of: its checkpoints go on with nothing else."""
    from megabert.data import sources

    return {
        "tokenizer": tokenizer.fingerprint()[:16],
        "data": sources.digest(indexed["train_data"]),
        "seed": str(config.seed),
        "pair task": config.pairs,
        **{name.replace("_", " "): str(getattr(config, name)) for name in CUTTING},
    }


def stack_for(config: Config, layout: Layout) -> Stack:
    """How rows become a batch. Full rows have nothing to trim; compiled code and pipelines want one shape."""
    from megabert.data.collate import trimmed
    from megabert.training.loader import stacked

    if config.pack or config.compile or layout.pipeline > 1:
        return stacked
    return partial(trimmed, multiple=math.lcm(8, layout.tensor if layout.sequence_parallel else 1))
