"""Whole runs of a small network in a layout, by the trainer, as `pretrain` would make them."""

from __future__ import annotations

import torch

from megabert.models.bert import plan
from megabert.models.losses import PretrainingObjective
from megabert.parallel.mesh import Layout
from megabert.training.loop import Trainer
from megabert.training.meter import TIMING_FIELDS
from megabert.training.options import TrainingOptions
from megabert.training.sinks import read_lines
from megabert.training.team import ManyProcesses, sharing_of

from .small import PackedRows, bare, parallel_step, plain_step

STEPS = 12


class Few(PackedRows):
    """Rows to evaluate on: not a multiple of anything."""

    def __len__(self):
        return 21

    def __getitem__(self, index):
        return super().__getitem__(10_000 + index)


def settings(**changes):
    return {
        "batch_size": 2, "global_batch_size": 8, "lr": 1e-2, "num_workers": 0, "train_iters": STEPS, "warmup": 0.2,
        "log_interval": 1, "eval_interval": 6, "eval_iters": 9, "save_interval": 4, "tensorboard": False,
        "save_best": False, **changes,
    }  # fmt: skip


def alone(folder, dropout=0.0, said=None, **changes):
    chosen = settings(**changes)
    step = plain_step(dropout, **chosen)
    torch.manual_seed(5)
    return Trainer(
        step.weights.model, PretrainingObjective("sop"), PackedRows(), Few(), TrainingOptions(**chosen), folder=folder,
        train_step=step, say=(said if said is not None else []).append, device=torch.device("cpu"),
    )  # fmt: skip


def together(world, layout: Layout, folder, dropout=0.0, rows=None, **changes):
    chosen = settings(**changes)
    step, applied, mesh = parallel_step(layout, dropout, **chosen)
    aliases = plan.STAGES.tied(bare()) if layout.pipeline > 1 else {}
    team = ManyProcesses(world, sharing_of(layout, world.rank, mesh, applied.places, aliases))
    return Trainer(
        step.weights.model, step.objective, rows or PackedRows(), Few(), TrainingOptions(**chosen), folder=folder,
        train_step=step, team=team, say=print, device=torch.device("cpu"),
    )  # fmt: skip


def metrics(folder):
    return [
        {key: value for key, value in record.items() if key not in TIMING_FIELDS}
        for record in read_lines(folder / "metrics.jsonl")
    ]
