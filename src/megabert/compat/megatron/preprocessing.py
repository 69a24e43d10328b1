"""Megatron-LM's `tools/preprocess_data.py` with the flags of v1.0 to v2.6 and later, on `megabert tokenize`.

  python tools/preprocess_data.py --input wiki.json --output-prefix my-bert --vocab-file bert-vocab.txt \\
      --dataset-impl mmap --tokenizer-type BertWordPieceLowerCase --split-sentences --workers 8

writes my-bert_text_sentence.bin and .idx, byte for byte what Megatron-LM reads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from megabert import config as configuration
from megabert.commands import tokenize
from megabert.config import option
from megabert.training.options import other_default

PROGRAM = "preprocess_data.py"
_LANGUAGES = {
    "czech": "cs", "danish": "da", "dutch": "nl", "english": "en", "estonian": "et", "finnish": "fi", "french": "fr",
    "german": "de", "greek": "el", "italian": "it", "malayalam": "ml", "norwegian": "no", "polish": "pl",
    "portuguese": "pt", "russian": "ru", "slovene": "sl", "spanish": "es", "swedish": "sv", "turkish": "tr",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Config(tokenize.Config):
    """What is otherwise than in `megabert tokenize`."""

    json_keys: tuple[str, ...] = option(("text",), "keys of the JSON objects; each makes a data set of its own")
    text_key: str = option("text", "as --json-keys, one key", hidden=True)
    split_sentences: bool = option(False, "one sequence for each sentence, as BERT needs; left out, for each document")
    presplit_sentences: bool = option(False, "each line of a document is one sentence already")
    keep_newlines: bool = option(False, "line breaks are no tokens", hidden=True)
    append_eod: bool = option(False, "of GPT: refused", hidden=True)
    dataset_impl: Literal["lazy", "cached", "mmap"] = option("mmap", "mmap is what is written", hidden=True)
    partitions: int = option(1, "the workers share each file", hidden=True)
    keep_sequential_samples: bool = option(False, "documents are always in their order", hidden=True)
    workers: int | None = other_default(tokenize.TokenizeOptions, "workers", 1)
    log_interval: float = option(100, "documents between two lines of progress: here a line every 5 seconds", minimum=0)


def run(arguments: Sequence[str]) -> None:
    """Tokenize as the command line says.

    Raises:
        ValueError, OSError: a flag that cannot be obeyed; else as `tokenize.run`.
    """
    spelled = ["--vocab-file" + word[7:] if word.partition("=")[0] == "--vocab" else word for word in arguments]
    config = configuration.parse(Config, spelled, program=PROGRAM, description=__doc__ or "")
    if config.append_eod:
        raise ValueError("--append-eod is for GPT: BERT has no end-of-document token; leave it out")
    if config.output_prefix is None:
        raise ValueError("--output-prefix is missing: name the files to write, such as my-bert")
    for line in _notices(config):
        print(f"notice: {line}", flush=True)
    shared = {field.name: getattr(config, field.name) for field in dataclasses.fields(tokenize.Config)}
    shared |= {"dataset_impl": "mmap", "lang": _LANGUAGES.get(config.lang.lower(), config.lang)}
    shared |= {"log_interval": 5.0 if config.log_interval else 0.0}
    for key in dict.fromkeys(config.json_keys if config.text_key == "text" else (config.text_key,)):
        tokenize.run(tokenize.Config(**{**shared, "text_key": key}))


def _notices(config: Config) -> Iterator[str]:
    if not config.split_sentences:
        yield "without --split-sentences a document is one sequence: BERT's sentence pairs need sentences"
    if config.keep_newlines:
        yield "--keep-newlines: line breaks are no tokens of these vocabularies, and a line's end ends a sentence"
    if config.dataset_impl != "mmap":
        yield f"--dataset-impl {config.dataset_impl}: mmap is written; pretrain_bert.py finds the format by itself"
    if config.partitions > 1 or config.keep_sequential_samples:
        yield "--partitions, --keep-sequential-samples: the workers share each file, and documents keep their order"
