"""Learning rates and weight decay: Megatron's schedules from v2 on, as pure functions of the samples learned from.

Source: Megatron-LM, `opt_param_scheduler.py`. Counting samples instead of updates makes a schedule independent of the
batch size. Only updates that were made count, so a skipped one does not advance it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from megabert.training.batch_sizes import rows_in_run
from megabert.training.options import TrainingOptions, rows_of


@dataclass(frozen=True)
class Schedule:
    """A learning rate for each number of samples; lengths are in samples."""

    highest: float
    lowest: float
    initial: float
    warmup: int
    decay: int
    style: str
    wsd_style: str = "exponential"
    wsd_decay: int = 1

    def __call__(self, samples: int) -> float:
        """The learning rate of an update that is made after `samples` samples were learned from."""
        if self.warmup > 0 and samples <= self.warmup:
            return self.initial + (self.highest - self.initial) * samples / self.warmup
        if self.style == "constant":
            return self.highest
        if self.style == "exponential":
            # v1.0's: halves once over the decay length (measured from the end of the warm-up), then stays.
            share = min(samples, self.decay) - self.warmup
            return max(self.lowest, self.highest * math.exp(-math.log(2) * share / self.decay))
        if samples > self.decay:
            return self.lowest
        if self.style == "inverse-square-root":
            return max(self.lowest, self.highest * math.sqrt(max(self.warmup, 1) / max(samples, 1)))
        return self.lowest + (self.highest - self.lowest) * self._share_left(samples)

    def _share_left(self, samples: int) -> float:
        """How much of the way from the highest to the lowest rate is left: from 1 to 0."""
        if self.style == "WSD":
            start = self.decay - self.wsd_decay
            return 1.0 if samples <= start else _shape(self.wsd_style, (samples - start) / self.wsd_decay)
        return _shape(self.style, (samples - self.warmup) / (self.decay - self.warmup))


def _shape(style: str, done: float) -> float:
    if style == "linear":
        return 1.0 - done
    if style == "cosine":
        return 0.5 * (math.cos(math.pi * done) + 1.0)
    if style == "exponential":
        return 2.0 * 0.5**done - 1.0
    if style in ("square-root", "square"):
        return (1.0 - done) ** (0.5 if style == "square-root" else 2.0)
    assert style == "minus_sqrt", style
    return 1.0 - math.sqrt(done)


def _length(name: str, iterations: int | None, samples: int | None, rows: int, by_samples: bool) -> int | None:
    """A length in samples from the one of its two flags that was given; None when neither was."""
    if iterations is not None and by_samples:
        raise ValueError(f"--{name}-iters goes with --train-iters; with --train-samples, give --{name}-samples")
    if samples is not None and not by_samples:
        raise ValueError(f"--{name}-samples goes with --train-samples; with --train-iters, give --{name}-iters")
    return samples if iterations is None else iterations * rows


def _samples_of(options: TrainingOptions) -> int:
    """The length of the run in samples: as it was given, although the last ones may not fill an update."""
    rows = rows_in_run(options)
    return options.train_samples or rows


def make_schedule(options: TrainingOptions) -> Schedule:
    """The schedule that the flags ask for.

    Raises:
        ValueError: flags in iterations mixed with flags in samples, a warm-up that is not shorter than the decay, or
            learning rates that are not in order.
    """
    rows = rows_of(options)
    by_samples = options.train_samples is not None
    decay = _length("lr-decay", options.lr_decay_iters, options.lr_decay_samples, rows, by_samples)
    decay = decay or _samples_of(options)
    warmup = _length("lr-warmup", options.lr_warmup_iters, options.lr_warmup_samples, rows, by_samples)
    if warmup is None:
        warmup = int(options.warmup * decay)
    wsd = _length("lr-wsd-decay", options.lr_wsd_decay_iters, options.lr_wsd_decay_samples, rows, by_samples)
    wsd = wsd or max(1, decay // 10)
    if warmup >= decay:
        raise ValueError(
            f"the warm-up of {warmup} samples is not shorter than the decay of {decay}; "
            "lower --lr-warmup-iters (or --warmup), or raise --lr-decay-iters"
        )
    if options.lr_decay_style == "WSD" and wsd > decay - warmup:
        raise ValueError(
            f"--lr-wsd-decay-iters: {wsd} samples do not fit into the {decay - warmup} between the end of the warm-up "
            "and the end of the decay"
        )
    if options.use_checkpoint_lr_scheduler and options.override_lr_scheduler:
        raise ValueError(
            "--use-checkpoint-lr-scheduler and --override-lr-scheduler exclude each other: give one of them"
        )
    if options.min_lr > options.lr:
        raise ValueError(f"--min-lr: {options.min_lr} is over --lr {options.lr}")
    if options.lr_warmup_init > options.lr:
        raise ValueError(f"--lr-warmup-init: {options.lr_warmup_init} is over --lr {options.lr}")
    return Schedule(
        highest=options.lr, lowest=options.min_lr, initial=options.lr_warmup_init, warmup=warmup, decay=decay,
        style=options.lr_decay_style, wsd_style=options.lr_wsd_decay_style, wsd_decay=wsd,
    )  # fmt: skip


@dataclass(frozen=True)
class WeightDecay:
    """A weight decay for each number of samples; `length` is in samples."""

    start: float
    end: float
    length: int
    style: str = "constant"

    def __call__(self, samples: int) -> float:
        """The weight decay of an update that is made after `samples` samples were learned from."""
        if self.style == "constant" or samples > self.length:
            return self.end
        share = samples / self.length
        if self.style == "cosine":
            share = 0.5 * (math.cos(math.pi * (1.0 - share)) + 1.0)
        return self.start + (self.end - self.start) * share


def make_weight_decay(options: TrainingOptions) -> WeightDecay:
    """The weight decay that the flags ask for.

    Raises:
        ValueError: a start or an end without a style, or a style without both.
    """
    start, end, style = options.start_weight_decay, options.end_weight_decay, options.weight_decay_incr_style
    length = _samples_of(options)
    if style == "constant":
        if start is not None or end is not None:
            flag = "--start-weight-decay" if start is not None else "--end-weight-decay"
            raise ValueError(
                f"{flag} goes with --weight-decay-incr-style linear or cosine; constant has --weight-decay"
            )
        return WeightDecay(options.weight_decay, options.weight_decay, length)
    if start is None or end is None:
        missing = "--start-weight-decay" if start is None else "--end-weight-decay"
        raise ValueError(f"--weight-decay-incr-style {style} needs {missing}")
    if end < start:
        raise ValueError(f"--end-weight-decay: {end} is below --start-weight-decay {start}")
    return WeightDecay(start, end, length, style)
