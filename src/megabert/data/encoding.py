"""Chunks of text to blocks of ids, in this process or in a pool of others."""

from __future__ import annotations

import itertools
import os
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from megabert import runtime
from megabert.corpora import sentences
from megabert.corpora.chunks import Chunk, parse_chunk
from megabert.corpora.document import BadLine
from megabert.data.indexed import token_dtype

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
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _encoder = Encoder(tokenizer, reading)


def _end_with_parent() -> None:
    """A pool whose main process was killed would wait for work for ever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode(chunk: Chunk) -> Block:
    assert _encoder is not None
    return _encoder(chunk)


def encode_all(
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
                with runtime.signals_wait():  # a submitted chunk may start a process
                    future = pool.submit(_encode, chunk)
                waiting.append((number, chunk, future))
                if len(waiting) >= 3 * workers:
                    first, begun, future = waiting.popleft()
                    yield first, begun, future.result()
            while waiting:
                first, begun, future = waiting.popleft()
                yield first, begun, future.result()
        except BrokenProcessPool:
            raise ChildProcessError(
                "a process of the pool was ended from outside (out of memory?); run the command again, with fewer "
                "--workers if need be: it goes on where it was"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
