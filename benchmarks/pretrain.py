"""Pretraining speed beside Transformers': one process, the same rows and weights, turn by turn.

Ours is the package's own training step (bfloat16 weights, float32 masters). Theirs is `MegatronBertForPreTraining` in a
plain loop under bfloat16 autocast. Both: fused AdamW, clipping at 1.0, the same dropout, labels at the same places.
Counted are real tokens, padding is not. The losses of both at the same weights must agree before anything is timed.
Peak memory is that of a process of its own for each side, which makes the model and a few steps and nothing else.

    python benchmarks/pretrain.py --output bench.json
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
import transformers
from torch import Tensor

from megabert import MegatronBertForPreTraining, runtime
from megabert.config import flag_name, option, parse
from megabert.models.bert.config import make_config
from megabert.models.losses import PretrainingObjective
from megabert.models.options import ModelOptions
from megabert.training.options import TrainingOptions
from megabert.training.step import make_step

VOCABULARY = 30522
LEARNING_RATE = 1e-4
MEMORY_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """Sizes and repetitions; the defaults are the comparison of the README."""

    num_layers: int = option(6, "transformer layers", minimum=1)
    hidden_size: int = option(384, "width of the hidden states", minimum=8)
    num_attention_heads: int = option(6, "attention heads", minimum=1)
    seq_length: int = option(128, "tokens in a row", minimum=16)
    batch_size: int = option(32, "rows in a batch", minimum=1)
    dropout: float = option(0.1, "hidden and attention dropout, on both sides", minimum=0, maximum=0.9)
    short_seq_prob: float = option(0.1, "share of rows that are short, as in Megatron's samples", minimum=0, maximum=1)
    repetitions: int = option(5, "timed turns of each side", minimum=1)
    steps: int = option(3, "training steps in a turn", minimum=1)
    threads: int = option(0, "CPU threads; 0: what PyTorch chooses", minimum=0)
    seed: int = option(1234, "seed of rows and weights")
    output: Path | None = option(None, "write the result as JSON to this file", example="bench.json")
    memory_of: Literal["megabert", "transformers"] | None = option(
        None, "only make some steps of this side, and print the memory of the process in MiB: before, and at its peak"
    )


def make_rows(options: BenchmarkOptions) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """One batch of random words at Megatron's lengths, with 15 % masked: for us, for them, and how many are real."""
    generator = torch.Generator().manual_seed(options.seed)
    batch, length = options.batch_size, options.seq_length
    # Megatron's default for --max-predictions-per-seq: 15 % of the row, rounded up to a multiple of ten.
    masked = -(-length * 15 // 1000) * 10
    ids = torch.randint(1000, VOCABULARY, (batch, length), generator=generator)
    short = torch.rand(batch, generator=generator) < options.short_seq_prob
    lengths = torch.where(short, torch.randint(8, length, (batch,), generator=generator), length)
    places = torch.arange(length).expand(batch, length)
    real = places < lengths[:, None]
    order = torch.rand(batch, length, generator=generator).masked_fill_(~real | (places == 0), 2.0)
    positions = order.argsort(1)[:, :masked]
    counts = (lengths * 0.15).long().clamp(1, masked)
    used = torch.arange(masked) < counts[:, None]
    labels = ids.gather(1, positions).masked_fill_(~used, -100)
    positions = positions.masked_fill(~used, 0)
    everywhere = torch.full_like(ids, -100)
    everywhere[torch.nonzero(used)[:, 0], positions[used]] = labels[used]
    pairs = torch.randint(0, 2, (batch, 1), generator=generator)
    shared = {
        "input_ids": torch.where(everywhere != -100, 103, ids) * real,
        "token_type_ids": ((places >= lengths[:, None] // 2) & real).long(),
        "position_ids": places * real,
    }
    ours = shared | {
        "sample_ids": real.long(), "sample_starts": torch.zeros(batch, 1, dtype=torch.long),
        "masked_positions": positions, "masked_labels": labels, "next_sentence_label": pairs,
    }  # fmt: skip
    theirs = shared | {"attention_mask": real.long(), "labels": everywhere, "next_sentence_label": pairs[:, 0]}
    return ours, theirs, int(lengths.sum())


def make_ours(options: BenchmarkOptions) -> MegatronBertForPreTraining:
    """Our model."""
    torch.manual_seed(options.seed)
    return MegatronBertForPreTraining(make_config(sizes_of(options), VOCABULARY))


def make_theirs(options: BenchmarkOptions) -> torch.nn.Module:
    """Transformers' model, with weights of its own."""
    plain = make_config(sizes_of(options), VOCABULARY).to_dict()
    return transformers.MegatronBertForPreTraining(transformers.MegatronBertConfig.from_dict(plain))


def sizes_of(options: BenchmarkOptions) -> ModelOptions:
    """The network that both sides have."""
    return ModelOptions(
        num_layers=options.num_layers, hidden_size=options.hidden_size,
        num_attention_heads=options.num_attention_heads, max_position_embeddings=options.seq_length,
        hidden_dropout=options.dropout, attention_dropout=options.dropout,
    )  # fmt: skip


def losses_at_the_start(
    ours: torch.nn.Module, theirs: torch.nn.Module, rows: dict[str, Tensor], their_rows: dict[str, Tensor]
) -> tuple[float, float]:
    """Both losses in float32, without dropout, at the same weights.

    Raises:
        ValueError: they differ by more than a thousandth: what follows would compare different work.
    """
    objective = PretrainingObjective("sop")
    with torch.no_grad():
        outputs = ours.eval()(**{key: value for key, value in rows.items() if key not in objective.targets})
        sums, counts = objective.sums(outputs, rows), objective.counts(rows)
        loss = float(sum(sums[name] / counts[name] for name in sums))
        their_loss = float(theirs.eval()(**their_rows).loss)
    if abs(loss - their_loss) > 1e-3 * their_loss:
        raise ValueError(f"the losses at the same weights differ: ours {loss}, theirs {their_loss}")
    return loss, their_loss


def our_step(model: torch.nn.Module, rows: dict[str, Tensor]) -> Callable[[], object]:
    """The package's own training step."""
    training = TrainingOptions(bf16=True, lr=LEARNING_RATE, clip_grad=1.0, weight_decay=0.01)
    train_step = make_step(model, PretrainingObjective("sop"), training)
    return lambda: train_step([rows], LEARNING_RATE)


def their_step(model: torch.nn.Module, rows: dict[str, Tensor]) -> Callable[[], None]:
    """The plain loop's step: autocast, backward, clip, fused AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01, fused=True)
    model.train()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def seconds(step: Callable[[], object], count: int) -> float:
    """Wall-clock seconds of one step, the mean of `count`."""
    start = time.perf_counter()
    for _ in range(count):
        step()
    return (time.perf_counter() - start) / count


def matmul_rate(width: int) -> float:
    """bfloat16 GFLOP/s of the machine at the size of the network's MLP."""
    left = torch.randn(4096, width).to(torch.bfloat16)
    right = torch.randn(4 * width, width).to(torch.bfloat16)
    seconds(lambda: torch.nn.functional.linear(left, right), 3)
    return 2 * left.numel() * 4 * width / seconds(lambda: torch.nn.functional.linear(left, right), 10) / 1e9


def resident_mib() -> float:
    """The largest memory that this process held so far, in MiB."""
    status = Path("/proc/self/status")
    if status.is_file():
        # Not ru_maxrss, which on Linux starts with the size of the process that started this one.
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure_memory(options: BenchmarkOptions) -> dict[str, float]:
    """Make one side's model and three steps in this process, and nothing else."""
    if options.threads:
        torch.set_num_threads(options.threads)
    rows, their_rows, _ = make_rows(options)
    before = resident_mib()
    if options.memory_of == "megabert":
        seconds(our_step(make_ours(options), rows), MEMORY_STEPS)
    else:
        seconds(their_step(make_theirs(options), their_rows), MEMORY_STEPS)
    return {"before": before, "peak": resident_mib()}


def memory_in_a_process(options: BenchmarkOptions, side: str) -> dict[str, float]:
    """`measure_memory` of one side, in a process that has done nothing else.

    Raises:
        ValueError: the process failed.
    """
    flags = {key: value for key, value in asdict(options).items() if key not in ("memory_of", "output")}
    command = [sys.executable, __file__, "--memory-of", side]
    for name, value in flags.items():
        command += [f"--{flag_name(name)}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"measuring the memory of {side} failed: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout.splitlines()[-1])


def run(options: BenchmarkOptions) -> dict[str, object]:
    """Measure; returns what `--output` writes."""
    if options.threads:
        torch.set_num_threads(options.threads)
    memory = {name: memory_in_a_process(options, name) for name in ("megabert", "transformers")}
    rows, their_rows, tokens = make_rows(options)
    ours, theirs = make_ours(options), make_theirs(options)
    theirs.load_state_dict(ours.state_dict())
    loss, their_loss = losses_at_the_start(ours, theirs, rows, their_rows)
    sides = {"megabert": our_step(ours, rows), "transformers": their_step(theirs, their_rows)}
    for step in sides.values():
        seconds(step, 2)
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(options.repetitions):
        for name, step in sides.items():
            rates[name].append(tokens / seconds(step, options.steps))
        print(f"turn {turn + 1}: " + ", ".join(f"{name} {rate[-1]:,.0f}" for name, rate in rates.items()), flush=True)
    pairs = zip(rates["megabert"], rates["transformers"], strict=True)
    return {
        "options": {key: str(value) if isinstance(value, Path) else value for key, value in asdict(options).items()},
        "torch": torch.__version__, "transformers": transformers.__version__, "threads": torch.get_num_threads(),
        "matmul_gflops": round(matmul_rate(options.hidden_size), 1),
        "real_tokens": tokens, "filled": tokens / (options.batch_size * options.seq_length),
        "loss_at_start": {"megabert": loss, "transformers": their_loss},
        "memory_mib": memory,
        "memory_ratio": memory["megabert"]["peak"] / memory["transformers"]["peak"],
        "tokens_per_second": rates,
        "median": {name: statistics.median(rate) for name, rate in rates.items()},
        "ratio_of_each_turn": [ours / theirs for ours, theirs in pairs],
        "ratio": statistics.median(rates["megabert"]) / statistics.median(rates["transformers"]),
    }  # fmt: skip


def show(result: dict) -> str:
    """The result as a table."""
    options = result["options"]
    lines = [
        f"{options['num_layers']} x {options['hidden_size']}, sequence {options['seq_length']}, batch "
        f"{options['batch_size']}, dropout {options['dropout']}, {result['threads']} threads; rows filled to "
        f"{result['filled']:.0%}; bf16 matmul {result['matmul_gflops']:.0f} GFLOP/s",
        f"loss at the start: megabert {result['loss_at_start']['megabert']:.5f}, "
        f"transformers {result['loss_at_start']['transformers']:.5f}",
        f"{'real tokens/s':<16}{'median':>10}{'least':>10}{'most':>10}",
    ]
    for name, rate in result["tokens_per_second"].items():
        lines.append(f"{name:<16}{result['median'][name]:>10,.0f}{min(rate):>10,.0f}{max(rate):>10,.0f}")
    turns = result["ratio_of_each_turn"]
    lines.append(f"{'ratio':<16}{result['ratio']:>10.2f}{min(turns):>10.2f}{max(turns):>10.2f}")
    lines.append(f"{'memory in MiB':<16}{'peak':>10}{'before':>10}")
    for name, memory in result["memory_mib"].items():
        lines.append(f"{name:<16}{memory['peak']:>10,.0f}{memory['before']:>10,.0f}")
    lines.append(f"{'ratio':<16}{result['memory_ratio']:>10.2f}")
    return "\n".join(lines)


def main() -> int:
    """The program; returns the exit status."""
    try:
        options = parse(BenchmarkOptions, sys.argv[1:], program="benchmarks/pretrain.py", description=__doc__ or "")
        if options.memory_of is not None:
            print(json.dumps(measure_memory(options)))
            return 0
        result = run(options)
        if options.output is not None:
            with runtime.atomic_write(options.output) as file:
                file.write(json.dumps(result, indent=2) + "\n")
    except (ValueError, OSError) as error:
        print(f"pretrain: {error}", file=sys.stderr)
        return 2
    print(show(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
