"""The same training rows for both sides of `pretrain.py`: ours as the package feeds them, theirs padded."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from megabert import config
from megabert.commands.pretrain import command
from megabert.commands.pretrain.rows import indexed_data, named_data, tokenizer_for
from megabert.training.loader import stacked

FIRST_WORD = 1000
MASK = 103
IGNORED = -100

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Rows:
    """Batches of equal content.

    Attributes:
        ours, theirs: batch by batch the same samples, masks and labels.
        tokens: real ones, of each batch.
        vocabulary: entries that the word table needs.
        filled: share of places that hold a token, here and there.
        seconds: that it takes to make one of our batches from indexed data, in one process; None for random words.
    """

    ours: list[Batch]
    theirs: list[Batch]
    tokens: list[int]
    vocabulary: int
    filled: tuple[float, float]
    seconds: float | None = None


def dense(vocabulary: int, length: int, batch: int, count: int, seed: int) -> Rows:
    """Full rows of random words, 15 % of them masked: no padding anywhere."""
    generator = torch.Generator().manual_seed(seed)
    ours, theirs = [], []
    masked = round(0.15 * length)
    for _ in range(count):
        ids = torch.randint(FIRST_WORD, vocabulary, (batch, length), generator=generator)
        positions = torch.rand(batch, length - 1, generator=generator).argsort(1)[:, :masked].add(1).sort(1).values
        labels = ids.gather(1, positions)
        pairs = torch.randint(0, 2, (batch, 1), generator=generator)
        places = torch.arange(length).expand(batch, length).contiguous()
        shared = {
            "input_ids": ids.scatter(1, positions, MASK),
            "token_type_ids": (places >= length // 2).long(),
            "position_ids": places,
        }
        ours.append(shared | {
            "sample_ids": torch.ones_like(ids), "sample_starts": torch.zeros(batch, 1, dtype=torch.long),
            "masked_positions": positions, "masked_labels": labels, "next_sentence_label": pairs,
        })  # fmt: skip
        theirs.append(shared | {
            "attention_mask": torch.ones_like(ids), "next_sentence_label": pairs[:, 0],
            "labels": torch.full_like(ids, IGNORED).scatter(1, positions, labels),
        })  # fmt: skip
    return Rows(ours, theirs, [batch * length] * count, vocabulary, (1.0, 1.0))


def natural(documents: tuple[str, ...], vocabulary: int, length: int, batch: int, count: int, seed: int) -> Rows:
    """Documents as `megabert pretrain --pack` reads them, and each sample of these rows in a padded row of its own."""
    flags = [
        "--train-data", *documents, "--seq-length", str(length), "--pack", "--split", "1,0,0", "--seed", str(seed),
        "--vocab-size", str(vocabulary),
    ]  # fmt: skip
    settings = config.parse(command.Config, flags, program="pretrain")
    with tempfile.TemporaryDirectory() as name:
        cache = Path(name)
        named = named_data(settings, cache)
        tokenizer = tokenizer_for(settings, named["train_data"], cache)
        _, sets = indexed_data(settings, named, tokenizer, cache)
        sets.train[0]  # finds or makes the map of samples, once a run
        begin = time.perf_counter()
        made = [stacked([sets.train[at * batch + row] for row in range(batch)]) for at in range(count)]
        taken = time.perf_counter() - begin
    ours = [{key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in rows.items()} for rows in made]
    theirs = [padded(rows, tokenizer.pad_id) for rows in ours]
    tokens = [int((rows["sample_ids"] > 0).sum()) for rows in ours]
    places = [sum(rows["input_ids"].numel() for rows in side) for side in (ours, theirs)]
    filled = (sum(tokens) / places[0], sum(tokens) / places[1])
    return Rows(ours, theirs, tokens, tokenizer.vocabulary_size, filled, taken / count)


def padded(rows: Batch, pad: int) -> Batch:
    """Each sample of packed `rows` in a row of its own, padded to their length, with labels at every place."""
    length = rows["input_ids"].shape[1]
    everywhere = torch.full_like(rows["input_ids"], IGNORED)
    real = rows["masked_labels"] != IGNORED
    everywhere[torch.nonzero(real)[:, 0], rows["masked_positions"][real]] = rows["masked_labels"][real]
    found: dict[str, list[Tensor]] = {name: [] for name in ("input_ids", "token_type_ids", "attention_mask", "labels")}
    pairs = []
    for row, samples in enumerate(rows["sample_ids"]):
        for number in range(1, int(samples.max()) + 1):
            places = torch.nonzero(samples == number)[:, 0]
            room = (0, length - len(places))
            for name, source, fill in (
                ("input_ids", rows["input_ids"][row, places], pad),
                ("token_type_ids", rows["token_type_ids"][row, places], 0),
                ("attention_mask", torch.ones_like(places), 0),
                ("labels", everywhere[row, places], IGNORED),
            ):
                found[name].append(torch.nn.functional.pad(source, room, value=fill))
            pairs.append(rows["next_sentence_label"][row, number - 1])
    return {name: torch.stack(values) for name, values in found.items()} | {"next_sentence_label": torch.stack(pairs)}
