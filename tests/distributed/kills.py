"""A run that is killed again and again, with kill -9, ends in the weights of the undisturbed one.

    python -m tests.distributed.kills --kills 20 --tensor 2 --pipeline 2

Each time one rank, or all, of a run of four processes are killed at a random moment: while they meet, load, train or
save. The same command starts the run again.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from pathlib import Path

import torch

from megabert.parallel.mesh import Layout
from megabert.training import stored
from megabert.training.resume import Checkpoints, find
from megabert.training.sharded import Pieces

from .jobs import Job, world
from .runs import metrics, together
from .small import PackedRows

LAYOUT = Layout(world=4, tensor=2, data=2)
STEPS = 40
END_SECONDS = 40


class Slow(PackedRows):
    """Rows that take their time, so that there is something to kill."""

    def __getitem__(self, index):
        time.sleep(0.01)
        return super().__getitem__(index)


def train(folder, layout, steps):
    with world(30) as found:
        together(
            found, layout, folder, dropout=0.1, rows=Slow(), train_iters=steps, save_interval=2, eval_interval=10
        ).fit()


def disturb(folder: Path, kills: int, seed: int, layout: Layout, steps: int) -> None:
    """Kill the run so many times."""
    chance = random.Random(seed)
    for number in range(kills):
        job = Job(train, 4, folder, layout, steps)
        metrics_file = folder / "metrics.jsonl"
        before = metrics_file.stat().st_size if metrics_file.exists() else 0
        # Some die early, the others once there was a step more.
        early = chance.random() < 0.2
        end = time.monotonic() + (chance.uniform(0.0, 3.0) if early else 30)
        while time.monotonic() < end and (early or not metrics_file.exists() or metrics_file.stat().st_size <= before):
            time.sleep(0.01)
        time.sleep(0 if early else chance.uniform(0.0, 0.6))
        victims = [0, 1, 2, 3] if chance.random() < 0.3 else [chance.randrange(4)]
        for rank in victims:
            job.kill(rank)
        begin = time.monotonic()
        ended = job.wait(END_SECONDS)
        finished = all(one.status == 0 for rank, one in enumerate(ended) if rank not in victims)
        lines = [line for one in ended for line in one.errors.splitlines() if "error:" in line]
        if len(victims) == 1 and not finished and not early:
            named = f"rank {victims[0]} on {os.uname().nodename}"
            assert len(lines) == 1 and named in lines[0], (victims, lines, [one.errors for one in ended])
        latest = Checkpoints(folder / "checkpoints").named("latest")
        if latest is not None:
            stored.verify(latest)
        place = latest.name if latest is not None else "no checkpoint"
        print(
            f"kill {number + 1}: ranks {victims}, all gone after {time.monotonic() - begin:.1f} s, {place}", flush=True
        )


def finish(folder: Path, layout: Layout, steps: int) -> None:
    """Run to the end, undisturbed."""
    ended = Job(train, 4, folder, layout, steps).wait(180)
    assert all(one.status == 0 for one in ended), "\n".join(one.errors for one in ended)


def compare(whole: Path, parts: Path) -> None:
    """Bitwise: weights, optimizer, random state, metrics."""
    assert metrics(whole) == metrics(parts)
    first, second = (dict(Pieces(find(folder)).whole("")) for folder in (whole, parts))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def run(folder: Path, kills: int, seed: int, layout: Layout = LAYOUT, steps: int = STEPS) -> None:
    """The whole experiment."""
    finish(folder / "whole", layout, steps)
    disturb(folder / "parts", kills, seed, layout, steps)
    finish(folder / "parts", layout, steps)
    compare(folder / "whole", folder / "parts")
    assert find(folder / "parts").name == f"step-{steps:08d}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tensor", type=int, default=2)
    parser.add_argument("--pipeline", type=int, default=1)
    given = parser.parse_args()
    data = 4 // (given.tensor * given.pipeline)
    chosen = Layout(world=4, tensor=given.tensor, pipeline=given.pipeline, data=data)
    print(f"layout: {chosen}", flush=True)
    with tempfile.TemporaryDirectory() as place:
        run(Path(place), given.kills, given.seed, chosen)
    print("the killed run ended in the weights of the undisturbed one")
