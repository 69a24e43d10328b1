"""Where metrics go: the console, `metrics.jsonl`, TensorBoard, and a picture of the loss."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from megabert import runtime
from megabert.training.options import RunOptions

Record = Mapping[str, Any]


class Sink(Protocol):
    """Something that takes records of metrics."""

    def write(self, record: Record) -> None:
        """Take one record; it has a `step`."""
        ...

    def sync(self) -> None:
        """Make what was written durable: a checkpoint is about to say that it was."""
        ...

    def close(self) -> None:
        """Nothing more will come."""
        ...


def _losses(record: Record, prefix: str = "") -> Iterable[tuple[str, float]]:
    """Pairs of (term, loss) in the record's order."""
    for key, value in record.items():
        name = key.removeprefix(prefix)
        if key.startswith(prefix) and name.endswith("_loss") and "_" not in name.removesuffix("_loss"):
            yield name.removesuffix("_loss"), value


def console_line(record: Record, steps: int) -> str:
    """One line for people, of a training or an evaluation record."""
    parts = [f"step {record['step']}/{steps}"]
    if "valid_loss" in record:
        parts.append("validation")
        for name, loss in _losses(record, "valid_"):
            parts.append(f"{name} loss {loss:.4f}")
            if name == "lm":
                parts.append(f"perplexity {record['valid_perplexity']:,.2f}")
            parts.append(f"{name} accuracy {100 * record[f'valid_{name}_accuracy']:.1f} %")
        return " | ".join(parts)
    parts += [f"{name} loss {loss:.4f}" for name, loss in _losses(record)]
    parts.append(f"lr {record['lr']:.2e}")
    if "grad_norm" in record:
        parts.append(f"grad norm {record['grad_norm']:.2f}")
    if record["loss_scale"] != 1:
        parts.append(f"loss scale {record['loss_scale']:.0f}")
    if record["skipped_in_window"]:
        parts.append(f"skipped {record['skipped_in_window']}")
    if "tokens_per_second" in record:
        parts.append(f"{record['tokens_per_second']:,.0f} tokens/s")
        if record["data_wait_share"] >= 0.05:
            parts.append(f"waiting for data {100 * record['data_wait_share']:.0f} %")
        parts.append(f"{runtime.duration(record['seconds_left'])} left")
    return " | ".join(parts)


class Console:
    """Lines for people.

    Args:
        steps: updates in the whole run.
        say: takes a line.
    """

    def __init__(self, steps: int, say: Callable[[str], None]):
        self.steps = steps
        self.say = say

    def write(self, record: Record) -> None:
        """Say the record."""
        self.say(console_line(record, self.steps))

    def sync(self) -> None:
        """Nothing is kept back."""

    def close(self) -> None:
        """Nothing to do."""


class JsonLines:
    """`metrics.jsonl`: one JSON object a line, on disk as soon as it is written.

    Args:
        after: lines of a later step, and a last line that was cut off by a kill, are removed first, so that a
            resumed run's file is that of an unbroken one.
        say: takes a line about each damaged one that is left out.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, *, after: int, say: Callable[[str], None] = print):
        self.path = path
        if path.exists():
            kept = [record for record in read_lines(path, say) if record["step"] <= after]
            with runtime.atomic_write(path) as file:
                file.writelines(json.dumps(record) + "\n" for record in kept)
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Record) -> None:
        """Append the record; a number that is not finite becomes null, which JSON has."""
        clean = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in record.items()
        }
        try:
            self._file.write(json.dumps(clean) + "\n")
            self._file.flush()
        except OSError as error:
            raise OSError(f"cannot write {self.path}: {error.strerror}") from error

    def sync(self) -> None:
        """Flush the file to the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_lines(path: Path, say: Callable[[str], None] | None = None) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`, without a last line that a kill has cut and without damaged ones.

    Args:
        say: takes a line about each damaged one.
    """
    records = []
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith("\n"):
                break
            try:
                record = json.loads(line)
            except (json.JSONDecodeError, RecursionError):
                record = None
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                records.append(record)
            elif say is not None:
                say(f"{path}: line {number} is damaged and is left out")
    return records


class TensorBoard:
    """Events for TensorBoard; every number of a record under its own name.

    Args:
        after: events of a later step are taken back.
        without: keys of records that are left out.

    Raises:
        ImportError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, *, after: int, without: Collection[str] = ()):
        from torch.utils.tensorboard import SummaryWriter

        self._without = {"step", *without}
        self._writer = SummaryWriter(str(folder), purge_step=after + 1)

    def write(self, record: Record) -> None:
        """Write one event for each number."""
        for key, value in record.items():
            if key not in self._without and isinstance(value, int | float):
                group = "validation" if key.startswith("valid_") else "training"
                self._writer.add_scalar(f"{group}/{key.removeprefix('valid_')}", value, record["step"])

    def sync(self) -> None:
        """Hand everything to the file."""
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


def open_sinks(folder: Path, options: RunOptions, steps: int, *, after: int, say: Callable[[str], None]) -> list[Sink]:
    """All that the options ask for, going on after the step `after` of a run of `steps`.

    Raises:
        ValueError: a folder for TensorBoard was named, and TensorBoard is not installed.
        OSError: a file cannot be written.
    """
    sinks: list[Sink] = [Console(steps, say), JsonLines(folder / "metrics.jsonl", after=after, say=say)]
    if not options.tensorboard:
        return sinks
    wanted = {"lr": options.log_learning_rate_to_tensorboard, "loss_scale": options.log_loss_scale_to_tensorboard}
    without = [key for key, value in wanted.items() if not value]
    try:
        place = options.tensorboard_dir or folder / "tensorboard"
        sinks.append(TensorBoard(place, after=after, without=without))
    except ImportError:
        # The option's help says that there are no events then; who named a folder waits for them.
        if options.tensorboard_dir is not None:
            raise ValueError("--tensorboard-dir: TensorBoard is not installed; pip install tensorboard") from None
    return sinks


def draw_losses(metrics: Path, picture: Path) -> None:
    """Draw the training and validation loss of a `metrics.jsonl` into a PNG.

    Each term has its own panel. Nothing is drawn when there is no loss yet.

    Raises:
        OSError: the picture cannot be written.
    """
    records = read_lines(metrics)
    terms = list(dict.fromkeys(name for record in records if "lr" in record for name, _ in _losses(record)))
    if not terms:
        return
    # Not pyplot: that would keep figures in a global table, and choose a window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1 + 3.2 * len(terms)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(terms), 1, sharex=True, squeeze=False)[:, 0]
    for panel, term in zip(panels, terms, strict=True):
        _draw_term(panel, records, term)
    panels[-1].set_xlabel("step")
    with runtime.atomic_write(picture, "wb") as file:
        figure.savefig(file, format="png", dpi=120)


def _draw_term(panel: Any, records: list[dict[str, Any]], term: str) -> None:
    for key, label, style in (
        (f"{term}_loss", "training", {"color": "#4477aa", "linewidth": 1.4}),
        (f"valid_{term}_loss", "validation", {"color": "#ee6677", "linewidth": 1.8, "marker": "o", "markersize": 3.5}),
    ):
        points = [(record["step"], record[key]) for record in records if record.get(key) is not None]
        if points:
            panel.plot(*zip(*points, strict=True), label=f"{label} ({points[-1][1]:.3f})", **style)
    panel.set_ylabel(f"{term} loss [nats]")
    panel.grid(color="#dddddd", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False)
