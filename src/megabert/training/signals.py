"""Being asked to stop: SIGINT and SIGTERM end a run at the next safe place."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class StopRequest:
    """While this context is open, the first SIGINT or SIGTERM is remembered instead of acted upon.

    A second SIGINT interrupts at once (KeyboardInterrupt), for a user who will not wait. In a thread that is not the
    main one, where Python takes no signals, nothing is changed.

    Attributes:
        name: `SIGINT` or `SIGTERM` once asked to stop, else None.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: FrameType | None) -> None:
        if self.name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
