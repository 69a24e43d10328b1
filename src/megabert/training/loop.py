"""The one loop: steps, evaluations, checkpoints and reports, until the end or until asked to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from megabert.training import resume, snapshot
from megabert.training.batch_sizes import sizes_of, steps_of, with_updates
from megabert.training.evaluate import Evaluation, evaluate
from megabert.training.loader import Batches, Rows, Stack, evaluation_batches, stacked
from megabert.training.meter import Meter, count_real_tokens
from megabert.training.objective import Batch, Objective
from megabert.training.options import TrainingOptions, evaluation_rows_of
from megabert.training.schedule import Schedule, WeightDecay, make_schedule, make_weight_decay
from megabert.training.signals import StopRequest
from megabert.training.sinks import Sink, draw_losses, open_sinks
from megabert.training.snapshot import Progress
from megabert.training.step import StepReport, make_step

SECONDS_BETWEEN_PICTURES = 60.0
FAULTS_IN_A_ROW = 100


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
        self.train_step = make_step(model, objective, options, device=device)
        self.device = self.train_step.device
        self.checkpoints = resume.Checkpoints(folder / "checkpoints", options.keep_last)
        self.progress = Progress()
        self.meter = Meter()
        self.evaluation: Evaluation | None = None
        self._saved: int | None = None
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
            self._restore()
            if accepted is not None:
                accepted()
            self._sinks = open_sinks(self.folder, self.options, self.steps, after=self.progress.step, say=self.say)
            batches = self._open_batches()
            try:
                with StopRequest() as request:
                    reason = self._run(batches, request, begin)
            finally:
                batches.close()
                for sink in self._sinks:
                    sink.close()
            draw_losses(self.folder / "metrics.jsonl", self.folder / "loss.png")
        finished = self.progress.step >= self.steps
        self.say(reason)
        return Outcome(self.progress.step, finished, reason, self.evaluation, self.checkpoints.named("latest"))

    def _run(self, batches: Batches, request: StopRequest, begin: float) -> str:
        """Steps and what is due between them; returns why it ended."""
        progress, options = self.progress, self.options
        session_begin = progress.step
        while True:
            self._evaluate_if_due(request)
            why = self._why_stop(request, begin, session_begin)
            due = options.save_interval and progress.step and progress.step % options.save_interval == 0
            if (why or due) and self._saved != progress.step:
                self.save()
            if why:
                return why
            self._step(batches)

    def _why_stop(self, request: StopRequest, begin: float, session_begin: int) -> str:
        """One line for the user when the run is to end now; empty when it goes on."""
        step, options = self.progress.step, self.options
        if step >= self.steps:
            return f"finished {step} steps; run folder: {self.folder}"
        go_on = f"saved in {self.folder}; the same command goes on from there"
        if request.name:
            return f"stopped by {request.name} after step {step}/{self.steps}; {go_on}"
        if options.exit_interval and step > session_begin and step % options.exit_interval == 0:
            return f"stopped by --exit-interval after step {step}/{self.steps}; {go_on}"
        minutes = options.exit_duration_in_mins
        if minutes is not None and step > session_begin and time.monotonic() - begin >= 60 * minutes:
            return f"stopped by --exit-duration-in-mins after step {step}/{self.steps}; {go_on}"
        return ""

    def _step(self, batches: Batches) -> None:
        """One update, its accounting, and a line of metrics when due."""
        progress = self.progress
        begin, waited = time.perf_counter(), batches.waited
        micro_batches = next(batches)
        tokens = sum(self.count_tokens(batch) for batch in micro_batches)
        learning_rate = self.schedule(progress.learned)
        weight_decay = self.weight_decay(progress.learned)
        report = self.train_step(micro_batches, learning_rate, weight_decay)
        seconds, waited = time.perf_counter() - begin, batches.waited - waited
        self._check_fault(report)
        progress.step += 1
        rows = self.sizes.at(progress.samples)
        progress.samples += rows
        if not report.skipped:
            progress.learned += rows
        self.meter.add(report, tokens, seconds, waited)
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
            numbers["params_norm"] = float(torch.nn.utils.get_total_norm([*self.train_step.weights.masters.values()]))
        if report.zeros is not None:
            numbers["zeros_in_grad"] = report.zeros
        return numbers

    def _check_fault(self, report: StepReport) -> None:
        """Stop on a loss or gradient that is not finite, or when there were too many in a row to go on."""
        self._faults = self._faults + 1 if report.fault else 0
        skip = self.options.on_nan == "skip"
        if not report.fault or (skip and self._faults < FAULTS_IN_A_ROW):
            return
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
        evaluation = self.evaluate(self.valid_rows, stop=lambda: request.name is not None)
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
        )  # fmt: skip
        return evaluate(self.model, self.objective, batches, device=self.device, stop=stop)

    def save(self, *, best: bool = False) -> Path:
        """Write a checkpoint of this moment.

        Raises:
            OSError: the disk is full or not writable.
        """
        weights = self.train_step.weights
        for sink in self._sinks:
            sink.sync()
        moment = snapshot.Snapshot(
            weights=weights.state(),
            identity=self.identity,
            state={
                "progress": asdict(self.progress),
                "meter": self.meter.state(),
                "scaler": self.train_step.scaler.state(),
                "schedule": asdict(self.schedule),
                "weight_decay": asdict(self.weight_decay),
            },
        )
        if self.options.save_optim:
            moment.optimizer = snapshot.optimizer_tensors(self.train_step.optimizer, weights.masters)
        if self.options.save_rng:
            moment.random = snapshot.random_state(self.device)
        path = self.checkpoints.save(self.progress.step, moment, best=best)
        self._saved = self.progress.step
        if time.monotonic() - self._drawn > SECONDS_BETWEEN_PICTURES:
            draw_losses(self.folder / "metrics.jsonl", self.folder / "loss.png")
        return path

    def _restore(self) -> None:
        """Go on from the run folder's newest checkpoint, else from --load, else from the beginning."""
        path, own = resume.beginning(self.checkpoints, self.options.load, self.say)
        if path is None:
            return
        if own and self.options.load is not None and not path.resolve().is_relative_to(self.options.load.resolve()):
            self.say(f"{self.folder} already holds checkpoints: going on from them, not from {self.options.load}")
        self._load(path, whole=own or not self.options.finetune, own=own)

    def _load(self, path: Path, *, whole: bool, own: bool) -> None:
        """Take a checkpoint: all of it when `whole`, else the weights. `own`: it lies in this run's folder."""
        with self.checkpoints.advising(own):
            found = resume.read(path)
        weights = self.train_step.weights
        snapshot.check_weights(weights.state(), found.weights, path)
        weights.load(found.weights)
        if not whole:
            self.say(f"starting from the weights of {path}")
            return
        snapshot.check_identity(self.identity, found.identity, path, own=own)
        try:
            self.progress = Progress(**found.state["progress"])
            snapshot.check_length(self.progress.step, self.steps, path)
            self.meter.load(found.state["meter"])
            self._load_scale(found.state["scaler"])
            if self.options.use_checkpoint_lr_scheduler:
                self.schedule = Schedule(**found.state["schedule"])
                self.weight_decay = WeightDecay(**found.state["weight_decay"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path / 'state.json'} does not fit this run: {error!r}") from None
        if self.options.load_optim:
            self._need(found.optimizer, "optimizer state", "--no-load-optim", path)
            snapshot.load_optimizer(self.train_step.optimizer, weights.masters, found.optimizer, path)
        if self.options.load_rng:
            self._need(found.random, "random state", "--no-load-rng", path)
            snapshot.set_random_state(found.random, self.device)
        if own:
            self._saved = self.progress.step
            self.checkpoints.point("latest", self.progress.step)
        self.say(f"going on from {path}, step {self.progress.step}/{self.steps}")

    def _load_scale(self, state: dict[str, float]) -> None:
        """Take the loss scale up again, unless the precision was changed in between."""
        scaler = self.train_step.scaler
        if set(state) == set(scaler.state()):
            scaler.load(state)
        else:
            self.say(f"the checkpoint's kind of loss scale is another one; it starts anew at {scaler.scale:.0f}")

    @staticmethod
    def _need(tensors: Mapping[str, Any], what: str, flag: str, path: Path) -> None:
        if not tensors:
            raise ValueError(f"{path} was saved without its {what}; {flag} goes on without it")

    def _open_batches(self) -> Batches:
        start = self.progress.samples
        left = max(0, self.steps - self.progress.step)
        return Batches(
            self.train_rows, micro_batch=self.options.batch_size, sizes=self.sizes, start=start,
            stop=self.sizes.after(start, left), workers=self.options.num_workers, device=self.device, stack=self.stack,
        )  # fmt: skip

    def _write(self, record: dict[str, Any]) -> None:
        for sink in self._sinks:
            sink.write(record)

        self._drawn = time.monotonic()
