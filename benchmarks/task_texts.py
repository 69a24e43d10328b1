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

from learning import TASKS
from megabert import runtime
from megabert.config import option, parse
from megabert.tasks import catalogue
from megabert.tasks.words import WordsExample


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """Where from and where to."""

    data: Path = option(Path("data"), "folder of the public files", example="data")
    output: Path = option(Path("task-texts.jsonl"), "the file to write", example="task-texts.jsonl")


DOCUMENTS = {"SST-2": 10, "CoLA": 10, "MRPC": 2, "RTE": 2, "ChemProt": 4, "BC5CDR": 4}
"""Of each task, how many sentences a document gets; two where examples are pairs: those of one example."""


def gathered(sentences: Iterable[str], size: int) -> Iterator[list[str]]:
    """Documents of `size` sentences."""
    found = [" ".join(sentence.split()) for sentence in sentences if sentence.strip()]
    yield from (found[start : start + size] for start in range(0, len(found), size))


def documents(data: Path) -> Iterator[list[str]]:
    """Each document's sentences.

    Raises:
        ValueError: a file is not there, or is not as its task wants it.
    """
    for name, size in DOCUMENTS.items():
        single: list[str] = []
        for example in catalogue.make(TASKS[name].task, {}).examples(data / TASKS[name].train):
            if isinstance(example, WordsExample):
                single.append(" ".join(example.words))
            elif example.text_pair is None:
                single.append(example.text)
            else:
                yield from gathered((example.text, example.text_pair), size)
        yield from gathered(single, size)


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
