"""Fetch one file over HTTP so that it is whole, the right one, and fetched once.

A download goes to `<target>.part`, is resumed where it stopped, and gets its name only when every byte is there. What
it was (size, SHA-256, address) is kept in `<target>.json` and held against the file ever after. Which address a name
stands for is not known here.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from megabert import runtime

Progress = Callable[[int, int | None], None]
"""Called with (bytes that are here, bytes in all or None when the server does not say)."""

_BLOCK = 1 << 20
_TRIES = 5
_LARGEST_NOTE = 1 << 16


@dataclass(frozen=True)
class Digest:
    """Which bytes a file holds: `size` in bytes, `sha256` as 64 hexadecimal digits."""

    size: int
    sha256: str


class _Reply(NamedTuple):
    response: Any
    start: int
    total: int | None
    tag: str


def offline() -> bool:
    """Whether the user forbids the network: `HF_HUB_OFFLINE` is set to 1, true, yes or on."""
    return os.environ.get("HF_HUB_OFFLINE", "").strip().lower() in {"1", "true", "yes", "on"}


def digest(path: Path) -> Digest:
    """Read a file once.

    Raises:
        OSError: it cannot be read.
    """
    size, state = 0, hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            state.update(block)
            size += len(block)
    return Digest(size, state.hexdigest())


def check(path: Path, expected: Digest | None = None) -> Digest:
    """Hold a file against what was recorded when it was first used; record it when nothing was.

    Args:
        expected: what the user's own table of names says it must be; wins over the record.

    Raises:
        ValueError: its size or its SHA-256 is another one than before.
    """
    wanted, found = expected or _recorded(path), digest(path)
    if wanted is not None and (wanted.sha256, wanted.size) != (found.sha256, found.size):
        raise ValueError(
            f"{path} is not the file that is expected: {found.size:,} bytes with SHA-256 {found.sha256}, where "
            f"{wanted.size:,} bytes with {wanted.sha256} are; delete it to fetch it again, or delete "
            f"{_note(path)} too if the change is wanted"
        )
    if _recorded(path) is None:
        _record(path, found, source="")
    return found


def _note(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _recorded(path: Path) -> Digest | None:
    note = _note(path)
    try:
        if note.stat().st_size > _LARGEST_NOTE:
            return None
        value = json.loads(note.read_text(encoding="utf-8"))
        return Digest(int(value["size"]), str(value["sha256"]).lower())
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{note} is damaged: it should hold the size and the SHA-256 of {path.name}") from None


def _record(path: Path, found: Digest, source: str) -> None:
    """Keep a file's digest beside it; a folder that cannot be written is a shared, read-only cache and goes without."""
    content = {"sha256": found.sha256, "size": found.size, "source": source}
    try:
        with runtime.atomic_write(_note(path)) as file:
            file.write(json.dumps(content, indent=2) + "\n")
    except PermissionError:
        return
    except OSError as error:
        if error.errno != 30:  # EROFS
            raise


def fetch(
    url: str,
    target: Path,
    *,
    expected: Digest | None = None,
    progress: Progress | None = None,
    patience: float = 1.0,
    timeout: float = 30.0,
) -> Path:
    """Give `target`, fetched from `url` unless it is there. Many processes may ask for it at once; one fetches.

    A connection that breaks is tried again, at most five times without a new byte; a partial file of the same version
    (the server's ETag or date) is gone on with, also by a later call.

    Args:
        expected: size and digest the file must have, where they are known.
        progress: told of every block.
        patience: seconds before the first new try; doubled for each further one.
        timeout: seconds without an answer after which a connection counts as broken.

    Raises:
        ValueError: the address is not http(s), or answers with an error, another file than before, or a web page.
        OSError: the network or the disk fails.
    """
    import filelock

    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise ValueError(f"{url} is not an http or https address")
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_file():
        check(target, expected)
        return target
    with filelock.FileLock(target.with_name(target.name + ".lock")):
        if target.is_file():  # another process was first
            check(target, expected)
            return target
        part = target.with_name(target.name + ".part")
        _complete(url, part, progress, patience, timeout)
        found, wanted = digest(part), expected or _recorded(target)
        if wanted is not None and found != wanted:
            _discard(part)
            raise ValueError(
                f"{url} gave {found.size:,} bytes with SHA-256 {found.sha256}, where {wanted.size:,} bytes with "
                f"{wanted.sha256} are expected; they were thrown away"
            )
        with part.open("rb") as file:
            os.fsync(file.fileno())
        _record(target, found, url)
        part.replace(target)
        _note(part).unlink(missing_ok=True)
        runtime.sync_folder(target.parent)
    return target


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def _complete(url: str, part: Path, progress: Progress | None, patience: float, timeout: float) -> None:
    """Go on until all bytes are in `part`."""
    tries, reached = 0, -1
    while True:
        try:
            if _fetch_rest(url, part, progress, timeout):
                return
            problem = "the connection ended too early"
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                raise ValueError(f"{url} answers {error.code} {error.reason}") from None
            problem = f"{error.code} {error.reason}"
        except (http.client.HTTPException, TimeoutError, ConnectionError) as error:
            problem = str(error) or type(error).__name__
        except urllib.error.URLError as error:
            problem = str(error.reason)
        size = part.stat().st_size if part.exists() else 0
        tries = 1 if size > reached else tries + 1
        reached = max(size, reached)
        if tries >= _TRIES:
            raise OSError(f"{url} could not be fetched: {problem} ({tries} tries in a row without a new byte)")
        time.sleep(min(patience * 2 ** (tries - 1), 30.0))


def _fetch_rest(url: str, part: Path, progress: Progress | None, timeout: float) -> bool:
    """One connection; True when the file is whole after it."""
    have = part.stat().st_size if part.exists() else 0
    reply = _ask(url, part, have, timeout)
    if reply is None:  # the server cannot go on from here
        _discard(part)
        reply = _ask(url, part, 0, timeout)
        if reply is None:
            raise ValueError(f"{url} refuses a request for the whole file")
    with reply.response as response:
        if response.headers.get_content_type() == "text/html":
            raise ValueError(f"{url} answers with a web page, not with a file (a sign-up or an error page)")
        _check_room(part, reply)
        _note(part).write_text(json.dumps({"url": url, "tag": reply.tag}), encoding="utf-8")
        with part.open("r+b" if reply.start else "wb") as file:
            file.truncate(reply.start)
            file.seek(reply.start)
            size = _copy(response, file, reply, progress)
    if reply.total is not None and size > reply.total:
        _discard(part)
        raise ValueError(f"{url} sent {size:,} bytes, where it promised {reply.total:,}")
    return reply.total is None or size == reply.total


def _copy(response: Any, file: IO[bytes], reply: _Reply, progress: Progress | None) -> int:
    size = reply.start
    while block := response.read1(_BLOCK):
        file.write(block)
        size += len(block)
        if progress is not None:
            progress(size, reply.total)
        if reply.total is not None and size > reply.total:
            break
    return size


def _check_room(part: Path, reply: _Reply) -> None:
    if reply.total is None:
        return
    needed, free = reply.total - reply.start, shutil.disk_usage(part.parent).free
    if needed > free:
        raise OSError(f"{part.parent} has {free:,} bytes free, where {needed:,} are needed for {part.stem}")


def _ask(url: str, part: Path, have: int, timeout: float) -> _Reply | None:
    """Open a connection for the bytes from `have` on; None when the server has no such bytes."""
    headers = {"User-Agent": "megabert", "Accept-Encoding": "identity"}
    tag = _tag_of_part(part, url)
    if have and tag:
        headers |= {"Range": f"bytes={have}-", "If-Range": tag}
    request = urllib.request.Request(url, headers=headers)
    opener = urllib.request.OpenerDirector()
    handlers = (
        urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler, _Redirects,
        urllib.request.HTTPDefaultErrorHandler, urllib.request.HTTPErrorProcessor, urllib.request.UnknownHandler,
    )  # fmt: skip
    for handler in handlers:
        opener.add_handler(handler())
    try:
        response = opener.open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416 and "Range" in headers:
            return None
        raise
    headers = response.headers
    new_tag = headers.get("ETag") or headers.get("Last-Modified") or ""
    if new_tag.startswith("W/"):  # a weak tag does not promise equal bytes
        new_tag = ""
    if response.status == 206:
        start, total = _content_range(url, headers.get("Content-Range", ""))
        if start != have:
            raise ValueError(f"{url} was asked for the bytes from {have} on and gives those from {start} on")
        return _Reply(response, start, total, tag)
    length = headers.get("Content-Length", "")
    return _Reply(response, 0, int(length) if length.isdecimal() else None, new_tag)


def _tag_of_part(part: Path, url: str) -> str:
    try:
        note = json.loads(_note(part).read_text(encoding="utf-8"))
        return str(note["tag"]) if note["url"] == url else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _content_range(url: str, value: str) -> tuple[int, int | None]:
    unit, _, rest = value.partition(" ")
    span, _, total = rest.partition("/")
    start = span.partition("-")[0]
    if unit != "bytes" or not start.isdecimal():
        raise ValueError(f"{url} gives a part of the file without saying which (Content-Range: {value!r})")
    return int(start), int(total) if total.isdecimal() else None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow to http(s) only, and never from https back to http."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        old, new = urllib.parse.urlsplit(req.full_url).scheme, urllib.parse.urlsplit(newurl).scheme
        if new not in ("http", "https") or (old == "https" and new == "http"):
            raise ValueError(f"{req.full_url} leads to {newurl}, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def show_progress(name: str, stream: IO[str] | None = None) -> Progress:
    """A `Progress` that writes lines such as `fetching NAME: 312 of 673 MB` to `stream` (standard error).

    On a terminal one line is rewritten, about five times a second; elsewhere there is a line for each tenth.
    """
    out = stream or sys.stderr
    terminal, shown, last = out.isatty(), -1, 0.0

    def tell(done: int, total: int | None) -> None:
        nonlocal shown, last
        now, whole = time.monotonic(), done == total
        size = f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB" if total else f"{done / 1e6:,.0f} MB"
        if terminal and (whole or now - last > 0.2):
            out.write(f"\rfetching {name}: {size}" + ("\n" if whole else ""))
        tenth = done * 10 // total if total else done // 100_000_000
        if not terminal and tenth > shown:
            out.write(f"fetching {name}: {size}\n")
        if terminal and now - last <= 0.2 and not whole:
            return
        shown, last = max(shown, tenth), now
        out.flush()

    return tell
