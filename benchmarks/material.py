"""Where the benchmarks find dumps, texts and vocabularies that no flag names.

The folder is that of MEGABERT_DATA, else `shared/data` beside the project; in it are `wikidump/*.bz2`, `text/` and
`vocab/bert-large-uncased-vocab.txt`.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path


def folder() -> Path:
    """The folder.

    Raises:
        SystemExit: it is not there.
    """
    told = os.environ.get("MEGABERT_DATA")
    path = Path(told) if told else Path(__file__).absolute().parents[2] / "shared" / "data"
    if not path.is_dir():
        raise SystemExit(f"there is no folder {path}: name the inputs by flags, or their folder by MEGABERT_DATA")
    return path


def vocabulary() -> Path:
    """BERT's uncased vocabulary."""
    return folder() / "vocab" / "bert-large-uncased-vocab.txt"


def largest_dump() -> Path:
    """The English dump with the most articles."""
    return max((folder() / "wikidump").glob("enwiki-*.bz2"), key=lambda path: path.stat().st_size)


def texts(most_bytes: int) -> list[Path]:
    """Articles and novels, as plain text, of so many bytes or less."""
    found = sorted((path for path in (folder() / "text").rglob("*.txt") if path.stat().st_size > 100_000), reverse=True)
    ends = itertools.accumulate(path.stat().st_size for path in found)
    return [path for path, end in zip(found, ends, strict=True) if end <= most_bytes]
