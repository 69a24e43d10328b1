"""Documents that stay where they are (`--lazy-loader`): an index of them, and text that is encoded when it is read.

Beside the cache lie `<prefix>.places` (file, byte and length of each document, int64 [documents, 3]),
`<prefix>.places.idx` (tokens of each sentence, sentences of each document: the `.idx` of indexed data) and
`<prefix>.places.json`. No text and no token is copied; samples are those of the same text as indexed data.
"""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from megabert.corpora import files, lazy_folder
from megabert.corpora.chunks import Chunk, parse_chunk
from megabert.corpora.document import BadLine, Document
from megabert.data.encoding import Block, Encoder, Reading
from megabert.data.indexed import DTYPES, IndexedData, token_dtype, with_suffix
from megabert.data.indexed_writer import IndexedWriter

if TYPE_CHECKING:
    from megabert.tokenization.base import Tokenizer

SUFFIXES = (".places", ".places.json", ".places.idx")
_PLACE = 3  # numbers for each document
_KEPT_DOCUMENTS = 64
_AT_RANDOM = ("loose", "lines", "lazy")


def why_not(path: Path, reading: Reading) -> str:
    """Why documents of a file cannot be read where they are; empty when they can."""
    kind = files.detect(path, reading.loose_json, reading.text_layout)
    if files.is_packed(files.first_bytes(path)):
        return "it is packed"
    return "" if kind in _AT_RANDOM else "it is not loose JSON (one object a line)"


@dataclass(frozen=True, kw_only=True)
class LazyReading(Reading):
    """Text files of which only an index is made."""

    work: ClassVar[str] = "indexing, for --lazy-loader,"
    writes_tokens: ClassVar[bool] = False

    def encoder(self, tokenizer: Tokenizer) -> _Places:
        """What makes blocks of places."""
        return _Places(tokenizer, self)

    def writer(self, prefix: Path, tokenizer: Tokenizer, settings: dict[str, Any]) -> IndexedWriter:
        """What the blocks are given to."""
        return _PlacesWriter(prefix, tokenizer.vocabulary_size, fingerprint=tokenizer.fingerprint(), settings=settings)

    def facts(self, inputs: Sequence[Path]) -> dict[str, Any]:
        """What is needed to read the documents again as they were read for the index."""
        states = [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in inputs]
        return {"files": states, "reading": dataclasses.asdict(self)}


def open_data(path: str | Path, tokenizer: Tokenizer | None, *, check: bool = True) -> IndexedData:
    """Indexed data, or an index of documents that stay where they are; errors as of each."""
    if with_suffix(Path(path), SUFFIXES[2]).is_file():
        return LazyData(Path(path), tokenizer, check=check)
    return IndexedData(path, check=check)


class _PlacesWriter(IndexedWriter):
    """Writes places in the stead of tokens."""

    suffixes = SUFFIXES

    def dtype_for(self, vocabulary_size: int) -> np.dtype:
        return DTYPES[5]

    def fits(self, tokens: np.ndarray, sizes: np.ndarray, documents: np.ndarray) -> bool:
        return len(tokens) == _PLACE * len(documents) and int(documents.sum()) == len(sizes)


def _records(chunk: Chunk) -> Iterator[tuple[int, int, bytes]]:
    """(number, byte in the file, bytes) of each document of a chunk."""
    at = chunk.end_offset - len(chunk.data)
    if chunk.kind == "lazy":
        records, between = lazy_folder.pieces(chunk.data, chunk.sizes, chunk.first_line), 0
    else:
        records, between = enumerate(chunk.data.split(b"\n"), chunk.first_line), 1
    for number, record in records:
        yield number, at, record
        at += len(record) + between


def _parse(path: Path, kind: Any, number: int, record: bytes, text_key: str) -> list[Document | BadLine]:
    """The document of one record, or what is wrong with it; nothing for an empty line."""
    sizes, unit = ((len(record),), "document") if kind == "lazy" else ((), "line")
    return parse_chunk(Chunk(path, kind, number, 0, record, sizes=sizes, unit=unit), text_key=text_key)


class _Places(Encoder):
    """Chunks to blocks whose `tokens` are places: (file, byte, length) of each document."""

    def __call__(self, numbered: tuple[int, Chunk]) -> Block:
        number, chunk = numbered
        if chunk.problem:
            items: list[Document | BadLine] = parse_chunk(chunk)
            places = np.zeros((0, _PLACE), np.int64)
        else:
            found = [
                (item, (number, at, len(record)))
                for line, at, record in _records(chunk)
                for item in _parse(chunk.path, chunk.kind, line, record, self.reading.text_key)
            ]
            items = [item for item, _ in found]
            places = np.array([place for item, place in found if isinstance(item, Document)], np.int64)
        block, kept = self.encode(items, chunk)
        return block._replace(tokens=places.reshape(-1, _PLACE)[kept].reshape(-1))


class LazyData(IndexedData):
    """Indexed data whose tokens are made of the text when they are asked for."""

    suffixes = SUFFIXES

    def __init__(self, prefix: Path, tokenizer: Tokenizer | None, *, check: bool = True) -> None:
        """Open the index at `prefix`; `tokenizer` is the one that it was made with. Without it there are no tokens.

        Raises:
            ValueError: the index is damaged, or a text file is not what it was when it was indexed.
        """
        self.prefix, self._tokenizer = prefix, tokenizer
        self._open(check)

    def _open(self, check: bool) -> None:
        super()._open(check)
        # Few sentences are encoded at a time, often in a process that was forked: threads would gain nothing there.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self._reading = LazyReading(**self.facts["reading"])
        self._places = self._tokens.reshape(-1, _PLACE)
        self.num_tokens = int(self._starts[-1]) // self.dtype.itemsize + int(self.sizes[-1])
        self._texts: list[tuple[Path, Any]] = []
        for name, size, changed in self.facts["files"]:
            path = Path(name)
            state = path.stat() if path.is_file() else None
            if state is None or (state.st_size, state.st_mtime_ns) != (size, changed):
                what = "is gone" if state is None else "has changed"
                raise ValueError(
                    f"{path} {what} since --lazy-loader indexed it; run the command again to index it anew"
                )
            kind = files.detect(path, self._reading.loose_json, self._reading.text_layout)
            self._texts.append((path, kind))
        self._opened = [path.open("rb") for path, _ in self._texts]
        self._encoded: collections.OrderedDict[int, list[np.ndarray]] = collections.OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """The name and the tokenizer travel to another process, which opens the files itself."""
        return {"prefix": self.prefix, "tokenizer": self._tokenizer}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.prefix, self._tokenizer = state["prefix"], state["tokenizer"]
        self._open(check=False)

    def _needed_bytes(self, total: int) -> int:
        return 8 * _PLACE * self.num_documents

    def largest_id(self) -> int:
        """The tokenizer that gives the ids is the one that the samples are made with."""
        return -1

    def tokens(self, first: int, last: int) -> np.ndarray:
        """Tokens of the sentences from `first` up to, without, `last`: [tokens].

        Raises:
            ValueError: a document is not what it was when it was indexed.
        """
        assert self._tokenizer is not None
        parts: list[np.ndarray] = [np.zeros(0, token_dtype(self._tokenizer.vocabulary_size))]
        while first < last:
            number = int(np.searchsorted(self.documents, first, side="right")) - 1
            begin, end = int(self.documents[number]), min(int(self.documents[number + 1]), last)
            parts += self._document(number)[first - begin : end - begin]
            first = end
        return np.concatenate(parts)

    def _document(self, number: int) -> list[np.ndarray]:
        """The sentences of a document, from the few that were asked for last or from the disk."""
        found = self._encoded.get(number)
        if found is None:
            found = self._encoded[number] = self._read(number)
            if len(self._encoded) > _KEPT_DOCUMENTS:
                self._encoded.popitem(last=False)
        self._encoded.move_to_end(number)
        return found

    def _read(self, number: int) -> list[np.ndarray]:
        assert self._tokenizer is not None
        which, at, length = (int(value) for value in self._places[number])
        path, kind = self._texts[which]
        # `pread` leaves the place of an open file alone: a forked process shares it with its parent.
        record = os.pread(self._opened[which].fileno(), length, at)
        items = _parse(path, kind, number + 1, record, self._reading.text_key)
        block = Encoder(self._tokenizer, self._reading).encode(items, Chunk(path, kind, 1, 0, record))[0]
        sizes = self.sizes[self.documents[number] : self.documents[number + 1]]
        if not np.array_equal(block.sizes, sizes):
            raise ValueError(
                f"{path}: the document at byte {at} has changed since --lazy-loader indexed it; run the command again "
                "to index it anew"
            )
        return np.split(block.tokens, np.cumsum(sizes)[:-1])
