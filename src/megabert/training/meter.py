"""Counting and timing between two lines of metrics, such that a resumed run writes the lines of an unbroken one."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import torch

from megabert.training.objective import Batch
from megabert.training.step import StepReport


def count_real_tokens(batch: Batch) -> int:
    """Tokens that are not padding: places with a sample id; all places when a batch has none."""
    if "sample_ids" in batch:
        return int((batch["sample_ids"] != 0).sum())
    return next(iter(batch.values())).shape[0]


class Meter:
    """Means over the updates since the last line, and totals over the run.

    Timing fields are of this session and this machine; all others are bitwise the same after a resume, since the
    half-filled window is part of the state.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self.skipped = 0
        self.seconds = 0.0
        self._window: dict[str, Any] = _empty_window()
        self._begin_window()

    def _begin_window(self) -> None:
        self._window_begin = time.perf_counter()
        self._window_steps = 0
        self._window_tokens = 0
        self._busy = 0.0
        self._waited = 0.0

    def add(self, report: StepReport, tokens: int, seconds: float, waited: float) -> None:
        """Count one update: its real tokens, its seconds (waiting for data included), and the seconds of waiting."""
        self.tokens += tokens
        self.skipped += report.skipped
        self.seconds += seconds
        self._window_steps += 1
        self._window_tokens += tokens
        self._busy += seconds
        self._waited += waited
        window = self._window
        window["skipped"] += report.skipped
        if report.skipped:
            return
        window["updates"] += 1
        window["grad_norm"] += report.grad_norm
        for name, loss in report.losses.items():
            window["losses"][name] = window["losses"].get(name, 0.0) + loss

    def line(self, *, step: int, samples: int, learning_rate: float, loss_scale: float, left: int) -> dict[str, Any]:
        """The metrics of the window, which begins anew.

        Args:
            left: updates until the run's end, for `seconds_left`.

        Returns:
            Losses and gradient norm are means over the window's updates; missing when all of them were skipped.
        """
        window, updates = self._window, self._window["updates"]
        record: dict[str, Any] = {"step": step, "samples": samples, "tokens": self.tokens}
        if updates:
            record |= {f"{name}_loss": total / updates for name, total in window["losses"].items()}
        record["lr"] = learning_rate
        if updates:
            record["grad_norm"] = window["grad_norm"] / updates
        record |= {"loss_scale": loss_scale, "skipped": self.skipped, "skipped_in_window": window["skipped"]}
        if self._window_steps:
            # Evaluations and checkpoints count for the time left, but not for the speed of training.
            wall = time.perf_counter() - self._window_begin
            record["tokens_per_second"] = round(self._window_tokens / self._busy, 1) if self._busy else math.inf
            record["seconds_per_step"] = round(self._busy / self._window_steps, 6)
            record["data_wait_share"] = round(self._waited / self._busy, 4) if self._busy else 0.0
            record["seconds_left"] = round(wall / self._window_steps * left, 1)
        record["seconds"] = round(self.seconds, 3)
        if torch.cuda.is_available():
            record["peak_memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 3)
        self._window = _empty_window()
        self._begin_window()
        return record

    def state(self) -> dict[str, Any]:
        """Totals and the half-filled window, as JSON can hold them (its numbers come back exactly)."""
        return {"tokens": self.tokens, "skipped": self.skipped, "seconds": self.seconds, "window": self._window}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state given by `state`."""
        self.tokens, self.skipped, self.seconds = state["tokens"], state["skipped"], state["seconds"]
        self._window = state["window"]


TIMING_FIELDS: Sequence[str] = (
    "tokens_per_second", "seconds_per_step", "data_wait_share", "seconds_left", "seconds", "peak_memory_gib",
)  # fmt: skip
"""Fields of a line that depend on the machine and the session."""


def _empty_window() -> dict[str, Any]:
    return {"updates": 0, "skipped": 0, "grad_norm": 0.0, "losses": {}}
