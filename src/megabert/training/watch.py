"""Watching each other: each process of a job holds a connection to rank 0, and the first bad news ends the job.

A process that is killed loses its connection at once, whatever the others are waiting for; a machine that falls silent
is missed after the timeout. Rank 0 says one line that names the rank and its host, and all processes end: nobody hangs
in a collective whose other side is gone.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

BEAT_SECONDS = 2.0
GATHERING_SECONDS = 0.05
COMMON_SECONDS = 1.0
"""What one rank finds wrong in flags or files the others often find too, a little later on a busy machine."""
CAUSE_SECONDS = 5.0
STATUS_OF_LOSS = 1
_LONGEST_LINE = 1 << 16


@dataclass
class _Peer:
    """One connection as rank 0 sees it."""

    rank: int = -1
    host: str = ""
    heard: float = 0.0
    done: bool = False
    rest: bytes = b""


@dataclass(frozen=True)
class Failure:
    """Why a process ends.

    Attributes:
        rank, host: whose it is.
        text: one line.
        status: the exit status that it asks for.
        cause: it is the reason itself; False for what may follow from another process's end, as a broken collective.
    """

    rank: int
    host: str
    text: str
    status: int
    cause: bool


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _keep_alive(connection: socket.socket, seconds: float) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))


def _shout(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Hub:
    """Rank 0's side: hears of every end, finds the cause, says it once, and tells all.

    Args:
        hosts: the machine of each process in the job.
        token: what a process must know to be heard.
        silence: seconds after which a process that says nothing is taken as lost.
        advice: added to the line about a lost process: how to go on.
    """

    def __init__(self, hosts: Sequence[str], token: str, silence: float, say: Callable[[str], None] = _shout):
        self.hosts = hosts
        self.size = len(hosts)
        self._begin = time.monotonic()
        self.token = token
        self.silence = silence
        self.say = say
        self.advice: Callable[[], str] = str
        self._listener = socket.create_server(("", 0), backlog=self.size)
        self.port: int = self._listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._peers: dict[socket.socket, _Peer] = {}
        self._lost: dict[int, str] = {}
        self._failures: dict[int, Failure] = {}
        self._first: float | None = None
        self._arrived = 0
        self.finished = threading.Event()
        threading.Thread(target=self._run, name="megabert-watch-hub", daemon=True).start()

    def _run(self) -> None:
        while not self.finished.is_set():
            for key, _ in self._selector.select(timeout=0.02 if self._first else 0.5):
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._hear(key.fileobj)  # type: ignore[arg-type]
            self._miss()
            if self._first is not None and self._decided():
                self._end()
            elif self._arrived == self.size and not self._peers:
                self.finished.set()
        self._listener.close()

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        _keep_alive(connection, self.silence)
        self._peers[connection] = _Peer(heard=time.monotonic())
        self._selector.register(connection, selectors.EVENT_READ)

    def _hear(self, connection: socket.socket) -> None:
        peer = self._peers[connection]
        try:
            data = connection.recv(_LONGEST_LINE)
        except OSError:
            data = b""
        if not data or len(peer.rest) > _LONGEST_LINE:
            self._drop(connection, peer)
            return
        peer.heard = time.monotonic()
        *lines, peer.rest = (peer.rest + data).split(b"\n")
        for line in lines:
            if not self._take(peer, line):
                self._drop(connection, peer)
                return

    def _take(self, peer: _Peer, line: bytes) -> bool:
        """Understand one line; False for what does not belong here."""
        try:
            message = json.loads(line)
            if peer.rank < 0:
                if message["token"] != self.token:
                    return False
                peer.rank, peer.host = int(message["rank"]), str(message["host"])
                self._arrived += 1
            elif "text" in message:
                self._failures[peer.rank] = Failure(
                    peer.rank, peer.host, str(message["text"]), int(message["status"]), bool(message["cause"])
                )
                self._first = self._first or time.monotonic()
            elif "bye" in message:
                peer.done = True
        except (ValueError, KeyError, TypeError):
            return False
        return True

    def _drop(self, connection: socket.socket, peer: _Peer) -> None:
        self._selector.unregister(connection)
        connection.close()
        del self._peers[connection]
        if peer.rank >= 0 and not peer.done:
            self._lose(peer, "is gone: it was killed, or crashed")

    def _lose(self, peer: _Peer, how: str) -> None:
        self._lost[peer.rank] = f"rank {peer.rank} on {peer.host} {how}"
        self._first = self._first or time.monotonic()

    def _miss(self) -> None:
        for peer in self._peers.values():
            silent = time.monotonic() - peer.heard
            if silent > self.silence and peer.rank >= 0 and not peer.done and peer.rank not in self._lost:
                self._lose(peer, f"has not answered for {silent:.0f} s: it is frozen, or its machine is lost")
        if self._arrived < self.size and time.monotonic() - self._begin > self.silence:
            missing = set(range(self.size)) - {peer.rank for peer in self._peers.values()} - set(self._lost)
            for rank in sorted(missing):
                self._lose(_Peer(rank, self.hosts[rank]), "has not connected: it was killed, or cannot reach rank 0")

    def _decided(self) -> bool:
        """Whether it is time to speak: bad news come in a bunch, and the cause may come after what it caused."""
        assert self._first is not None
        waited = time.monotonic() - self._first
        if len(self._lost) + len(self._failures) >= self.size:
            return True
        if self._lost:
            return waited >= GATHERING_SECONDS
        caused = any(failure.cause for failure in self._failures.values())
        return waited >= (COMMON_SECONDS if caused else CAUSE_SECONDS)

    def _end(self) -> None:
        line, status = self._verdict()
        self.say(line)
        # This process's own connection comes last: it ends the process, and with it the others' connections.
        for connection, _ in sorted(self._peers.items(), key=lambda item: item[1].rank, reverse=True):
            with suppress(OSError):
                _send(connection, {"end": status})
        self.finished.set()

    def _verdict(self) -> tuple[str, int]:
        """The line to say, and the exit status of all."""
        if self._lost:
            return "; ".join([*self._lost.values()][:4]) + f"; the job ends{self.advice()}", STATUS_OF_LOSS
        failures = sorted(self._failures.values(), key=lambda failure: (not failure.cause, failure.rank))
        first = failures[0]
        if first.cause and sum(failure.text == first.text for failure in failures) == self.size:
            return first.text, first.status
        return f"rank {first.rank} on {first.host}: {first.text}", first.status


class Watch:
    """Each process's side.

    Args:
        address: host and port of the hub.
        leave: ends this process when the job ends; replaced in tests.

    Attributes:
        advice: as the hub's, for the line about the loss of rank 0.
    """

    def __init__(
        self, rank: int, host: str, address: tuple[str, int], token: str, silence: float, hub: Hub | None = None,
        *, first_host: str = "", leave: Callable[[int], None] = os._exit,
    ):  # fmt: skip
        self.rank = rank
        self.hub = hub
        self.advice: Callable[[], str] = str
        self._first_host = first_host
        self._leave = leave
        self._status: int | None = None
        self._failing = False
        self._closed = False
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._connection = socket.create_connection(address, timeout=60)
        self._connection.settimeout(None)
        _keep_alive(self._connection, silence)
        self._tell({"token": token, "rank": rank, "host": host})
        for work in (self._listen, self._beat):
            threading.Thread(target=work, name="megabert-watch", daemon=True).start()

    def _tell(self, message: dict[str, Any]) -> None:
        with self._lock:
            _send(self._connection, message)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            try:
                self._tell({"beat": 1})
            except OSError:
                return

    def _listen(self) -> None:
        rest = b""
        while b"\n" not in rest:
            try:
                data = self._connection.recv(1024)
            except OSError:
                data = b""
            if not data:
                break
            rest += data
        if self._closed:
            return
        if rest:
            self._status = int(json.loads(rest)["end"])
        else:
            self._status = STATUS_OF_LOSS
            if self.rank == 1:
                _shout(
                    f"megabert: error: rank 0 on {self._first_host} is gone: it was killed, or crashed; the job ends"
                    f"{self.advice()}"
                )
        self._ended.set()
        if not self._failing:
            sys.stdout.flush()
            self._leave(self._status)

    def fail(self, text: str, status: int, *, cause: bool) -> int:
        """Report this process's own end, and wait until the job's line was said; returns the exit status."""
        self._failing = threading.current_thread() is threading.main_thread()
        with suppress(OSError):
            self._tell({"text": text, "status": status, "cause": cause})
        self._ended.wait(timeout=2 * CAUSE_SECONDS)
        if self.hub is not None:
            self.hub.finished.wait(timeout=2 * CAUSE_SECONDS)
        return self._status or status

    @contextmanager
    def patient(self) -> Iterator[None]:
        """In this context SIGTERM waits for worse news before it ends the job.

        A launcher that sees one process die sends SIGTERM to the others at once; then the line to say is the one about
        the death. The signal is heard even while the main thread waits in a collective; where another handler has been
        set in the meantime, as training does, it is that one's.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def wait(number: int, _: FrameType | None) -> None:
            """The thread that hears the signal does what is to be done."""

        def hear() -> None:
            while heard := reading.recv(1):
                if heard[0] == signal.SIGTERM and signal.getsignal(signal.SIGTERM) is wait:
                    time.sleep(CAUSE_SECONDS)
                    self.fail("stopped by SIGTERM", 128 + signal.SIGTERM, cause=True)

        reading, writing = socket.socketpair()
        writing.setblocking(False)
        threading.Thread(target=hear, name="megabert-watch-signals", daemon=True).start()
        before = signal.signal(signal.SIGTERM, wait)
        number_before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(number_before)
            signal.signal(signal.SIGTERM, before)
            writing.close()

    def close(self) -> None:
        """Say that this process ended well; rank 0 waits for all others to say so."""
        self._closed = True
        with suppress(OSError):
            self._tell({"bye": 1})
        self._ended.set()
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()
        if self.hub is not None:
            self.hub.finished.wait()
