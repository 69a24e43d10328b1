"""A small network, its rows, and one step of it in a layout: what the checks of every layout share."""

from __future__ import annotations

import functools

import numpy as np
import torch
import torch.distributed as dist
from transformers import MegatronBertConfig

from megabert import MegatronBertForPreTraining
from megabert.models.bert import plan
from megabert.models.losses import PretrainingObjective
from megabert.parallel import weights
from megabert.parallel.mesh import Layout, make_mesh
from megabert.parallel.vocabulary import right_guesses, summed_cross_entropy
from megabert.training.assembly import Parallel, make_parallel_step, seed_streams
from megabert.training.loader import collate
from megabert.training.options import TrainingOptions
from megabert.training.step import make_step

VOCABULARY, LENGTH, PLACES, SAMPLES, LAYERS = 70, 24, 4, 2, 4
CPU = torch.device("cpu")


class PackedRows:
    """Rows of two samples and some padding."""

    def __len__(self):
        return 1000

    def __getitem__(self, index):
        generator = np.random.default_rng(index)
        first, second = int(generator.integers(6, 12)), int(generator.integers(6, 12))
        samples = np.repeat([1, 2, 0], [first, second, LENGTH - first - second])
        ids = np.where(samples > 0, generator.integers(5, VOCABULARY, LENGTH), 0)
        places = np.sort(generator.choice(np.arange(1, first + second), PLACES, replace=False))
        labels = ids[places].copy()
        count = int(generator.integers(1, PLACES + 1))
        places[count:], labels[count:] = 0, -100
        return {
            "input_ids": ids,
            "token_type_ids": (np.arange(LENGTH) >= first).astype(np.int64),
            "position_ids": np.concatenate([np.arange(n) for n in (first, second, LENGTH - first - second)]),
            "sample_ids": samples,
            "masked_positions": places,
            "masked_labels": labels,
            "sample_starts": np.array([0, first]),
            "next_sentence_label": generator.integers(0, 2, SAMPLES),
        }


def configuration(dropout=0.0, **changes):
    return MegatronBertConfig(
        **{
            "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
            "intermediate_size": 64, "max_position_embeddings": LENGTH, "hidden_dropout_prob": dropout,
            "attention_probs_dropout_prob": dropout, "initializer_range": 0.1, **changes,
        }
    )  # fmt: skip


def options(**changes):
    return TrainingOptions(**{"batch_size": 2, "global_batch_size": 8, "lr": 1e-2, "num_workers": 0, **changes})


def bare(dropout=0.0, model=MegatronBertForPreTraining, **changes):
    with torch.device("meta"):
        return model(configuration(dropout, **changes))


def plain_step(dropout=0.0, prepare=None, vocabulary=VOCABULARY, **changes):
    chosen = options(**changes)
    model = bare(dropout, vocab_size=vocabulary)
    weights.fill(model, model._init_weights, seed=chosen.seed, device=CPU)
    if prepare is not None:
        prepare(model)
    return make_step(model, PretrainingObjective("sop"), chosen)


def objective_for(mesh, pair="sop", size=VOCABULARY):
    group = mesh.get_group("tensor")
    return PretrainingObjective(
        pair,
        word_loss=functools.partial(summed_cross_entropy, group=group, vocabulary=size),
        word_hits=functools.partial(right_guesses, group=group, vocabulary=size),
    )


def parallel_step(layout: Layout, dropout=0.0, prepare=None, vocabulary=VOCABULARY, **changes):
    """A step in this layout, and each parameter's place."""
    chosen = options(**changes)
    mesh = make_mesh(layout, "cpu")
    model = bare(dropout, vocab_size=vocabulary)
    if prepare is not None:
        prepare(model)
    step, applied = make_parallel_step(
        model, objective_for(mesh, size=vocabulary), chosen, Parallel(layout, mesh, plan, LAYERS), device=CPU,
        initialise=model._init_weights,
    )  # fmt: skip
    seed_streams(chosen.seed, mesh)
    return step, applied, mesh


def micro_batches(update, layout=None, size=2, rows=8):
    """Update `update` in micro-batches; of a layout, this process's."""
    data, rank = (1, 0) if layout is None else (layout.data, layout.place(dist.get_rank())[1])
    source = PackedRows()
    first = update * rows
    return [
        collate([source[row] for row in range(begin, begin + size)])
        for begin in range(first + rank * size, first + rows, data * size)
    ]


def whole(applied, mesh, layout, name, tensor):
    """The whole tensor that this process has a part of; a copy."""
    return applied.places[name].whole(tensor.detach(), mesh, layout).full_tensor().clone()
