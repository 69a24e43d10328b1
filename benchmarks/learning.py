"""What pretraining is worth: each task learned from an encoder and from random weights, and their scores side by side.

Every task is trained by `megabert finetune` with three seeds from the encoder, and by the same command with
`--from-scratch`: the same data, order, rate and length. A difference counts when it is larger than two standard
deviations (of the two columns together).

    python benchmarks/learning.py --data DATA --model runs/mini --work runs/learning --output learning.json

DATA holds the public files under the names in `TASKS`. What is done already in `--work` is not done again.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from megabert.config import option
from turns import check_names, program

SEEDS = 3
QUESTIONS = 8595
"""Of SQuAD's articles to train on."""


@dataclass(frozen=True)
class Learned:
    """A task, its files below the data folder, and how it is trained.

    Attributes:
        score: the one that is compared.
        flags: besides the common ones.
        examples: at most so many of the training file; 0: all.
        lr: highest learning rate.
    """

    task: str
    train: str
    validation: str
    score: str
    epochs: int
    examples: int = 0
    flags: tuple[str, ...] = ()
    lr: float = 4e-4


TASKS = {
    "SST-2": Learned("sst-2", "glue/SST-2/train.tsv", "glue/SST-2/dev.tsv", "accuracy", 2, 12_000),
    "CoLA": Learned("cola", "glue/CoLA/train.tsv", "glue/CoLA/dev.tsv", "matthews", 8, lr=2e-4),
    "MRPC": Learned("mrpc", "glue/MRPC/train.tsv", "glue/MRPC/dev.tsv", "f1", 3),
    "RTE": Learned("rte", "glue/RTE/train.tsv", "glue/RTE/dev.tsv", "accuracy", 3),
    "SQuAD, split by article": Learned(
        "squad", "squad/dev-v1.1.json", "squad/dev-v1.1.json", "f1", 2, 3_000,
        ("--max-seq-length", "128", "--doc-stride", "48"),
    ),
    "BC5CDR": Learned("ner", "bioner/BC5CDR-IOB/train.tsv", "bioner/BC5CDR-IOB/devel.tsv", "f1", 4),
    "ChemProt": Learned("chemprot", "biore/chemprot/train.txt", "biore/chemprot/dev.txt", "f1", 3),
    "ATIS": Learned("intent-slot", "intent_slot/atis/train", "intent_slot/atis/valid", "joint_accuracy", 5),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LearningOptions:
    """What is learned from what."""

    data: Path = option(Path("data"), "folder of the public files", example="data")
    model: Path = option(Path("runs/mini"), "the encoder", example="runs/mini")
    work: Path = option(Path("runs/learning"), "folder for the runs")
    tasks: tuple[str, ...] = option(tuple(TASKS), "which ones", example="SST-2 CoLA")
    lr: float | None = option(None, "highest learning rate; left out, each task's own", above=0, example="2e-4")
    output: Path | None = option(None, "write the result as JSON to this file", example="learning.json")


def files_of(task: Learned, options: LearningOptions) -> tuple[Path, Path]:
    """The files to train on and to score on; what must be cut is written to the work folder."""
    train, validation = options.data / task.train, options.data / task.validation
    if task.task == "squad":
        return by_article(train, options, task.examples)
    if task.examples:
        lines = train.read_text(encoding="utf-8").splitlines(keepends=True)[: task.examples + 1]
        train = options.work / f"{task.task}-{task.examples}{train.suffix}"
        train.write_text("".join(lines), encoding="utf-8")
    return train, validation


def by_article(path: Path, options: LearningOptions, questions: int) -> tuple[Path, Path]:
    """SQuAD's development set cut in two by the list of titles beside it; the first part about `questions` long."""
    titles = set(json.loads((path.parent / "split-by-article.json").read_text(encoding="utf-8"))["train_titles"])
    articles = json.loads(path.read_text(encoding="utf-8"))["data"]
    parts: dict[str, list[dict[str, Any]]] = {"train": [], "held-out": []}
    for article in articles:
        if article["title"] not in titles:
            parts["held-out"].append(article)
            continue
        # A few paragraphs of every article instead of a few whole articles.
        paragraphs = article["paragraphs"][: max(1, len(article["paragraphs"]) * questions // QUESTIONS)]
        parts["train"].append({**article, "paragraphs": paragraphs})
    made = []
    for name, chosen in parts.items():
        file = options.work / f"squad-{name}.json"
        file.write_text(json.dumps({"version": "1.1", "data": chosen}), encoding="utf-8")
        made.append(file)
    return made[0], made[1]


def learn(name: str, options: LearningOptions, *, scratch: bool) -> list[float]:
    """The score of each seed.

    Raises:
        ValueError: the training failed.
    """
    task = TASKS[name]
    folder = options.work / f"{task.task}-{'scratch' if scratch else 'encoder'}"
    scores = folder / "scores.json"
    if not scores.exists():
        train, validation = files_of(task, options)
        command = [
            sys.executable, "-m", "megabert", "finetune", task.task, "--model", str(options.model),
            "--train-file", str(train), "--validation-file", str(validation), "--epochs", str(task.epochs),
            "--lr", str(options.lr or task.lr), "--seeds", str(SEEDS), "--log-interval", "100000", "--bf16",
            "--save", str(folder), *task.flags, *(["--from-scratch"] if scratch else []),
        ]  # fmt: skip
        print("$ megabert " + " ".join(command[3:]), flush=True)
        if subprocess.run(command, check=False).returncode:
            raise ValueError(f"{name}: the training failed; its message stands above")
    return json.loads(scores.read_text(encoding="utf-8"))["validation"][task.score]["each"]


def compared(name: str, options: LearningOptions) -> dict[str, Any]:
    """Both columns of a task."""
    columns = {kind: learn(name, options, scratch=kind == "scratch") for kind in ("scratch", "encoder")}
    found: dict[str, Any] = {
        kind: {"each": each, "mean": mean(each), "deviation": stdev(each)} for kind, each in columns.items()
    }
    spread = math.hypot(found["scratch"]["deviation"], found["encoder"]["deviation"])
    difference = found["encoder"]["mean"] - found["scratch"]["mean"]
    deviations = difference / spread if spread else math.copysign(math.inf, difference)
    return {"score": TASKS[name].score, **found, "difference": difference, "deviations": deviations}


def shown(result: dict[str, Any]) -> str:
    """A table in Markdown."""
    lines = [
        "| task | score | random weights | from the encoder | difference, in deviations |",
        "|---|---|---|---|---|",
    ]
    for name, one in result.items():
        first, second = (f"{one[kind]['mean']:.3f} ± {one[kind]['deviation']:.3f}" for kind in ("scratch", "encoder"))
        difference = f"{one['difference']:+.3f}, {one['deviations']:.1f}"
        lines.append(f"| {name} | {one['score']} | {first} | {second} | {difference} |")
    return "\n".join(lines)


def run(options: LearningOptions) -> dict[str, Any]:
    """All comparisons that are asked for.

    Raises:
        ValueError: a task that is not there, or one of the runs failed.
    """
    check_names("--tasks", options.tasks, TASKS)
    options.work.mkdir(parents=True, exist_ok=True)
    return {name: compared(name, options) for name in options.tasks}


if __name__ == "__main__":
    sys.exit(program(LearningOptions, "learning", __doc__, run, shown))
