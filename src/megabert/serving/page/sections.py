"""The parts of the page that are made of numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from megabert.metrics import calibration
from megabert.metrics.names import meaning
from megabert.serving.page import charts
from megabert.serving.page.charts import Series
from megabert.serving.page.elements import Safe, tag
from megabert.tasks.base import Prediction, Task
from megabert.tasks.cases import Case
from megabert.tasks.objectives import NUMBER

MOST_CLASSES = 200
MOST_CONFUSED = 20
BUCKETS = 6
LEAST_IN_BUCKET = 10


def number(value: float) -> str:
    """A score for people."""
    if abs(value) >= 1e6:
        return f"{value:.3g}"
    if abs(value) > 1 and value == int(value):
        return f"{value:,.0f}"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"


def _of_tile(value: float) -> str:
    # Per cents stand side by side: 58.00 beside 77.09.
    return f"{value:.2f}" if 10 <= abs(value) <= 100 else number(value)


def tiles(scores: Mapping[str, float], main: str) -> Safe:
    """The scores that count, the one that decides first; all of them in a table."""
    named = {
        name: value
        for name, value in scores.items()
        if not name.startswith("nemo_") and not name.endswith(("_total", "_thresh"))
    }
    order = sorted(named, key=lambda name: name != main)
    shown = [
        tag("div", tag("span", name.replace("_", " "), class_="name"), tag("b", _of_tile(named[name])),
            class_="tile main" if name == main else "tile", title=meaning(name))
        for name in order[:8]
    ]  # fmt: skip
    rows = [
        tag("tr", tag("th", name, scope="row"), tag("td", number(value), class_="number"), tag("td", meaning(name)))
        for name, value in scores.items()
    ]
    heads = tag("tr", [tag("th", head, scope="col") for head in ("score", "value", "what it is")])
    table = tag("div", tag("table", tag("thead", heads), tag("tbody", rows)), class_="scroll")
    return tag("section", tag("h2", "Scores"), tag("div", shown, class_="tiles"),
               tag("details", tag("summary", "All scores, and what they are"), table), class_="wide")  # fmt: skip


def curves(records: Sequence[Mapping[str, Any]], main: str, best: int | None) -> Safe | None:
    """How loss and score went in training; None where nothing is told of it."""
    drawn = []
    for term in _terms(records):
        series = [
            Series("training", _points(records, f"{term}_loss"), "one"),
            Series("validation", _points(records, f"valid_{term}_loss"), "two", True),
        ]
        unit = "squared error" if term == NUMBER else "loss in nats"
        drawn.append(charts.lines(f"{term} loss", series, ("update", unit), best))
    score = _points(records, f"valid_{main}")
    if score:
        name = main.replace("_", " ")
        drawn.append(charts.lines(name, [Series("validation", score, "two", True)], ("update", name), best))
    if not drawn:
        return None
    return tag("section", tag("h2", "Training"), tag("div", drawn, class_="charts"), class_="wide")


def _terms(records: Sequence[Mapping[str, Any]]) -> list[str]:
    names = [
        key.removesuffix("_loss") for record in records if "lr" in record for key in record if key.endswith("_loss")
    ]
    return [name for name in dict.fromkeys(names) if not name.startswith("valid_")]


def _points(records: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    return [
        (float(record["step"]), float(record[key]))
        for record in records
        if isinstance(record.get(key), int | float) and math.isfinite(record[key])
    ]


def tables(details: Mapping[str, Any], title: str = "") -> Iterator[Safe]:
    """Classes one by one and their confusion, of each part of the details that has them."""
    if isinstance(details.get("per_class"), Mapping) and details["per_class"]:
        yield _classes(details["per_class"], title)
    confusion, labels = details.get("confusion"), details.get("labels")
    if confusion and labels and len(confusion) == len(labels):
        yield _confusion(confusion, labels, title)
    for name, part in details.items():
        if isinstance(part, Mapping) and name != "per_class":
            yield from tables(part, name.replace("_", " "))


def _bar(value: float, whole: float = 1.0) -> Safe:
    share = max(0.0, min(1.0, value / whole)) if whole and math.isfinite(value) else 0.0
    return tag("td", tag("span", number(value)), tag("i", style=f"width:{100 * share:.1f}%"), class_="bar")


def _classes(rows: Mapping[str, Mapping[str, float]], title: str) -> Safe:
    order = sorted(rows, key=lambda name: (-rows[name].get("support", 0), name))
    heads = ["class", "precision", "recall", "F1", "examples"]
    body = [
        tag("tr", tag("th", tag("bdi", name), scope="row"),
            [_bar(float(rows[name].get(key, 0.0))) for key in ("precision", "recall", "f1")],
            tag("td", f"{int(rows[name].get('support', 0)):,}", class_="number"))
        for name in order[:MOST_CLASSES]
    ]  # fmt: skip
    note = None
    if len(order) > MOST_CLASSES:
        note = tag("p", f"The {MOST_CLASSES} most frequent of {len(order):,} classes; scores.json holds all.",
                   class_="note")  # fmt: skip
    head = tag("tr", [tag("th", name, scope="col") for name in heads])
    return tag("section", tag("h2", _titled("Classes", title)), note,
               tag("div", tag("table", tag("thead", head), tag("tbody", body)), class_="scroll"))  # fmt: skip


def _titled(name: str, title: str) -> str:
    return f"{name}: {title}" if title else name


def _confusion(counts: Sequence[Sequence[int]], labels: Sequence[str], title: str) -> Safe:
    places = list(range(len(labels)))
    note = "Rows: what is right. Columns: what was said."
    if len(labels) > MOST_CONFUSED:
        missed = [sum(counts[at]) + sum(row[at] for row in counts) - 2 * counts[at][at] for at in places]
        places = sorted(sorted(places, key=lambda at: (-missed[at], at))[:MOST_CONFUSED])
        note += f" The {MOST_CONFUSED} of {len(labels):,} classes with most mistakes; scores.json holds all."
    heads = tag("tr", tag("td"), [tag("th", tag("bdi", labels[at]), scope="col") for at in places])
    body = []
    for row in places:
        total = sum(counts[row]) or 1
        cells = []
        for column in places:
            count = counts[row][column]
            level = math.ceil(9 * count / total)
            told = f"{labels[row]} said to be {labels[column]}: {count:,} of {sum(counts[row]):,}"
            cells.append(tag("td", f"{count:,}" if count else "·", title=told,
                             class_=f"heat{level}{' diagonal' if row == column else ''}"))  # fmt: skip
        body.append(tag("tr", tag("th", tag("bdi", labels[row]), scope="row"), cells))
    table = tag("table", tag("thead", heads), tag("tbody", body), class_="confusion")
    wrong = [(-counts[a][b], a, b) for a in range(len(labels)) for b in range(len(labels)) if a != b and counts[a][b]]
    common = [
        tag("li", tag("bdi", labels[a]), " said to be ", tag("bdi", labels[b]), f": {-count:,}")
        for count, a, b in sorted(wrong)[:8]
    ]
    most = [tag("h3", "Most frequent"), tag("ol", common)] if len(labels) > 2 and common else None
    return tag("section", tag("h2", _titled("Confusion", title)), tag("p", note, class_="note"),
               tag("div", table, class_="scroll"), most)  # fmt: skip


def calibrated(cases: Sequence[Case]) -> Safe | None:
    """Whether probabilities can be believed; None where there are none."""
    bins = calibration.reliability(belief for case in cases for belief in case.beliefs)
    total = sum(one.decisions for one in bins)
    if not total:
        return None
    error = calibration.expected_calibration_error(bins)
    right = sum(one.decisions * one.accuracy for one in bins) / total
    sure = sum(one.decisions * one.confidence for one in bins) / total
    leaning = "too sure" if sure > right else "not sure enough"
    told = (f"{total:,} decisions: {right:.1%} are right, and the mean probability is {sure:.1%}"
            + (f", so the model is {leaning} on the whole" if abs(sure - right) >= 0.01 else "") + ".")  # fmt: skip
    return tag(
        "section", tag("h2", "Calibration"),
        tag("p", tag("b", f"Expected calibration error {error:.3f}"), " (mean distance of the dots from the line, over "
            f"{len(bins)} bins). ", told, class_="note"),
        charts.reliability(bins, told),
    )  # fmt: skip


def length_effects(
    task: Task, predictions: Sequence[Prediction], examples: Sequence[Any], cases: Sequence[Case]
) -> Safe | None:
    """The deciding score by the number of words; None where all have about the same, or there are few."""
    words = [sum(len(passage.text.split()) for passage in case.passages) for case in cases]
    groups = by_length(words)
    if len(groups) < 2:
        return None
    rows, scores = [], []
    for group in groups:
        score = task.score([predictions[at] for at in group], [examples[at] for at in group]).get(task.main_score)
        if score is None or not math.isfinite(score):
            return None
        scores.append(score)
        low, high = min(words[at] for at in group), max(words[at] for at in group)
        rows.append((f"{low:,}" if low == high else f"{low:,} to {high:,}", len(group)))
    whole = 100.0 if max(scores) > 1 else 1.0
    body = [
        tag("tr", tag("th", name, scope="row"), _bar(score, whole), tag("td", f"{count:,}", class_="number"))
        for (name, count), score in zip(rows, scores, strict=True)
    ]
    heads = ["words", task.main_score.replace("_", " "), "examples"]
    head = tag("tr", [tag("th", name, scope="col") for name in heads])
    return tag("section", tag("h2", "Length"), tag("p", "The score of short and of long examples.", class_="note"),
               tag("div", tag("table", tag("thead", head), tag("tbody", body)), class_="scroll"))  # fmt: skip


def by_length(words: Sequence[int]) -> list[list[int]]:
    """Numbers of examples in groups of like length and about equal size, equal lengths together, short ones first."""
    order = sorted(range(len(words)), key=lambda at: (words[at], at))
    wanted = max(LEAST_IN_BUCKET, math.ceil(len(order) / BUCKETS))
    groups: list[list[int]] = []
    for at in order:
        if not groups or (len(groups[-1]) >= wanted and words[at] != words[groups[-1][-1]]):
            groups.append([])
        groups[-1].append(at)
    if len(groups) > 1 and len(groups[-1]) < LEAST_IN_BUCKET:
        groups[-2:] = [groups[-2] + groups[-1]]
    return groups


def numbers(cases: Sequence[Case]) -> Safe | None:
    """Numbers that are right and numbers that were said; None where the answers are none."""
    points = [case.numbers for case in cases if case.numbers is not None]
    if not points:
        return None
    return tag("section", tag("h2", "Numbers"), charts.scatter(points, ("right", "said")))
