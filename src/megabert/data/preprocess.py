"""Text files to indexed data: read, split into sentences, encode in a pool of processes, write in order.

The input is a stream: memory holds a few chunks of it, however long it is. What is written is the same, byte for byte,
with any number of processes, and whether or not the work was interrupted and taken up again.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from megabert.corpora import sentences
from megabert.corpora.chunks import Chunk, parse_chunk
from megabert.corpora.document import BadLine
from megabert.corpora.files import raw_chunks
from megabert.data.indexed import token_dtype, with_suffix
from megabert.data.indexed_writer import IndexedWriter

if TYPE_CHECKING:
    from megabert.tokenization.base import Tokenizer

CHUNK_BYTES = 1 << 19
_SECONDS_BETWEEN_CHECKPOINTS = 10.0
_LINES_BEFORE_STOPPING = 1000  # a share of bad lines says little before so many were seen
_PACKED = (".gz", ".bz2", ".xz")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How text files are read."""

    text_key: str = "text"
    loose_json: bool | None = None  # None: found from the content
    language: str = "en"
    presplit: bool = False  # lines are sentences
    split_sentences: bool = True  # False: each document is one sequence
    max_bad_fraction: float = 0.01


class Progress(NamedTuple):
    """How far the work is."""

    documents: int
    sentences: int
    tokens: int
    skipped: int
    text_bytes: int  # unpacked, of this process
    seconds: float  # of this process
    remaining_seconds: float | None  # None: not known, since a packed file does not tell its length

    def __str__(self) -> str:
        rate = self.text_bytes / 1e6 / max(self.seconds, 1e-9)
        left = "" if self.remaining_seconds is None else f" | {_duration(self.remaining_seconds)} left"
        skipped = f" | {self.skipped:,} lines skipped" if self.skipped else ""
        return f"{self.documents:,} documents | {self.tokens:,} tokens | {rate:.1f} MB/s{skipped}{left}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s"


class Block(NamedTuple):
    """The documents of a chunk, encoded."""

    tokens: np.ndarray  # [tokens], in the data set's dtype
    sizes: np.ndarray  # [sentences] int32
    documents: np.ndarray  # [documents] int32, sentences of each
    lines: int  # documents and bad lines
    bad: list[str]
    text_bytes: int


class Encoder:
    """Chunks to blocks; a pure function, made once in each process."""

    def __init__(self, tokenizer: Tokenizer, reading: Reading) -> None:
        """Encode with `tokenizer`."""
        self._tokenizer, self._reading = tokenizer, reading
        self._dtype = token_dtype(tokenizer.vocabulary_size)

    def __call__(self, chunk: Chunk) -> Block:
        """Encode a chunk. Documents in which the tokenizer finds nothing are bad lines too."""
        reading = self._reading
        items = parse_chunk(chunk, text_key=reading.text_key)
        bad = [str(item) for item in items if isinstance(item, BadLine)]
        texts: list[str] = []
        borders = [0]
        for item in items:
            if not isinstance(item, BadLine):
                if reading.split_sentences:
                    texts += sentences.split(item.text, reading.language, presplit=reading.presplit)
                else:
                    texts.append(item.text)
                borders.append(len(texts))
        encoded = self._tokenizer.encode_batch(texts)
        lengths = np.array([len(ids) for ids in encoded], np.int32)
        full = np.concatenate([[0], np.cumsum(lengths > 0)])[borders]
        counts = np.diff(full).astype(np.int32)
        tokens = np.fromiter(itertools.chain.from_iterable(encoded), self._dtype, int(lengths.sum()))
        bad += [f"{chunk.path}: near line {chunk.first_line}: a document without any token"] * int((counts == 0).sum())
        return Block(tokens, lengths[lengths > 0], counts[counts > 0], len(items), bad, len(chunk.data))


_encoder: Encoder | None = None  # of a worker process: a pool hands a task nothing but its arguments


def _start_worker(tokenizer: Tokenizer, reading: Reading) -> None:
    global _encoder  # noqa: PLW0603
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the pool is the parallelism
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends the pool
    _encoder = Encoder(tokenizer, reading)


def _encode(chunk: Chunk) -> Block:
    assert _encoder is not None
    return _encoder(chunk)


def _encode_all(
    chunks: Iterator[tuple[int, Chunk]], tokenizer: Tokenizer, reading: Reading, workers: int
) -> Iterator[tuple[int, Chunk, Block]]:
    """Blocks in the order of their chunks; a few chunks are under way at a time."""
    if workers <= 1:
        encoder = Encoder(tokenizer, reading)
        for number, chunk in chunks:
            yield number, chunk, encoder(chunk)
        return
    waiting: deque[tuple[int, Chunk, Future[Block]]] = deque()
    # A fresh interpreter for each worker: a copy of this one could hold locks of threads that it does not have.
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (tokenizer, reading)) as pool:
        try:
            for number, chunk in chunks:
                waiting.append((number, chunk, pool.submit(_encode, chunk)))
                if len(waiting) >= 3 * workers:
                    first, begun, future = waiting.popleft()
                    yield first, begun, future.result()
            while waiting:
                first, begun, future = waiting.popleft()
                yield first, begun, future.result()
        except BrokenProcessPool:
            raise ValueError(
                "a process of the pool was ended from outside (out of memory?); run the command again, it goes on where it "
                "stopped, with fewer --workers if need be"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class _Skipped:
    """The report of skipped lines, kept beside the growing data set and cut back with it."""

    def __init__(self, path: Path, progress: dict[str, Any]) -> None:
        self.path = path
        self.lines, self.bad, self.first = (
            progress.get(key, zero) for key, zero in (("lines", 0), ("bad", 0), ("first", ""))
        )
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


def _chunks(inputs: Sequence[Path], reading: Reading, start: dict[str, Any]) -> Iterator[tuple[int, Chunk]]:
    """(number of the file, chunk) from where `start` says on."""
    first = start.get("file", 0)
    for number, path in enumerate(inputs[first:], first):
        offset = start.get("offset", 0) if number == first else 0
        for chunk in raw_chunks(path, CHUNK_BYTES, offset, loose_json=reading.loose_json):
            yield number, chunk


class _Clock:
    """Rate and remaining time from the bytes of the files that are done and the place in the one under way."""

    def __init__(self, inputs: Sequence[Path], start: dict[str, Any]) -> None:
        self._sizes = [path.stat().st_size for path in inputs]
        self._plain = not any(path.suffix in _PACKED for path in inputs)
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


def tokenize(
    inputs: Sequence[Path],
    tokenizer: Tokenizer,
    prefix: Path,
    *,
    reading: Reading | None = None,
    workers: int = 1,
    on_progress: Callable[[Progress], None] | None = None,
    seconds_between_reports: float = 5.0,
) -> Progress:
    """Make indexed data of text files.

    An interrupted call is taken up again by the next one with the same files, tokenizer and reading. Lines that hold no
    document are skipped and listed, with file, line and reason, in `<prefix>.skipped.txt`.

    Args:
        prefix: of the files to write; those that are there are replaced at the end.
        workers: processes that encode; 1 encodes in this one.
        on_progress: called every `seconds_between_reports`.

    Returns:
        the numbers of the whole data set, rate and time of this call.

    Raises:
        ValueError: a file that is missing or cannot be read as text, no document at all, or too many bad lines; nothing
            is left behind then.
        OSError: from the file system, such as a full disk; what was checkpointed stays and is taken up again.
    """
    reading = reading or Reading()
    tell = _Reporter(on_progress, seconds_between_reports)
    for path in inputs:
        if not path.is_file():
            raise ValueError(f"{path} is a folder, not a file" if path.is_dir() else f"there is no file {path}")
    settings = {
        "inputs": [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in inputs],
        "tokenizer": tokenizer.fingerprint(), "reading": asdict(reading),
    }  # fmt: skip
    with IndexedWriter(
        prefix, tokenizer.vocabulary_size, fingerprint=settings["tokenizer"], settings=settings
    ) as writer:
        report = with_suffix(prefix, ".skipped.txt")
        if writer.complete:
            writer.finish()
            return Progress(writer.documents, writer.sentences, writer.tokens, 0, 0, 0.0, 0.0)
        skipped = _Skipped(writer.folder / "skipped.txt", writer.progress)
        try:
            result = _write_all(inputs, tokenizer, reading, writer, skipped, workers, tell)
            _check(inputs, skipped, writer, reading, at_end=True)
        except ValueError:
            writer.abandon()
            raise
        finally:
            skipped.close()
        if skipped.bad:
            skipped.path.replace(report)
        else:
            report.unlink(missing_ok=True)
    return result


def _write_all(
    inputs: Sequence[Path], tokenizer: Tokenizer, reading: Reading, writer: IndexedWriter, skipped: _Skipped, workers: int,
    tell: _Reporter,
) -> Progress:  # fmt: skip
    start = dict(writer.progress)
    clock = _Clock(inputs, start)
    saved = time.monotonic()
    number, offset = start.get("file", 0), start.get("offset", 0)
    try:
        for number, chunk, block in _encode_all(_chunks(inputs, reading, start), tokenizer, reading, workers):
            writer.add_block(block.tokens, block.sizes, block.documents)
            skipped.add(block)
            offset = chunk.end_offset
            clock.text_bytes += block.text_bytes
            _check(inputs, skipped, writer, reading, at_end=False)
            now = time.monotonic()
            if now - saved >= _SECONDS_BETWEEN_CHECKPOINTS:
                writer.checkpoint({"file": number, "offset": offset, **skipped.progress()})
                saved = now
            if tell.due(now):
                tell(clock.progress(writer, skipped.bad, number, offset))
    except KeyboardInterrupt:
        writer.checkpoint({"file": number, "offset": offset, **skipped.progress()})
        raise
    return clock.progress(writer, skipped.bad, len(inputs), 0)


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
