"""The one loop: steps, evaluations, checkpoints and reports, until the end or until asked to stop."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from megabert.training import snapshot
from megabert.training.batch_sizes import sizes_of, steps_of, with_updates
from megabert.training.evaluate import Evaluation, evaluate
from megabert.training.loader import Batches, Rows, Stack, evaluation_batches, stacked
from megabert.training.meter import Meter, count_real_tokens
from megabert.training.objective import Batch, Objective
from megabert.training.options import TrainingOptions, evaluation_rows_of
from megabert.training.restoring import restore
from megabert.training.saving import Saver
from megabert.training.schedule import make_schedule, make_weight_decay
from megabert.training.signals import StopRequest
from megabert.training.sinks import Sink, draw_losses, open_sinks
from megabert.training.snapshot import Progress
from megabert.training.step import StepReport, TrainingStep, make_step
from megabert.training.team import OneProcess, Team

SECONDS_BETWEEN_PICTURES = 60.0
FAULTS_IN_A_ROW = 100
OVER = "--exit-duration-in-mins"


@dataclass(frozen=True)
class Outcome:
    """How `fit` ended.

    Attributes:
        step: the last step.
        finished: the whole run is done; False when it was asked to stop before.
        reason: one line for the user.
        evaluation: the last evaluation of this session, if any.
        checkpoint: the newest checkpoint.
    """

    step: int
    finished: bool
    reason: str
    evaluation: Evaluation | None
    checkpoint: Path | None


def _print(line: str) -> None:
    print(line, flush=True)


class Trainer:
    """Trains a model on rows.

    Args:
        model: converted in place to the asked precision, and left trained.
        train_rows: read in their order, over and over.
        valid_rows: evaluated on, when given.
        folder: the run folder: `checkpoints/`, `metrics.jsonl`, `loss.png`, `tensorboard/`.
        identity: what the run is made of, as short strings by name (digests of tokenizer and data); a checkpoint
            with other values is refused.
        device: left out, where the model is.
        count_tokens: real tokens of a batch.
        stack: how rows become a batch; it may leave out what is padding in all of them.
        say: takes lines for people.
        team: the processes of the run; left out, this one.
        train_step: made for `model` already; left out, by `make_step`.

    Raises:
        ValueError: options that exclude each other.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        train_rows: Rows,
        valid_rows: Rows | None,
        options: TrainingOptions,
        *,
        folder: Path,
        identity: Mapping[str, str] | None = None,
        device: torch.device | None = None,
        count_tokens: Callable[[Batch], int] = count_real_tokens,
        stack: Stack = stacked,
        say: Callable[[str], None] = _print,
        team: Team | None = None,
        train_step: TrainingStep | None = None,
    ):
        self.model = model
        self.objective = objective
        self.train_rows = train_rows
        self.valid_rows = valid_rows if valid_rows is not None and len(valid_rows) and options.eval_iters else None
        self.options = options = with_updates(options, len(train_rows))
        self.folder = folder
        self.identity = {**(identity or {}), "optimizer": options.optimizer}
        self.count_tokens = count_tokens
        self.stack = stack
        self.say = say
        self.sizes = sizes_of(options)
        self.steps = steps_of(options)
        self.schedule = make_schedule(options)
        self.weight_decay = make_weight_decay(options)
        self.team = team or OneProcess()
        self.train_step = train_step or make_step(model, objective, options, device=device)
        self.device = self.train_step.device
        self.checkpoints = self.team.checkpoints(folder / "checkpoints", options.keep_last)
        self.saver = Saver(self.train_step.optimizer, background=options.async_save)
        self.progress = Progress()
        self.meter = Meter()
        self.evaluation: Evaluation | None = None
        self.saved: int | None = None
        self._drawn = time.monotonic()
        self._faults = 0
        self._sinks: list[Sink] = []

    def fit(self, accepted: Callable[[], None] | None = None) -> Outcome:
        """Train to the end, or until a signal, --exit-interval or --exit-duration-in-mins; save; say how to go on.

        Args:
            accepted: called when the checkpoint to go on from, if any, was found to fit: nothing was written before.

        Raises:
            ValueError: a checkpoint damaged or of another run; bad rows; under `--on-nan stop`, a loss that is NaN.
            OSError: the disk is full or not writable.
        """
        begin = time.monotonic()
        with self.checkpoints.alone():
            self.checkpoints.prepare()
            restore(self)
            if self.team.leads:
                if accepted is not None:
                    accepted()
                self._sinks = open_sinks(self.folder, self.options, self.steps, after=self.progress.step, say=self.say)
            batches = self._open_batches()
            try:
                with StopRequest() as request:
                    reason = self._run(batches, request, begin)
                    self.saver.finish()
            except BaseException:
                # What was saved before the mishap is needed all the more.
                with suppress(OSError):
                    self.saver.finish()
                raise
            finally:
                batches.close()
                for sink in self._sinks:
                    sink.close()
            self._draw()
        finished = self.progress.step >= self.steps
        self.say(reason)
        return Outcome(self.progress.step, finished, reason, self.evaluation, self.checkpoints.named("latest"))

    def _run(self, batches: Batches, request: StopRequest, begin: float) -> str:
        """Steps and what is due between them; returns why it ended."""
        progress, options = self.progress, self.options
        session_begin = progress.step
        while True:
            self._evaluate_if_due(request)
            why = self._why_stop(self._asked_to_stop(request, begin), session_begin)
            due = options.save_interval and progress.step and progress.step % options.save_interval == 0
            if (why or due) and self.saved != progress.step:
                self.save()
            if why:
                return why
            self._step(batches)

    def _asked_to_stop(self, request: StopRequest, begin: float) -> str:
        """Why to stop as soon as possible, known to all processes alike; empty when there is no reason."""
        minutes = self.options.exit_duration_in_mins
        over = minutes is not None and time.monotonic() - begin >= 60 * minutes
        signs = {"SIGINT": request.name == "SIGINT", "SIGTERM": request.name == "SIGTERM", OVER: over}
        asked = self.team.add(list(signs.values()))
        return next((name for name, count in zip(signs, asked, strict=True) if count), "")

    def _why_stop(self, asked: str, session_begin: int) -> str:
        """One line for the user when the run is to end now; empty when it goes on."""
        step, options = self.progress.step, self.options
        if step >= self.steps:
            return f"finished {step} steps; run folder: {self.folder}"
        go_on = f"saved in {self.folder}; the same command goes on from there"
        if asked and asked != OVER:
            return f"stopped by {asked} after step {step}/{self.steps}; {go_on}"
        if options.exit_interval and step > session_begin and step % options.exit_interval == 0:
            return f"stopped by --exit-interval after step {step}/{self.steps}; {go_on}"
        if asked and step > session_begin:
            return f"stopped by {OVER} after step {step}/{self.steps}; {go_on}"
        return ""

    def _step(self, batches: Batches) -> None:
        """One update, its accounting, and a line of metrics when due."""
        progress = self.progress
        begin, waited = time.perf_counter(), batches.waited
        micro_batches = next(batches)
        tokens = sum(self.count_tokens(batch) for batch in micro_batches) if self.team.counts else 0
        learning_rate = self.schedule(progress.learned)
        weight_decay = self.weight_decay(progress.learned)
        report = self.train_step(micro_batches, learning_rate, weight_decay)
        seconds, waited = time.perf_counter() - begin, batches.waited - waited
        self._check_fault(report)
        if self.saver.failed:
            self.saver.finish()
        progress.step += 1
        rows = self.sizes.at(progress.samples)
        progress.samples += rows
        if not report.skipped:
            progress.learned += rows
        self.meter.add(report, int(self.team.add([tokens])[0]), seconds, waited)
        if progress.step % self.options.log_interval == 0 or progress.step == self.steps:
            record = self.meter.line(
                step=progress.step, samples=progress.samples, learning_rate=learning_rate,
                loss_scale=report.loss_scale, left=self.steps - progress.step,
            )  # fmt: skip
            self._write(record | self._asked_for(report, rows, weight_decay))

    def _asked_for(self, report: StepReport, rows: int, weight_decay: float) -> dict[str, float]:
        """What a line says only when a flag makes it worth saying."""
        numbers: dict[str, float] = {}
        if not self.sizes.constant:
            numbers["batch_size"] = rows
        if self.weight_decay.style != "constant":
            numbers["weight_decay"] = weight_decay
        if self.options.log_params_norm:
            numbers["params_norm"] = self.train_step.params_norm()
        if report.zeros is not None:
            numbers["zeros_in_grad"] = report.zeros
        return numbers

    def _check_fault(self, report: StepReport) -> None:
        """Stop on a loss or gradient that is not finite, or when there were too many in a row to go on."""
        self._faults = self._faults + 1 if report.fault else 0
        skip = self.options.on_nan == "skip"
        if not report.fault or (skip and self._faults < FAULTS_IN_A_ROW):
            return
        self.saver.finish()
        latest = self.checkpoints.named("latest")
        newest = f"newest checkpoint: {latest}" if latest else "there is no checkpoint yet"
        advice = "--on-nan skip passes over such steps"
        if skip:
            advice = f"this was the {self._faults}th such step in a row, so passing over them does not help"
        raise ValueError(
            f"step {self.progress.step + 1}: {report.fault}; the weights were not changed by it ({newest}). "
            f"Try a lower --lr or a longer --warmup; {advice}"
        )

    def _evaluate_if_due(self, request: StopRequest) -> None:
        """Evaluate at multiples of --eval-interval and at the end; save when the loss is the lowest so far."""
        progress, interval = self.progress, self.options.eval_interval
        due = progress.step == self.steps or (interval > 0 and progress.step % interval == 0)
        if self.valid_rows is None or not due or progress.evaluated == progress.step:
            return
        evaluation = self.evaluate(self.valid_rows, stop=lambda: self.team.add([request.name is not None])[0] > 0)
        if evaluation is None:
            # Given up for a signal: the resumed run, finding it undone, makes it first.
            return
        self.evaluation = evaluation
        progress.evaluated = progress.step
        self._write({"step": progress.step, "samples": progress.samples, **evaluation.record()})
        if math.isfinite(evaluation.loss) and (progress.best is None or evaluation.loss < progress.best):
            progress.best = evaluation.loss
            if self.options.save_best:
                self.save(best=True)

    def evaluate(self, rows: Rows, *, stop: Callable[[], bool] | None = None) -> Evaluation | None:
        """Losses and accuracies on the first --eval-iters x --eval-batch-size of the rows; None when given up."""
        batches = evaluation_batches(
            rows, batch=self.options.eval_batch_size or self.options.batch_size, limit=evaluation_rows_of(self.options),
            workers=self.options.num_workers, device=self.device, stack=self.stack,
            share=(self.team.data_rank, self.team.data_ranks),
        )  # fmt: skip
        return evaluate(self.train_step.engine, self.objective, batches, stop=stop, team=self.team)

    def save(self, *, best: bool = False) -> None:
        """Write a checkpoint of this moment: with --async-save, behind the training's back.

        Raises:
            OSError: the disk is full or not writable, now or at the save before.
        """
        weights, step = self.train_step.weights, self.progress.step
        self.saver.finish()
        for sink in self._sinks:
            sink.sync()
        parts = {
            "progress": asdict(self.progress), "meter": self.meter.state(), "scaler": self.train_step.scaler.state(),
            "schedule": asdict(self.schedule), "weight_decay": asdict(self.weight_decay),
        }  # fmt: skip
        # A copy: training goes on counting while this is written.
        moment = snapshot.Snapshot(weights.state(), identity=self.identity, state=copy.deepcopy(parts))
        if self.options.save_optim:
            tensors = snapshot.optimizer_tensors(self.train_step.optimizer, weights.masters)
            moment.optimizer = weights.whole(tensors)
        if self.options.save_rng:
            moment.random = snapshot.random_state(self.device)
        self.saver.start(moment, lambda copied: self.checkpoints.save(step, copied, best=best))
        self.saved = step
        if time.monotonic() - self._drawn > SECONDS_BETWEEN_PICTURES:
            self._draw()

    def _draw(self) -> None:
        if self.team.leads:
            draw_losses(self.folder / "metrics.jsonl", self.folder / "loss.png")
        self._drawn = time.monotonic()

    def _open_batches(self) -> Batches:
        start = self.progress.samples
        left = max(0, self.steps - self.progress.step)
        return Batches(
            self.train_rows, micro_batch=self.options.batch_size, sizes=self.sizes, start=start,
            stop=self.sizes.after(start, left), workers=self.options.num_workers, device=self.device, stack=self.stack,
            share=(self.team.data_rank, self.team.data_ranks),
        )  # fmt: skip

    def _write(self, record: dict[str, Any]) -> None:
        for sink in self._sinks:
            sink.write(record)
