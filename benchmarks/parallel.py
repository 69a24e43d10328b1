"""What two processes cost beside two that run alone: step times over gloo, and the bytes that tensor parallelism sends.

Two processes of one thread each. Turn by turn, each trains the whole network by itself (both at once: they share the
machine's memory bandwidth, so this is what two processes can do at best), and then both train it together. With `dp2`
each reads as many rows as alone, so the ideal step takes as long; with `tp2` and `pp2` both share the rows of one, so
it takes half as long. Efficiency is the ideal time over the time measured; a pipeline of 2 stages and m micro-batches
cannot pass m / (m + 1).

    python benchmarks/parallel.py --output bench.json
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import socket
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from megabert import MegatronBertForPreTraining
from megabert.config import option
from megabert.models.bert import plan
from megabert.models.bert.config import make_config
from megabert.models.losses import PretrainingObjective
from megabert.models.options import ModelOptions
from megabert.parallel import vocabulary, weights
from megabert.parallel.mesh import Layout, make_mesh
from megabert.training.assembly import Parallel, make_parallel_step, seed_streams
from megabert.training.options import TrainingOptions
from megabert.training.step import TrainingStep, make_step
from turns import program

VOCABULARY = 30592  # a multiple of 2 x 128, as --make-vocab-size-divisible-by gives
LEARNING_RATE = 1e-4
CPU = torch.device("cpu")
LAYOUTS = {
    "dp2": Layout(world=2, data=2),
    "tp2": Layout(world=2, tensor=2),
    "pp2": Layout(world=2, pipeline=2),
}


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """Sizes and repetitions; the defaults are the figures that are reported."""

    layouts: tuple[Literal["dp2", "tp2", "pp2"], ...] = option(("dp2", "tp2", "pp2"), "what is measured")
    num_layers: int = option(24, "transformer layers, a multiple of 2", minimum=2)
    hidden_size: int = option(512, "width of the hidden states", minimum=8)
    num_attention_heads: int = option(8, "attention heads, a multiple of 2", minimum=2)
    seq_length: int = option(128, "tokens in a row", minimum=16)
    batch_size: int = option(8, "rows in a micro-batch", minimum=1)
    micro_batches: int = option(4, "micro-batches in a step", minimum=1)
    vocabulary_size: int = option(VOCABULARY, "entries of the vocabulary", minimum=64)
    bf16: bool = option(True, "bfloat16 weights with float32 masters; without, float32")
    dropout: float = option(0.1, "hidden and attention dropout", minimum=0, maximum=0.9)
    repetitions: int = option(5, "timed turns of each side", minimum=1)
    steps: int = option(2, "training steps in a turn", minimum=1)
    seed: int = option(1234, "seed of rows and weights")
    output: Path | None = option(None, "write the result as JSON to this file", example="bench.json")

    @property
    def masked(self) -> int:
        """Masked places in a row: Megatron's default, 15 % rounded up to a multiple of ten."""
        return -(-self.seq_length * 15 // 1000) * 10


def make_rows(options: BenchmarkOptions, seed: int) -> dict[str, Tensor]:
    """A micro-batch of full rows of random words."""
    draw = torch.Generator().manual_seed(seed)
    batch, length = options.batch_size, options.seq_length
    ids = torch.randint(5, options.vocabulary_size, (batch, length), generator=draw)
    places = torch.arange(length).expand(batch, length)
    positions = torch.rand(batch, length, generator=draw).argsort(1)[:, : options.masked].sort(1)[0]
    return {
        "input_ids": ids, "token_type_ids": (places >= length // 2).long(), "position_ids": places.contiguous(),
        "sample_ids": torch.ones(batch, length, dtype=torch.long), "sample_starts": torch.zeros(batch, 1).long(),
        "masked_positions": positions, "masked_labels": ids.gather(1, positions),
        "next_sentence_label": torch.randint(0, 2, (batch, 1), generator=draw),
    }  # fmt: skip


def bare_model(options: BenchmarkOptions) -> MegatronBertForPreTraining:
    """The network without memory."""
    sizes = ModelOptions(
        num_layers=options.num_layers, hidden_size=options.hidden_size,
        num_attention_heads=options.num_attention_heads, max_position_embeddings=options.seq_length,
        hidden_dropout=options.dropout, attention_dropout=options.dropout,
    )  # fmt: skip
    with torch.device("meta"):
        return MegatronBertForPreTraining(make_config(sizes, options.vocabulary_size))


def training_options(options: BenchmarkOptions, readers: int) -> TrainingOptions:
    """Of a run with so many data-parallel processes."""
    rows = options.batch_size * options.micro_batches * readers
    return TrainingOptions(
        bf16=options.bf16, lr=LEARNING_RATE, batch_size=options.batch_size, global_batch_size=rows, seed=options.seed
    )


def step_alone(options: BenchmarkOptions) -> TrainingStep:
    """The whole network on this process."""
    model = bare_model(options)
    weights.fill(model, model._init_weights, seed=options.seed, device=CPU)
    torch.manual_seed(options.seed)
    return make_step(model, PretrainingObjective("sop"), training_options(options, 1))


def step_together(options: BenchmarkOptions, layout: Layout) -> TrainingStep:
    """This process's part of a step of both."""
    mesh = make_mesh(layout, "cpu")
    objective = PretrainingObjective("sop")
    if layout.tensor > 1:
        objective = PretrainingObjective(
            "sop",
            word_loss=lambda logits, labels: vocabulary.summed_cross_entropy(
                logits, labels, mesh.get_group("tensor"), options.vocabulary_size
            ),
        )
    model = bare_model(options)
    step, _ = make_parallel_step(
        model, objective, training_options(options, layout.data), Parallel(layout, mesh, plan, options.num_layers),
        device=CPU, initialise=model._init_weights,
    )  # fmt: skip
    seed_streams(options.seed, mesh)
    return step


class Messages(TorchDispatchMode):
    """Counts what goes into collectives and messages: name -> (calls, bytes of this process's tensors)."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, list[int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation; note it when it is one of torch's collectives."""
        if func.namespace == "c10d":
            entry = self.found.setdefault(func._opname.rstrip("_"), [0, 0])
            tensors = [args[0]] if isinstance(args[0], Tensor) else list(args[0])
            entry[0] += 1
            entry[1] += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return func(*args, **(kwargs or {}))


def tensor_parallel_bytes(options: BenchmarkOptions) -> int:
    """What the all-reduces of one process hold in a step of tp2.

    Of each micro-batch: two of [batch, seq, hidden] per layer and direction (Shoeybi et al. 2019, figure 4). The last
    layer is asked for the masked places and the first token only, so three of its four are of [batch, places + 1,
    hidden]. The embedding has one forward, and the head one backward at the masked places. The cross entropy has the
    highest logit, then the sum and the label's logit, in float32. At the end of the step there are two losses and the
    squared norm, in float64.
    """
    size = 2 if options.bf16 else 4
    row = options.batch_size * options.hidden_size * size
    whole, places = row * options.seq_length, row * (options.masked + 1)
    layers = 4 * (options.num_layers - 1) * whole + 3 * places + whole
    ends = whole + row * options.masked
    loss = 3 * 4 * options.batch_size * options.masked
    return options.micro_batches * (layers + ends + loss) + 3 * 8


def seconds(step: TrainingStep, rows: list[dict[str, Tensor]], count: int) -> float:
    """Wall-clock seconds of one step, the mean of `count`, begun by both processes at once."""
    dist.barrier()
    start = time.perf_counter()
    for _ in range(count):
        step(rows, LEARNING_RATE)
    return (time.perf_counter() - start) / count


def measure(options: BenchmarkOptions, name: str) -> dict[str, Any]:
    """One layout, in turns with the processes alone; what this process saw."""
    rank = dist.get_rank()
    layout = LAYOUTS[name]
    seed = options.seed + (1000 * rank if layout.data > 1 else 0)
    rows = [make_rows(options, seed + index) for index in range(options.micro_batches)]
    alone, together = step_alone(options), step_together(options, layout)
    with Messages() as messages:
        together(rows, LEARNING_RATE)
    for step in (alone, together):
        seconds(step, rows, 1)
    times: dict[str, list[float]] = {"alone": [], name: []}
    for turn in range(options.repetitions):
        times["alone"].append(seconds(alone, rows, options.steps))
        times[name].append(seconds(together, rows, options.steps))
        if rank == 0:
            print(
                f"{name}, turn {turn + 1}: alone {times['alone'][-1]:.3f} s, together {times[name][-1]:.3f} s",
                flush=True,
            )
    return {"seconds": times, "messages": messages.found}


def child(rank: int, port: int, options: BenchmarkOptions, results: Any) -> None:
    """One of the two processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for name in options.layouts:
        results.put((rank, name, measure(options, name)))
        dist.barrier()
    dist.destroy_process_group()


def run(options: BenchmarkOptions) -> dict[str, Any]:
    """Measure; returns what `--output` writes.

    Raises:
        ValueError: a process died, or tensor parallelism sends other bytes than its formula says.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=child, args=(rank, port, options, results), daemon=True) for rank in range(2)]
    for process in processes:
        process.start()
    found: dict[tuple[str, int], dict[str, Any]] = {}
    while len(found) < 2 * len(options.layouts):
        try:
            rank, name, result = results.get(timeout=1.0)
        except queue.Empty:
            if any(process.exitcode not in (None, 0) for process in processes):
                raise ValueError("one of the two processes ended before its time; what it said stands above") from None
            continue
        found[name, rank] = result
    for process in processes:
        process.join()
    layouts = {name: summary(options, name, found[name, 0], found[name, 1]) for name in options.layouts}
    return {
        "options": {key: str(value) if isinstance(value, Path) else value for key, value in asdict(options).items()},
        "torch": torch.__version__,
        "layouts": layouts,
    }


def summary(
    options: BenchmarkOptions, name: str, first: Mapping[str, Any], second: Mapping[str, Any]
) -> dict[str, Any]:
    """Both processes' views of a layout as one: a step has ended when the slower one has.

    Raises:
        ValueError: the bytes of tp2 are not those of the formula.
    """
    sides = {
        side: [max(pair) for pair in zip(first["seconds"][side], second["seconds"][side], strict=True)]
        for side in ("alone", name)
    }
    share = 1.0 if name == "dp2" else 0.5
    efficiency = [share * alone / together for alone, together in zip(sides["alone"], sides[name], strict=True)]
    result = {
        "seconds": sides,
        "efficiency_of_each_turn": efficiency,
        "efficiency": statistics.median(efficiency),
        "bound": options.micro_batches / (options.micro_batches + 1) if name == "pp2" else 1.0,
        "messages": {"first": first["messages"], "second": second["messages"]},
    }
    if name == "tp2":
        expected, seen = tensor_parallel_bytes(options), first["messages"]["allreduce"][1]
        if seen != expected or set(first["messages"]) != {"allreduce"}:
            raise ValueError(f"tp2 sends {first['messages']}, but the formula says {expected} bytes of all-reduce")
        result["formula_bytes"] = expected
    return result


def show(result: dict[str, Any]) -> str:
    """The result as a table."""
    options = result["options"]
    lines = [
        f"{options['num_layers']} x {options['hidden_size']}, sequence {options['seq_length']}, "
        f"{options['micro_batches']} micro-batches of {options['batch_size']} rows, dropout {options['dropout']}, "
        f"{'bf16' if options['bf16'] else 'fp32'}; 2 processes, 1 thread each",
        f"{'':<6}{'alone s':>9}{'step s':>9}{'efficiency':>12}{'least':>8}{'most':>8}{'bound':>8}{'sent MB':>10}",
    ]
    for name, found in result["layouts"].items():
        turns, sides = found["efficiency_of_each_turn"], found["seconds"]
        messages = found["messages"]["first"].items()
        sent = sum(size for kind, (_, size) in messages if not kind.startswith("recv")) / 1e6
        lines.append(
            f"{name:<6}{statistics.median(sides['alone']):>9.3f}{statistics.median(sides[name]):>9.3f}"
            f"{found['efficiency']:>12.1%}{min(turns):>8.1%}{max(turns):>8.1%}{found['bound']:>8.1%}{sent:>10.1f}"
        )
        if "formula_bytes" in found:
            lines.append(f"{'':<6}all-reduced bytes are those of the formula: {found['formula_bytes']:,}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(program(BenchmarkOptions, "parallel", __doc__, run, show))
