"""A Wikipedia dump to loose JSON, in many processes, resumable, in bounded memory.

A dump is cut into pieces at any byte; a worker reads its piece from the file, unpacks it and turns the pages that lie
whole in it into lines. This process only joins the page on each border and writes.
"""

from __future__ import annotations

import codecs
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from megabert import runtime
from megabert.corpora import bzip2_blocks, files, wikipedia_dump
from megabert.corpora.wikipedia_dump import Bad, Site
from megabert.corpora.wikipedia_lines import without_markup
from megabert.corpora.wikipedia_output import Counts, Output
from megabert.corpora.wikipedia_text import Reader
from megabert.runtime import MapInOrder

_PIECE_BYTES = 2 << 20  # of a packed file; of a plain one four times as much
_LEAST_PIECE_BYTES = 128 << 10
_HEAD_BYTES = 1 << 20
_SECONDS_BETWEEN_CHECKPOINTS = 10.0
# The parser's time grows faster than the page; longer ones are not articles for people.
_LONGEST_PAGE = 8_000_000
_LONGEST_RAW_PAGE = 64 << 20  # with all revisions of a dump of histories
_NOT_A_DUMP = re.compile(r"(?:-index|-rss|md5sums|sha1sums)|\.(?:txt|json|html|md5|part)\b")


class Progress(NamedTuple):
    """How far the work is."""

    counts: Counts
    dump_bytes: int  # of the files, read by this call
    seconds: float
    remaining_seconds: float | None

    def __str__(self) -> str:
        left = "" if self.remaining_seconds is None else f" | {runtime.duration(self.remaining_seconds)} left"
        seconds = max(self.seconds, 1e-9)
        return (
            f"{self.counts.articles:,} pages | {self.counts.text_bytes / 1e6:,.1f} MB of text | "
            f"{self.dump_bytes / 1e6:,.1f} MB of the dump read, {self.dump_bytes / 1e6 / seconds:.1f} MB/s{left}"
        )


class _Piece(NamedTuple):
    """A piece of a dump; `data` where this process had to unpack it."""

    number: int
    path: Path
    site: Site
    start: int
    end: int
    data: bytes | None = None


class _Lines(NamedTuple):
    """What a worker made of a piece."""

    head: bytes  # belongs to the page that began before
    opened: bool  # a page begins in the piece
    lines: bytes
    tail: bytes
    counts: Counts
    bad: list[str]


class _Worker:
    """Pieces to lines."""

    def __init__(self) -> None:
        self._readers: dict[Site, Reader] = {}

    def __call__(self, piece: _Piece) -> _Lines:
        data = piece.data
        if data is None and _is_bzip2(piece.path):
            data = bzip2_blocks.unpack_part(piece.path, piece.start, piece.end)
        elif data is None:
            with piece.path.open("rb") as file:
                file.seek(piece.start)
                data = file.read(piece.end - piece.start)
        head, pages, tail = wikipedia_dump.cut(data)
        lines, counts, bad = self.lines(pages, piece)
        return _Lines(head, bool(pages or tail), lines, tail, counts, bad)

    def lines(self, pages: bytes, piece: _Piece) -> tuple[bytes, Counts, list[str]]:
        """Whole pages as lines of JSON."""
        reader = self._readers.setdefault(
            piece.site,
            Reader(piece.site.names(wikipedia_dump.FILE), piece.site.names(wikipedia_dump.CATEGORY)),
        )
        counts, bad, lines = Counts(), [], []
        for item in wikipedia_dump.articles(pages, piece.site):
            if isinstance(item, Bad):
                counts.skipped += 1
                bad.append(f"{piece.path}: {item.title}: {item.reason}")
                continue
            text = None
            if len(item.text) <= _LONGEST_PAGE:
                try:
                    text = reader.text(item.text)
                except Exception as error:
                    # Whatever a page does to the parser, the run goes on.
                    bad.append(f"{piece.path}: {item.title}: read coarsely, the parser failed: {error!r}")
            if text is None:
                counts.coarse += 1
                text = without_markup(item.text)
            if not text:
                counts.empty += 1
                continue
            address = f"{piece.site.base}?curid={item.identity}" if piece.site.base else ""
            record = {
                "id": item.identity, "revid": item.revision, "url": address, "title": item.title, "text": text,
            }  # fmt: skip
            lines.append(json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
            counts.written += 1
            counts.text_bytes += len(lines[-1])
        return b"".join(lines), counts, bad


def dump_files(dump: Path) -> list[Path]:
    """The files of a dump: itself, or the parts in a folder, in the order of the numbers in their names.

    Raises:
        ValueError: there is no such file, or the folder holds no dump.
    """
    if not dump.exists():
        raise ValueError(f"there is no dump {dump}; name a .xml or .xml.bz2 file, or a folder of them")
    if not dump.is_dir():
        return [dump]
    found = [
        path for path in dump.iterdir() if path.is_file() and ".xml" in path.name and not _NOT_A_DUMP.search(path.name)
    ]
    if not found:
        raise ValueError(f"{dump} holds no dump: no file with .xml in its name")
    return sorted(
        found, key=lambda path: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]
    )


def _is_bzip2(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(3) == b"BZh"


def _head(path: Path) -> tuple[Site, str]:
    """(what the head says, encoding)."""
    what = files.foreign(files.first_bytes(path))
    if what and what != "UTF-16 text":
        raise ValueError(
            f"{path} is {what}; a dump is XML, plain or packed by bzip2, gzip, xz or zstd: unpack the archive, or "
            "fetch the dump as .xml.bz2"
        )
    with files.unpacking(path), files.open_bytes(path, any_encoding=True) as file:
        head = file.read(4)
        encoding = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}.get(head[:2], "utf-8")
        decoder = codecs.getincrementaldecoder(encoding)("replace")
        text = decoder.decode(head)
        while True:
            block = file.read(_HEAD_BYTES)
            text += decoder.decode(block)
            try:
                site = wikipedia_dump.read_site(text.encode())
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
            if site is not None:
                return site, encoding
            if not block or len(text) > 64 * _HEAD_BYTES:
                raise ValueError(f"{path}: it is no MediaWiki XML dump: neither <siteinfo> nor <page> is in it")


def _pieces(
    paths: Sequence[Path], heads: Sequence[tuple[Site, str]], workers: int, number: int, offset: int
) -> Iterator[_Piece]:
    """Pieces from `offset` of file `number` on; offsets count packed bytes where any process can begin there."""
    for index, path in enumerate(paths[number:], number):
        start = offset if index == number else 0
        site, encoding = heads[index]
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
        if encoding == "utf-8" and (head.startswith(b"BZh") or not files.is_packed(head)):
            most = _PIECE_BYTES if head.startswith(b"BZh") else 4 * _PIECE_BYTES
            length = min(max(size // (6 * workers), _LEAST_PIECE_BYTES), most)
            for begin in range(start, size, length):
                yield _Piece(index, path, site, begin, min(begin + length, size))
            continue
        decoder = codecs.getincrementaldecoder(encoding)("replace")
        place = 0
        with files.unpacking(path), files.open_bytes(path, any_encoding=True) as file:
            while block := file.read(4 * _PIECE_BYTES):
                data = block if encoding == "utf-8" else decoder.decode(block).encode()
                if place >= start:
                    yield _Piece(index, path, site, place, place + len(block), data)
                place += len(block)


def extract(
    dump: Path,
    output: Path,
    *,
    workers: int | None = None,
    file_bytes: int = 256 << 20,
    on_progress: Callable[[Progress], None] | None = None,
    seconds_between_reports: float = 5.0,
    map_in_order: MapInOrder = runtime.map_in_order,
) -> Progress:
    """Write the articles of a dump as loose JSON: `id`, `revid`, `url`, `title` and `text`, one a line.

    The lines are in the order of the dump and the same with any number of workers. An interrupted call is taken up by
    the next one with the same dump and folder. Pages that cannot be read are listed in `skipped.txt`.

    Args:
        dump: MediaWiki XML, plain or packed (bzip2 in one stream or many, unpacked by all workers; gzip, xz), or a
            folder of such parts.
        output: folder of `part-00000.jsonl` and so on.
        workers: processes; None: one for each core.
        file_bytes: a file is ended when it is longer.
        map_in_order: who computes; the workers of a cluster must see the dump under its path.

    Raises:
        ValueError: no dump, a damaged file, or a folder that holds something else.
        OSError: from the file system; what was checkpointed stays and is taken up again.
    """
    begin = last_report = saved = time.monotonic()
    paths = dump_files(dump)
    heads = [_head(path) for path in paths]
    workers = workers or len(os.sched_getaffinity(0))
    states = [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
    out = Output(output, {"inputs": states}, file_bytes)
    if out.complete:
        return Progress(out.counts, 0, 0.0, 0.0)
    clock = _Clock(paths, out.state["number"], out.state["offset"])
    joiner = _Joiner(out, paths, heads)
    pieces = _pieces(paths, heads, workers, out.state["number"], out.state["offset"])
    try:
        for piece, made in map_in_order(_Worker, (), pieces, workers):
            joiner.add(piece, made)
            now = time.monotonic()
            if now - saved >= _SECONDS_BETWEEN_CHECKPOINTS or out.full():
                out.checkpoint(piece.number, piece.end)
                saved = now
            if on_progress is not None and now - last_report >= seconds_between_reports:
                on_progress(clock.progress(out.counts, piece, now - begin))
                last_report = now
        joiner.end()
        out.finish(len(paths))
    except BaseException as error:
        out.close()
        if isinstance(error, ValueError):
            out.abandon()
        raise
    return Progress(out.counts, clock.total, time.monotonic() - begin, 0.0)


class _Clock:
    """Bytes of the dump that this call read, and the time that is left."""

    def __init__(self, paths: Sequence[Path], number: int, offset: int) -> None:
        self._sizes = [path.stat().st_size for path in paths]
        self._start = sum(self._sizes[:number]) + offset
        self.total = sum(self._sizes) - self._start

    def progress(self, counts: Counts, piece: _Piece, seconds: float) -> Progress:
        if piece.data is not None:  # offsets count unpacked bytes: only whole files are known
            return Progress(counts, max(sum(self._sizes[: piece.number]) - self._start, 0), seconds, None)
        done = sum(self._sizes[: piece.number]) + piece.end - self._start
        return Progress(counts, done, seconds, (self.total - done) / max(done, 1) * seconds)


class _Joiner:
    """Writes what workers made, and between two pieces the page that lies on their border."""

    def __init__(self, out: Output, paths: Sequence[Path], heads: Sequence[tuple[Site, str]]) -> None:
        self._out, self._worker = out, _Worker()
        self._last: _Piece | None = None
        if out.carry:
            number = out.state["number"]
            self._last = _Piece(number, paths[number], heads[number][0], 0, 0)

    def add(self, piece: _Piece, made: _Lines) -> None:
        if self._last is not None and self._last.number != piece.number:
            self.end()
        self._last = piece
        self._out.carry += made.head
        if len(self._out.carry) > _LONGEST_RAW_PAGE:  # or the rest of one that was dropped before
            if b"<page>" in self._out.carry:
                reason = f"the page before byte {piece.end:,} is longer than {_LONGEST_RAW_PAGE >> 20} MiB"
                self._out.write(b"", Counts(skipped=1), [f"{piece.path}: {reason}"])
            self._out.carry = b""
        if made.opened:
            self._write_carry(piece)
            self._out.carry = made.tail
        self._out.write(made.lines, made.counts, made.bad)

    def _write_carry(self, piece: _Piece) -> None:
        self._out.write(*self._worker.lines(self._out.carry, piece))

    def end(self) -> None:
        """A file ends."""
        if self._last is None:
            return
        self._write_carry(self._last)
        _, _, rest = wikipedia_dump.cut(self._out.carry)
        if b"<page>" in rest:
            counts = Counts(skipped=1, unended=1)
            self._out.write(b"", counts, [f"{self._last.path}: the file ends inside its last page"])
        elif b"</mediawiki" not in self._out.carry:
            reason = "</mediawiki> is missing at its end: was it cut short?"
            self._out.write(b"", Counts(unended=1), [f"{self._last.path}: {reason}"])
        self._out.carry = b""
