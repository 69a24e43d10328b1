"""Samples that another program made, with their masks: TFRecords of BERT's create_pretraining_data.py, NVIDIA's HDF5.

Both are turned into indexed data once, so that training reads any sample at any time and equal ones after a resume. A
sample is a document of three sequences there: its tokens with the masks in place; the ids that the masks hide; and
their positions, the length of the first segment and the pair's label.

| | TFRecord, one Example a sample | HDF5, one row a sample |
|---|---|---|
| input_ids, input_mask, segment_ids | int64 [S] | i4, i1, i1 [N, S] |
| masked_lm_positions, masked_lm_ids | int64 [P], zeros behind the real ones | i4 [N, P] |
| masked_lm_weights | float [P], 1 at the real ones | none: real ones are those before the first position 0 |
| next_sentence_labels | int64 [1], 1: a random second segment | i1 [N] |
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from megabert.corpora import files, tfrecord
from megabert.data.encoding import Block, Reading
from megabert.data.indexed import token_dtype
from megabert.data.options import DataOptions

if TYPE_CHECKING:
    from megabert.tokenization.base import Tokenizer

Arrays = dict[str, np.ndarray]
SEQUENCES = 3
"""Of a document that holds a stored sample: tokens, hidden ids, places."""
_HDF5 = b"\x89HDF\r\n\x1a\n"
_KEYS = ("input_ids", "input_mask", "segment_ids", "masked_lm_positions", "masked_lm_ids", "next_sentence_labels")
_WEIGHTS = "masked_lm_weights"
_ROWS = 512  # of an HDF5 file that are read at once
_LARGEST_CHUNK = 256 << 20  # bytes that HDF5 unpacks at once


def kind_of(path: Path) -> str | None:
    """`tfrecord`, `hdf5`, or None for another file, by its content.

    Raises:
        ValueError: there is no such file, or it cannot be unpacked.
    """
    if path.is_dir():
        return None
    try:
        with files.open_bytes(path, any_content=True) as file:
            head = file.read(tfrecord.HEAD.size)
    except (EOFError, OSError) as error:
        raise ValueError(f"{path} cannot be unpacked: {error}") from None
    if head.startswith(_HDF5):
        return "hdf5"
    return "tfrecord" if tfrecord.begins_frame(head) else None


class Shape(NamedTuple):
    """S positions and P places to predict of a stored sample."""

    positions: int
    predictions: int


def shape_of(path: Path) -> Shape:
    """The shape of a file's first sound sample.

    Raises:
        ValueError: not a file of samples, or one without a sound one.
    """
    kind = kind_of(path)
    if kind == "hdf5":
        with _open_hdf5(path) as file:
            datasets = _datasets(file, path)
            return Shape(datasets["input_ids"].shape[1], datasets["masked_lm_ids"].shape[1])
    if kind is None:
        raise ValueError(
            f"{path}: holds no stored samples: it is neither a TFRecord file (of create_pretraining_data.py, plain or "
            "packed by gzip) nor an HDF5 file; leave out --use-tfrecords to train on text"
        )
    why = "the file is empty"
    for record in _records(path, 0):
        try:
            sample = _example(record)
            return Shape(len(sample["input_ids"]), len(sample["masked_lm_ids"]))
        except ValueError as error:
            why = f"record {record.number} {error}"
        if record.number == _ROWS:
            break
    raise ValueError(f"{path}: holds no sample that can be used; {why}")


def check_shape(shape: Shape, options: DataOptions, where: str) -> None:
    """Refuse samples that are not what the options ask for.

    Args:
        where: they lie, for errors.

    Raises:
        ValueError: another length than --seq-length, other places to predict than --max-preds-per-seq; or the options
            ask for what stored samples cannot give.
    """
    if options.seq_length != shape.positions:
        raise ValueError(
            f"{where}: holds samples of {shape.positions} tokens, but --seq-length is {options.seq_length}; say "
            f"--seq-length {shape.positions}"
        )
    if options.max_preds_per_seq not in (None, shape.predictions):
        raise ValueError(
            f"{where}: its samples have {shape.predictions} places to predict, but --max-preds-per-seq is "
            f"{options.max_preds_per_seq}; leave it out, or say {shape.predictions}"
        )
    if options.pack:
        raise ValueError("--pack fills rows with samples that it cuts itself; stored samples are read as they are")


@dataclass(frozen=True, kw_only=True)
class StoredReading(Reading):
    """How files of stored samples are read."""

    positions: int = 0
    predictions: int = 0

    work: ClassVar[str] = "reading stored samples:"
    unit: ClassVar[str] = "samples"
    writes_tokens: ClassVar[bool] = False

    def chunks(self, path: Path, offset: int, chunk_bytes: int) -> Iterator[StoredChunk]:
        """Some samples each, behind `offset`; see `preprocess`."""
        if kind_of(path) == "hdf5":
            return _cut_hdf5(path, offset)
        return _cut_records(path, offset, chunk_bytes)

    def encoder(self, tokenizer: Tokenizer) -> StoredEncoder:
        """What makes blocks of chunks."""
        return StoredEncoder(tokenizer, self)

    def facts(self, inputs: Sequence[Path]) -> dict[str, Any]:
        """Entries for the side file."""
        return {"samples": {"positions": self.positions, "predictions": self.predictions}}


class StoredChunk(NamedTuple):
    """Some samples of a file: records, or rows of an HDF5 file (first, one past the last) not yet read."""

    path: Path
    end_offset: int
    records: list[tfrecord.Record]
    rows: tuple[int, int]


def _records(path: Path, offset: int) -> Iterator[tfrecord.Record]:
    """The records behind `offset`; those before it are read again, quickly, to count them."""
    try:
        with files.open_bytes(path, any_content=True) as file:
            for record in tfrecord.frames(file, path):
                if record.end > offset:
                    yield record
    except (EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is damaged or cut short: {error}") from None


def _cut_records(path: Path, offset: int, chunk_bytes: int) -> Iterator[StoredChunk]:
    held: list[tfrecord.Record] = []
    size = 0
    for record in _records(path, offset):
        held.append(record)
        size += len(record.payload)
        if size >= chunk_bytes:
            yield StoredChunk(path, record.end, held, (0, 0))
            held, size = [], 0
    if held:
        yield StoredChunk(path, held[-1].end, held, (0, 0))


def _cut_hdf5(path: Path, offset: int) -> Iterator[StoredChunk]:
    with _open_hdf5(path) as file:
        count = _datasets(file, path)["input_ids"].shape[0]
    each = max(path.stat().st_size // max(count, 1), 1)  # an offset stands for a row, and for a share of the file
    for first in range(offset // each, count, _ROWS):
        last = min(first + _ROWS, count)
        yield StoredChunk(path, last * each, [], (first, last))


def _open_hdf5(path: Path) -> Any:
    try:
        import h5py
    except ImportError:
        raise ValueError(f"{path} is an HDF5 file, which needs another package: pip install 'megabert[hdf5]'") from None
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path} cannot be read as HDF5: {error}") from None


def _datasets(file: Any, path: Path) -> dict[str, Any]:
    """The arrays of an open file, none of which points into another file or unpacks to more than memory holds."""
    import h5py

    found: dict[str, Any] = {}
    for key in _KEYS:
        link = file.get(key, getlink=True) if key in file else None
        dataset = file[key] if isinstance(link, h5py.HardLink) else None
        if dataset is None or not isinstance(dataset, h5py.Dataset) or dataset.is_virtual or dataset.external:
            raise ValueError(f"{path}: has no array {key!r} of its own; needed are {', '.join(_KEYS)}")
        packed = int(np.prod(dataset.chunks)) * dataset.dtype.itemsize if dataset.chunks else 0
        if dataset.dtype.kind not in "iu" or packed > _LARGEST_CHUNK:
            raise ValueError(f"{path}: {key!r} is no array of whole numbers in pieces of at most 256 MiB")
        found[key] = dataset
    count, width = len(found["input_ids"]), found["masked_lm_ids"].shape[1:]
    for key, dataset in found.items():
        wanted = found["input_ids"].shape[1:] if key in _KEYS[:3] else width if key in _KEYS[3:5] else ()
        if len(dataset) != count or (dataset.shape[1:] != wanted and dataset.shape[1:] != (*wanted, 1)):
            raise ValueError(f"{path}: {key!r} has the shape {dataset.shape}, which does not fit {count} samples")
    if len(found["input_ids"].shape) != 2 or len(width) != 1:
        raise ValueError(f"{path}: input_ids and masked_lm_ids must have a row for each sample")
    return found


def _example(record: tfrecord.Record) -> Arrays:
    if not record.sound:
        raise ValueError("has another checksum than was written: it is damaged")
    sample = tfrecord.parse_example(record.payload)
    missing = [key for key in (*_KEYS, _WEIGHTS) if key not in sample]
    if missing:
        has = ", ".join(sorted(sample)[:8]) or "nothing"
        raise ValueError(f"has no {missing[0]}; it holds {has}")
    return sample


def _rows(chunk: StoredChunk) -> Iterator[Arrays]:
    first, last = chunk.rows
    with _open_hdf5(chunk.path) as file:
        try:
            arrays = {key: dataset[first:last] for key, dataset in _datasets(file, chunk.path).items()}
        except OSError as error:
            raise ValueError(f"{chunk.path}: rows {first} to {last - 1} cannot be read: {error}") from None
    for row in range(last - first):
        sample = {key: array[row].astype(np.int64).reshape(-1) for key, array in arrays.items()}
        sample[_WEIGHTS] = np.cumprod(sample["masked_lm_positions"] != 0)
        yield sample


class StoredEncoder:
    """Chunks to blocks; a sample that is not what it should be is a bad record."""

    def __init__(self, tokenizer: Tokenizer, reading: StoredReading) -> None:
        """Check against the vocabulary of `tokenizer` and the shape in `reading`."""
        self._size, self._cls, self._sep = tokenizer.vocabulary_size, tokenizer.cls_id, tokenizer.sep_id
        self._shape = Shape(reading.positions, reading.predictions)
        self._dtype = token_dtype(tokenizer.vocabulary_size)

    def __call__(self, numbered: tuple[int, StoredChunk]) -> Block:
        """The block of a (numbered) chunk."""
        _, chunk = numbered
        sequences: list[np.ndarray] = []
        bad: list[str] = []
        count = len(chunk.records) or chunk.rows[1] - chunk.rows[0]
        rows = None if chunk.records else _rows(chunk)
        for place in range(count):
            record = chunk.records[place] if rows is None else None
            name = f"record {record.number}" if record else f"row {chunk.rows[0] + place}"
            try:
                sequences += self._sequences(_example(record) if record else next(rows))  # type: ignore[arg-type]
            except ValueError as error:
                bad.append(f"{chunk.path}: {name}: {error}")
        sizes = np.array([len(sequence) for sequence in sequences], np.int32)
        documents = np.full(len(sequences) // SEQUENCES, SEQUENCES, np.int32)
        tokens = np.concatenate([np.zeros(0, self._dtype), *sequences]).astype(self._dtype)
        read = sum(len(record.payload) for record in chunk.records) or int(tokens.nbytes)
        return Block(tokens, sizes, documents, count, bad, read)

    def _sequences(self, sample: Arrays) -> list[np.ndarray]:
        """What is kept of a sample.

        Raises:
            ValueError: it is not whole, or made for another length or with another vocabulary.
        """
        positions, predictions = self._shape
        for key, wanted in zip(
            (*_KEYS, _WEIGHTS), (positions,) * 3 + (predictions,) * 2 + (1, predictions), strict=True
        ):
            if len(sample[key]) != wanted:
                raise ValueError(f"{key} has {len(sample[key])} values, and {wanted} in the samples before it")
        ids, types, length = sample["input_ids"], sample["segment_ids"], int(sample["input_mask"].sum())
        if length < 3 or not np.array_equal(sample["input_mask"], np.arange(positions) < length):
            raise ValueError("input_mask is not ones and then zeros")
        ids, types = ids[:length], types[:length]
        first = int(np.count_nonzero(types == 0))
        if not np.array_equal(types, np.arange(length) >= first):
            raise ValueError("segment_ids are not zeros and then ones")
        real = sample[_WEIGHTS] != 0
        order = np.argsort(sample["masked_lm_positions"][real])
        places, hidden = sample["masked_lm_positions"][real][order], sample["masked_lm_ids"][real][order]
        if len(places) and not (places[0] > 0 and places[-1] < length and np.all(np.diff(places) > 0)):
            raise ValueError("masked_lm_positions are not different places of the sample's text")
        self._check_ids(ids, hidden)
        label = int(sample["next_sentence_labels"][0])
        if label not in (0, 1):
            raise ValueError(f"next_sentence_labels is {label}; only 0 and 1 are known")
        return [ids, hidden, np.append(places, [first, label])]

    def _check_ids(self, ids: np.ndarray, hidden: np.ndarray) -> None:
        for part in (ids, hidden):
            if len(part) and not 0 <= part.min() <= part.max() < self._size:
                wrong = part.min() if part.min() < 0 else part.max()
                raise ValueError(
                    f"holds the id {wrong}, but the vocabulary has {self._size} entries: it was made with another one"
                )
        if ids[0] != self._cls or ids[-1] != self._sep:
            raise ValueError(
                f"begins with the id {ids[0]} and ends with {ids[-1]}, but [CLS] is {self._cls} and [SEP] {self._sep} "
                "in the vocabulary: it was made with another one"
            )


def sample_at(
    sequences: Mapping[int, np.ndarray] | list[np.ndarray],
) -> tuple[np.ndarray, np.ndarray, int, np.ndarray, int]:
    """(ids, positions, first segment's length, hidden ids, label) of a document's three sequences, all int64."""
    ids, hidden, places = (np.asarray(sequences[number], np.int64) for number in range(SEQUENCES))
    return ids, places[:-2], int(places[-2]), hidden, int(places[-1])
