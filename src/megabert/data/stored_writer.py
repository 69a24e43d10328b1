"""Samples of indexed data as TFRecords, with the fields that BERT's create_pretraining_data.py writes.

Every file is made by itself, in any process, and appears when it is whole; what an interrupted call finished is kept by
the next one that is asked for the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from megabert import runtime
from megabert.corpora import tfrecord
from megabert.data.indexed import IndexedData, with_suffix
from megabert.data.options import DataOptions
from megabert.data.samples import Sample, SampleSet, Vocabulary

MANIFEST = ".tfrecord.json"


@dataclass(frozen=True, kw_only=True)
class Writing:
    """What is written.

    Attributes:
        passes: over the data, each with other cuts and masks.
        per_file: samples in a file.
        packed: by gzip.
    """

    seed: int
    passes: int
    per_file: int
    packed: bool


class Part(NamedTuple):
    """One file and its samples, from `first` up to, without, `last`."""

    path: Path
    first: int
    last: int


def write(
    data: IndexedData,
    vocabulary: Vocabulary,
    options: DataOptions,
    writing: Writing,
    output: Path,
    *,
    workers: int = 1,
    on_file: Callable[[int, int], None] | None = None,
) -> list[Part]:
    """Write `<output>-00000-of-00012.tfrecord` and so on, or `<output>.tfrecord` where one file holds all.

    Args:
        options: how samples are cut and masked; `pair_task` is `nsp`, which is what the label of these files means.
        on_file: told the samples that are done and their number after each file.

    Raises:
        ValueError: as `SampleSet`.
        OSError: from the file system; files that are whole stay.
    """
    assert options.pairs == "nsp"
    samples = SampleSet(data, vocabulary, options, seed=writing.seed)
    parts = list(_parts(output, len(samples) * writing.passes, writing))
    settings = {
        "data": data.digest(), "options": {key: str(value) for key, value in dataclasses.asdict(options).items()},
        "writing": dataclasses.asdict(writing), "samples": parts[-1].last,
    }  # fmt: skip
    manifest = with_suffix(output, MANIFEST)
    left = [part for part in parts if not (_same(manifest, settings) and part.path.exists())]
    if len(left) == len(parts):
        for part in parts:
            part.path.unlink(missing_ok=True)
        with runtime.atomic_write(manifest) as file:
            json.dump(settings, file, indent=1)
    arguments = (data.prefix, vocabulary, options, writing)
    done = parts[-1].last - sum(part.last - part.first for part in left)
    for part, _ in runtime.map_in_order(_PartWriter, arguments, left, min(workers, len(left))):
        done += part.last - part.first
        if on_file is not None:
            on_file(done, parts[-1].last)
    return parts


def _same(manifest: Path, settings: dict[str, object]) -> bool:
    try:
        return json.loads(manifest.read_text(encoding="utf-8")) == settings
    except (OSError, ValueError):
        return False


def _parts(output: Path, count: int, writing: Writing) -> Iterator[Part]:
    ending = ".tfrecord.gz" if writing.packed else ".tfrecord"
    files = -(-count // writing.per_file)
    for number in range(files):
        name = ending if files == 1 else f"-{number:05d}-of-{files:05d}{ending}"
        first = number * writing.per_file
        yield Part(with_suffix(output, name), first, min(first + writing.per_file, count))


class _PartWriter:
    """Writes one file; made once in each process."""

    def __init__(self, prefix: Path, vocabulary: Vocabulary, options: DataOptions, writing: Writing) -> None:
        self._samples = SampleSet(IndexedData(prefix), vocabulary, options, seed=writing.seed)
        self._packed = writing.packed

    def __call__(self, part: Part) -> None:
        with runtime.atomic_write(part.path, "wb") as file, self._opened(file) as stream:
            for index in range(part.first, part.last):
                sample = self._samples.sample_of(index)
                stream.write(tfrecord.frame(tfrecord.make_example(self._features(sample))))

    def _opened(self, file: IO[bytes]) -> contextlib.AbstractContextManager[IO[bytes]]:
        # Without a name and a time in the header equal samples are equal files.
        return gzip.GzipFile("", "wb", 6, file, 0) if self._packed else contextlib.nullcontext(file)  # type: ignore[return-value]

    def _features(self, sample: Sample) -> dict[str, np.ndarray]:
        positions, predictions, _ = self._samples.shape
        used = len(sample.masked_positions)
        return {
            "input_ids": _padded(sample.input_ids, positions),
            "input_mask": _padded(np.ones(len(sample.input_ids), np.int64), positions),
            "segment_ids": _padded(sample.token_type_ids, positions),
            "masked_lm_positions": _padded(sample.masked_positions, predictions),
            "masked_lm_ids": _padded(sample.masked_labels, predictions),
            "masked_lm_weights": (np.arange(predictions) < used).astype(np.float32),
            "next_sentence_labels": np.array([sample.next_sentence_label]),
        }


def _padded(values: np.ndarray, length: int) -> np.ndarray:
    """With zeros behind, as the original pads ids too."""
    return np.concatenate([values, np.zeros(length - len(values), np.int64)])
