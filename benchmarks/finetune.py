"""Fine-tuning speed beside Transformers' `Trainer`: one process, the same rows and weights, turn by turn.

Ours is `megabert finetune` itself. Theirs is `Trainer` with `MegatronBertFor...`, once at its defaults, padding every
row to the maximum, and once at its best: rows of like length together, padded to the longest. All: the same precision
(unless --their-precision says another), dropout, batch size and learning rate, AdamW, clipping at 1.0. Rows are of
SST-2's and of SQuAD's lengths, made here.

A turn is so many updates behind two that warm up; the time of each is from the end of the one before, reading rows
included. Batches differ in length, and `Trainer` at its best begins with the longest of 50: so a line is fitted to the
seconds of a turn's updates over their real tokens, and what is compared is what it says of an update of the data's mean
length. (Tokens a second would make a side the faster the longer its batches happen to be, since each update has costs
that are the same for all.) At the end each side learns for a while, and the scores on the same held-out examples are
told.

    python benchmarks/finetune.py --output bench.json
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple
from unittest import mock

import torch
import transformers

import made_tasks
from megabert import cli
from megabert.config import option
from megabert.formats import huggingface
from megabert.models.auto import class_of
from megabert.serving.fine_tuned import FineTuned
from megabert.tasks import catalogue
from megabert.tasks.base import Features, Task
from megabert.tokenization import opening
from megabert.training.step import TrainingStep
from turns import program

WARM_UP = 2
SIDES = ("megabert", "trainer", "trainer at its best")


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """Sizes and repetitions."""

    num_layers: int = option(6, "transformer layers", minimum=1)
    hidden_size: int = option(384, "width of the hidden states", minimum=8)
    num_attention_heads: int = option(6, "attention heads", minimum=1)
    task: Literal["both", "sst-2", "squad"] = option("both", "whose lengths the rows have")
    sst2_batch_size: int = option(32, "rows in an update of SST-2's lengths", minimum=1)
    squad_batch_size: int = option(16, "rows in an update of SQuAD's lengths", minimum=1)
    precision: Literal["bf16", "fp32"] = option("bf16", "of all sides")
    their_precision: Literal["bf16", "fp32"] | None = option(
        None, "of Trainer, which is fp32 where nobody asks for another; left out, as ours"
    )
    repetitions: int = option(5, "timed turns of each side", minimum=1)
    sst2_steps: int = option(50, "updates in a turn of SST-2's lengths", minimum=4)
    squad_steps: int = option(50, "updates in a turn of SQuAD's lengths", minimum=4)
    learning_steps: int = option(150, "updates before scores are compared; 0: no scores", minimum=0)
    lr: float = option(5e-4, "learning rate", minimum=0)
    threads: int = option(0, "CPU threads; 0: what PyTorch chooses", minimum=0)
    seed: int = option(1234, "seed of data and weights")
    flags: str = option("", "more flags for `megabert finetune`, such as '--batch-tokens 4096'")
    output: Path | None = option(None, "write the result as JSON to this file", example="bench.json")


class Work(NamedTuple):
    """One task: its files, what they hold, and how much is done in a turn."""

    name: str
    task: Task
    folder: Path
    train: Sequence[Features]
    held_out: Sequence[Any]
    batch: int
    steps: int

    @property
    def train_file(self) -> Path:
        """What is learned from."""
        return self.folder / f"train-{self.name}"

    @property
    def held_out_file(self) -> Path:
        """What is scored."""
        return self.folder / f"dev-{self.name}"


class Turn(NamedTuple):
    """What a turn did: of each update when it ended, its real tokens, and the places that went through the model.

    The first of the ends is that of the last warm-up; tokens and places are of the updates behind it.
    """

    ended: Sequence[float]
    tokens: Sequence[int]
    places: Sequence[int]

    def seconds(self, tokens: float) -> float:
        """Seconds of an update of so many real tokens."""
        each = [later - earlier for earlier, later in itertools.pairwise(self.ended)]
        if len(set(self.tokens)) == 1:
            return statistics.mean(each)
        slope, start = statistics.linear_regression(self.tokens, each)
        return start + slope * tokens


def make_work(options: BenchmarkOptions, folder: Path, name: str) -> Work:
    """The files of a task, and its rows."""
    ending = "tsv" if name == "sst-2" else "json"
    write = made_tasks.write_sentences if name == "sst-2" else made_tasks.write_questions
    batch = options.sst2_batch_size if name == "sst-2" else options.squad_batch_size
    # Trainer sorts by length within 50 batches only where there are four times as many.
    write(folder / f"train-{name}.{ending}", 200 * batch, options.seed)
    write(folder / f"dev-{name}.{ending}", 400, options.seed + 1)
    task = catalogue.make(name, {})
    examples = task.examples(folder / f"train-{name}.{ending}")
    task = task.learned(examples)
    train = task.features(examples, opening.load(folder / "encoder"))
    held_out = task.examples(folder / f"dev-{name}.{ending}")
    steps = options.sst2_steps if name == "sst-2" else options.squad_steps
    return Work(f"{name}.{ending}", task, folder, train, held_out, batch, steps)


def lengths_of(work: Work) -> tuple[float, float]:
    """Mean real tokens of a row, and rows of an example (its windows)."""
    rows = len(work.train)
    return sum(one.length for one in work.train) / rows, rows / len({one.example for one in work.train})


def ours(options: BenchmarkOptions, work: Work, steps: int, *, score: bool = False) -> tuple[Turn, dict[str, float]]:
    """A turn of `megabert finetune`, and its scores if wanted."""
    ended: list[float] = []
    tokens: list[int] = []
    places: list[int] = []
    original = TrainingStep.__call__

    def timed(step: TrainingStep, batches: Sequence[Mapping[str, torch.Tensor]], *rest: Any) -> Any:
        report = original(step, batches, *rest)
        ended.append(time.perf_counter())
        tokens.append(sum(int(batch["attention_mask"].sum()) for batch in batches))
        places.append(sum(batch["attention_mask"].numel() for batch in batches))
        return report

    with tempfile.TemporaryDirectory() as place, mock.patch.object(TrainingStep, "__call__", timed):
        arguments = [
            "finetune", work.task.settings().get("row") or "squad", "--model", work.folder / "encoder", "--train-file",
            work.train_file, "--epochs", 1, "--train-iters", WARM_UP + steps, "--batch-size", work.batch, "--lr",
            options.lr, "--save", Path(place) / "run", "--no-tensorboard", "--device", "cpu", "--log-interval", 1000,
            "--seed", options.seed, *options.flags.split(),
        ]  # fmt: skip
        arguments += ["--bf16"] if options.precision == "bf16" else []
        arguments += ["--validation-file", work.held_out_file] if score else []
        told = io.StringIO()
        with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
            status = cli.main([str(one) for one in arguments])
        if status:
            raise ValueError(f"megabert finetune failed: {told.getvalue().strip().splitlines()[-1]}")
        scores = json.loads((Path(place) / "run" / "scores.json").read_text())["validation"] if score else {}
    return Turn(ended[WARM_UP - 1 :], tokens[WARM_UP:], places[WARM_UP:]), scores


class _Clock(transformers.TrainerCallback):
    """When updates ended."""

    def __init__(self) -> None:
        self.ended: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ended.append(time.perf_counter())


def their_model(options: BenchmarkOptions, work: Work) -> Any:
    """Transformers' class with the encoder's weights and a fresh head."""
    torch.manual_seed(options.seed)
    return getattr(transformers, work.task.head).from_pretrained(work.folder / "encoder", num_labels=work.task.outputs)


def theirs(options: BenchmarkOptions, work: Work, steps: int, *, best: bool, score: bool = False) -> tuple[Turn, dict]:
    """A turn of Transformers' `Trainer`, and its scores if wanted."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(work.folder / "encoder")
    longest: dict[str, Any] = {"padding": True}
    widest: dict[str, Any] = {"padding": "max_length", "max_length": work.task.max_seq_length}
    pad = transformers.DataCollatorWithPadding(tokenizer, **(longest if best else widest))
    read: list[tuple[int, int]] = []

    def collate(rows: list[dict[str, Any]]) -> Any:
        batch = pad(rows)
        read.append((int(batch["attention_mask"].sum()), batch["attention_mask"].numel()))
        return batch

    rows = [{name: array.tolist() for name, array in one.row().items()} for one in work.train]
    clock, model = _Clock(), their_model(options, work)
    with tempfile.TemporaryDirectory() as place:
        settings = transformers.TrainingArguments(
            output_dir=place, max_steps=WARM_UP + steps, per_device_train_batch_size=work.batch,
            learning_rate=options.lr, warmup_steps=0.1, weight_decay=0.01, seed=options.seed, use_cpu=True,
            bf16=(options.their_precision or options.precision) == "bf16", remove_unused_columns=False,
            train_sampling_strategy="group_by_length" if best else "random", dataloader_pin_memory=False,
            report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        with contextlib.redirect_stdout(io.StringIO()):
            transformers.Trainer(model, settings, train_dataset=rows, data_collator=collate, callbacks=[clock]).train()  # type: ignore[arg-type]
    scores = their_scores(work, model) if score else {}
    # A batch may have been read ahead of the last update.
    used = read[WARM_UP : WARM_UP + steps]
    return Turn(clock.ended[WARM_UP - 1 :], [tokens for tokens, _ in used], [places for _, places in used]), scores


def their_scores(work: Work, model: Any) -> dict[str, float]:
    """The scores of their weights, by our reading of the outputs."""
    same, _ = huggingface.load(work.folder / "encoder", class_of("MegatronBertForPreTraining"))
    mine = class_of(work.task.head)(type(same.config)(**{**same.config.to_dict(), "num_labels": work.task.outputs}))
    mine.load_state_dict(model.state_dict())
    finished = FineTuned(work.task, mine, opening.load(work.folder / "encoder"))
    return work.task.score(finished.answer(work.held_out).predictions, work.held_out)


def measure(options: BenchmarkOptions, work: Work) -> dict[str, Any]:
    """All sides, turn by turn, and their scores."""
    sides: dict[str, Callable[..., tuple[Turn, dict]]] = {
        "megabert": lambda steps, **more: ours(options, work, steps, **more),
        "trainer": lambda steps, **more: theirs(options, work, steps, best=False, **more),
        "trainer at its best": lambda steps, **more: theirs(options, work, steps, best=True, **more),
    }
    mean, windows = lengths_of(work)
    # Rows of one width take the same time each: fewer updates tell it.
    steps = dict.fromkeys(SIDES, work.steps) | {"trainer": max(4, work.steps // 8)}
    for side in sides.values():
        side(2)
    rates: dict[str, list[float]] = {name: [] for name in SIDES}
    filled: dict[str, float] = {}
    for turn in range(options.repetitions):
        for name, side in sides.items():
            done, _ = side(steps[name])
            rates[name].append(work.batch / windows / done.seconds(work.batch * mean))
            filled[name] = sum(done.tokens) / sum(done.places)
        print(f"{work.name}, turn {turn + 1}: " + ", ".join(f"{name} {rate[-1]:.1f}" for name, rate in rates.items()),
              flush=True)  # fmt: skip
    scores = {}
    if options.learning_steps:
        for name in ("megabert", "trainer at its best"):
            scores[name] = sides[name](options.learning_steps, score=True)[1][work.task.main_score]
    return {
        "tokens_of_an_example": mean * windows, "filled": filled, "examples_per_second": rates,
        "median": {name: statistics.median(rate) for name, rate in rates.items()},
        "ratio": {name: statistics.median(rates["megabert"]) / statistics.median(rates[name]) for name in SIDES[1:]},
        "ratio_of_each_turn": {
            name: [left / right for left, right in zip(rates["megabert"], rates[name], strict=True)]
            for name in SIDES[1:]
        },
        "score": {"name": work.task.main_score, **scores},
    }  # fmt: skip


def run(options: BenchmarkOptions) -> dict[str, Any]:
    """Measure; returns what `--output` writes."""
    if options.threads:
        torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    names = ("sst-2", "squad") if options.task == "both" else (options.task,)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        made_tasks.make_encoder(folder / "encoder", layers=options.num_layers, hidden=options.hidden_size,
                                heads=options.num_attention_heads, seed=options.seed)  # fmt: skip
        found = {name: measure(options, make_work(options, folder, name)) for name in names}
    return {
        "options": {key: str(value) if isinstance(value, Path) else value for key, value in asdict(options).items()},
        "torch": torch.__version__, "transformers": transformers.__version__, "threads": torch.get_num_threads(),
        "tasks": found,
    }  # fmt: skip


def show(result: dict[str, Any]) -> str:
    """The result as a table."""
    options = result["options"]
    lines = [
        f"{options['num_layers']} x {options['hidden_size']}, {options['precision']} (theirs "
        f"{options['their_precision'] or options['precision']}), {result['threads']} threads"
    ]
    for name, found in result["tasks"].items():
        lines.append(f"{name}: {found['tokens_of_an_example']:.1f} real tokens an example")
        lines.append(f"  {'examples/s':<22}{'median':>9}{'least':>9}{'most':>9}{'filled':>9}{'ours/theirs':>13}")
        for side, rate in found["examples_per_second"].items():
            ratio = f"{found['ratio'][side]:.2f}" if side in found["ratio"] else ""
            lines.append(f"  {side:<22}{found['median'][side]:>9.1f}{min(rate):>9.1f}{max(rate):>9.1f}"
                         f"{found['filled'][side]:>9.0%}{ratio:>13}")  # fmt: skip
        score = {side: value for side, value in found["score"].items() if side != "name"}
        if score:
            lines.append(
                f"  {found['score']['name']}: " + ", ".join(f"{side} {value:.4g}" for side, value in score.items())
            )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(program(BenchmarkOptions, "finetune", __doc__, run, show))
