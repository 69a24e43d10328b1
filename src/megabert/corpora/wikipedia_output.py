"""The files that an extraction writes, and the state from which an interrupted one goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from pathlib import Path
from typing import IO, Any

from megabert import runtime

_STATE = "extract.json"
REPORT = "skipped.txt"


@dataclasses.dataclass
class Counts:
    """What became of the articles (pages of namespace 0 that are no redirects).

    Attributes:
        written: lines of JSON.
        coarse: of them, pages that defeated the parser and were read by patterns.
        empty: articles without any text, such as a page that is one template; not written.
        skipped: pages that could not be read, listed in the report.
        text_bytes: of the texts written, UTF-8.
        unended: files of the dump without an end, listed in the report.
    """

    written: int = 0
    coarse: int = 0
    empty: int = 0
    skipped: int = 0
    text_bytes: int = 0
    unended: int = 0

    @property
    def articles(self) -> int:
        """Articles found."""
        return self.written + self.empty + self.skipped

    def add(self, other: Counts) -> None:
        """Add another's numbers."""
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


class Output:
    """The files that grow: `part-*.jsonl`, a report of skipped pages, and the state, `extract.json`.

    Raises:
        ValueError: the folder holds something else, or another dump's text.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], file_bytes: int) -> None:
        """Open the folder, or go on in it; `settings` must be equal for that."""
        self.folder, self._settings, self._file_bytes = folder, settings, file_bytes
        self._made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        self.state: dict[str, Any] = {"part": 0, "part_bytes": 0, "report_bytes": 0, "number": 0, "offset": 0}
        self.counts = Counts()
        self.carry = b""
        path = folder / _STATE
        if path.exists():
            self._take_up(path)
        elif any(folder.glob("part-*.jsonl*")):
            raise ValueError(f"{folder} holds part-*.jsonl files of another origin; name an empty folder")
        self.complete = bool(self.state.get("complete"))
        if not self.complete:
            self._lines = self._open(self._growing(), self.state["part_bytes"])
            self._report = self._open(folder / REPORT, self.state["report_bytes"])
            if not path.exists():  # without it, files that grow look like another's
                self._save(0, 0, complete=False)

    def _take_up(self, path: Path) -> None:
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            same = state["settings"] == self._settings
            self.counts = Counts(**state["counts"])
            self.carry = state["carry"].encode("latin-1")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{path} is damaged; remove {self.folder} and extract again") from None
        if not same:
            raise ValueError(
                f"{self.folder} holds the text of another dump, or of one that changed since; name another folder"
            )
        self.state = state

    def _part(self) -> Path:
        return self.folder / f"part-{self.state['part']:05d}.jsonl"

    def _growing(self) -> Path:
        return self._part().with_suffix(".jsonl.part")

    def _open(self, path: Path, length: int) -> IO[bytes]:
        if path == self._growing() and not path.exists() and self._part().exists():
            self._part().replace(path)  # renamed, but the state that says so was not written
        file = path.open("ab")
        file.truncate(length)
        file.seek(0, os.SEEK_END)
        return file

    def write(self, lines: bytes, counts: Counts, bad: list[str]) -> None:
        """Add whole lines, their numbers and what to report."""
        self.counts.add(counts)
        self._lines.write(lines)
        for line in bad:
            self._report.write(" ".join(line.split()).encode("utf-8", "replace") + b"\n")

    def checkpoint(self, number: int, offset: int) -> None:
        """Note that all before `offset` of file `number` is written."""
        for file in (self._lines, self._report):
            file.flush()
            os.fsync(file.fileno())
        if self._lines.tell() >= self._file_bytes:
            self._roll()
        self._save(number, offset, complete=False)

    def _roll(self) -> None:
        self._lines.close()
        self._growing().replace(self._part())
        self.state["part"] += 1
        self._lines = self._open(self._growing(), 0)

    def _save(self, number: int, offset: int, *, complete: bool) -> None:
        self.state |= {
            "settings": self._settings, "number": number, "offset": offset, "complete": complete,
            "part_bytes": 0 if complete else self._lines.tell(), "report_bytes": 0 if complete else self._report.tell(),
            "carry": self.carry.decode("latin-1"), "counts": dataclasses.asdict(self.counts),
        }  # fmt: skip
        with runtime.atomic_write(self.folder / _STATE) as file:
            json.dump(self.state, file, indent=1)

    def full(self) -> bool:
        """Whether the file that grows is to be ended at the next checkpoint."""
        return self._lines.tell() >= self._file_bytes

    def finish(self, number: int) -> None:
        """All is written: the last file gets its name."""
        self.close()
        if self._growing().stat().st_size or not self.state["part"]:
            self._growing().replace(self._part())
        else:
            self._growing().unlink()
        if not (self.folder / REPORT).stat().st_size:
            (self.folder / REPORT).unlink()
        self._save(number, 0, complete=True)

    def abandon(self) -> None:
        """After `close`: leave nothing where nothing was checkpointed."""
        if any(self.state[key] for key in ("number", "offset", "part", "part_bytes")):
            return
        for path in (self._growing(), self.folder / REPORT, self.folder / _STATE):
            path.unlink(missing_ok=True)
        if self._made:
            with contextlib.suppress(OSError):
                self.folder.rmdir()

    def close(self) -> None:
        """Keep what is written; the next call cuts back to the last checkpoint."""
        for file in (self._lines, self._report):
            file.flush()
            os.fsync(file.fileno())
            file.close()
