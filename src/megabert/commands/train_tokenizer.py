"""Learn a tokenizer from text: a WordPiece vocabulary, or a SentencePiece model.

  megabert train-tokenizer --output tokenizer --vocab-size 8192
  megabert train-tokenizer --input wiki.jsonl notes.txt.gz --output tokenizer --cased
  megabert train-tokenizer --input wiki/*.jsonl --type sentencepiece --model bpe --vocab-size 30522 --output tokenizer

Without --input it learns from built-in text: the documentation of the installed Python packages. The folder it writes
is read by --tokenizer of the other verbs, and by AutoTokenizer of Transformers. That of SentencePiece also holds
tokenizer.model and tokenizer.vocab for Google's library.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from megabert.config import option
from megabert.data.options import DataOptions
from megabert.tokenization.options import ModelType, TokenizerOptions

if TYPE_CHECKING:
    from megabert.tokenization.base import Tokenizer

SUMMARY = "learn a WordPiece or SentencePiece tokenizer from text"

_SHOWN_BAD_LINES = 5
_SECONDS_BETWEEN_LINES = 5.0
_SAMPLE = "Pretraining predicts masked words; tokenization splits uncommon ones."


@dataclass(frozen=True, kw_only=True)
class Config:
    """The command."""

    input: tuple[Path, ...] = option(
        (),
        "text files or patterns: loose JSON, tight JSON, CSV, TSV or plain text, packed by gzip, bzip2, xz, zstd or "
        "not; left out, built-in text",
        aliases=("train-data",),
        metavar="FILE",
        example="wiki.jsonl.gz notes.txt",
    )
    output: Path | None = option(
        None, "folder to write the tokenizer to", aliases=("save",), metavar="FOLDER", example="tokenizer"
    )
    type: Literal["wordpiece", "sentencepiece"] = option("wordpiece", "the kind of tokenizer")
    model: ModelType | None = option(
        None, "the kind of a SentencePiece model: bpe (default), unigram, char or word", aliases=("model-type",)
    )
    vocab_size: int = option(
        TokenizerOptions.vocab_size, "entries, special tokens included", minimum=16, example="8192"
    )
    cased: bool | None = option(
        None, "keep upper case and accents; left out, WordPiece lowers letters and drops accents, SentencePiece keeps "
        "them (--no-cased lowers them)",
    )  # fmt: skip
    delim: str | None = option(
        DataOptions.delim, "what stands between the cells of a .csv, one character; left out, found from the first "
        "line of each", example="';'",
    )  # fmt: skip
    text_key: str = option(DataOptions.text_key, "the key of a JSON object that holds the text", example="body")
    loose_json: bool = option(
        DataOptions.loose_json, "input is loose JSON, one object a line; left out, the content of each file tells"
    )


def run(config: Config) -> None:
    """Train and write the tokenizer.

    Raises:
        ValueError, OSError: a file that cannot be read or holds no text, a size that is too small.
    """
    if config.output is None:
        raise ValueError("--output is missing: name the folder to write the tokenizer to, e.g. --output tokenizer")
    if config.model is not None and config.type != "sentencepiece":
        raise ValueError(f"--model {config.model} is a kind of SentencePiece model: say --type sentencepiece too")
    if config.output.exists() and not config.output.is_dir():
        raise ValueError(f"--output: {config.output} is a file; a folder is needed")
    from megabert.corpora import files

    for path in files.matching(config.input):
        files.detect(path, config.loose_json or None)
    progress = _Progress()
    tokenizer = _train(config, progress)
    tokenizer.save(config.output)
    fewer = ""
    if tokenizer.vocabulary_size < config.vocab_size:
        fewer = f" (the text gives no more; {config.vocab_size:,} were asked for)"
    (ids,) = tokenizer.encode_batch([_SAMPLE])
    print(
        f"{tokenizer.vocabulary_size:,} entries{fewer} from {progress.characters:,} characters in "
        f"{progress.seconds():.0f} s: {config.output}"
    )
    print(f"e.g. {' '.join(tokenizer.tokens[index] for index in ids)}")


def _train(config: Config, progress: _Progress) -> Tokenizer:
    from megabert.tokenization import sentence_piece_trainer, trainer

    if config.type == "wordpiece":
        return trainer.train(_texts(config), config.vocab_size, lower_case=not config.cased, on_progress=progress.read)
    return sentence_piece_trainer.train(
        _texts(config), config.vocab_size, config.model or "bpe", lower_case=config.cased is False,
        on_progress=progress.read,
    )  # fmt: skip


class _Progress:
    """A line now and then about how much was read."""

    def __init__(self) -> None:
        self.start = self.last = time.monotonic()
        self.characters = 0

    def seconds(self) -> float:
        return time.monotonic() - self.start

    def read(self, characters: int) -> None:
        self.characters = characters
        now = time.monotonic()
        if now - self.last >= _SECONDS_BETWEEN_LINES:
            self.last = now
            rate = characters / max(now - self.start, 1e-9)
            print(f"read {characters / 1e6:,.0f} M characters, {rate / 1e6:.1f} M a second", flush=True)


def _texts(config: Config) -> Iterator[str]:
    """The texts of all files; says at the end which lines held none."""
    from megabert.corpora import builtin, files, tables
    from megabert.corpora.document import BadLine, good_documents

    if not config.input:
        print("no --input: reading the documentation of the installed Python packages", flush=True)
        for document in builtin.documents():
            yield document.text
        return
    bad: list[BadLine] = []
    count = 0

    def note(line: BadLine) -> None:
        nonlocal count
        count += 1
        if len(bad) < _SHOWN_BAD_LINES:
            bad.append(line)

    reading = {"text_key": config.text_key, "loose_json": config.loose_json or None,
               "delimiter": tables.checked_delimiter(config.delim)}  # fmt: skip
    items = (item for path in files.matching(config.input) for item in files.read_documents(path, **reading))
    for document in good_documents(items, note):
        yield document.text
    for line in bad:
        print(f"skipped: {line}")
    if count > len(bad):
        print(f"skipped: {count - len(bad):,} more lines")
