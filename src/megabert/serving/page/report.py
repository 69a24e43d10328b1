"""`report.html`: an evaluation as one page that needs nothing but itself.

Texts of examples are whatever the data holds; `elements` escapes them, and the page's own policy lets no other script
run than the one written here, and nothing be loaded.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from megabert import runtime
from megabert.serving.page import sections
from megabert.serving.page.browser import browser
from megabert.serving.page.elements import Safe, tag
from megabert.tasks.base import Prediction, Task
from megabert.training.sinks import read_lines

_HEADLINES = {"squad": "SQuAD 1.1", "squad2": "SQuAD 2.0", "cola": "CoLA", "chemprot": "ChemProt"}
_SHORT = 5
"""Names of so few letters are those of data sets."""


def write_report(
    path: Path,
    task: Task,
    predictions: Sequence[Prediction],
    examples: Sequence[Any],
    scores: Mapping[str, float],
    details: Mapping[str, Any],
    *,
    facts: Mapping[str, object],
    predictions_file: str = "predictions.jsonl",
    metrics: Path | None = None,
    best: int | None = None,
) -> None:
    """Write an evaluation as a page.

    Args:
        predictions, examples: as `task.score` takes them; `scores` and `details` are what it and `task.details` said.
        facts: what stands above everything: the model, the file; `task` is its name in the title.
        predictions_file: name of the file with all predictions.
        metrics: `metrics.jsonl` of the training, for its curves; nothing is drawn when there is none.
        best: the update whose weights these are.

    Raises:
        OSError: the file cannot be written.
    """
    records = read_lines(metrics) if metrics is not None and metrics.is_file() else []
    cases = task.cases(predictions, examples)
    content = [
        sections.tiles(scores, task.main_score), sections.curves(records, task.main_score, best),
        *sections.tables(details), sections.calibrated(cases),
        sections.length_effects(task, predictions, examples, cases), sections.numbers(cases),
        browser(cases, predictions_file),
    ]  # fmt: skip
    judged = [case.right for case in cases if case.right is not None]
    told = {**facts, "examples": f"{len(cases):,}"}
    if judged:
        told["wholly right"] = f"{sum(judged):,} of {len(judged):,} ({sum(judged) / len(judged):.1%})"
    with runtime.atomic_write(path) as file:
        file.write(_page(str(told.pop("task", task.name)).replace("-", " "), told, content))


def _written(task: str) -> str:
    """A task's name as a headline: MRPC, SQuAD, Token classification."""
    if task in _HEADLINES:
        return _HEADLINES[task]
    return task.upper() if len(task) <= _SHORT else task[:1].upper() + task[1:]


def _page(title: str, facts: Mapping[str, object], content: Sequence[object]) -> str:
    folder = resources.files("megabert.serving.page")
    script, style = (folder.joinpath(name).read_text("utf-8") for name in ("page.js", "page.css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; "
              "form-action 'none'")  # fmt: skip
    head = tag(
        "head", tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"Evaluation: {title}"), tag("style", Safe(style)),
    )  # fmt: skip
    listed = [tag("div", tag("dt", name), tag("dd", tag("bdi", value))) for name, value in facts.items()]
    body = tag(
        "body", tag("header", tag("h1", _written(title)), tag("dl", listed)), tag("main", *content),
        tag("script", Safe(script)),
    )  # fmt: skip
    return "<!doctype html>\n" + tag("html", head, body, lang="en") + "\n"
