"""The vocabulary of a published model that was given by a path: NVIDIA's files hold the weights alone."""

from __future__ import annotations

from pathlib import Path

from megabert.formats import download, named
from megabert.formats.named_models import Known


def published(path: Path) -> Known | None:
    """The published model that a path is called after: its file, or one of the three folders around it."""
    path = path.absolute()
    stem = path.stem if path.is_file() else path.name
    for name in (stem, *(folder.name for folder in list(path.parents)[:3])):
        found = named.known_as(name)
        if found is not None and found.vocabulary_urls:
            return found
    return None


def find(known: Known, *, cache: Path | None = None) -> tuple[Path | None, str]:
    """The `vocab.txt` of a published model in the cache, and what is to be said: where it is from, or how to get it.

    No server is asked here: `named.fetch_vocabulary` does.
    """
    folder = named.cache_folder() if cache is None else cache
    home = folder / known.name
    bert = known.vocabulary_urls[0].split("/resolve/")[0].rpartition("/")[2]
    spellings = sorted({known.name, *known.spellings, bert})
    for file in (home / "vocab.txt", *(folder / f"{spelling}-vocab.txt" for spelling in spellings)):
        if file.is_file():
            if known.vocabulary_digest is not None:
                download.check(file, known.vocabulary_digest)
            return file, f"its name is that of {known.name}: the vocabulary is {file}"
    by_name = f"--tokenizer {known.name} fetches it" if not download.offline() else "HF_HUB_OFFLINE forbids the network"
    return None, (
        f"the tokenizer is missing: by its name this is {known.name}, whose vocab.txt is not in the file; {by_name}, "
        f"or put {known.vocabulary_urls[0]} at {home / 'vocab.txt'}, or give a file with --tokenizer vocab.txt"
    )
