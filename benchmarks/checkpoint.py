"""How long training stands still for a checkpoint: saved behind its back, beside saved while it waits.

One process, or as many as torchrun starts, which then share the weights (`fully_shard`). Training steps on random rows;
the time of a synchronous save; then, with a save in the background, the time that training waited for it, and how much
longer the steps took that ran beside it. Every save is a whole one: weights, both moments, checksums, synced to the
disk.

    python benchmarks/checkpoint.py --folder /scratch --output checkpoint.json
    torchrun --nproc-per-node 2 benchmarks/checkpoint.py --num-layers 6 --hidden-size 384 --num-attention-heads 6
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megabert import MegatronBertForPreTraining
from megabert.config import option, parse
from megabert.models.bert import plan
from megabert.models.bert.config import make_config
from megabert.models.losses import PretrainingObjective
from megabert.models.options import ModelOptions
from megabert.parallel import weights
from megabert.parallel.mesh import Layout, make_mesh
from megabert.training.assembly import Parallel, make_parallel_step
from megabert.training.distributed import World, started
from megabert.training.launch import launched
from megabert.training.loader import collate
from megabert.training.options import TrainingOptions
from megabert.training.saving import Saver
from megabert.training.snapshot import Snapshot, optimizer_tensors, random_state
from megabert.training.step import TrainingStep, make_step
from megabert.training.team import ManyProcesses, OneProcess, Team, sharing_of

VOCABULARY = 30522


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """Sizes and repetitions; the default is the 345M model."""

    num_layers: int = option(24, "transformer layers", minimum=1)
    hidden_size: int = option(1024, "width of the hidden states", minimum=8)
    num_attention_heads: int = option(16, "attention heads", minimum=1)
    seq_length: int = option(512, "tokens in a row", minimum=16)
    batch_size: int = option(4, "rows in a step of each process", minimum=1)
    repetitions: int = option(3, "saves of each kind", minimum=1)
    steps: int = option(2, "plain steps that are timed between two saves", minimum=1)
    folder: Path | None = option(None, "disk to write to; left out, the one of temporary files")
    output: Path | None = option(None, "write the result as JSON to this file", example="checkpoint.json")


def make_batch(options: BenchmarkOptions, seed: int) -> dict[str, torch.Tensor]:
    """Full rows of random words, 15 % of them masked."""
    generator = np.random.default_rng(seed)
    length, masked = options.seq_length, options.seq_length * 15 // 100
    rows = []
    for _ in range(options.batch_size):
        ids = generator.integers(1000, VOCABULARY, length)
        places = np.sort(generator.choice(length, masked, replace=False))
        rows.append({
            "input_ids": ids, "token_type_ids": np.zeros(length, np.int64), "position_ids": np.arange(length),
            "sample_ids": np.ones(length, np.int64), "masked_positions": places, "masked_labels": ids[places],
            "sample_starts": np.zeros(1, np.int64), "next_sentence_label": generator.integers(0, 2, 1),
        })  # fmt: skip
    return collate(rows)


def make_training(options: BenchmarkOptions, world: World | None) -> tuple[TrainingStep, Team, torch.device]:
    """A training step in bfloat16 with float32 masters, on a GPU where there is one."""
    settings = TrainingOptions(bf16=True, batch_size=options.batch_size)
    sizes = ModelOptions(
        num_layers=options.num_layers, hidden_size=options.hidden_size,
        num_attention_heads=options.num_attention_heads, max_position_embeddings=options.seq_length,
    )  # fmt: skip
    rank = world.rank if world else 0
    device = (
        torch.device("cuda", rank % torch.cuda.device_count()) if torch.cuda.is_available() else torch.device("cpu")
    )
    with torch.device("meta"):
        model = MegatronBertForPreTraining(make_config(sizes, VOCABULARY, add_binary_head=True))
    objective = PretrainingObjective("sop")
    if world is None:
        weights.fill(model, model._init_weights, seed=1, device=device)
        return make_step(model, objective, settings), OneProcess(), device
    layout = Layout(world=world.size, data=world.size, sharding="full")
    mesh = make_mesh(layout, device.type)
    step, applied = make_parallel_step(
        model, objective, settings, Parallel(layout, mesh, plan, options.num_layers), device=device,
        initialise=model._init_weights,
    )  # fmt: skip
    return step, ManyProcesses(world, sharing_of(layout, world.rank, mesh, applied.places)), device


def seconds_of(work: Callable[[], Any], device: torch.device) -> float:
    """How long it takes, GPU included."""
    begin = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def measure(options: BenchmarkOptions, world: World | None, folder: Path) -> dict[str, Any]:
    """Time both kinds of saves, turn by turn."""
    step, team, device = make_training(options, world)
    checkpoints = team.checkpoints(folder / "checkpoints", 1)
    checkpoints.prepare()
    batch = make_batch(options, team.data_rank)
    savers = {kind: Saver(step.optimizer, background=kind == "background") for kind in ("waiting", "background")}
    number = 0

    def train() -> None:
        step([batch], 1e-4)

    def save(kind: str) -> None:
        nonlocal number
        number += 1
        at = number
        moment = Snapshot(
            step.weights.state(), optimizer_tensors(step.optimizer, step.weights.masters), random_state(device)
        )
        savers[kind].start(moment, lambda copied: checkpoints.save(at, copied))

    train()
    save("background")  # gets the memory for copies
    savers["background"].finish()
    found: dict[str, list[float]] = {name: [] for name in ("step", "save", "stall", "longer", "written")}
    for _ in range(options.repetitions):
        plain = [seconds_of(train, device) for _ in range(options.steps)]
        found["step"] += plain
        found["save"].append(seconds_of(lambda: save("waiting"), device))
        saver = savers["background"]
        waited, begin = saver.waited, time.perf_counter()
        calling = seconds_of(lambda: save("background"), device)
        beside = [seconds_of(train, device)]
        while saver.running:
            beside.append(seconds_of(train, device))
        found["written"].append(time.perf_counter() - begin)
        saver.finish()
        found["stall"].append(calling + saver.waited - waited)
        found["longer"].append(calling + sum(beside) - len(beside) * statistics.median(plain))
    result = {name: statistics.median(values) for name, values in found.items()}
    newest = checkpoints.named("latest")
    assert newest is not None
    size = sum(path.stat().st_size for path in newest.iterdir())
    return {
        "processes": world.size if world else 1, "device": str(device), "bytes": size, **result,
        "stall_share": result["stall"] / result["save"], "longer_share": result["longer"] / result["save"],
        "all": found, "options": {key: str(value) for key, value in asdict(options).items()},
    }  # fmt: skip


def show(result: dict[str, Any]) -> None:
    """The result as a table."""
    lines = {
        "checkpoint": f"{result['bytes'] / 2**30:.2f} GiB by {result['processes']} process(es) on {result['device']}",
        "training step": f"{result['step']:.2f} s",
        "save while training waits": f"{result['save']:.2f} s",
        "save in the background: training stands still": f"{result['stall']:.3f} s = {result['stall_share']:.1%}",
        "  written after": f"{result['written']:.2f} s",
        "  steps beside it took longer, all together": f"{result['longer']:.2f} s = {result['longer_share']:.1%}",
    }
    for name, value in lines.items():
        print(f"{name:<50} {value}")


def main() -> None:
    """Measure and report."""
    options = parse(BenchmarkOptions, sys.argv[1:], program="checkpoint.py", description=__doc__ or "")
    launch = launched(os.environ)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    job = started(launch, backend=backend, timeout=timedelta(minutes=10)) if launch else nullcontext()
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary, job as world:
        # All processes write to one folder: rank 0's.
        folder = Path(world.gather(temporary)[0]) if world else Path(temporary)
        result = measure(options, world, folder)
        show(result)
        if options.output is not None and (world is None or world.rank == 0):
            options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
