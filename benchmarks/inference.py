"""Speed of answers beside Transformers': the same weights and texts, turn by turn, on this machine's CPU.

Three cases. `batch`: a plain `model(**batch)` of the encoder on rows of one length. `equal`: what `megabert predict
fill-mask` does with texts of one length, beside `pipeline("fill-mask")` with batches. `mixed`: the same with texts of
5 to about 500 words; the pipeline once as it comes, one text at a time, and once with batches in the order of the
texts. Each side is in a process of its own, in float32 and in bfloat16; all of its work is timed, tokens included.

In float32, hidden states must agree to 1e-4, and each likeliest word's probability to 1e-4 of it, or nothing is
reported. In bfloat16 numbers have three digits: what is told is the largest difference, and the share of equal first
words.

    python benchmarks/inference.py --output inference.json
    python benchmarks/inference.py --table inference.json        # prints the table of an earlier run in Markdown
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

import made_tasks
import megabert
from megabert import runtime
from megabert.config import option
from megabert.serving.predictor import Predictor
from turns import Side, alternate, check_names, program, ratios

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CASES = ("batch", "equal", "mixed")
MOST_TOKENS = 512
TOLERANCE = 1e-4
CALLS = 5
"""Calls of the model in a turn: one alone would be timed with the other sides' data still in the cache."""

Words = list[tuple[str, float]]
"""Of each text the likeliest word at its mask, with its probability."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """Sizes and repetitions."""

    cases: tuple[str, ...] = option(CASES, f"what to compare: {', '.join(CASES)}", example="batch mixed")
    num_layers: int = option(6, "transformer layers", minimum=1)
    hidden_size: int = option(384, "width of the hidden states", minimum=8)
    num_attention_heads: int = option(6, "attention heads", minimum=1)
    texts: int = option(128, "texts in a turn", minimum=1)
    seq_length: int = option(128, "tokens of a row where all have the same length", minimum=8, maximum=MOST_TOKENS)
    batch_size: int = option(32, "rows of a call of the model, texts in a batch of the pipeline", minimum=2)
    repetitions: int = option(5, "timed turns of each side", minimum=1)
    threads: int = option(0, "CPU threads; 0: what PyTorch chooses", minimum=0)
    seed: int = option(1234, "seed of data and weights")
    equal_memory: bool = option(False, "let Transformers' processes keep freed memory too, as ours do")
    output: Path | None = option(None, "write the result as JSON to this file", example="inference.json")
    table: Path | None = option(None, "measure nothing: print the table of an earlier --output")


def make_texts(case: str, options: BenchmarkOptions) -> list[str]:
    """Texts with a mask each; without it a word of the benchmark's vocabulary is a token."""
    made = made_tasks.sentences(options.texts, options.seed, middle=40, spread=1.1, most=500)
    if case == "mixed":
        rows = [text.split() for text, _ in made]
    else:
        words = [word for text, _ in made for word in text.split()]
        length = options.seq_length - 2
        rows = [[words[(row * length + at) % len(words)] for at in range(length)] for row in range(options.texts)]
    for row in rows:
        row[len(row) // 2] = "[MASK]"
    return [" ".join(row) for row in rows]


def settle(side: str, options: BenchmarkOptions) -> None:
    """What a side does first in its process; ours what `megabert predict` does."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if side == "megabert" or options.equal_memory:
        runtime.keep_freed_memory()


def prepare_batch(side: str, kind: str, folder: Path, options: BenchmarkOptions) -> Callable[[], Any]:
    """A turn is a few calls of the encoder; it returns the hidden states of the first row."""
    settle(side, options)
    room = megabert if side == "megabert" else transformers
    model = room.MegatronBertModel.from_pretrained(folder, dtype=TYPES[kind]).eval()
    generator = torch.Generator().manual_seed(options.seed)
    shape = (options.batch_size, options.seq_length)
    ids = torch.randint(10, made_tasks.VOCABULARY, shape, generator=generator)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}

    def turn() -> list[list[float]]:
        with torch.inference_mode():
            for _ in range(CALLS - 1):
                model(**batch)
            return model(**batch).last_hidden_state[0].float().tolist()

    return turn


def prepare_words(
    side: str, kind: str, batch: int, folder: Path, texts: list[str], options: BenchmarkOptions
) -> Callable[[], Words]:
    """A turn answers all texts: `megabert predict fill-mask`, or the pipeline with batches of `batch`."""
    settle(side, options)
    if side == "megabert":
        predictor = Predictor.from_path(folder, dtype=TYPES[kind])
        return lambda: [tuple(masks[0][0]) for masks in predictor.fill_mask(texts)]  # type: ignore[misc]
    asked = transformers.pipeline(
        "fill-mask", model=transformers.MegatronBertForMaskedLM.from_pretrained(folder, dtype=TYPES[kind]),
        tokenizer=transformers.AutoTokenizer.from_pretrained(folder), device="cpu",
    )  # fmt: skip

    def turn() -> Words:
        said: Any = asked(texts, batch_size=batch)
        return [(one[0]["token_str"], one[0]["score"]) for one in said]

    return turn


def sides_of(case: str, folder: Path, options: BenchmarkOptions) -> dict[str, Side]:
    """The processes of a case by name; those of the package first."""
    threads = torch.get_num_threads()
    if case == "batch":
        return {f"{side} {kind}": Side(prepare_batch, side, kind, folder, options, threads=threads)
                for side in ("megabert", "Transformers") for kind in TYPES}  # fmt: skip
    texts = make_texts(case, options)
    asked = {f"megabert {kind}": ("megabert", kind, 0) for kind in TYPES}
    asked |= {f"pipeline {kind}, batches of {options.batch_size}": ("pipeline", kind, options.batch_size)
              for kind in TYPES}  # fmt: skip
    if case == "mixed":
        asked |= {f"pipeline {kind}": ("pipeline", kind, 1) for kind in TYPES}
    return {name: Side(prepare_words, side, kind, batch, folder, texts, options, threads=threads)
            for name, (side, kind, batch) in asked.items()}  # fmt: skip


def distance(case: str, ours: Any, theirs: Any) -> dict[str, float]:
    """How far two sides' answers are from each other: hidden states as they are, probabilities in proportion."""
    if case == "batch":
        return {"largest_difference": float((torch.tensor(ours) - torch.tensor(theirs)).abs().max())}
    pairs = list(zip(ours, theirs, strict=True))
    return {
        "largest_difference": max(abs(own[1] / other[1] - 1) for own, other in pairs),
        "equal_words": sum(own[0] == other[0] for own, other in pairs) / len(pairs),
    }


def compare(case: str, folder: Path, options: BenchmarkOptions) -> dict[str, Any]:
    """Measure a case.

    Raises:
        ValueError: the answers differ in float32: what was timed was different work.
    """
    print(f"{case}:", flush=True)

    def show(number: int, seconds: dict[str, float]) -> None:
        times = ", ".join(f"{name} {taken:.2f} s" for name, taken in seconds.items())
        print(f"  turn {number}: {times}", flush=True)

    seconds, said = alternate(sides_of(case, folder, options), options.repetitions, show)
    compared = {}
    for kind in TYPES:
        own = f"megabert {kind}"
        for other in seconds:
            if other.startswith("megabert") or kind not in other:
                continue
            compared[f"{own} to {other}"] = ratios(seconds[own], seconds[other]) | distance(
                case, said[own], said[other]
            )
            if kind == "fp32" and compared[f"{own} to {other}"]["largest_difference"] > TOLERANCE:
                raise ValueError(f"{case}: {own} and {other} answer differently: {compared[f'{own} to {other}']}")
    rows = CALLS * options.batch_size if case == "batch" else options.texts
    return {"rows": rows, "seconds": seconds, "compared": compared}


def run(options: BenchmarkOptions) -> dict[str, Any]:
    """Measure; returns what `--output` writes."""
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as place:
        folder = made_tasks.make_encoder(
            Path(place) / "model", layers=options.num_layers, hidden=options.hidden_size,
            heads=options.num_attention_heads, seed=options.seed,
        )  # fmt: skip
        cases = {case: compare(case, folder, options) for case in options.cases}
    return {
        "torch": torch.__version__, "transformers": transformers.__version__, "threads": torch.get_num_threads(),
        "equal_memory": options.equal_memory, "layers": options.num_layers, "hidden": options.hidden_size,
        "seq_length": options.seq_length, "cases": cases,
    }  # fmt: skip


def shown(result: dict[str, Any]) -> str:
    """The result as a table in Markdown."""
    memory = "; freed memory kept on both sides" if result["equal_memory"] else ""
    lines = [
        f"| {result['layers']} layers x {result['hidden']}, {result['threads']} CPU threads{memory} | megabert, rows/s "
        f"| Transformers {result['transformers']}, rows/s | ratio | largest difference; equal words |",
        "|---|---|---|---|---|",
    ]
    titles = {
        "batch": f"`model(**batch)`, rows of {result['seq_length']} tokens",
        "equal": f"fill-mask, texts of {result['seq_length']} tokens", "mixed": "fill-mask, 5 to 500 words",
    }  # fmt: skip
    for case, found in result["cases"].items():
        for pair, one in found["compared"].items():
            own, _, other = pair.partition(" to ")
            rates = [found["rows"] / statistics.median(found["seconds"][name]) for name in (own, other)]
            rounds, words = one["of_each_round"], one.get("equal_words")
            lines.append(
                f"| {titles[case]}: {other} | {rates[0]:,.1f} | {rates[1]:,.1f} | **{one['ratio']:.1f}** "
                f"({min(rounds):.1f} to {max(rounds):.1f}) | {one['largest_difference']:.0e}"
                f"{'' if words is None else f'; {words:.1%}'} |"
            )
    return "\n".join(lines)


def measured(options: BenchmarkOptions) -> dict[str, Any]:
    """The result of a run.

    Raises:
        ValueError: a case that is not there.
    """
    check_names("--cases", options.cases, CASES)
    return run(options)


if __name__ == "__main__":
    sys.exit(program(BenchmarkOptions, "inference", __doc__, measured, shown))
