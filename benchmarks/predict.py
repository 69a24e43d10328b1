"""Speed of a fine-tuned model beside Transformers' `pipeline`: the same texts, turn by turn, each in its process.

Ours is what `megabert predict` does with texts of a file, in bfloat16 as with --bf16, and in float32. Theirs is
`pipeline("text-classification")` in float32, as it comes (one text at a time) and with batches in the order of the
texts, each padded to its longest. All sides cut texts at 512 tokens, and all of their work is timed, tokens included.
Texts are of mixed lengths, 5 to about 500 words. The model is taught for a moment first, so that it knows its labels;
what all sides say is compared.

    python benchmarks/predict.py --output bench.json
"""

from __future__ import annotations

import contextlib
import io
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

import made_tasks
from megabert import cli, runtime
from megabert.config import option
from megabert.serving.fine_tuned import FineTuned
from turns import Side, alternate, program

MOST_TOKENS = 512
Labels = list[str]


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """Sizes and repetitions."""

    num_layers: int = option(6, "transformer layers", minimum=1)
    hidden_size: int = option(384, "width of the hidden states", minimum=8)
    num_attention_heads: int = option(6, "attention heads", minimum=1)
    texts: int = option(400, "texts in a turn", minimum=1)
    batch_size: int = option(8, "texts in a batch of the pipeline that has batches", minimum=2)
    learning_steps: int = option(150, "updates before anything is asked", minimum=1)
    repetitions: int = option(5, "timed turns of each side", minimum=1)
    threads: int = option(0, "CPU threads; 0: what PyTorch chooses", minimum=0)
    seed: int = option(1234, "seed of data and weights")
    output: Path | None = option(None, "write the result as JSON to this file", example="bench.json")


def make_texts(count: int, seed: int) -> list[str]:
    """Texts of mixed lengths, half of them below 40 words; one word of each tells its label."""
    return [text for text, _ in made_tasks.sentences(count, seed, middle=40, spread=1.1, most=500)]


def make_model(options: BenchmarkOptions, folder: Path) -> Path:
    """A model that was fine-tuned on texts of the same kind: its folder."""
    made_tasks.make_encoder(folder / "encoder", layers=options.num_layers, hidden=options.hidden_size,
                            heads=options.num_attention_heads, seed=options.seed)  # fmt: skip
    made_tasks.write_sentences(folder / "train.tsv", 32 * options.learning_steps, options.seed)
    arguments = [
        "finetune", "sst-2", "--model", folder / "encoder", "--train-file", folder / "train.tsv", "--epochs", 1,
        "--lr", 5e-4, "--max-seq-length", MOST_TOKENS, "--bf16", "--device", "cpu", "--no-tensorboard", "--save",
        folder / "run",
    ]  # fmt: skip
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        status = cli.main([str(one) for one in arguments])
    if status:
        raise ValueError(f"megabert finetune failed: {told.getvalue().strip().splitlines()[-1]}")
    return folder / "run" / "model"


def ours(folder: Path, dtype: torch.dtype, texts: list[str]) -> Callable[[], Labels]:
    """What `megabert predict` does with texts."""
    runtime.keep_freed_memory()
    model = FineTuned.from_path(folder, dtype=dtype)

    def turn() -> Labels:
        examples = model.task.asked([(text,) for text in texts], "benchmark")
        return [prediction["label"] for prediction in model.answer(examples).predictions]

    return turn


def theirs(folder: Path, batch: int, texts: list[str]) -> Callable[[], Labels]:
    """Transformers' pipeline."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    asked = transformers.pipeline(
        "text-classification", model=transformers.AutoModelForSequenceClassification.from_pretrained(folder),
        tokenizer=transformers.AutoTokenizer.from_pretrained(folder), device="cpu",
    )  # fmt: skip

    def turn() -> Labels:
        said: Any = asked(texts, batch_size=batch, truncation=True, max_length=MOST_TOKENS)
        return [one["label"] for one in said]

    return turn


def agreement(left: Labels, right: Labels) -> float:
    """The share of texts with the same label."""
    return sum(one == other for one, other in zip(left, right, strict=True)) / len(left)


def run(options: BenchmarkOptions) -> dict[str, Any]:
    """Measure; returns what `--output` writes."""
    if options.threads:
        torch.set_num_threads(options.threads)
    texts = make_texts(options.texts, options.seed + 1)

    def show(number: int, seconds: dict[str, float]) -> None:
        told = ", ".join(f"{name} {len(texts) / taken:.1f}" for name, taken in seconds.items())
        print(f"turn {number}: {told} texts/s", flush=True)

    with tempfile.TemporaryDirectory() as place:
        folder, threads = make_model(options, Path(place)), torch.get_num_threads()
        sides = {f"megabert {kind}": Side(ours, folder, dtype, texts, threads=threads)
                 for kind, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32))}  # fmt: skip
        for name, batch in (("pipeline", 1), (f"pipeline, batches of {options.batch_size}", options.batch_size)):
            sides[name] = Side(theirs, folder, batch, texts, threads=threads)
        seconds, said = alternate(sides, options.repetitions, show)
    rates = {name: [len(texts) / taken for taken in times] for name, times in seconds.items()}
    median = {name: statistics.median(rate) for name, rate in rates.items()}
    return {
        "options": {key: str(value) if isinstance(value, Path) else value for key, value in asdict(options).items()},
        "torch": torch.__version__, "transformers": transformers.__version__, "threads": torch.get_num_threads(),
        "words": {"mean": statistics.mean(len(text.split()) for text in texts),
                  "most": max(len(text.split()) for text in texts)},
        "texts_per_second": rates, "median": median,
        "labels_as_pipeline": {name: agreement(labels, said["pipeline"]) for name, labels in said.items()},
        "labels": {name: said["pipeline"].count(name) for name in sorted(set(said["pipeline"]))},
        "ratio": {name: {other: median[name] / median[other] for other in median if other.startswith("pipeline")}
                  for name in median if name.startswith("megabert")},
    }  # fmt: skip


def show(result: dict[str, Any]) -> str:
    """The result as a table."""
    options, words = result["options"], result["words"]
    lines = [
        f"{options['num_layers']} x {options['hidden_size']}, {result['threads']} threads; {options['texts']} texts of "
        f"{words['mean']:.0f} words on average, at most {words['most']}; labels {result['labels']}",
        f"{'texts/s':<28}{'median':>9}{'least':>9}{'most':>9}{'same labels':>13}",
    ]
    for name, rate in result["texts_per_second"].items():
        lines.append(f"{name:<28}{result['median'][name]:>9.1f}{min(rate):>9.1f}{max(rate):>9.1f}"
                     f"{result['labels_as_pipeline'][name]:>13.2%}")  # fmt: skip
    for name, others in result["ratio"].items():
        lines.append(f"{name}: " + ", ".join(f"{ratio:.2f} times {other}" for other, ratio in others.items()))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(program(BenchmarkOptions, "predict", __doc__, run, show))
