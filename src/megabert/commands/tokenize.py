"""Turn text into indexed token files: PREFIX.bin and PREFIX.idx, byte for byte as Megatron-LM writes them.

  megabert tokenize --input wiki.jsonl --tokenizer bert-vocab.txt --output data/wiki
  megabert tokenize --input novels/*.txt --tokenizer bert-large-uncased --output data/novels --workers 8
  megabert tokenize --input data/wiki --tokenizer bert-vocab.txt --output out/wiki --to tfrecord --seq-length 512

Files may be loose JSON, tight JSON, CSV, TSV, Parquet or plain text, also packed by gzip, bzip2, xz or zstd; the format
is found from the content. A pattern in quotation marks ('wiki/*.jsonl') stands for files too, a .lazy folder for its
texts. An interrupted command goes on where it stopped when it is given again. Lines that cannot be used are listed in
PREFIX.skipped.txt; with --dedup, documents that repeat others are left out and listed in PREFIX.duplicates.txt. With
--to tfrecord the tokens are also cut into masked samples; --input may be a prefix then.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from megabert import executors, runtime
from megabert.config import option
from megabert.data.options import StoredSampleOptions
from megabert.executors import ExecutorOptions
from megabert.tokenization.options import TokenizerOptions

if TYPE_CHECKING:
    from megabert.data.preprocess import Progress
    from megabert.tokenization.base import Tokenizer

SUMMARY = "turn text into indexed token files (.bin and .idx)"


@dataclass(frozen=True, kw_only=True)
class TokenizeOptions:
    """Text and token files."""

    input: tuple[str, ...] = option(
        (), "text files to read, in this order, or patterns", metavar="FILE", example="wiki.jsonl books.txt"
    )
    output: Path | None = option(
        None, "prefix of the files to write: PREFIX.bin, PREFIX.idx and PREFIX.json with checksums", metavar="PREFIX",
        example="data/wiki",
    )  # fmt: skip
    output_prefix: Path | None = option(
        None, "as preprocess_data.py of Megatron names the files: PREFIX_<text key>_sentence.bin and .idx (_document "
        "with --no-split-sentences)", metavar="PREFIX", example="data/wiki",
    )  # fmt: skip
    text_key: str = option(
        "text",
        "the JSON key, or the column of a table, that holds the text",
        aliases=("json-keys",),
        example="abstract",
    )
    loose_json: bool = option(
        False, "insist on one JSON object a line; without the flag the format of each file is detected"
    )
    text_layout: Literal["auto", "file", "blank-lines", "lines"] = option(
        "auto", "what is a document of a plain text file: the whole file, what stands between blank lines, or a line; "
        "auto looks at the file",
    )  # fmt: skip
    delim: str | None = option(
        None, "what stands between the cells of a .csv, one character; left out, found from the first line of each",
        example="';'",
    )  # fmt: skip
    lang: str = option("en", "language of the text (ISO 639 code), for the rules that find sentence ends", example="de")
    presplit_sentences: bool = option(
        False,
        "each line of a document is one sentence already: do not look for sentence ends",
        aliases=("keep-newlines",),
    )
    split_sentences: bool = option(
        True, "one sequence for each sentence, as BERT's pair task needs; --no-split-sentences: one for each document"
    )
    workers: int | None = option(
        None,
        "processes that encode; left out, one for each core (of the cluster), fewer for a short text",
        minimum=1,
        maximum=1024,
        example="8",
    )
    max_bad_fraction: float = option(
        0.01, "share of lines that may be unusable (not JSON, no text) before the command stops", minimum=0, maximum=1,
        example="0.001",
    )  # fmt: skip
    dedup: Literal["none", "exact", "minhash"] = option(
        "none", "leave out documents that repeat an earlier one: exact, the same text, white space aside; minhash, "
        "also those that are alike; PREFIX.duplicates.txt lists them",
    )  # fmt: skip
    dedup_similarity: float = option(
        0.8, "share of their runs of five words that documents have in common to count as alike, for --dedup minhash, "
        "which estimates it to about 0.05; for equal documents there is --dedup exact",
        minimum=0.3, maximum=0.95, example="0.7",
    )  # fmt: skip
    log_interval: float = option(5, "seconds between two lines of progress (0: none)", minimum=0, example="30")
    dataset_impl: str = option("mmap", "accepted from preprocess_data.py; mmap is what is written", hidden=True)


@dataclass(frozen=True, kw_only=True)
class Config(TokenizeOptions, ExecutorOptions, StoredSampleOptions, TokenizerOptions):
    """The command."""


def run(config: Config) -> None:
    """Tokenize and say what was written.

    Raises:
        ValueError, OSError: flags that are missing, files that cannot be read or written, too many bad lines.
    """
    prefix = _prefix(config)
    if not config.input:
        raise ValueError("--input is missing: name the text files to read")
    if config.dataset_impl != "mmap":
        raise ValueError(f"--dataset-impl: {config.dataset_impl!r} is not written; only mmap is")

    from megabert.corpora import files, sentences, tables
    from megabert.data.encoding import Reading
    from megabert.data.indexed import find_prefix, with_suffix
    from megabert.data.preprocess import tokenize
    from megabert.tokenization import chosen

    said = sentences.remark(config.lang) if config.split_sentences and not config.presplit_sentences else ""
    if said:
        print(said, file=sys.stderr, flush=True)
    inputs = files.matching(config.input)
    tokenizer = chosen.open_tokenizer(config)
    if tokenizer is None and chosen.sentence_piece_path(config) is None:
        raise ValueError(
            "--tokenizer is missing: name a vocab.txt, a tokenizer folder, or a name such as bert-large-uncased"
        )
    if tokenizer is None:
        tokenizer = chosen.train_tokenizer(config, _texts(inputs, config))
    if config.to != "indexed" and len(config.input) == 1 and (made := find_prefix(config.input[0])) is not None:
        _write_samples(made, tokenizer, prefix, config)
        return
    reading = Reading(
        text_key=config.text_key, loose_json=config.loose_json or None, language=config.lang,
        presplit=config.presplit_sentences, split_sentences=config.split_sentences,
        max_bad_fraction=config.max_bad_fraction, text_layout=config.text_layout,
        dedup=config.dedup, similarity=config.dedup_similarity, delimiter=tables.checked_delimiter(config.delim),
    )  # fmt: skip
    _keep_inputs(inputs, prefix)
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with executors.chosen(config, config.workers) as (map_in_order, workers):
        result = tokenize(
            inputs, tokenizer, prefix, reading=reading, workers=workers,
            on_progress=_report if config.log_interval else None, seconds_between_reports=config.log_interval,
            map_in_order=map_in_order,
        )  # fmt: skip
    print(
        f"{prefix}.bin, .idx: {result.documents:,} documents, {result.sentences:,} "
        f"{'sentences' if config.split_sentences else 'sequences'}, {result.tokens:,} tokens; "
        f"{result.text_bytes / 1e6:.1f} MB of text in {result.seconds:.1f} s"
    )
    if result.skipped:
        print(f"{result.skipped:,} lines were skipped: {with_suffix(prefix, '.skipped.txt')}")
    if result.duplicates:
        print(
            f"{result.duplicates:,} documents of {result.documents + result.duplicates:,} repeat others and were left "
            f"out: {with_suffix(prefix, '.duplicates.txt')}"
        )
    if config.to != "indexed":
        _write_samples(prefix, tokenizer, prefix, config)


def _write_samples(indexed: Path, tokenizer: Tokenizer, output: Path, config: Config) -> None:
    from megabert.data import stored_writer
    from megabert.data.indexed import IndexedData
    from megabert.data.samples import Vocabulary

    data = IndexedData(indexed)
    data.check_tokenizer(tokenizer.fingerprint())
    output.parent.mkdir(parents=True, exist_ok=True)
    writing = stored_writer.Writing(
        seed=config.seed, passes=config.dupe_factor, per_file=config.samples_per_file, packed=config.to.endswith(".gz")
    )
    begin = time.monotonic()

    def tell(done: int, total: int) -> None:
        seconds = time.monotonic() - begin
        left = runtime.duration(seconds / max(done, 1) * (total - done))
        print(f"{done:,} of {total:,} samples written | {left} left", file=sys.stderr, flush=True)

    parts = stored_writer.write(
        data, Vocabulary.of(tokenizer), config.sample_options(), writing, output,
        workers=config.workers or len(os.sched_getaffinity(0)), on_file=tell if config.log_interval else None,
    )  # fmt: skip
    print(
        f"{parts[-1].last:,} samples of {config.seq_length} tokens in {len(parts)} "
        f"{'file' if len(parts) == 1 else 'files'}: {parts[0].path}{' ...' if len(parts) > 1 else ''}"
    )


def _texts(inputs: Iterable[Path], config: Config) -> Iterator[str]:
    """The texts of all files, for a tokenizer that is trained; their bad lines are counted when they are encoded."""
    from megabert.corpora import files, tables
    from megabert.corpora.document import Document

    delimiter = tables.checked_delimiter(config.delim)
    for path in inputs:
        for item in files.read_documents(
            path, text_key=config.text_key, loose_json=config.loose_json or None, delimiter=delimiter
        ):
            if isinstance(item, Document):
                yield item.text


def _report(progress: Progress) -> None:
    print(progress, file=sys.stderr, flush=True)


def _keep_inputs(inputs: Iterable[Path], prefix: Path) -> None:
    """Refuse a prefix whose files would replace a text: `--input wiki.json --output wiki`.

    Raises:
        ValueError: there is one.
    """
    written = {prefix.with_name(prefix.name + ending).resolve() for ending in (".bin", ".idx", ".json", ".skipped.txt")}
    for path in inputs:
        if path.resolve() in written:
            raise ValueError(f"--output {prefix}: its file {path} would replace the input; give another prefix")


def _prefix(config: Config) -> Path:
    if config.output is not None and config.output_prefix is not None:
        raise ValueError("--output and --output-prefix name the same thing: give one of them")
    if config.output_prefix is not None:
        level = "sentence" if config.split_sentences else "document"
        return config.output_prefix.with_name(f"{config.output_prefix.name}_{config.text_key}_{level}")
    if config.output is None:
        raise ValueError("--output is missing: name the prefix of the files to write, such as data/wiki")
    if config.output.is_dir():
        raise ValueError(
            f"--output: {config.output} is a folder; name the prefix of the files to write, such as "
            f"{config.output}/text"
        )
    name = config.output.name
    return config.output.with_name(name[:-4]) if name.endswith((".bin", ".idx")) else config.output
