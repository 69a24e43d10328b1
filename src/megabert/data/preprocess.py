"""Text files to indexed data: read, split into sentences, encode in a pool of processes, write in order.

The input is a stream: memory holds a few chunks of it, however long it is. What is written is the same, byte for byte,
with any number of processes, and whether or not the work was interrupted and taken up again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from megabert import runtime
from megabert.corpora import files
from megabert.data import fingerprints
from megabert.data.duplicates import REPORT as DUPLICATES
from megabert.data.duplicates import Duplicates
from megabert.data.encoding import Block, Piece, Reading, encode_all
from megabert.data.indexed import with_suffix
from megabert.data.indexed_writer import IndexedWriter
from megabert.runtime import MapInOrder

if TYPE_CHECKING:
    from megabert.tokenization.base import Tokenizer

CHUNK_BYTES = 1 << 19
_SECONDS_BETWEEN_CHECKPOINTS = 10.0
_LINES_BEFORE_STOPPING = 1000  # a share of bad lines says little before so many were seen
_BYTES_WORTH_A_WORKER = 2_000_000


class Progress(NamedTuple):
    """How far the work is."""

    documents: int
    sentences: int
    tokens: int
    skipped: int
    text_bytes: int  # unpacked, of this process
    seconds: float  # of this process
    remaining_seconds: float | None  # None: not known, since a packed file does not tell its length
    duplicates: int = 0  # documents that were left out, since they repeat others

    def __str__(self) -> str:
        rate = self.text_bytes / 1e6 / max(self.seconds, 1e-9)
        left = "" if self.remaining_seconds is None else f" | {runtime.duration(self.remaining_seconds)} left"
        skipped = f" | {self.skipped:,} lines skipped" if self.skipped else ""
        repeated = f" | {self.duplicates:,} duplicates" if self.duplicates else ""
        return f"{self.documents:,} documents | {self.tokens:,} tokens | {rate:.1f} MB/s{skipped}{repeated}{left}"


class _Skipped:
    """The report of skipped lines, kept beside the growing data set and cut back with it."""

    def __init__(self, path: Path, progress: dict[str, Any]) -> None:
        self.path = path
        self.lines: int = progress.get("lines", 0)
        self.bad: int = progress.get("bad", 0)
        self.first: str = progress.get("first", "")
        self._file = path.open("ab")
        self._file.truncate(progress.get("report_bytes", 0))
        self._file.seek(0, os.SEEK_END)

    def add(self, block: Block) -> None:
        self.lines += block.lines
        self.bad += len(block.bad)
        self.first = self.first or next(iter(block.bad), "")
        for line in block.bad:
            self._file.write(line.encode("utf-8", "backslashreplace") + b"\n")

    def progress(self) -> dict[str, Any]:
        self._file.flush()
        return {"lines": self.lines, "bad": self.bad, "first": self.first, "report_bytes": self._file.tell()}

    def too_many(self, most: float) -> bool:
        return self.bad > most * self.lines

    def close(self) -> None:
        self._file.close()


def _chunks(inputs: Sequence[Path], reading: Reading, start: dict[str, Any]) -> Iterator[tuple[int, Piece]]:
    """(number of the file, chunk) from where `start` says on."""
    first = start.get("file", 0)
    for number, path in enumerate(inputs[first:], first):
        offset = start.get("offset", 0) if number == first else 0
        for chunk in reading.chunks(path, offset, CHUNK_BYTES):
            yield number, chunk


class _Clock:
    """Rate and remaining time from the bytes of the files that are done and the place in the one under way."""

    def __init__(self, inputs: Sequence[Path], start: dict[str, Any]) -> None:
        self._sizes = [path.stat().st_size for path in inputs]
        self._plain = not any(files.is_packed(files.first_bytes(path)) for path in inputs)
        self._begin = time.monotonic()
        self._start = self._place(start.get("file", 0), start.get("offset", 0))
        self.text_bytes = 0

    def _place(self, number: int, offset: int) -> int:
        return sum(self._sizes[:number]) + offset

    def progress(self, writer: IndexedWriter, skipped: int, number: int, offset: int) -> Progress:
        seconds = time.monotonic() - self._begin
        done = self._place(number, offset) - self._start
        left = None
        if self._plain and done > 0:
            left = (sum(self._sizes) - self._start - done) / done * seconds
        return Progress(writer.documents, writer.sentences, writer.tokens, skipped, self.text_bytes, seconds, left)


class _Reporter:
    """Calls the caller's function now and then."""

    def __init__(self, tell: Callable[[Progress], None] | None, seconds: float) -> None:
        self._tell, self._seconds, self._last = tell, seconds, time.monotonic()

    def due(self, now: float) -> bool:
        return self._tell is not None and now - self._last >= self._seconds

    def __call__(self, progress: Progress) -> None:
        assert self._tell is not None
        self._tell(progress)
        self._last = time.monotonic()


def _settings(inputs: Sequence[Path], tokenizer: Tokenizer, reading: Reading) -> dict[str, Any]:
    """What must be equal for interrupted work to be taken up."""
    for path in inputs:
        if not path.is_file():
            special = (
                "is a folder, not a file" if path.is_dir() else "is no file but a pipe or a device: write it to one"
            )
            raise ValueError(f"{path} {special}" if path.exists() else f"there is no file {path}")
    return {
        "inputs": [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in inputs],
        "tokenizer": tokenizer.fingerprint(),
        "reading": asdict(reading),
    }


def tokenize(
    inputs: Sequence[Path],
    tokenizer: Tokenizer,
    prefix: Path,
    *,
    reading: Reading | None = None,
    workers: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    seconds_between_reports: float = 5.0,
    map_in_order: MapInOrder = runtime.map_in_order,
) -> Progress:
    """Make indexed data of text files.

    An interrupted call is taken up again by the next one with the same files, tokenizer and reading. Lines that hold no
    document are skipped and listed, with file, line and reason, in `<prefix>.skipped.txt`.

    Args:
        prefix: of the files to write; those that are there are replaced at the end.
        workers: processes that encode; 1 encodes in this one. None: one for each core, fewer for a text so short that
            starting them would take longer.
        on_progress: called every `seconds_between_reports`.
        map_in_order: who encodes.

    Returns:
        the numbers of the whole data set, rate and time of this call.

    Raises:
        ValueError: a file that is missing or cannot be read as text, no document at all, or too many bad lines; nothing
            is left behind then.
        OSError: from the file system, such as a full disk; what was checkpointed stays and is taken up again.
    """
    reading = reading or Reading()
    fingerprints.check(reading.dedup)
    tell = _Reporter(on_progress, seconds_between_reports)
    settings = _settings(inputs, tokenizer, reading)
    size = sum(path.stat().st_size for path in inputs)
    workers = workers or min(len(os.sched_getaffinity(0)), 1 + size // _BYTES_WORTH_A_WORKER)
    with reading.writer(prefix, tokenizer, settings) as writer:
        if writer.complete:
            writer.finish()
            return Progress(writer.documents, writer.sentences, writer.tokens, 0, 0, 0.0, 0.0)
        skipped = _Skipped(writer.folder / "skipped.txt", writer.progress)
        filtered = _duplicates(writer, inputs, reading) if reading.dedup != "none" else None
        try:
            chunks = _chunks(inputs, reading, dict(writer.progress))
            blocks = encode_all(chunks, tokenizer, reading, workers, map_in_order)
            result = _write_all(inputs, reading, blocks, writer, skipped, filtered, tell)
            _check(inputs, skipped, writer, reading, at_end=True)
        except ValueError:
            writer.abandon()
            raise
        finally:
            skipped.close()
            if filtered is not None:
                filtered.close()
        _publish(skipped.path, with_suffix(prefix, ".skipped.txt"), skipped.bad)
        _publish(writer.folder / DUPLICATES, with_suffix(prefix, f".{DUPLICATES}"), filtered and filtered.removed)
        place = {"tokenizer_place": str(tokenizer.place.resolve())} if reading.writes_tokens and tokenizer.place else {}
        writer.finish(reading.facts(inputs) | place | (filtered.facts() if filtered else {}))
    return result


def _duplicates(writer: IndexedWriter, inputs: Sequence[Path], reading: Reading) -> Duplicates:
    return Duplicates(writer.folder, inputs, reading.dedup, reading.similarity, writer.progress)


def _publish(report: Path, target: Path, entries: int | None) -> None:
    """Put a report beside the data; one of an earlier run goes where there is nothing to tell."""
    if entries:
        report.replace(target)
    else:
        target.unlink(missing_ok=True)


def _write_all(
    inputs: Sequence[Path],
    reading: Reading,
    blocks: Iterator[tuple[int, Piece, Block]],
    writer: IndexedWriter,
    skipped: _Skipped,
    filtered: Duplicates | None,
    tell: _Reporter,
) -> Progress:
    start = dict(writer.progress)
    clock = _Clock(inputs, start)
    saved = time.monotonic()
    number, offset = start.get("file", 0), start.get("offset", 0)

    def save() -> None:
        more = filtered.progress() if filtered else {}
        writer.checkpoint({"file": number, "offset": offset, **skipped.progress(), **more})

    def progress(number: int, offset: int) -> Progress:
        return clock.progress(writer, skipped.bad, number, offset)._replace(
            duplicates=filtered.removed if filtered else 0
        )

    try:
        for number, chunk, block in blocks:
            skipped.add(block)
            if filtered is not None:
                block = filtered.without(number, block)
            writer.add_block(block.tokens, block.sizes, block.documents)
            offset = chunk.end_offset
            clock.text_bytes += block.text_bytes
            _check(inputs, skipped, writer, reading, at_end=False)
            now = time.monotonic()
            if now - saved >= _SECONDS_BETWEEN_CHECKPOINTS:
                save()
                saved = now
            if tell.due(now):
                tell(progress(number, offset))
    except KeyboardInterrupt:
        save()
        raise
    return progress(len(inputs), 0)


def _check(inputs: Sequence[Path], skipped: _Skipped, writer: IndexedWriter, reading: Reading, *, at_end: bool) -> None:
    """Stop where a file is not what it was taken for."""
    if at_end and not writer.documents:
        names = ", ".join(map(str, inputs[:3])) + (" ..." if len(inputs) > 3 else "")
        why = f"; the first of {skipped.bad:,} lines that could not be used: {skipped.first}" if skipped.bad else ""
        raise ValueError(f"{names}: no document found{why or ': empty'}")
    if (at_end or skipped.lines >= _LINES_BEFORE_STOPPING) and skipped.too_many(reading.max_bad_fraction):
        raise ValueError(
            f"{skipped.first} -- the first of {skipped.bad:,} bad lines among {skipped.lines:,}: more than "
            f"--max-bad-fraction {reading.max_bad_fraction:g} allows"
        )


def tokenize_files(
    inputs: Sequence[Path],
    tokenizer: Tokenizer,
    prefix: Path,
    reading: Reading,
    *,
    workers: int | None = None,
    say: Callable[[str], None] = print,
) -> Progress:
    """`tokenize`, told line by line.

    Args:
        say: takes each line of progress.

    Raises:
        ValueError, OSError: as `tokenize`.
    """
    size = sum(path.stat().st_size for path in inputs if path.is_file())
    say(f"{reading.work} {size / 1e6:.1f} MB in {len(inputs)} {'file' if len(inputs) == 1 else 'files'}: {prefix}")
    result = tokenize(
        inputs, tokenizer, prefix, reading=reading, workers=workers, on_progress=lambda progress: say(str(progress))
    )
    tokens = f", {result.tokens:,} tokens" if reading.writes_tokens else ""
    say(f"{result.documents:,} {reading.unit}{tokens} in {runtime.duration(result.seconds)}")
    if result.skipped:
        say(f"{result.skipped:,} lines were skipped: {with_suffix(prefix, '.skipped.txt')}")
    return result
