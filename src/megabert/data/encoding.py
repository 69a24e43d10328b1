"""Chunks of text to blocks of ids, in this process or in a pool of others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import numpy as np

from megabert import runtime
from megabert.corpora import sentences
from megabert.corpora.chunks import Chunk, parse_chunk
from megabert.corpora.document import BadLine, Document
from megabert.corpora.files import TextLayout, raw_chunks
from megabert.data import fingerprints
from megabert.data.fingerprints import Dedup
from megabert.data.indexed import token_dtype
from megabert.data.indexed_writer import IndexedWriter
from megabert.runtime import MapInOrder

if TYPE_CHECKING:
    from megabert.tokenization.base import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How text files are read."""

    text_key: str = "text"
    loose_json: bool | None = None  # None: found from the content
    language: str = "en"
    presplit: bool = False  # lines are sentences
    split_sentences: bool = True  # False: each document is one sequence
    max_bad_fraction: float = 0.01
    text_layout: TextLayout = "auto"
    delimiter: str = ""  # between the cells of tables; empty: found from the first line
    dedup: Dedup = "none"
    similarity: float = 0.8  # of documents that count as duplicates, with `minhash`

    work: ClassVar[str] = "tokenizing"
    unit: ClassVar[str] = "documents"
    writes_tokens: ClassVar[bool] = True

    def chunks(self, path: Path, offset: int, chunk_bytes: int) -> Iterator[Piece]:
        """Whole documents of a file behind `offset`, not yet read."""
        return raw_chunks(
            path, chunk_bytes, offset, loose_json=self.loose_json, text_layout=self.text_layout, text_key=self.text_key,
            delimiter=self.delimiter,
        )  # fmt: skip

    def writer(self, prefix: Path, tokenizer: Tokenizer, settings: dict[str, Any]) -> IndexedWriter:
        """What the blocks are given to."""
        return IndexedWriter(prefix, tokenizer.vocabulary_size, fingerprint=tokenizer.fingerprint(), settings=settings)

    def encoder(self, tokenizer: Tokenizer) -> Callable[[tuple[int, Any]], Block]:
        """What makes blocks of chunks."""
        return Encoder(tokenizer, self)

    def facts(self, inputs: Sequence[Path]) -> dict[str, Any]:
        """Entries for the side file of what is written."""
        return {}


class Piece(Protocol):
    """What a reading cuts a file into: a piece ends at an offset from which the work can go on."""

    @property
    def end_offset(self) -> int:
        """Where it ends, in unpacked bytes."""
        ...


class Block(NamedTuple):
    """The documents of a chunk, encoded."""

    tokens: np.ndarray  # [tokens], in the data set's dtype
    sizes: np.ndarray  # [sentences] int32
    documents: np.ndarray  # [documents] int32, sentences of each
    lines: int  # documents and bad lines
    bad: list[str]
    text_bytes: int
    fingerprints: np.ndarray | None = None  # [documents, width] uint32, where duplicates are looked for
    places: np.ndarray | None = None  # [documents] int64, the line on which each begins


class Encoder:
    """Chunks to blocks; a pure function, made once in each process."""

    def __init__(self, tokenizer: Tokenizer, reading: Reading) -> None:
        """Encode with `tokenizer`."""
        self._tokenizer, self.reading = tokenizer, reading
        self._dtype = token_dtype(tokenizer.vocabulary_size)
        self._fingerprints = None if reading.dedup == "none" else fingerprints.maker(reading.dedup)

    def __call__(self, numbered: tuple[int, Chunk]) -> Block:
        """Encode a (numbered) chunk. Documents in which the tokenizer finds nothing are bad lines too."""
        _, chunk = numbered
        return self.encode(parse_chunk(chunk, text_key=self.reading.text_key), chunk)[0]

    def encode(self, items: Sequence[Document | BadLine], chunk: Chunk) -> tuple[Block, np.ndarray]:
        """The block of a chunk whose documents are `items`, and which documents have tokens: bool [documents]."""
        reading = self.reading
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
        ids, lengths = self._tokenizer.encode_flat(texts)
        full = np.concatenate([[0], np.cumsum(lengths > 0)])[borders]
        counts = np.diff(full).astype(np.int32)
        tokens = ids.astype(self._dtype)
        bad += [f"{chunk.path}: near line {chunk.first_line}: a document without any token"] * int((counts == 0).sum())
        block = Block(tokens, lengths[lengths > 0], counts[counts > 0], len(items), bad, len(chunk.data))
        if self._fingerprints is not None:
            documents = [item for item in items if isinstance(item, Document)]
            kept = [document for document, full in zip(documents, counts > 0, strict=True) if full]
            block = block._replace(
                fingerprints=self._fingerprints([document.text for document in kept]),
                places=np.array([document.line for document in kept], np.int64),
            )
        return block, counts > 0


def encode_all(
    chunks: Iterator[tuple[int, Piece]],
    tokenizer: Tokenizer,
    reading: Reading,
    workers: int,
    map_in_order: MapInOrder = runtime.map_in_order,
) -> Iterator[tuple[int, Piece, Block]]:
    """Blocks in the order of their chunks; a few chunks are under way at a time."""
    for (number, chunk), block in map_in_order(_encoder, (tokenizer, reading), chunks, workers):
        yield number, chunk, block


def _encoder(tokenizer: Tokenizer, reading: Reading) -> Callable[[tuple[int, Any]], Block]:
    return reading.encoder(tokenizer)
