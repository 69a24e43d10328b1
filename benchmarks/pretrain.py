"""Pretraining speed beside Transformers': one run, the same rows, turn by turn.

Ours is the package's own training step (bfloat16 weights, float32 masters). Theirs is `MegatronBertForPreTraining` in a
plain loop under bfloat16 autocast. Both: fused AdamW, clipping at 1.0, the same dropout, labels at the same places.
Counted are real tokens, padding is not. The losses of both at the same weights must agree before anything is timed, in
float32 and in bfloat16. Each side has a process of its own, ours set up as `megabert pretrain` sets itself up
(`runtime.keep_freed_memory`); --equal-memory gives Transformers' process that as well. Peak memory is these processes'.
Natural documents are packed here and padded there; each sample is in both, masked alike. On a GPU (--device cuda)
memory is that of tensors, and clocks are read when the device has finished.

    python benchmarks/pretrain.py --output bench.json
    python benchmarks/pretrain.py --table bench.json        # prints the table of an earlier run in Markdown
    python benchmarks/pretrain.py --cases natural --documents wiki.jsonl abstracts.jsonl.gz
    python benchmarks/pretrain.py --device cuda --cases large natural --batch-size 32 --compile --cuda-graphs
"""

from __future__ import annotations

import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

from megabert import MegatronBertForPreTraining, runtime
from megabert.config import option
from megabert.models.bert import plan
from megabert.models.bert.config import make_config
from megabert.models.losses import PretrainingObjective
from megabert.models.options import ModelOptions
from megabert.training.cuda_graphs import check_cuda_graphs
from megabert.training.fp8 import check_fp8, multiply_in_fp8
from megabert.training.options import AcceleratorOptions, TrainingOptions
from megabert.training.step import make_step
from pretraining_rows import Batch, Rows, dense, natural
from turns import Side, alternate, check_names, program, ratios

VOCABULARY = 30522
LEARNING_RATE = 1e-4
SIDES = ("megabert", "transformers")


@dataclass(frozen=True)
class Case:
    """A network and the rows it is fed.

    Attributes:
        batch: rows of ours; theirs hold the same samples.
        steps: of a turn.
        documents: rows are packed from text, not made of random words.
    """

    layers: int
    hidden: int
    heads: int
    length: int
    batch: int
    steps: int
    documents: bool = False

    def described(self) -> str:
        """In a line."""
        kind = "natural documents" if self.documents else "dense rows"
        return f"{kind}, {self.layers} layers x {self.hidden}, sequence {self.length}, batch {self.batch}"


CASES = {
    "small": Case(layers=6, hidden=384, heads=6, length=128, batch=32, steps=3),
    "large": Case(layers=24, hidden=1024, heads=16, length=512, batch=4, steps=1),
    "natural": Case(layers=6, hidden=384, heads=6, length=512, batch=8, steps=3, documents=True),
}


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions(AcceleratorOptions):
    """What is compared, and how often."""

    device: Literal["cpu", "cuda"] = option("cpu", "where both sides train")
    batch_size: int = option(0, "rows of ours in a batch, in place of the cases' own; 0: theirs", minimum=0)
    compile: bool = option(False, "run our model through torch.compile")

    cases: tuple[str, ...] = option(tuple(CASES), f"what to compare: {', '.join(CASES)}", example="small natural")
    documents: tuple[str, ...] = option(("builtin",), "text for the natural case, as megabert pretrain --train-data")
    dropout: float = option(0.1, "hidden and attention dropout, on both sides", minimum=0, maximum=0.9)
    repetitions: int = option(5, "timed turns of each side", minimum=1)
    start: bool = option(True, "also time the start of megabert pretrain on cached data, up to its first step")
    curves: int = option(0, "instead: train both sides this many steps with three seeds and compare losses", minimum=0)
    threads: int = option(0, "CPU threads; 0: what PyTorch chooses", minimum=0)
    seed: int = option(1234, "seed of rows and weights", minimum=0)
    output: Path | None = option(None, "write the result as JSON to this file", example="bench.json")
    equal_memory: bool = option(False, "let Transformers' process keep freed memory too, as ours does")
    table: Path | None = option(None, "measure nothing: print the table of an earlier --output", example="bench.json")


def rows_of(case: Case, options: BenchmarkOptions, count: int) -> Rows:
    """Batches of a case."""
    if case.documents:
        return natural(options.documents, VOCABULARY, case.length, case.batch, count, options.seed)
    return dense(VOCABULARY, case.length, case.batch, count, options.seed)


def make_model(
    side: str, case: Case, vocabulary: int, options: BenchmarkOptions, dropout: float | None = None
) -> torch.nn.Module:
    """The network of one side, with its own random weights."""
    share = options.dropout if dropout is None else dropout
    sizes = ModelOptions(
        num_layers=case.layers, hidden_size=case.hidden, num_attention_heads=case.heads,
        max_position_embeddings=case.length, hidden_dropout=share, attention_dropout=share,
    )  # fmt: skip
    configuration = make_config(sizes, vocabulary)
    torch.manual_seed(options.seed)
    if side == "megabert":
        return MegatronBertForPreTraining(configuration)
    return transformers.MegatronBertForPreTraining(transformers.MegatronBertConfig.from_dict(configuration.to_dict()))


def losses_at_the_start(ours: torch.nn.Module, theirs: torch.nn.Module, rows: Rows) -> dict[str, list[float]]:
    """Both losses at the same weights without dropout, in float32 and bfloat16.

    Raises:
        ValueError: they differ by more than 1e-5 or 1e-3 of them: what follows would compare different work.
    """
    objective, found = PretrainingObjective("sop"), {}
    for kind, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 1e-3)):
        device = next(ours.parameters()).device
        our_rows, their_rows = here(rows.ours[0], device), here(rows.theirs[0], device)
        with torch.no_grad(), torch.autocast(device.type, kind, enabled=kind != torch.float32):
            inputs = {key: value for key, value in our_rows.items() if key not in objective.targets}
            outputs = ours.eval()(**inputs)
            sums, counts = objective.sums(outputs, our_rows), objective.counts(our_rows)
            loss = float(sum(sums[name] / counts[name] for name in sums))
            their_loss = float(theirs.eval()(**their_rows).loss)
        if abs(loss - their_loss) > tolerance * their_loss:
            raise ValueError(f"{kind}: the losses at the same weights differ: ours {loss}, theirs {their_loss}")
        found[str(kind).removeprefix("torch.")] = [loss, their_loss]
    return found


def here(rows: Batch, device: torch.device) -> Batch:
    """A batch on the device."""
    return {key: value.to(device, non_blocking=True) for key, value in rows.items()}


def make_our_step(model: torch.nn.Module, options: BenchmarkOptions) -> Callable[[Batch], float]:
    """The package's own training step: batch -> the loss before it."""
    training = TrainingOptions(bf16=True, lr=LEARNING_RATE, clip_grad=1.0, weight_decay=0.01, compile=options.compile)
    device = torch.device(options.device)
    if options.fp8:
        multiply_in_fp8(model, plan.LAYER)
    objective = PretrainingObjective("sop")
    train_step = make_step(model, objective, training, device=device, cuda_graphs=options.cuda_graphs)
    return lambda rows: sum(train_step([rows], LEARNING_RATE).losses.values())


def make_their_step(model: torch.nn.Module, device: torch.device) -> Callable[[Batch], torch.Tensor]:
    """The plain loop's step: autocast, backward, clip, fused AdamW; batch -> the loss before it."""
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01, fused=True)

    def step(rows: Batch) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            loss = model(**here(rows, device)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def step_of(side: str, model: torch.nn.Module, options: BenchmarkOptions) -> Callable[[Batch], float | torch.Tensor]:
    """The training step of a side."""
    if side == "megabert":
        return make_our_step(model, options)
    return make_their_step(model, torch.device(options.device))


def finished(device: str) -> None:
    """Wait until the device has nothing more to do."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(step: Callable[[], object], count: int) -> float:
    """Wall-clock seconds of one call, the mean of `count`."""
    start = time.perf_counter()
    for _ in range(count):
        step()
    return (time.perf_counter() - start) / count


def described_device(device: str) -> str:
    """A device in words."""
    return torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU threads"


def matmul_rate(device: str) -> dict[str, float]:
    """bfloat16 GFLOP/s of square matrix products on this device, by size, and their median."""
    sizes = (1024, 2048, 4096) if device == "cpu" else (4096, 8192, 16384)
    rates = {str(size): round(2 * size**3 / seconds_of_product(size, device) / 1e9, 1) for size in sizes}
    return rates | {"median": statistics.median(rates.values())}


def seconds_of_product(size: int, device: str) -> float:
    """Of a square bfloat16 product; the median of five."""
    left, right = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))

    def product() -> None:
        torch.mm(left, right)
        finished(device)

    product()
    return statistics.median(seconds(product, 1) for _ in range(5))


def work(case: Case, rows: Rows) -> float:
    """Floating-point operations of matrix products that a step on the mean batch needs, forward and backward.

    Six for each weight and token; attention's two products over the tokens of the same sample; the vocabulary's product
    at masked places only. What a side computes besides (padding, logits that nobody reads) is not counted.
    """
    tokens = statistics.mean(rows.tokens)
    pairs = statistics.mean(
        float((mask.sum(1).double() ** 2).sum()) for mask in (b["attention_mask"] for b in rows.theirs)
    )
    masked = statistics.mean(float((batch["labels"] != -100).sum()) for batch in rows.theirs)
    layer = 12 * case.hidden**2 * tokens + 2 * case.hidden * pairs
    return 6 * (case.layers * layer + masked * (case.hidden**2 + case.hidden * rows.vocabulary))


def prepare(side: str, case: Case, options: BenchmarkOptions, file: Path) -> Callable[[], float]:
    """In a side's process: what a turn does, all batches of `file` once; it returns the last loss."""
    if side == "megabert" or options.equal_memory:
        runtime.keep_freed_memory()
    rows, vocabulary = torch.load(file, weights_only=True)
    if options.device == "cuda":
        rows = [{key: value.pin_memory() for key, value in batch.items()} for batch in rows]
    step = step_of(side, make_model(side, case, vocabulary, options), options)

    def turn() -> float:
        losses = [step(batch) for batch in rows]
        finished(options.device)
        return float(losses[-1])

    return turn


def case_of(name: str, options: BenchmarkOptions) -> Case:
    """The case of that name, with the batch that was asked for."""
    return replace(CASES[name], batch=options.batch_size) if options.batch_size else CASES[name]


def compare(name: str, options: BenchmarkOptions) -> dict[str, Any]:
    """Measure a case."""
    case = case_of(name, options)
    print(f"{name}: {case.described()}", flush=True)
    rows = rows_of(case, options, case.steps)
    models = [make_model(side, case, rows.vocabulary, options).to(options.device) for side in SIDES]
    models[1].load_state_dict(models[0].state_dict())
    start = losses_at_the_start(*models, rows)
    del models
    torch.cuda.empty_cache()
    tokens = sum(rows.tokens)

    def show(number: int, seconds: dict[str, float]) -> None:
        rates = ", ".join(f"{side} {tokens / taken:,.0f}" for side, taken in seconds.items())
        print(f"  turn {number}: {rates} tokens/s", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        sides = {}
        for side, batches in zip(SIDES, (rows.ours, rows.theirs), strict=True):
            file = Path(folder) / side
            torch.save((batches, rows.vocabulary), file)
            sides[side] = Side(prepare, side, case, options, file, threads=torch.get_num_threads())
        # The optimizer's state is made in the first step, and the memory of a whole step only then is what it stays.
        seconds, _ = alternate(sides, options.repetitions, show, warming=2)
    middle = {side: tokens / statistics.median(times) for side, times in seconds.items()}
    per_token = work(case, rows) / statistics.mean(rows.tokens)
    memory = {side: one.peak_mib for side, one in sides.items()}
    compared = ratios(seconds["megabert"], seconds["transformers"])
    step_seconds = statistics.median(seconds["megabert"]) / case.steps
    return {
        "case": asdict(case) | {"described": case.described(), "vocabulary": rows.vocabulary},
        "filled": dict(zip(SIDES, rows.filled, strict=True)), "loss_at_start": start,
        "memory_mib": memory, "memory_ratio": memory["megabert"] / memory["transformers"],
        "tokens_per_second": {side: [tokens / taken for taken in times] for side, times in seconds.items()},
        "median": middle, "ratio": compared["ratio"], "ratio_of_each_turn": compared["of_each_round"],
        "useful_gflops": {side: rate * per_token / 1e9 for side, rate in middle.items()},
        "loading_share": None if rows.seconds is None else rows.seconds / step_seconds,
    }  # fmt: skip


def time_of_start(options: BenchmarkOptions) -> float:
    """Seconds from `megabert pretrain` to its first step, a small network, everything cached; the median of three."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "megabert", "pretrain", "--train-data", *options.documents, "--vocab-size", "8192",
            "--num-layers", "2", "--hidden-size", "128", "--num-attention-heads", "2", "--seq-length", "128",
            "--max-position-embeddings", "128", "--pack", "--batch-size", "8", "--train-iters", "1",
            "--eval-iters", "0", "--log-interval", "1", "--data-cache-path", f"{folder}/cache",
        ]  # fmt: skip
        tokenizer: list[str] = []
        for attempt in range(4):
            begin = time.perf_counter()
            run = [*command, *tokenizer, "--save", f"{folder}/run-{attempt}"]
            with subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
                assert process.stdout is not None
                lines = [(time.perf_counter() - begin, line) for line in process.stdout]
            if process.returncode:
                raise ValueError(f"megabert pretrain failed: {lines[-1][1].strip()}")
            found.append(next(at for at, line in lines if line.startswith("step 1/")))
            tokenizer = ["--tokenizer", f"{folder}/run-0/tokenizer"]
    return statistics.median(found[1:])


def loss_curves(name: str, options: BenchmarkOptions) -> dict[str, Any]:
    """The mean loss of each twentieth part of a training, of both sides with three seeds each.

    Both see the same batches; weights at the start are equal for equal seeds, dropout is drawn differently.
    """
    case = case_of(name, options)
    rows = rows_of(case, options, options.curves)
    parts = min(20, options.curves)
    curves: dict[str, list[list[float]]] = {side: [] for side in SIDES}
    for seed in range(options.seed, options.seed + 3):
        seeded = replace(options, seed=seed)
        start = make_model("megabert", case, rows.vocabulary, seeded).state_dict()
        for side, batches in zip(SIDES, (rows.ours, rows.theirs), strict=True):
            model = make_model(side, case, rows.vocabulary, seeded)
            model.load_state_dict(start)
            step = step_of(side, model, seeded)
            losses = [float(step(batch)) for batch in batches]
            curves[side].append([statistics.mean(part) for part in split(losses, parts)])
            print(
                f"  {name}, {side}, seed {seed}: loss {curves[side][-1][0]:.4f} to {curves[side][-1][-1]:.4f}",
                flush=True,
            )
    means = {side: [statistics.mean(values) for values in zip(*runs, strict=True)] for side, runs in curves.items()}
    # Of single runs, part by part.
    deviations = [statistics.stdev(values) for values in zip(*curves["transformers"], strict=True)]
    differences = [ours - theirs for ours, theirs in zip(means["megabert"], means["transformers"], strict=True)]
    return {
        "case": name,
        "steps": options.curves,
        "curves": curves,
        "differences": differences,
        "deviations": deviations,
    }


def split(values: Sequence[float], parts: int) -> list[Sequence[float]]:
    """Cut into `parts` of about equal length."""
    borders = [round(at * len(values) / parts) for at in range(parts + 1)]
    return [values[begin:end] for begin, end in itertools.pairwise(borders)]


def run(options: BenchmarkOptions) -> dict[str, Any]:
    """Measure; returns what `--output` writes."""
    if options.threads:
        torch.set_num_threads(options.threads)
    result: dict[str, Any] = {
        "torch": torch.__version__, "transformers": transformers.__version__, "threads": torch.get_num_threads(),
        "dropout": options.dropout, "equal_memory": options.equal_memory, "matmul_gflops": matmul_rate(options.device),
        "device": described_device(options.device),
        "ours": [flag for flag in ("compile", "cuda_graphs", "fp8") if getattr(options, flag)],
    }  # fmt: skip
    if options.curves:
        return result | {"curves": [loss_curves(name, options) for name in options.cases]}
    result["cases"] = {name: compare(name, options) for name in options.cases}
    if options.start:
        result["start_seconds"] = time_of_start(options)
    return result


def shown(result: dict[str, Any]) -> str:
    """The result as a table in Markdown."""
    rate = result["matmul_gflops"]["median"]
    if "curves" in result:
        lines = ["| case | largest difference of the mean losses | largest deviation between seeds |", "|---|---|---|"]
        for one in result["curves"]:
            largest = max(one["differences"], key=abs)
            lines.append(f"| {one['case']}, {one['steps']} steps | {largest:+.4f} | {max(one['deviations']):.4f} |")
        return "\n".join(lines)
    device = result.get("device", f"{result['threads']} CPU threads")  # results of old are of a CPU
    notes = "; freed memory kept on both sides" if result["equal_memory"] else ""
    notes += "".join(f"; ours with --{flag.replace('_', '-')}" for flag in result.get("ours", ()))
    lines = [
        f"| {device}; bf16 matrix products {rate:,.0f} GFLOP/s; dropout {result['dropout']}{notes} "
        f"| megabert | Transformers {result['transformers']} | ratio |", "|---|---|---|---|",
    ]  # fmt: skip
    for one in result["cases"].values():
        ours, theirs = (one["median"][side] for side in SIDES)
        turns, memory = one["ratio_of_each_turn"], [one["memory_mib"][side] for side in SIDES]
        lines.append(
            f"| {one['case']['described']} | {ours:,.0f} tokens/s | {theirs:,.0f} tokens/s | **{one['ratio']:.1f}** "
            f"({min(turns):.1f} to {max(turns):.1f}) |"
        )
        lines.append(f"| its peak memory | {memory[0]:,.0f} MiB | {memory[1]:,.0f} MiB | {one['memory_ratio']:.2f} |")
        useful = [one["useful_gflops"][side] / rate for side in SIDES]
        fills = [one["filled"][side] for side in SIDES]
        lines.append(f"| its share of the matrix rate; places filled | {useful[0]:.0%}; {fills[0]:.1%} "
                     f"| {useful[1]:.0%}; {fills[1]:.1%} | |")  # fmt: skip
        if one["loading_share"] is not None:
            lines.append(
                f"| its rows are made, without worker processes, in {one['loading_share']:.1%} of a step | | | |"
            )
    if "start_seconds" in result:
        lines.append(f"| `megabert pretrain` to its first step, data cached | {result['start_seconds']:.1f} s | | |")
    return "\n".join(lines)


def measured(options: BenchmarkOptions) -> dict[str, Any]:
    """The result of a run.

    Raises:
        ValueError: a case or a file that is not there, or a device that is not, or cannot do what it is asked for.
    """
    check_names("--cases", options.cases, CASES)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device: cuda, but PyTorch finds no GPU here")
    check_cuda_graphs(options, device, processes=1, packed=True, recomputed=False)
    check_fp8(options, device, bf16=True, processes=1, sizes={})
    for name in options.documents:
        if name != "builtin" and not (Path(name).exists() or Path(f"{name}.idx").is_file()):
            raise ValueError(f"--documents: there is no {name}")
    return run(options)


if __name__ == "__main__":
    sys.exit(program(BenchmarkOptions, "pretrain", __doc__, measured, shown))
