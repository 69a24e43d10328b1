"""The training texts of six tasks without their labels, as loose JSON to go on pretraining on.

An encoder of little text learns the words of its tasks so before it is taught (Gururangan et al. 2020, "Don't stop
pretraining"). Only training files are read; each sentence is a line, unrelated ones by tens or fours a document.

    python benchmarks/task_texts.py --data DATA --output task-texts.jsonl
    megabert pretrain --train-data task-texts.jsonl --presplit-sentences --load runs/mini --finetune ...
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from megabert import runtime
from megabert.config import option, parse


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """Where from and where to."""

    data: Path = option(Path("data"), "folder of the public files", example="data")
    output: Path = option(Path("task-texts.jsonl"), "the file to write", example="task-texts.jsonl")


def columns(path: Path, chosen: slice, *, header: bool) -> Iterator[list[str]]:
    """Those columns of each line of one of GLUE's files, which quote nothing."""
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    yield from (line.split("\t")[chosen] for line in lines[header:])


def sentences_of_words(path: Path) -> Iterator[str]:
    """The sentences of a file with a word and its label a line."""
    words: list[str] = []
    for line in [*path.read_text(encoding="utf-8").splitlines(), ""]:
        if line.strip():
            words.append(line.split("\t")[0].strip())
        elif words:
            yield " ".join(words)
            words = []


def gathered(sentences: Iterable[str], size: int) -> Iterator[list[str]]:
    """Documents of `size` sentences."""
    found = [" ".join(sentence.split()) for sentence in sentences if sentence.strip()]
    yield from (found[start : start + size] for start in range(0, len(found), size))


def documents(data: Path) -> Iterator[list[str]]:
    """Each document's sentences.

    Raises:
        OSError: a file is not there.
    """
    glue = data / "glue"
    yield from gathered((row[0] for row in columns(glue / "SST-2/train.tsv", slice(0, 1), header=True)), 10)
    yield from gathered((row[0] for row in columns(glue / "CoLA/train.tsv", slice(3, 4), header=False)), 10)
    for name, chosen in (("MRPC", slice(3, 5)), ("RTE", slice(1, 3))):
        for pair in columns(glue / name / "train.tsv", chosen, header=True):
            yield from gathered(pair, 2)
    relations = (data / "biore/chemprot/train.txt").read_text(encoding="utf-8").splitlines()
    yield from gathered((json.loads(line)["text"] for line in relations), 4)
    yield from gathered(sentences_of_words(data / "bioner/BC5CDR-IOB/train.tsv"), 4)


def main() -> int:
    """Write the file; 2 where it cannot be."""
    try:
        options = parse(TextOptions, sys.argv[1:], program="benchmarks/task_texts.py", description=__doc__ or "")
        lines = [json.dumps({"text": "\n".join(document)}) + "\n" for document in documents(options.data)]
        with runtime.atomic_write(options.output) as file:
            file.writelines(lines)
    except (ValueError, OSError) as error:
        print(f"task_texts: {error}", file=sys.stderr)
        return 2
    print(f"{len(lines):,} documents: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
