"""How many rows an update has: always the same number, or growing while the first samples are read.

Source: Megatron-LM, `microbatches.py` and `update_train_iters` in `training.py`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TypeVar

from megabert.training.options import DEFAULT_UPDATES, BatchOptions, rows_of

Options = TypeVar("Options", bound=BatchOptions)


@dataclass(frozen=True)
class BatchSizes:
    """The rows of an update as a function of the rows that were read before it.

    From `first` they grow by `increment` at equal distances until `ramp` rows were read, then there are `last`.
    """

    first: int
    increment: int
    ramp: int
    last: int

    @property
    def constant(self) -> bool:
        """Whether every update has the same number of rows."""
        return self.first == self.last

    def at(self, samples: int) -> int:
        """The rows of the update that begins after `samples` rows."""
        if self.constant or samples > self.ramp:
            return self.last
        # In floating point, as the original: whole numbers would differ from it at some boundaries.
        for_each = self.ramp / ((self.last - self.first) // self.increment)
        return self.first + int(samples / for_each) * self.increment

    def after(self, samples: int, updates: int) -> int:
        """The rows that were read once `updates` more were made after `samples` rows."""
        while updates and not self.constant and samples <= self.ramp:
            samples += self.at(samples)
            updates -= 1
        return samples + updates * self.last

    def updates_in(self, total: int) -> int:
        """How many updates a run of `total` rows has; the last rows are left out when they do not fill one.

        Raises:
            ValueError: the run is over before the ramp is.
        """
        samples = updates = 0
        while not self.constant and samples <= self.ramp:
            samples += self.at(samples)
            updates += 1
        if samples > total:
            raise ValueError(
                f"--train-samples: {total} is less than the {samples} of the updates that --rampup-batch-size takes to "
                "reach --global-batch-size; raise it, or ramp up in fewer samples"
            )
        return updates + (total - samples) // self.last


def sizes_of(options: BatchOptions) -> BatchSizes:
    """The batch sizes that the flags ask for.

    Raises:
        ValueError: --rampup-batch-size that does not fit the other flags, or --global-batch-size that does not.
    """
    last = rows_of(options)
    if options.rampup_batch_size is None:
        return BatchSizes(last, 1, 0, last)
    where = f"--rampup-batch-size {' '.join(map(str, options.rampup_batch_size))}"
    if len(options.rampup_batch_size) != 3:
        raise ValueError(f"{where}: three numbers are needed: START INCREMENT SAMPLES")
    first, increment, ramp = options.rampup_batch_size
    if options.train_samples is None:
        raise ValueError(f"{where} goes with --train-samples in place of --train-iters or --epochs")
    if min(first, increment, ramp) < 1:
        raise ValueError(f"{where}: the three numbers must be above 0")
    if first > last or (last - first) % increment:
        raise ValueError(
            f"{where}: from START {first} in steps of INCREMENT {increment}, --global-batch-size {last} is not met"
        )
    odd = next((size for size in range(first, last, increment) if size % options.batch_size), None)
    if odd is not None:
        raise ValueError(
            f"{where}: a batch of {odd} rows is not a multiple of --batch-size {options.batch_size}: START and "
            "INCREMENT must be"
        )
    return BatchSizes(first, increment, ramp, last)


def counts_passes(options: BatchOptions) -> bool:
    """Whether the length of the run is in passes over the data, so that only the data tells its updates."""
    return options.epochs is not None and options.train_iters is None


def with_updates(options: Options, rows_in_pass: int) -> Options:
    """The same options with --epochs as a number of updates: enough to read `rows_in_pass` rows so many times."""
    if not counts_passes(options):
        return options
    assert options.epochs is not None
    return dataclasses.replace(options, epochs=None, train_iters=-(-options.epochs * rows_in_pass // rows_of(options)))


def steps_of(options: BatchOptions) -> int:
    """The number of updates in the whole run, from --train-samples, --train-iters and --epochs.

    Raises:
        ValueError: fewer samples than one global batch, or than the ramp-up needs; flags that exclude each other.
    """
    sizes = sizes_of(options)
    if options.train_samples is None:
        assert not counts_passes(options), "the data tells the length: with_updates comes first"
        return (options.train_iters or DEFAULT_UPDATES) * (options.epochs or 1)
    if options.epochs is not None:
        raise ValueError("--epochs and --train-samples both say how long the run is; keep one of them")
    if options.train_samples < sizes.first:
        raise ValueError(
            f"--train-samples: {options.train_samples} is less than one global batch of {sizes.first} rows"
        )
    return sizes.updates_in(options.train_samples)


def rows_in_run(options: BatchOptions) -> int:
    """The number of rows that the whole run reads; errors as those of `steps_of`."""
    return sizes_of(options).after(0, steps_of(options))
