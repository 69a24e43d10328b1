"""How the processes of a job find each other: at rank 0's store, where each says that it is there.

What waits here can be interrupted, and says who is missing: a name that nobody knows, a machine that does not answer,
ranks that are late.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

from megabert.runtime import signals_heard
from megabert.training.launch import Launch

Result = TypeVar("Result")

NOTICE_SECONDS = 30.0
UNKNOWN_SECONDS = 30.0
"""A name that is not resolved for so long will not be: the services that give names to new machines are faster."""
TRY_SECONDS = 5.0
ANSWER_SECONDS = 60.0
"""Who listens and has not answered as a store does after so long is something else."""


def meet(launch: Launch, timeout: timedelta, say: Callable[[str], None]) -> tuple[dist.Store, list[str]]:
    """Wait until all processes are there.

    Args:
        say: takes a line, now and then, about who is waited for.

    Returns:
        A store that only this attempt of the job uses, and each rank's host.

    Raises:
        ValueError: rank 0 was not found, or ranks did not arrive in time; they are named.
    """
    with signals_heard() as hear:
        store = _enter(launch, timeout, say, hear)
        if launch.rank:
            return _follow(launch, store, timeout, hear)
        return _lead(launch, store, timeout, say, hear)


def one_line(error: BaseException) -> str:
    """The text of an error on one line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())[:2000] or type(error).__name__


def _in_the_background(work: Callable[[], Result], seconds: float, hear: Callable[[], None]) -> Result:
    """What `work` returns or raises. It waits in C or C++, where signals are not heard; this thread hears them.

    Args:
        hear: acts on the signals that came.

    Raises:
        TimeoutError: it was not done in time.
    """
    results: list[Result] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="megabert-meeting", daemon=True)
    thread.start()
    end = time.monotonic() + seconds
    while thread.is_alive():
        if time.monotonic() > end:
            raise TimeoutError("no answer")
        thread.join(0.1)
        hear()
    if errors:
        raise errors[0]
    return results[0]


def _enter(launch: Launch, timeout: timedelta, say: Callable[[str], None], hear: Callable[[], None]) -> dist.Store:
    """The store: rank 0 opens it, or torchrun's agent, which gives each attempt one of its own."""
    # torch's own errors would bring a page of C++ with them: they must come later than ours.
    longer = timeout + timedelta(seconds=2 * ANSWER_SECONDS)
    of_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if launch.rank or of_agent:
        _reach(launch, timeout, say, hear)

    def open_store() -> dist.Store:
        if of_agent:
            return next(dist.rendezvous("env://", launch.rank, launch.size, timeout=longer))[0]
        address = launch.address if launch.rank else "127.0.0.1"
        return dist.TCPStore(
            address, launch.port, launch.size, is_master=launch.rank == 0, timeout=longer, wait_for_workers=False
        )

    try:
        store = _in_the_background(open_store, min(ANSWER_SECONDS, timeout.total_seconds()), hear)
    except TimeoutError:
        raise ValueError(
            f"rank {launch.rank} on {launch.host} found something at {launch.address}:{launch.port} that is no "
            "rank 0: give another port to all processes with MASTER_PORT, or torchrun --master-port"
        ) from None
    except (RuntimeError, dist.DistError) as error:
        # The frames of C++ below the message say nothing to a user.
        reason = one_line(error).partition(" Exception raised from")[0][:200]
        if launch.rank or of_agent:
            raise ValueError(f"{_what_is_missing(launch, timeout)} ({reason})") from None
        raise ValueError(
            f"rank 0 on {launch.host} cannot listen on port {launch.port} ({reason}): another job may use it; give "
            "another one to all processes with MASTER_PORT, or torchrun --master-port"
        ) from None
    store.set_timeout(timeout)
    return store


def _what_is_missing(launch: Launch, timeout: timedelta) -> str:
    return (
        f"rank {launch.rank} on {launch.host} found nobody at {launch.address}:{launch.port} within "
        f"{timeout.total_seconds():.0f} s: is rank 0 running there, and the port open between the machines?"
    )


def _reach(launch: Launch, timeout: timedelta, say: Callable[[str], None], hear: Callable[[], None]) -> None:
    """Wait until somebody listens where the store is to be."""
    begin = noticed = time.monotonic()
    unknown_since: float | None = None
    while True:
        left = begin + timeout.total_seconds() - time.monotonic()
        try:
            _try_to_connect((launch.address, launch.port), max(0.1, min(TRY_SECONDS, left)), hear)
            return
        except socket.gaierror as error:
            unknown_since = unknown_since or time.monotonic()
            if time.monotonic() - unknown_since > UNKNOWN_SECONDS or left <= 0:
                raise ValueError(
                    f"rank {launch.rank} on {launch.host} knows no machine called {launch.address} "
                    f"({one_line(error)}), where rank 0 should be: set MASTER_ADDR to a name or an address of rank 0's "
                    "machine that all others can reach"
                ) from None
            reason = one_line(error)
        except OSError as error:
            unknown_since, reason = None, one_line(error)
        if left <= 0:
            raise ValueError(f"{_what_is_missing(launch, timeout)} ({reason})")
        if launch.rank == 1 and time.monotonic() - noticed > NOTICE_SECONDS:
            say(f"rank 1 on {launch.host} waits for rank 0 at {launch.address}:{launch.port} ({reason})")
            noticed = time.monotonic()
        time.sleep(min(0.2, left))
        hear()


def _try_to_connect(place: tuple[str, int], seconds: float, hear: Callable[[], None]) -> None:
    # A name server may take longer than the connection itself.
    _in_the_background(lambda: socket.create_connection(place, seconds), seconds + UNKNOWN_SECONDS, hear).close()


def _lead(
    launch: Launch, store: dist.Store, timeout: timedelta, say: Callable[[str], None], hear: Callable[[], None]
) -> tuple[dist.Store, list[str]]:
    """Wait for all; name those that are late.

    The store may be one that an earlier attempt has used, so what lies in it is not believed: each process comes with a
    number of its own, rank 0 answers with those that it saw, and who finds its own confirms.
    """
    mine = _arrive(launch, store)
    seen: dict[int, list[str]] = {}
    begin = noticed = time.monotonic()
    waiting = set(range(1, launch.size))
    seen[0] = [mine, launch.host]
    while waiting:
        changed = False
        for rank in sorted(waiting):
            found = json.loads(store.get(f"arrived/{rank}")) if store.check([f"arrived/{rank}"]) else None
            if found is not None and seen.get(rank) != found:
                seen[rank], changed = found, True
        if changed and len(seen) == launch.size:
            store.set("seen", json.dumps([mine, [seen[rank] for rank in range(launch.size)]]))
        waiting = {
            rank for rank in waiting
            if rank not in seen or not store.check([f"confirmed/{mine}/{rank}/{seen[rank][0]}"])
        }  # fmt: skip
        late = sorted(waiting)
        names = ", ".join(map(str, late[:8])) + (" ..." if len(late) > 8 else "")
        if waiting and time.monotonic() - begin > timeout.total_seconds():
            raise ValueError(
                f"rank {names} of {launch.size} did not arrive within {timeout.total_seconds():.0f} s; look at the "
                "output of its machine, or raise --distributed-timeout-minutes"
            )
        if waiting and time.monotonic() - noticed > NOTICE_SECONDS:
            say(f"waiting for rank {names} of {launch.size}")
            noticed = time.monotonic()
        time.sleep(0.01)
        hear()
    return dist.PrefixStore(mine, store), [seen[rank][1] for rank in range(launch.size)]


def _arrive(launch: Launch, store: dist.Store) -> str:
    mine = secrets.token_hex(8)
    store.set(f"arrived/{launch.rank}", json.dumps([mine, launch.host]))
    return mine


def _follow(
    launch: Launch, store: dist.Store, timeout: timedelta, hear: Callable[[], None]
) -> tuple[dist.Store, list[str]]:
    """Wait for rank 0's answer."""
    mine = _arrive(launch, store)
    end = time.monotonic() + timeout.total_seconds()
    while time.monotonic() < end:
        if store.check(["seen"]):
            first, seen = json.loads(store.get("seen"))
            if len(seen) == launch.size and seen[launch.rank][0] == mine:
                store.set(f"confirmed/{first}/{launch.rank}/{mine}", "1")
                return dist.PrefixStore(first, store), [host for _, host in seen]
        time.sleep(0.01)
        hear()
    raise ValueError(
        f"rank {launch.rank} on {launch.host} has waited {timeout.total_seconds():.0f} s for the others to arrive"
    )
