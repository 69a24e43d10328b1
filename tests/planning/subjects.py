"""Runs to plan."""

from __future__ import annotations

from megabert.planning.options import RunOptions
from megabert.planning.subject import Subject


def run_of(world=1, **changes) -> Subject:
    """A small network in rows of 32 tokens."""
    sizes = {
        "num_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 32, "seq_length": 32,
        "vocab_size": 200, "batch_size": 2,
    }  # fmt: skip
    return Subject.of(RunOptions(**{**sizes, **changes}), world)
