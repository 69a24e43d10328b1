"""Megatron-LM's scripts for corpora: `presplit_sentences_json.py` of 2019 and `merge_datasets.py` of 2022."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megabert import config as configuration
from megabert import runtime
from megabert.commands import data
from megabert.config import option


@dataclass(frozen=True, kw_only=True)
class Presplit:
    """The script."""

    input: Path = option(dataclasses.MISSING, "loose JSON, one object a line", positional=True)
    output: Path = option(dataclasses.MISSING, "loose JSON to write, one sentence a line of the text", positional=True)
    text_key: str = option("text", "the key of the text")


@dataclass(frozen=True, kw_only=True)
class Merge:
    """The script."""

    input: Path | None = option(None, "folder with indexed data", metavar="FOLDER")
    output_prefix: Path | None = option(None, "prefix of the data to write", metavar="PREFIX")


def presplit(arguments: Sequence[str]) -> None:
    """Write each document with one sentence a line, for --presplit-sentences.

    Raises:
        ValueError, OSError: a line that is no JSON object with text, or files that cannot be read or written.
    """
    from megabert.corpora import files, sentences

    config = configuration.parse(Presplit, arguments, program="presplit_sentences_json.py", description=__doc__ or "")
    if config.output.exists() and config.output.samefile(config.input):
        raise ValueError(f"{config.output} is the input: name another file to write")
    documents = count = 0
    with files.open_bytes(config.input) as lines, runtime.atomic_write(config.output) as written:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            item = _object(line, f"{config.input}, line {number}", config.text_key)
            parts = sentences.split(item[config.text_key])
            written.write(json.dumps({**item, config.text_key: "\n".join(parts)}, ensure_ascii=False) + "\n")
            documents, count = documents + 1, count + len(parts)
    print(f"written: {config.output}: {documents:,} documents, {count:,} sentences")


def _object(line: bytes, where: str, key: str) -> dict:
    try:
        item = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: no JSON object ({error})") from None
    if not isinstance(item, dict) or not isinstance(item.get(key), str):
        raise ValueError(f"{where}: there is no text under {key!r}; --text-key names the key that holds it")
    return item


def merge(arguments: Sequence[str]) -> None:
    """Join the indexed data of a folder, in the order of their names.

    Raises:
        ValueError, OSError: a flag is missing; else as `data.run`.
    """
    config = configuration.parse(Merge, arguments, program="merge_datasets.py", description=__doc__ or "")
    if config.input is None or config.output_prefix is None:
        raise ValueError("--input and --output-prefix are needed: a folder with indexed data, and what to write")
    data.run(data.Config(action="merge", input=(config.input,), output=config.output_prefix))
