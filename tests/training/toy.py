"""A tiny encoder with two heads, its objective and its rows: what training needs, without any other room."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from torch import nn

from megabert.training.options import TrainingOptions

VOCABULARY, LENGTH, PLACES = 23, 12, 3


class Toy(nn.Module):
    """Embeddings, a residual layer with dropout, a tied vocabulary head, and a two-way head."""

    def __init__(self, width: int = 16, dropout: float = 0.1):
        super().__init__()
        self.word_embeddings = nn.Embedding(VOCABULARY, width)
        self.token_type_embeddings = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width)
        self.dense = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.pair = nn.Linear(width, 2)
        self.decoder = nn.Linear(width, VOCABULARY)
        self.decoder.weight = self.word_embeddings.weight
        for table in (self.word_embeddings, self.token_type_embeddings):
            nn.init.normal_(table.weight, std=0.2)

    def forward(self, input_ids, token_type_ids, sample_ids, masked_positions):
        hidden = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)
        hidden = hidden + hidden.roll(1, dims=1)
        hidden = hidden + self.dropout(torch.tanh(self.dense(self.norm(hidden))))
        real = (sample_ids != 0).unsqueeze(-1).to(hidden.dtype)
        hidden = hidden + (hidden * real).mean(dim=1, keepdim=True)
        places = hidden.gather(1, masked_positions.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
        return self.decoder(places), self.pair(hidden[:, 0])


class ToyObjective:
    """`lm` over the masked places, `sop` over the rows."""

    targets = frozenset({"masked_labels", "next_sentence_label"})

    def counts(self, batch):
        return {
            "lm": (batch["masked_labels"] != -100).sum(),
            "sop": (batch["next_sentence_label"] != -100).sum(),
        }

    def sums(self, outputs, batch):
        words, pairs = outputs
        return {
            "lm": nn.functional.cross_entropy(
                words.float().flatten(0, 1), batch["masked_labels"].flatten(), ignore_index=-100, reduction="sum"
            ),
            "sop": nn.functional.cross_entropy(
                pairs.float(), batch["next_sentence_label"].flatten(), ignore_index=-100, reduction="sum"
            ),
        }

    def hits(self, outputs, batch):
        words, pairs = outputs
        return {
            "lm": (words.argmax(-1) == batch["masked_labels"]).sum(),
            "sop": (pairs.argmax(-1) == batch["next_sentence_label"].flatten()).sum(),
        }


class ToyRows:
    """Rows that can be learned: a masked token is the one before it. Row i depends on (seed, i) only."""

    def __init__(self, length: int, seed: int = 0):
        self.length = length
        self.seed = seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        generator = np.random.default_rng((self.seed, index))
        ids = generator.integers(2, VOCABULARY, LENGTH)
        real = int(generator.integers(6, LENGTH + 1))
        count = int(generator.integers(1, PLACES + 1))
        positions, labels = np.zeros(PLACES, np.int64), np.full(PLACES, -100, np.int64)
        positions[:count] = np.sort(generator.choice(np.arange(1, real), count, replace=False))
        labels[:count] = ids[positions[:count] - 1]
        ids[positions[:count]] = 1
        samples = np.zeros(LENGTH, np.int64)
        samples[:real] = 1
        ids[real:] = 0
        return {
            "input_ids": ids,
            "token_type_ids": (np.arange(LENGTH) >= real // 2).astype(np.int64) * samples,
            "sample_ids": samples,
            "masked_positions": positions,
            "masked_labels": labels,
            "next_sentence_label": np.array([int(ids[1] > VOCABULARY // 2)], np.int64),
        }


def toy(dropout: float = 0.1, seed: int = 3) -> Toy:
    torch.manual_seed(seed)
    return Toy(dropout=dropout)


def options(**changes) -> TrainingOptions:
    """Options of a short run; changes win."""
    defaults = {
        "batch_size": 4, "train_iters": 30, "lr": 1e-2, "warmup": 0.1, "log_interval": 5, "eval_interval": 10,
        "eval_iters": 3, "num_workers": 0, "save_interval": None, "tensorboard": False,
    }  # fmt: skip
    return TrainingOptions(**{**defaults, **changes})


def with_changes(base: TrainingOptions, **changes) -> TrainingOptions:
    return dataclasses.replace(base, **changes)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
