"""Which documents repeat an earlier one: fingerprints kept on disk, found again by parts of them that are equal.

The numbers of a fingerprint are cut into bands; documents with an equal band are compared (Leskovec, Rajaraman, Ullman,
"Mining of Massive Datasets", 3.4). Memory holds the newest bands only: older ones lie in sorted files, joined as they
grow many. The first of several documents that are alike is kept, whatever the number of processes, and after an
interruption as without.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from megabert.data.encoding import Block
from megabert.data.fingerprints import WIDTHS

REPORT = "duplicates.txt"
_NEWEST = 1 << 19  # bands in memory, about 60 MB
_JOINED = 8  # files of like size become one
_AT_ONCE = 1 << 21  # bands in memory while files are joined
_READ_ROWS = 1 << 12
_RECALL = 0.99


def bands_for(width: int, similarity: float) -> tuple[int, int]:
    """(bands, numbers of each): as long as may be, yet 99 % of the pairs that are just `similarity` alike share one."""
    for length in range(width, 1, -1):
        bands = width // length
        if 1 - (1 - similarity**length) ** bands >= _RECALL:
            return bands, length
    return width, 1


class _Run(NamedTuple):
    """Bands that were written: sorted, each with the number of the document that had it first."""

    path: Path
    level: int
    keys: np.ndarray
    rows: np.ndarray


class Duplicates:
    """Takes those documents out of blocks that repeat one seen before."""

    def __init__(
        self, folder: Path, inputs: Sequence[Path], kind: str, similarity: float, progress: dict[str, Any]
    ) -> None:
        """Begin, or go on from `progress` with the files that an earlier process left in `folder`."""
        self._folder, self._inputs, self._width = folder, inputs, WIDTHS[kind]
        self._similarity = similarity if kind == "minhash" else 1.0
        self._bands, self._length = bands_for(self._width, self._similarity) if kind == "minhash" else (1, self._width)
        self.kept: int = progress.get("kept", 0)
        self.removed: int = progress.get("removed", 0)
        self.removed_tokens: int = progress.get("removed_tokens", 0)
        self._row_bytes = 4 * self._width
        self._newest: dict[int, int] = {}
        self._runs: list[_Run] = []
        self._written = 0
        for path in folder.glob("bands-*.npy"):
            path.unlink()
        self._fingerprints = os.open(folder / "fingerprints", os.O_RDWR | os.O_CREAT)
        self._places = os.open(folder / "places", os.O_RDWR | os.O_CREAT)
        os.ftruncate(self._fingerprints, self.kept * self._row_bytes)
        os.ftruncate(self._places, self.kept * 16)
        self.report = (folder / REPORT).open("ab")
        self.report.truncate(progress.get("duplicates_bytes", 0))
        self._learn_again()

    def progress(self) -> dict[str, Any]:
        """What another process needs to go on; the files are as far by then."""
        self.report.flush()
        os.fsync(self._fingerprints)
        os.fsync(self._places)
        return {
            "kept": self.kept,
            "removed": self.removed,
            "removed_tokens": self.removed_tokens,
            "duplicates_bytes": self.report.tell(),
        }

    def facts(self) -> dict[str, Any]:
        """For the side file of the data."""
        return {"duplicate_documents_removed": self.removed, "duplicate_tokens_removed": self.removed_tokens}

    def close(self) -> None:
        """Give the files back."""
        os.close(self._fingerprints)
        os.close(self._places)
        self.report.close()

    def without(self, number: int, block: Block) -> Block:
        """A block of file `number` without the documents that repeat others; each of them is a line of the report."""
        assert block.fingerprints is not None and block.places is not None
        keep = np.ones(len(block.documents), bool)
        keys = self._keys(block.fingerprints)
        known = self._look_up(keys)
        for index in range(len(keep)):
            row, likeness = self._original(block.fingerprints[index], keys[index], known[index])
            line = int(block.places[index])
            if row < 0:
                self._add(block.fingerprints[index], keys[index], known[index], number, line)
            else:
                keep[index] = False
                self._tell(number, line, row, likeness)
        self._flush()
        if keep.all():
            return block
        sentences = np.repeat(keep, block.documents)
        tokens = np.repeat(sentences, block.sizes)
        self.removed += int((~keep).sum())
        self.removed_tokens += int((~tokens).sum())
        return block._replace(
            tokens=block.tokens[tokens], sizes=block.sizes[sentences], documents=block.documents[keep]
        )

    def _keys(self, fingerprints: np.ndarray) -> np.ndarray:
        """One number for each band: [documents, bands] uint64."""
        cut = fingerprints[:, : self._bands * self._length].reshape(len(fingerprints), self._bands, self._length)
        keys = np.broadcast_to(np.arange(self._bands, dtype=np.uint64), cut.shape[:2]).copy()
        for place in range(self._length):
            keys = (keys ^ cut[:, :, place]) * np.uint64(0x9E3779B97F4A7C15)
            keys ^= keys >> np.uint64(29)
        return keys

    def _look_up(self, keys: np.ndarray) -> np.ndarray:
        """The document that had each band first, of those whose bands are in files: [documents, bands], -1 for none."""
        found = np.full(keys.shape, -1)
        for run in self._runs:
            places = np.minimum(np.searchsorted(run.keys, keys), len(run.keys) - 1)
            hits = run.keys[places] == keys
            found[hits] = run.rows[places[hits]]
        return found

    def _original(self, fingerprint: np.ndarray, keys: np.ndarray, known: np.ndarray) -> tuple[int, float]:
        """(number of the document that this one repeats, how alike they are), or -1."""
        rows = {row for row in known.tolist() if row >= 0}
        rows.update(row for key in keys.tolist() if (row := self._newest.get(key, -1)) >= 0)
        best, likeness = -1, 0.0
        for row in sorted(rows):
            stored = os.pread(self._fingerprints, self._row_bytes, row * self._row_bytes)
            share = float((np.frombuffer(stored, "<u4") == fingerprint).mean())
            if share >= self._similarity and share > likeness:
                best, likeness = row, share
        return best, likeness

    def _add(self, fingerprint: np.ndarray, keys: np.ndarray, known: np.ndarray, number: int, line: int) -> None:
        os.pwrite(self._fingerprints, fingerprint.astype("<u4").tobytes(), self.kept * self._row_bytes)
        os.pwrite(self._places, np.array([number, line], "<i8").tobytes(), self.kept * 16)
        self._remember(self.kept, keys, known)
        self.kept += 1

    def _remember(self, row: int, keys: np.ndarray, known: np.ndarray) -> None:
        for key, other in zip(keys.tolist(), known.tolist(), strict=True):
            if other < 0:
                self._newest.setdefault(key, row)

    def _flush(self) -> None:
        """Move the newest bands to a file once they are many."""
        if len(self._newest) < _NEWEST:
            return
        count = len(self._newest)
        keys = np.fromiter(self._newest.keys(), np.uint64, count)
        rows = np.fromiter(self._newest.values(), np.int64, count)
        self._newest = {}
        order = np.argsort(keys)
        self._write_run(0, count, [(keys[order], rows[order])])
        level = 0
        while len(alike := [run for run in self._runs if run.level == level]) >= _JOINED:
            level += 1
            self._join(alike, level)

    def _write_run(self, level: int, count: int, parts: Any) -> None:
        path = self._folder / f"bands-{self._written}.npy"
        self._written += 1
        target = np.lib.format.open_memmap(path, "w+", np.uint64, (2, count))
        at = 0
        for keys, rows in parts:
            target[0, at : at + len(keys)], target[1, at : at + len(keys)] = keys, rows
            at += len(keys)
        target.flush()
        stored = np.load(path, mmap_mode="r")
        self._runs.append(_Run(path, level, stored[0], stored[1]))

    def _join(self, runs: list[_Run], level: int) -> None:
        """Several sorted files become one, a range of bands at a time."""
        count = sum(len(run.keys) for run in runs)
        ranges = 1 + count // _AT_ONCE
        borders = np.array([(number << 64) // ranges for number in range(1, ranges)], np.uint64)
        cuts = [np.concatenate([[0], np.searchsorted(run.keys, borders), [len(run.keys)]]) for run in runs]

        def parts() -> Any:
            for part in range(ranges):
                places = [slice(int(cut[part]), int(cut[part + 1])) for cut in cuts]
                keys = np.concatenate([run.keys[place] for run, place in zip(runs, places, strict=True)])
                rows = np.concatenate([run.rows[place] for run, place in zip(runs, places, strict=True)])
                order = np.argsort(keys)
                yield keys[order], rows[order]

        self._write_run(level, count, parts())
        self._runs = [run for run in self._runs if run not in runs]
        for run in runs:
            run.path.unlink()

    def _learn_again(self) -> None:
        """The bands of the documents that an earlier process kept."""
        for first in range(0, self.kept, _READ_ROWS):
            count = min(_READ_ROWS, self.kept - first)
            stored = os.pread(self._fingerprints, count * self._row_bytes, first * self._row_bytes)
            keys = self._keys(np.frombuffer(stored, "<u4").reshape(count, self._width))
            known = self._look_up(keys)
            for index in range(count):
                self._remember(first + index, keys[index], known[index])
            self._flush()

    def _tell(self, number: int, line: int, row: int, likeness: float) -> None:
        file, first = np.frombuffer(os.pread(self._places, 16, row * 16), "<i8").tolist()
        alike = "" if self._similarity == 1 else f" ({likeness:.0%} alike)"
        text = f"{self._inputs[number]}:{line} repeats {self._inputs[file]}:{first}{alike}\n"
        self.report.write(text.encode("utf-8", "backslashreplace"))
