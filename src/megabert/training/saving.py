"""Saving behind the training's back: a step waits for the copying of what it is about to change, not for the disk.

What a checkpoint holds does not change until the next update of the weights. So a thread copies it while that update's
forward and backward passes run, and the update waits for the copies; then the thread writes them while training goes
on. The copies take the memory of the checkpoint once, and are kept for the next one.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from megabert.training.snapshot import Snapshot


class _Ready:
    """The place in the work of this thread's GPU from which on a moment can be copied."""

    def __init__(self) -> None:
        self.device = torch.cuda.current_device()
        self.event = torch.cuda.Event()
        self.event.record()


class Saver:
    """At most one save at a time.

    Args:
        optimizer: its steps wait until a save has copied what they change.
        background: False saves before `start` returns, and copies nothing.

    Attributes:
        waited: seconds that training stood still for saves so far.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, background: bool):
        self.background = background
        self.waited = 0.0
        self._thread: threading.Thread | None = None
        self._copied = threading.Event()
        self._error: BaseException | None = None
        self._copies: dict[str, dict[str, Tensor]] = {"weights": {}, "optimizer": {}}
        self._hook = optimizer.register_step_pre_hook(lambda *_: self.settle())

    def start(self, moment: Snapshot, write: Callable[[Snapshot], object]) -> None:
        """Save a moment: `write` is given it, or a copy; waits for an earlier save first.

        Raises:
            OSError: this save (when not in the background) or the one before failed.
        """
        begin = time.perf_counter()
        self.finish()
        if not self.background:
            write(moment)
            self.waited += time.perf_counter() - begin
            return
        self.waited += time.perf_counter() - begin
        self._copied.clear()
        ready: _Ready | None = None
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            ready = _Ready()
        self._thread = threading.Thread(
            target=self._work, args=(moment, write, ready), name="megabert-saver", daemon=True
        )
        self._thread.start()

    def _work(self, moment: Snapshot, write: Callable[[Snapshot], object], ready: _Ready | None) -> None:
        try:
            try:
                copy = self._copy(moment, ready)
            finally:
                self._copied.set()
            write(copy)
        except BaseException as error:
            self._error = error

    @torch.no_grad()
    def _copy(self, moment: Snapshot, ready: _Ready | None) -> Snapshot:
        if ready is None:
            copies = {part: self._stage(part, getattr(moment, part)) for part in self._copies}
        else:
            # A new thread begins on GPU 0, whichever its process has: copies there would be waited for elsewhere.
            stream = torch.cuda.Stream(ready.device)
            with torch.cuda.stream(stream):
                stream.wait_event(ready.event)
                copies = {part: self._stage(part, getattr(moment, part)) for part in self._copies}
            stream.synchronize()
        return dataclasses.replace(moment, **copies)

    def _stage(self, part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        kept = self._copies[part]
        for name in kept.keys() - tensors.keys():
            del kept[name]
        for name, tensor in tensors.items():
            copy = kept.get(name)
            if copy is None or copy.shape != tensor.shape or copy.dtype != tensor.dtype:
                copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                kept[name] = copy
            copy.copy_(tensor, non_blocking=True)
        return dict(kept)

    def settle(self) -> None:
        """Wait until what a running save needs is copied: after that, weights may change."""
        if self._thread is not None and not self._copied.is_set():
            begin = time.perf_counter()
            self._copied.wait()
            self.waited += time.perf_counter() - begin

    def finish(self) -> None:
        """Wait until a running save is on the disk.

        Raises:
            OSError: it failed.
        """
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    @property
    def running(self) -> bool:
        """Whether a save is not on the disk yet."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def failed(self) -> bool:
        """Whether a save that ran in the background has failed: `finish` raises why."""
        return self._error is not None
