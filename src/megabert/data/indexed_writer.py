"""Writing indexed data (`.bin`, `.idx`, `.json`) as a stream that can be stopped and taken up again.

While a data set grows it lies in `<prefix>.partial/`: tokens, sizes and document lengths as three plain files and a
journal that says how far they are good. `finish` makes the index from them and renames the files to their places, so
that a reader never sees half a data set.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np

from megabert import runtime
from megabert.data.indexed import CHECKSUM_BLOCK, DTYPES, HEADER, MAGIC, SUFFIXES, VERSION, token_dtype, with_suffix

_LOCK = "lock"
_COPY_BLOCK = 1 << 20  # entries of an array handled at once


class IndexedWriter:
    """Appends documents; `finish` makes the files appear, `abandon` removes what was written.

    As a context manager it finishes when the block ends well. When the block raises, it keeps what the last
    `checkpoint` made durable, or removes everything where there was none.
    """

    suffixes: ClassVar[tuple[str, str, str]] = SUFFIXES

    def __init__(
        self, prefix: Path, vocabulary_size: int, *, fingerprint: str = "", settings: dict[str, Any] | None = None
    ) -> None:
        """Begin a data set, or take up the one that an earlier process left with equal `settings`.

        Args:
            vocabulary_size: entries of the vocabulary; decides the dtype as Megatron does.
            fingerprint: of the tokenizer, written to the side file.
            settings: what must be equal for half a data set to be taken up again; `progress` then holds what the last
                `checkpoint` was given. None: always begin anew.

        Raises:
            OSError: the folder of `prefix` cannot be made or written to.
        """
        self.prefix = prefix
        self.dtype = self.dtype_for(vocabulary_size)
        self.folder = with_suffix(prefix, ".partial")
        self._fingerprint = fingerprint
        self._settings = settings
        self.progress: dict[str, Any] = {}
        self.tokens = self.sentences = self.documents = 0
        self.largest_id = -1
        self._finished_sums: list[int] = []
        self._running_sum = 0
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = self._take_lock()
        journal = self._read_journal() if settings is not None else None
        if journal is None:
            for path in self.folder.iterdir():
                if path.name != _LOCK:
                    path.unlink()
        self.complete = False
        if journal is not None:
            self._restore(journal)
        if not self.complete:
            self._files = {name: self._open(name, length) for name, length in self._lengths().items()}

    def dtype_for(self, vocabulary_size: int) -> np.dtype:
        """What is written is of this kind."""
        return token_dtype(vocabulary_size)

    def fits(self, tokens: np.ndarray, sizes: np.ndarray, documents: np.ndarray) -> bool:
        """Whether the arrays of a block belong together."""
        return int(sizes.sum()) == len(tokens) and int(documents.sum()) == len(sizes)

    def _take_lock(self) -> IO[bytes]:
        """The system gives the lock back when the process ends, however it ends."""
        lock = (self.folder / _LOCK).open("wb")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise ValueError(f"{self.prefix}: another process is writing this data set; wait for it to end") from None
        return lock

    def _lengths(self) -> dict[str, int]:
        return {
            "tokens": self.tokens * self.dtype.itemsize,
            "sizes": self.sentences * 4,
            "documents": self.documents * 4,
        }

    def _open(self, name: str, length: int) -> Any:
        file = (self.folder / name).open("ab")
        file.truncate(length)  # what a killed process wrote after its last checkpoint is not in the journal
        file.seek(length)
        return file

    def _read_journal(self) -> dict[str, Any] | None:
        try:
            journal = json.loads((self.folder / "journal.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        if journal.get("settings") != json.loads(json.dumps(self._settings)) or journal.get("dtype") != self.dtype.name:
            return None
        return journal

    def _restore(self, journal: dict[str, Any]) -> None:
        self.tokens, self.sentences, self.documents = (journal[key] for key in ("tokens", "sentences", "documents"))
        self.largest_id, self.progress = journal["largest_id"], journal["progress"]
        self._finished_sums, self._running_sum = journal["finished_sums"], journal["running_sum"]
        self.complete = journal["complete"]

    @property
    def resumed(self) -> bool:
        """Whether an earlier process's work was taken up."""
        return bool(self.progress)

    def add_document(self, sentences: Iterable[Sequence[int]]) -> None:
        """Append one document, given as its sentences' ids. Empty sentences and an empty document are dropped."""
        kept = [np.asarray(sentence, self.dtype) for sentence in sentences if len(sentence)]
        if kept:
            sizes = np.array([len(sentence) for sentence in kept], np.int32)
            self.add_block(np.concatenate(kept), sizes, np.array([len(kept)], np.int32))

    def add_block(self, tokens: np.ndarray, sizes: np.ndarray, documents: np.ndarray) -> None:
        """Append several documents at once.

        Args:
            tokens: [tokens] in this writer's dtype, of all sentences back to back.
            sizes: [sentences] int32, tokens of each sentence.
            documents: [documents] int32, sentences of each document.
        """
        if not len(documents):
            return
        assert tokens.dtype == self.dtype and self.fits(tokens, sizes, documents)
        content = tokens.tobytes()
        self._add_sum(content)
        self._files["tokens"].write(content)
        self._files["sizes"].write(sizes.astype("<i4").tobytes())
        self._files["documents"].write(documents.astype("<i4").tobytes())
        self.tokens, self.sentences = self.tokens + len(tokens), self.sentences + len(sizes)
        self.documents += len(documents)
        self.largest_id = max(self.largest_id, int(tokens.max()))

    def _add_sum(self, content: bytes) -> None:
        view, at = memoryview(content), self.tokens * self.dtype.itemsize
        while len(view):
            room = CHECKSUM_BLOCK - at % CHECKSUM_BLOCK
            part, view = view[:room], view[room:]
            self._running_sum = zlib.crc32(part, self._running_sum)
            at += len(part)
            if at % CHECKSUM_BLOCK == 0:
                self._finished_sums.append(self._running_sum)
                self._running_sum = 0

    def checkpoint(self, progress: dict[str, Any]) -> None:
        """Make everything so far durable; a later writer with equal settings goes on from here.

        Args:
            progress: where the caller stands in its input, given back as `progress`.
        """
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        self.progress = progress
        self._write_journal(complete=False)

    def _write_journal(self, *, complete: bool) -> None:
        journal = {
            "settings": self._settings, "dtype": self.dtype.name, "complete": complete, "progress": self.progress,
            "tokens": self.tokens, "sentences": self.sentences, "documents": self.documents,
            "largest_id": self.largest_id, "finished_sums": self._finished_sums, "running_sum": self._running_sum,
        }  # fmt: skip
        with runtime.atomic_write(self.folder / "journal.json") as file:
            json.dump(journal, file)

    def finish(self, facts: dict[str, Any] | None = None) -> None:
        """Write the index and the side file, and rename all three into place.

        Args:
            facts: more entries for the side file.

        Raises:
            ValueError: no document was added.
        """
        if not self.complete:
            if not self.documents:
                self.abandon()
                raise ValueError(f"{self.prefix}: there is no document to write; nothing was written")
            self._close()
            self._write_index()
            self._write_facts(facts or {})
            self._write_journal(complete=True)
            self.complete = True
        # The index comes last: where it is, the other two are. A process killed here leaves a journal that says
        # "complete", and the next one does the renames that are missing. An index from before must not meet new tokens.
        if (self.folder / "tokens").exists():
            with_suffix(self.prefix, self.suffixes[2]).unlink(missing_ok=True)
        for name, suffix in zip(("tokens", "facts.json", "index"), self.suffixes, strict=True):
            if (self.folder / name).exists():
                (self.folder / name).replace(with_suffix(self.prefix, suffix))
        runtime.sync_folder(self.prefix.parent)
        shutil.rmtree(self.folder)
        self._lock.close()

    def _close(self) -> None:
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()

    def _write_index(self) -> None:
        sizes = np.memmap(self.folder / "sizes", "<i4", "r")
        lengths = np.memmap(self.folder / "documents", "<i4", "r")
        code = next(code for code, dtype in DTYPES.items() if dtype == self.dtype)
        with runtime.atomic_write(self.folder / "index", "wb") as file:
            file.write(HEADER.pack(MAGIC, VERSION, code, len(sizes), len(lengths) + 1))
            for first in range(0, len(sizes), _COPY_BLOCK):
                file.write(sizes[first : first + _COPY_BLOCK].tobytes())
            total = 0
            for first in range(0, len(sizes), _COPY_BLOCK):
                part = sizes[first : first + _COPY_BLOCK].astype(np.int64) * self.dtype.itemsize
                ends = np.cumsum(part) + total
                file.write((ends - part).astype("<i8").tobytes())
                total = int(ends[-1])
            total = 0
            file.write(np.zeros(1, "<i8").tobytes())
            for first in range(0, len(lengths), _COPY_BLOCK):
                ends = np.cumsum(lengths[first : first + _COPY_BLOCK], dtype=np.int64) + total
                file.write(ends.astype("<i8").tobytes())
                total = int(ends[-1])

    def _write_facts(self, extra: dict[str, Any]) -> None:
        checksum = 0
        with (self.folder / "index").open("rb") as file:
            while part := file.read(_COPY_BLOCK):
                checksum = zlib.crc32(part, checksum)
        tail = [self._running_sum] if self.tokens * self.dtype.itemsize % CHECKSUM_BLOCK else []
        facts = {
            "documents": self.documents,
            "sentences": self.sentences,
            "tokens": self.tokens,
            "largest_id": self.largest_id,
            "tokenizer": self._fingerprint,
            "index_crc32": checksum,
            "token_crc32": self._finished_sums + tail,
            **extra,
        }
        with runtime.atomic_write(self.folder / "facts.json") as file:
            json.dump(facts, file, indent=1)
            file.write("\n")

    def abandon(self) -> None:
        """Remove what was written; files that were at `prefix` before stay."""
        self._release()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _release(self) -> None:
        if not self.complete:
            for file in self._files.values():
                with contextlib.suppress(OSError):  # a full disk: what cannot be flushed is not in the journal either
                    file.close()
        self._lock.close()

    def __enter__(self) -> IndexedWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            if not self._lock.closed:
                self.finish()
        elif self.progress and not self.complete:
            self._release()
        elif not self.complete:
            self.abandon()
