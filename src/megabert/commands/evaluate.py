"""Score a fine-tuned model on examples whose answers are known.

  megabert evaluate runs/ner --file test.tsv
  megabert evaluate runs/mnli --file dev_matched.tsv dev_mismatched.tsv --output scores/
  megabert evaluate runs/mnli --labels sports,politics --file test.tsv
  torchrun --nproc-per-node 2 -m megabert evaluate runs/mnli --file dev_matched.tsv --tensor-model-parallel-size 2

Every example is scored, once. Scores are printed, and written to scores.json with tables by class; predictions.jsonl
holds what was said about each example, and report.html shows all of it in a browser.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from megabert import runtime
from megabert.config import option
from megabert.parallel.options import ParallelOptions
from megabert.tasks.options import ZeroShotOptions

if TYPE_CHECKING:
    import torch

    from megabert.training.distributed import World

SUMMARY = "score a fine-tuned model on a file of examples"


@dataclass(frozen=True, kw_only=True)
class Config(ZeroShotOptions, ParallelOptions):
    """The command."""

    model: Path = option(dataclasses.MISSING, "a run folder of finetune, or its model/", positional=True)
    file: tuple[Path, ...] = option((), "examples with answers, as for training", example="test.tsv")
    output: Path | None = option(
        None, "folder for scores.json, predictions.jsonl, report.html; left out, MODEL/evaluations; one for each file",
        metavar="FOLDER", example="scores",
    )  # fmt: skip
    batch_tokens: int = option(8192, "places that go through the model at once, padding included", minimum=8)
    device: Literal["auto", "cpu", "cuda"] = option("auto", "where to compute; auto takes a GPU when there is one")
    bf16: bool = option(False, "compute in bfloat16: half the memory, and faster where the hardware has it")


def run(config: Config) -> None:
    """Read the model, answer each file and score.

    Raises:
        ValueError, OSError: no such model, a broken example, labels that the model does not know.
    """
    if not config.file:
        raise ValueError("--file is missing: name files of examples")
    stems = [_stem(file) for file in config.file]
    if len(set(stems)) < len(stems):
        raise ValueError("--file: two files have one name, and would be written to one folder")

    from megabert.serving.crew import joined

    with joined(config, os.environ, config.device) as (world, device):
        _evaluate(config, stems, world, device)


def _stem(file: Path) -> str:
    """The name of a data file without the suffixes that tell its format; `dev-v1.1` of `dev-v1.1.json.gz`."""
    if file.is_dir():
        return file.name
    return Path(file.stem).stem if file.suffix == ".gz" else file.stem


def _evaluate(config: Config, stems: list[str], world: World | None, device: torch.device) -> None:
    """Answer and score each file; of several processes the first one writes."""
    import torch

    from megabert.serving import fine_tuned
    from megabert.serving.page import write_report
    from megabert.tasks import zero_shot

    if world is not None:
        from megabert.training.distributed import agree_to_start

        agree_to_start(world, config, {}, device)
    model = fine_tuned.FineTuned.from_path(
        config.model, device=device, batch_tokens=config.batch_tokens, parallel=config, world=world,
        dtype=torch.bfloat16 if config.bf16 else torch.float32,
    )  # fmt: skip
    model.task = zero_shot.of(model.task, config)
    read = [model.task.examples(file) for file in config.file]
    for file, stem, examples in zip(config.file, stems, read, strict=True):
        answers = model.answer(examples)
        if not model.crew.leads:
            continue
        scores: dict[str, Any] = model.task.score(answers.predictions, examples)
        folder = (config.output or config.model / "evaluations") / stem
        before = _file_of(folder)
        if before is not None and before != str(file):
            print(f"notice: {folder} held the scores of {before}; --output names another folder")
        folder.mkdir(parents=True, exist_ok=True)
        fine_tuned.write_predictions(answers.predictions, folder / "predictions.jsonl")
        details = model.task.details(answers.predictions, examples)
        fine_tuned.write_scores({"file": str(file), "examples": len(examples), "scores": scores, "details": details},
                                folder / "scores.json")  # fmt: skip
        write_report(folder / "report.html", model.task, answers.predictions, examples, scores, details,
                     facts={"model": config.model, "file": file}, metrics=config.model / "metrics.jsonl")  # fmt: skip
        print(f"{file}: {len(examples):,} examples")
        if answers.cut:
            print(f"  {answers.cut:,} of them are cut to {model.task.max_seq_length} tokens")
        width = max(map(len, scores))
        for name, value in scores.items():
            print(f"  {name:<{width}}  {value:.4f}")
        for label, row in details.get("per_class", {}).items():
            print(f"  {label}: precision {row['precision']:.4f}, recall {row['recall']:.4f}, f1 {row['f1']:.4f}, "
                  f"{row['support']:,} examples")  # fmt: skip
        print(f"  written to {folder}")


def _file_of(folder: Path) -> str | None:
    """The file whose scores a folder holds; None: none."""
    try:
        return str(runtime.read_object(folder / "scores.json").get("file"))
    except ValueError:
        return None
