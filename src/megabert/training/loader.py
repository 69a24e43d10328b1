"""Batches in a fixed, resumable order.

An update reads the rows behind those of the one before, cut into micro-batches; how many these are may depend on where
it begins (`batch_sizes`). Which process prepares a row, and
when, changes nothing, since a row is a pure function of its index.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader

from megabert.training.batch_sizes import BatchSizes
from megabert.training.objective import Batch


class Rows(Protocol):
    """A map-style set of rows: dicts of numpy arrays whose shapes do not differ between rows."""

    def __len__(self) -> int:
        """The number of rows in one pass: an evaluation reads no more."""
        ...

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Row `index`, any number from 0 on: training goes over the data as often as it must."""
        ...


class _Guarded:
    """Rows whose errors come back as values, so that the loader can raise them as they were made.

    torch wraps an error of a worker process in a page of its traceback; a user's mistake must stay one line.
    """

    def __init__(self, rows: Rows):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray] | Exception:
        try:
            return self.rows[index]
        except (ValueError, OSError) as error:
            return error


Arrays = dict[str, np.ndarray]


Stack = Callable[[Sequence[Arrays]], Arrays]


def stacked(rows: Sequence[Arrays]) -> Arrays:
    """Rows -> arrays with a leading dimension."""
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


class _Guard:
    """Rows -> arrays, or the first error among them.

    They stay numpy arrays until they have left their worker process: torch would send each tensor through shared
    memory, for which it opens a connection and a file descriptor; measured, eight small ones cost 5 ms that way.
    """

    def __init__(self, stack: Stack):
        self.stack = stack

    def __call__(self, rows: Sequence[Arrays | Exception]) -> Arrays | Exception:
        bad = [row for row in rows if isinstance(row, Exception)]
        return bad[0] if bad else self.stack([row for row in rows if not isinstance(row, Exception)])


def _to_batch(arrays: Arrays | Exception, device: torch.device) -> Batch:
    """Arrays as tensors, in pinned memory when they go to a GPU; an error is raised."""
    if isinstance(arrays, Exception):
        raise arrays
    tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
    return {key: tensor.pin_memory() for key, tensor in tensors.items()} if device.type == "cuda" else tensors


def collate(rows: Sequence[Arrays]) -> Batch:
    """Rows -> one batch, with a leading dimension for the rows."""
    return _to_batch(stacked(rows), torch.device("cpu"))


def _quiet_worker(_: int) -> None:
    # Ctrl-C and a queue's SIGTERM reach the whole process group; the training process finishes its step and needs
    # its workers for that. They end when it closes their queue, or when it is gone.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class _Cuts:
    """Row numbers `[start, stop)` in pieces, made as they are asked for: a run may have a thousand million rows."""

    def __init__(self, start: int, stop: int, size: int):
        self.start, self.stop, self.size = start, stop, size

    def __len__(self) -> int:
        return math.ceil((self.stop - self.start) / self.size)

    def __iter__(self) -> Iterator[range]:
        return (range(first, min(first + self.size, self.stop)) for first in range(self.start, self.stop, self.size))


class Batches:
    """Iterator over updates: each item is the list of one update's micro-batches.

    Args:
        rows: where the rows come from.
        micro_batch: rows in a micro-batch.
        sizes: rows in each update, all of them multiples of `micro_batch`.
        start, stop: rows `[start, stop)` are read; whole updates only.
        workers: processes that prepare rows ahead; 0 prepares them here.
        device: batches for a GPU are put into pinned memory.
        stack: how rows become a batch; it may leave out what is padding in all of them.

    Attributes:
        place: the first row of the next update.
        waited: seconds that the reader waited for rows so far.
    """

    def __init__(
        self,
        rows: Rows,
        *,
        micro_batch: int,
        sizes: BatchSizes,
        start: int,
        stop: int,
        workers: int,
        device: torch.device,
        stack: Stack = stacked,
    ):
        self.micro_batch = micro_batch
        self.sizes = sizes
        self.place = start
        self.device = device
        self.waited = 0.0
        self._batches = iter(_make_loader(rows, _Cuts(start, stop, micro_batch), workers, stack))

    def __iter__(self) -> Iterator[list[Batch]]:
        return self

    def __next__(self) -> list[Batch]:
        """The next update's micro-batches.

        Raises:
            ValueError, OSError: as raised by the rows.
        """
        begin = time.perf_counter()
        size = self.sizes.at(self.place)
        assert size % self.micro_batch == 0
        batches: list[Batch] = []
        for _ in range(size // self.micro_batch):
            batches.append(_to_batch(self._next(), self.device))
        self.place += size
        self.waited += time.perf_counter() - begin
        return batches

    def _next(self) -> Arrays | Exception:
        try:
            return next(self._batches)
        except RuntimeError as error:
            if "worker" not in str(error):
                raise
            raise OSError(
                "a process that prepares rows ended unexpectedly, most often because the memory was full; "
                "give a smaller --num-workers (0 uses none)"
            ) from error

    def close(self) -> None:
        """End the worker processes."""
        shut_down = getattr(self._batches, "_shutdown_workers", None)
        if shut_down is not None:
            shut_down()


def _make_loader(rows: Rows, cuts: _Cuts, workers: int, stack: Stack) -> DataLoader:
    return DataLoader(
        _Guarded(rows),  # type: ignore[arg-type]
        batch_sampler=cuts,  # type: ignore[arg-type]
        collate_fn=_Guard(stack),
        num_workers=workers,
        worker_init_fn=_quiet_worker if workers else None,
        prefetch_factor=4 if workers else None,
        # Without its own generator a loader draws its seed from the default one, which dropout is drawn from.
        generator=torch.Generator(),
    )


def evaluation_batches(
    rows: Rows, *, batch: int, limit: int, workers: int, device: torch.device, stack: Stack = stacked
) -> Iterator[Batch]:
    """The first `limit` rows (or all, when there are fewer) in batches; the last one may be smaller.

    Raises:
        ValueError, OSError: as raised by the rows.
    """
    stop = min(limit, len(rows))
    for item in _make_loader(rows, _Cuts(0, stop, batch), workers, stack):
        yield _to_batch(item, device)
