"""What a fine-tuning tells its user: a description, the scores, their mean over seeds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from transformers import PreTrainedModel

    from megabert.commands.finetune.command import Config
    from megabert.serving.fine_tuned import FineTuned
    from megabert.tasks.base import Features, Task


def described(
    config: Config, task: Task, model: PreTrainedModel, sets: dict[str, tuple[list, list[Features]]]
) -> Iterator[str]:
    """The run before it begins, as lines for people."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    yield f"task: {task.name}, {len(task.labels)} labels; {trained / 1e6:.1f} M weights to train"
    yield f"run folder: {config.save}"
    for name, (examples, features) in sets.items():
        cut = len({one.example for one in features if one.cut})
        told = f"; {cut:,} are cut to {task.max_seq_length} tokens" if cut else ""
        yield f"{name}: {len(examples):,} examples in {len(features):,} rows{told}"


def score(
    config: Config, step: int, finished: FineTuned, sets: dict[str, tuple[list, list[Features]]], folder: Path
) -> dict[str, Any]:
    """Score the finished model, write scores.json, predictions and reports, and tell the scores."""
    from megabert.serving import fine_tuned
    from megabert.serving.page import write_report

    scores: dict[str, Any] = {"task": config.task, "model": str(config.model), "seed": config.seed, "step": step}
    for name, file in (("validation", "predictions.jsonl"), ("test", "predictions-test.jsonl")):
        if name not in sets:
            continue
        examples, features = sets[name]
        answers = finished.answer(examples, features)
        scores[name] = finished.task.score(answers.predictions, examples)
        scores[f"{name}_details"] = finished.task.details(answers.predictions, examples)
        fine_tuned.write_predictions(answers.predictions, folder / file)
        write_report(
            folder / file.replace("predictions", "report").replace(".jsonl", ".html"), finished.task,
            answers.predictions, examples, scores[name], scores[f"{name}_details"], predictions_file=file,
            facts={"task": config.task, "from": config.model, "file": getattr(config, f"{name}_file"), "update": step},
            metrics=folder / "metrics.jsonl", best=step,
        )  # fmt: skip
        say([f"{name}: {fine_tuned.shown_scores(scores[name])}"])
    fine_tuned.write_scores(scores, folder / "scores.json")
    say([f"model: {folder / 'model'}; scores.json, predictions.jsonl, report.html, metrics.jsonl: {folder}"])
    return scores


def summarise(config: Config, found: list[dict[str, Any]], folder: Path) -> None:
    """Mean and deviation of each score over the seeds."""
    from statistics import mean, stdev

    from megabert.serving import fine_tuned

    summary: dict[str, Any] = {"task": config.task, "model": str(config.model), "seeds": [one["seed"] for one in found]}
    for part in ("validation", "test"):
        if part not in found[0]:
            continue
        values = {name: [one[part][name] for one in found] for name in found[0][part]}
        summary[part] = {
            name: {"mean": mean(each), "deviation": stdev(each), "each": each} for name, each in values.items()
        }
        told = [f"{name} {mean(each):.4g} +- {stdev(each):.2g}" for name, each in values.items() if "nemo" not in name]
        say([f"{part}, {len(found)} seeds: {', '.join(told)}"])
    fine_tuned.write_scores(summary, folder / "scores.json")


def say(lines: Iterable[str]) -> None:
    """Lines for people, at once."""
    for line in lines:
        print(line, flush=True)
