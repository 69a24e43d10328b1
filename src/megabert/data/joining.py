"""Whole data sets as pieces: several joined into one, one cut into several. Tokens are copied, never read anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from megabert.data.indexed import IndexedData, token_dtype, with_suffix
from megabert.data.indexed_writer import IndexedWriter

_COPIED_AT_ONCE = 1 << 23  # tokens
_TOKENS_BETWEEN_CHECKPOINTS = 1 << 28
_SMALL_VOCABULARY, _LARGE_VOCABULARY = 1, 1 << 20
_NAMES = ("train", "valid", "test")


def merge(sources: Sequence[Path], target: Path, *, say: Callable[[str], None] = print) -> None:
    """Join data sets in the order given: the documents of the first, then of the second.

    An interrupted call goes on when it is made again.

    Raises:
        ValueError: damaged data, data of different tokenizers, or `target` is one of `sources`.
        OSError: the target cannot be written.
    """
    opened = [IndexedData(source) for source in sources]
    known = {data.facts["tokenizer"]: data.prefix for data in opened if data.facts.get("tokenizer")}
    if len(known) > 1:
        first, second = list(known.values())[:2]
        raise ValueError(f"{first} and {second} were made by different tokenizers: their ids mean different words")
    if any(data.prefix.resolve() == target.resolve() for data in opened):
        raise ValueError(f"--output {target} is one of the data sets to merge; give another name")
    whole = [data.prefix for data in opened if len(data) == data.num_documents]
    if whole and len(whole) < len(opened):
        say(f"note: {whole[0]} has one sentence a document, others have more: it gives no pairs of sentences")
    _write(target, [(data, 0, data.num_documents) for data in opened], next(iter(known), ""), say)


def split(source: Path, target: Path, shares: Sequence[float], *, say: Callable[[str], None] = print) -> None:
    """Cut a data set at document borders into `<target>_train`, `_valid` and `_test`, as a run's `--split` would.

    Raises:
        ValueError: damaged data, or a share so small that it holds no document.
        OSError: the targets cannot be written.
    """
    from megabert.data.blend import split_documents

    data = IndexedData(source)
    ranges = split_documents(data.num_documents, shares)
    for name, share, (first, last) in zip(_NAMES, shares, ranges, strict=False):
        if share and last <= first:
            raise ValueError(
                f"{source}: the share of {name} is less than one of its {data.num_documents:,} documents; give a "
                "larger share with --split"
            )
    for name, share, (first, last) in zip(_NAMES, shares, ranges, strict=False):
        if share:
            _write(
                target.with_name(f"{target.name}_{name}"), [(data, first, last)], data.facts.get("tokenizer", ""), say
            )


def _write(
    target: Path, parts: Sequence[tuple[IndexedData, int, int]], fingerprint: str, say: Callable[[str], None]
) -> None:
    """Write ranges of documents, one after the other."""
    small = all(data.dtype.itemsize <= 2 and data.dtype.kind == "u" for data, _, _ in parts)
    vocabulary = _SMALL_VOCABULARY if small else _LARGE_VOCABULARY
    if token_dtype(vocabulary).itemsize < max(data.dtype.itemsize for data, _, _ in parts):
        for data, _, _ in parts:
            if (data.largest_id() or 0) > np.iinfo(np.int32).max:
                raise ValueError(f"{data.prefix}: holds ids beyond 32 bits, which no vocabulary has")
    settings = {"parts": [[str(data.prefix.resolve()), data.digest(), first, last] for data, first, last in parts]}
    target.parent.mkdir(parents=True, exist_ok=True)
    with IndexedWriter(target, vocabulary, fingerprint=fingerprint, settings=settings) as writer:
        if not writer.complete:
            _copy(writer, parts)
        written = (writer.documents, writer.sentences, writer.tokens)
    documents, sentences, tokens = written
    say(f"{with_suffix(target, '.bin')}, .idx: {documents:,} documents, {sentences:,} sentences, {tokens:,} tokens")


def _copy(writer: IndexedWriter, parts: Sequence[tuple[IndexedData, int, int]]) -> None:
    start, saved = writer.progress.get("part", 0), writer.tokens
    for number, (data, first, last) in enumerate(parts):
        if number < start:
            continue
        at = writer.progress.get("document", first) if number == start else first
        while at < last:
            end = _reach(data, at, last)
            begin_sentence, end_sentence = int(data.documents[at]), int(data.documents[end])
            writer.add_block(
                data.tokens(begin_sentence, end_sentence).astype(writer.dtype), data.sizes[begin_sentence:end_sentence],
                np.diff(data.documents[at : end + 1]),
            )  # fmt: skip
            at = end
            if writer.tokens - saved >= _TOKENS_BETWEEN_CHECKPOINTS:
                writer.checkpoint({"part": number, "document": at})
                saved = writer.tokens


def _reach(data: IndexedData, first: int, last: int) -> int:
    """The document up to which a block goes: of few tokens, or of one document."""
    low, high = first + 1, last
    begin = int(data.documents[first])
    while low < high:
        middle = (low + high + 1) // 2
        end = int(data.documents[middle])
        tokens = int(data.count_tokens(np.array([begin]), np.array([end]))[0]) if end > begin else 0
        if tokens <= _COPIED_AT_ONCE:
            low = middle
        else:
            high = middle - 1
    return low
