"""Megatron's indexed data: `<prefix>.bin` (tokens) and `<prefix>.idx` (where sentences and documents begin), read.

Both files are Megatron-LM's "mmap" format, byte for byte; the older index of `legacy_index.py` is read as well. Beside
them lies `<prefix>.json` with sizes, checksums, the largest id and the tokenizer's fingerprint; files without it
(Megatron's own) are read as they are. Writing is in `indexed_writer.py`.
"""

from __future__ import annotations

import json
import mmap
import struct
import zlib
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from megabert.data import legacy_index

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")  # magic, version, dtype code, sequences, document boundaries
VERSION = 1
CHECKSUM_BLOCK = 1 << 26
# Above these sizes the bytes of the tokens are checked by `verify` only, so that opening a large file stays quick.
CHECKED_AT_OPEN = 1 << 26
SCANNED_AT_OPEN = 1 << 33
_LONGEST_FACTS = 1 << 26  # bytes; enough for the checksums of 100 TB

SUFFIXES = (".bin", ".json", ".idx")
"""Of the files beside each other: tokens, facts, index."""

# Code 7 was float64 in old code and is float32 now; tokens are whole numbers, so both are refused.
DTYPES: dict[int, np.dtype] = {
    1: np.dtype("u1"),
    2: np.dtype("i1"),
    3: np.dtype("<i2"),
    4: np.dtype("<i4"),
    5: np.dtype("<i8"),
    8: np.dtype("<u2"),
}


def token_dtype(vocabulary_size: int) -> np.dtype:
    """The dtype that Megatron chooses for a vocabulary: uint16 below 65,500 entries, else int32."""
    return DTYPES[8] if vocabulary_size < 65500 else DTYPES[4]


def with_suffix(prefix: Path, suffix: str) -> Path:
    """`wiki.v2` and `.bin` -> `wiki.v2.bin` (`Path.with_suffix` would drop `.v2`)."""
    return prefix.with_name(prefix.name + suffix)


def find_prefix(path: str | Path) -> Path | None:
    """The prefix of the indexed data that `path` names, or None when there is none.

    `path` may be the prefix, one of the two files, or the `--output-prefix` of the tokenizing command, to which it
    added `_text_sentence` (or `_text_document`).
    """
    path = Path(path)
    if not path.name:
        return None  # `.` or `/`
    candidates = [path.with_name(path.name + added) for added in ("", "_text_sentence", "_text_document")]
    if path.suffix in (".bin", ".idx"):
        candidates.insert(0, path.with_name(path.name[:-4]))
    for prefix in candidates:
        if with_suffix(prefix, ".idx").is_file():
            return prefix
    return None


class Header(NamedTuple):
    """What the first 34 bytes of an `.idx` file say."""

    dtype: np.dtype
    sequences: int
    boundaries: int


def read_header(path: Path) -> Header:
    """Read and check the header of an `.idx` file and its length.

    Raises:
        ValueError: not an index of this format, an unknown version or dtype, or a file that is too short or too long.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(HEADER.size)
    length = path.stat().st_size
    if start[: len(MAGIC)] != MAGIC[: len(start)]:
        raise ValueError(f"{path}: not an index of tokens: it begins with {start[:9]!r}, where {MAGIC!r} is needed")
    if length < HEADER.size:
        raise ValueError(f"{path}: damaged: {length} bytes, where the header alone has {HEADER.size}")
    _, version, code, sequences, boundaries = HEADER.unpack(start)
    if version != VERSION:
        raise ValueError(f"{path}: version {version} of the index format is unknown; {VERSION} can be read")
    if code not in DTYPES:
        allowed = ", ".join(f"{code} ({dtype.name})" for code, dtype in DTYPES.items())
        raise ValueError(f"{path}: dtype code {code} does not stand for whole numbers; known are {allowed}")
    needed = HEADER.size + 12 * sequences + 8 * boundaries
    if length not in (needed, needed + sequences):  # multimodal files have one more byte for each sequence
        raise ValueError(
            f"{path}: damaged: {length} bytes, but its header ({sequences} sentences, {boundaries} document boundaries)"
            f" needs {needed}"
        )
    return Header(DTYPES[code], sequences, boundaries)


class IndexedData:
    """Tokens of documents on disk, memory-mapped: sentence i of n is `tokens(i, i + 1)`.

    Attributes:
        sizes: [n] int32, tokens of each sentence.
        documents: [documents + 1] int64; document d is the sentences documents[d] up to, without, documents[d + 1].
        facts: the side file's content, or {} when there is none.
    """

    suffixes: ClassVar[tuple[str, str, str]] = SUFFIXES

    def __init__(self, path: str | Path, *, check: bool = True) -> None:
        """Open indexed data by its prefix or by one of its files.

        Args:
            check: look for damage: the structure of the index, its checksum when there is one, the length of the `.bin`
                file, and the checksums of that file too when it is small. `verify` checks everything.

        Raises:
            ValueError: no such data, or damaged data; the text says where.
        """
        prefix = find_prefix(path)
        if prefix is None:
            raise ValueError(f"{path}: there is no indexed data of this name (no file {path}.idx)")
        self.prefix = prefix
        self._open(check)

    def _open(self, check: bool) -> None:
        self.token_path, facts_path, index_path = (with_suffix(self.prefix, suffix) for suffix in self.suffixes)
        if not self.token_path.is_file():
            raise ValueError(f"{index_path}: the file of its tokens, {self.token_path.name}, is missing beside it")
        index = self._read_index(index_path)
        self._scanned: int | None = None
        self.facts = _read_facts(facts_path)
        if check:
            if self.facts:
                _check_sum(index_path, self.facts["index_crc32"], index)
            self._check_structure(index_path)
        token_bytes = self.token_path.stat().st_size
        self.num_tokens = token_bytes // self.dtype.itemsize
        self._tokens = np.memmap(self.token_path, self.dtype, "r") if token_bytes else np.zeros(0, self.dtype)
        if check and self.facts and token_bytes <= CHECKED_AT_OPEN:
            self._check_tokens()

    def _read_index(self, path: Path) -> mmap.mmap:
        with path.open("rb") as file:
            if file.read(len(legacy_index.MAGIC)) == legacy_index.MAGIC:
                self.dtype, self.sizes, self._starts, self.documents = legacy_index.read(path, DTYPES)
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            header = read_header(path)
            index = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        # The arrays begin at odd addresses. numpy reads those too, without a copy of the whole file.
        self.dtype = header.dtype
        self.sizes = np.frombuffer(index, "<i4", header.sequences, HEADER.size)
        self._starts = np.frombuffer(index, "<i8", header.sequences, HEADER.size + 4 * header.sequences)
        self.documents = np.frombuffer(index, "<i8", header.boundaries, HEADER.size + 12 * header.sequences)
        return index

    def _check_structure(self, index_path: Path) -> None:
        documents, sizes, itemsize = self.documents, self.sizes, self.dtype.itemsize
        if len(documents) == 0 or documents[0] != 0 or documents[-1] != len(sizes) or np.any(np.diff(documents) < 0):
            raise ValueError(
                f"{index_path}: damaged: the document boundaries do not rise from 0 to {len(sizes)} sentences"
            )
        total, block = 0, 1 << 20
        for first in range(0, len(sizes), block):
            lengths = sizes[first : first + block].astype(np.int64)
            ends = np.cumsum(lengths) * itemsize + total
            if lengths.min() < 0 or not np.array_equal(self._starts[first : first + block], ends - lengths * itemsize):
                raise ValueError(
                    f"{index_path}: damaged: sizes and places of the sentences from {first} on contradict each other"
                )
            total = int(ends[-1])
        present, needed = self.token_path.stat().st_size, self._needed_bytes(total)
        if present != needed:
            raise ValueError(
                f"{self.token_path}: damaged: {present} bytes, but its index {index_path.name} needs {needed}"
            )

    def _needed_bytes(self, total: int) -> int:
        """Bytes beside an index whose sequences have `total` bytes."""
        return total

    def _check_tokens(self) -> None:
        with self.token_path.open("rb") as file:
            for number, expected in enumerate(self.facts["token_crc32"]):
                if zlib.crc32(file.read(CHECKSUM_BLOCK)) != expected:
                    place = number * CHECKSUM_BLOCK
                    raise ValueError(
                        f"{self.token_path}: damaged: the checksum of the bytes from {place} on is wrong; "
                        "take the file from its source again, or tokenize the text again"
                    )

    def __getstate__(self) -> dict[str, Any]:
        """Only the name travels to another process, which maps the files itself."""
        return {"prefix": self.prefix}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.prefix = state["prefix"]
        self._open(check=False)

    def __len__(self) -> int:
        """Sentences."""
        return len(self.sizes)

    @property
    def num_documents(self) -> int:
        """Documents, empty ones included."""
        return len(self.documents) - 1

    def tokens(self, first: int, last: int) -> np.ndarray:
        """Tokens of the sentences from `first` up to, without, `last`: [tokens], a view of the file."""
        if first >= last:
            return self._tokens[:0]
        begin = int(self._starts[first]) // self.dtype.itemsize
        end = int(self._starts[last - 1]) // self.dtype.itemsize + int(self.sizes[last - 1])
        return self._tokens[begin:end]

    def count_tokens(self, firsts: np.ndarray, lasts: np.ndarray) -> np.ndarray:
        """Tokens of many ranges of sentences, none of them empty: [ranges] int64."""
        firsts, ends = firsts.astype(np.int64), lasts.astype(np.int64) - 1
        return (self._starts[ends] - self._starts[firsts]) // self.dtype.itemsize + self.sizes[ends]

    def digest(self) -> str:
        """A short name for the content: equal data, equal digest (of the index alone where there are no checksums)."""
        index = zlib.crc32(with_suffix(self.prefix, self.suffixes[2]).read_bytes())
        return f"{index:08x}-{self.num_tokens}-{zlib.crc32(repr(self.facts.get('token_crc32')).encode()):08x}"

    def check_tokenizer(self, fingerprint: str) -> None:
        """Refuse data that another tokenizer made, where the side file tells which one did.

        Raises:
            ValueError: it was another one.
        """
        made_by = self.facts.get("tokenizer")
        if made_by and made_by != fingerprint:
            raise ValueError(
                f"{self.prefix}: was tokenized with another tokenizer than the one given (its fingerprint is "
                f"{made_by[:12]}, not {fingerprint[:12]}); name that one with --tokenizer"
            )

    def largest_id(self) -> int | None:
        """The largest id of the data: from the side file, else by reading it; None where it is too long to read.

        Raises:
            ValueError: an id below 0.
        """
        if "largest_id" in self.facts:
            return self.facts["largest_id"]
        if self._scanned is None and self.num_tokens * self.dtype.itemsize <= SCANNED_AT_OPEN:
            parts = [self._tokens[at : at + (1 << 24)] for at in range(0, self.num_tokens, 1 << 24)]
            self._scanned = max((int(part.max()) for part in parts), default=-1)
            if self.dtype.kind == "i" and any(part.min() < 0 for part in parts):
                raise ValueError(f"{self.token_path}: holds ids below 0; it is damaged, or no data of tokens")
        return self._scanned


def _read_facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8")) if path.stat().st_size <= _LONGEST_FACTS else None
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        facts = None
    if isinstance(facts, dict) and isinstance(facts.get("index_crc32"), int):
        sums, largest = facts.get("token_crc32"), facts.get("largest_id", 0)
        if isinstance(sums, list) and isinstance(largest, int):
            return facts
    raise ValueError(f"{path}: damaged: not the checksums of indexed data (delete the file to read the data unchecked)")


def _check_sum(path: Path, expected: int, content: Any) -> None:
    if zlib.crc32(content) != expected:
        raise ValueError(
            f"{path}: damaged: its checksum is wrong; take the file from its source again, or tokenize again"
        )


def verify(path: str | Path) -> dict[str, Any]:
    """Check all of indexed data and return its facts: sentences, documents, tokens, and whether checksums were there.

    Raises:
        ValueError: damaged data; the text says where.
    """
    data = IndexedData(path)
    if data.facts and data.num_tokens * data.dtype.itemsize > CHECKED_AT_OPEN:
        data._check_tokens()
    return {
        "prefix": str(data.prefix),
        "documents": data.num_documents,
        "sentences": len(data),
        "tokens": data.num_tokens,
        "dtype": data.dtype.name,
        "checksums": bool(data.facts),
    }


def describe(path: str | Path, examples: int = 3) -> dict[str, Any]:
    """Numbers for a person: `verify`'s facts, the tokenizer's fingerprint, histograms of lengths, a few documents' ids.

    Raises:
        ValueError: as `IndexedData`.
    """
    data = IndexedData(path)
    document_lengths = np.diff(np.concatenate([[0], np.cumsum(data.sizes, dtype=np.int64)])[data.documents])

    def histogram(lengths: np.ndarray) -> dict[str, Any]:
        top = int(np.percentile(lengths, 99)) + 1 if len(lengths) else 1
        counts, edges = np.histogram(np.minimum(lengths, top), bins=16, range=(0, top))
        mean = float(lengths.mean()) if len(lengths) else 0.0
        return {
            "mean": mean,
            "largest": int(lengths.max(initial=0)),
            "edges": edges.tolist(),
            "counts": counts.tolist(),
        }

    return {
        "prefix": str(data.prefix),
        "documents": data.num_documents,
        "sentences": len(data),
        "tokens": data.num_tokens,
        "dtype": data.dtype.name,
        "checksums": bool(data.facts),
        "tokenizer": data.facts.get("tokenizer", ""),
        "tokenizer_place": str(data.facts.get("tokenizer_place", "")),
        "sentence_lengths": histogram(data.sizes),
        "document_lengths": histogram(document_lengths),
        "examples": [
            data.tokens(int(data.documents[number]), int(data.documents[number + 1])).tolist()
            for number in range(min(examples, data.num_documents))
        ],
    }
