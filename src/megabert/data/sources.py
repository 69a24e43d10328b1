"""From what a user names as data to indexed data: prefixes as they are, text tokenized once into a cache."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from megabert.config import flag_name
from megabert.corpora import builtin, files
from megabert.corpora.document import good_documents
from megabert.data import preprocess
from megabert.data.blend import Source, is_weighted, parse_sources
from megabert.data.indexed import IndexedData, find_prefix, with_suffix
from megabert.data.options import DataOptions

if TYPE_CHECKING:
    from megabert.tokenization.base import Tokenizer

BUILTIN = "builtin"


@dataclass(frozen=True)
class Text:
    """Text files that become one indexed data set."""

    weight: float
    paths: tuple[Path, ...]


@dataclass(frozen=True)
class Named:
    """What one of the flags names: text and indexed data, with weights."""

    texts: tuple[Text, ...]
    indexed: tuple[Source, ...]
    weighted: bool

    def __bool__(self) -> bool:
        """Whether anything was named."""
        return bool(self.texts or self.indexed)


def resolve(values: Sequence[str], field: str, options: DataOptions, cache: Path) -> Named:
    """Find what a data flag names, and fail on the first thing that is not there.

    Text files without weights are one data set, as if they were one file. The name `builtin` is the documentation of
    the installed Python packages, written to the cache first.

    Args:
        values: of the flag.
        field: the flag's field, for errors.

    Raises:
        ValueError: a path that is neither text nor indexed data, or a contradiction of weights.
        OSError: the cache cannot be written.
    """
    flag = f"--{flag_name(field)}"
    sources = parse_sources(values, flag, options.corpora)
    texts: list[Text] = []
    indexed: list[Source] = []
    for source in sources:
        if source.path == BUILTIN and not Path(BUILTIN).exists():
            texts.append(Text(source.weight, (_builtin(cache),)))
        elif find_prefix(source.path) is not None:
            indexed.append(source)
        else:
            paths = tuple(files.matching([source.path]))
            path = paths[0]
            if not path.exists():
                known = f", or one of --corpora ({', '.join(options.corpora)})" if options.corpora else ""
                raise ValueError(
                    f"{flag}: {source.path}: there is no such text file and no indexed data of this name "
                    f"({path.name}.idx); a path is needed{known}, or the name {BUILTIN}; --corpora NAME=PATH gives a "
                    "path a name"
                )
            for path in paths:
                files.detect(path, options.loose_json or None)
            texts.append(Text(source.weight, paths))
    weighted = is_weighted(values)
    if texts and not weighted:
        texts = [Text(1.0, tuple(path for text in texts for path in text.paths))]
    return Named(tuple(texts), tuple(indexed), weighted)


def _builtin(cache: Path) -> Path:
    path = cache / "builtin.jsonl"
    if not path.is_file():
        print("collecting the documentation of the installed Python packages", flush=True)
        cache.mkdir(parents=True, exist_ok=True)
        builtin.write(path, builtin.documents())
    return path


def texts_of(named: Named, options: DataOptions) -> Iterator[str]:
    """The texts of the documents, for training a tokenizer.

    Raises:
        ValueError: only indexed data was named: its tokenizer exists already; or there is no document.
    """
    if not named.texts:
        raise ValueError("--tokenizer is missing: indexed data needs the tokenizer that made it")
    paths = [path for text in named.texts for path in text.paths]
    items = itertools.chain.from_iterable(
        files.read_documents(path, text_key=options.text_key, loose_json=options.loose_json or None) for path in paths
    )
    try:
        for document in good_documents(items):
            yield document.text
    except ValueError as error:
        raise ValueError(f"{', '.join(map(str, paths[:3]))}: {error}") from None


def index(
    named: Named,
    tokenizer: Tokenizer,
    options: DataOptions,
    *,
    cache: Path,
    workers: int | None,
    say: Callable[[str], None] = print,
) -> list[Source]:
    """Indexed data for all that was named; text that the cache does not hold yet is tokenized.

    Sources without weights are mixed by their number of tokens.

    Raises:
        ValueError: text that cannot be used, or indexed data made by another tokenizer.
        OSError: the cache cannot be written.
    """
    sources = [
        Source(text.weight, str(_tokenized(text, tokenizer, options, cache, workers, say))) for text in named.texts
    ]
    sources += named.indexed
    # Whoever makes rows of the data checks it; here only its side file and its length are read.
    opened = [(source, IndexedData(source.path, check=False)) for source in sources]
    for source, data in opened:
        made_by = data.facts.get("tokenizer")
        if made_by and made_by != tokenizer.fingerprint():
            raise ValueError(
                f"{source.path}: was tokenized with another tokenizer than the one given (its fingerprint is "
                f"{made_by[:12]}, not {tokenizer.fingerprint()[:12]}); name that one with --tokenizer"
            )
    if named.weighted or len(opened) == 1:
        return sources
    return [source._replace(weight=float(max(data.num_tokens, 1))) for source, data in opened]


def digest(sources: Sequence[Source]) -> str:
    """A short name for the content and the weights of indexed data."""
    content = [(source.weight, IndexedData(source.path, check=False).digest()) for source in sources]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _tokenized(
    text: Text, tokenizer: Tokenizer, options: DataOptions, cache: Path, workers: int | None, say: Callable[[str], None]
) -> Path:
    """The prefix of the tokenized text in the cache; its name depends on files, tokenizer and way of reading."""
    states = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in text.paths]
    reading = (options.text_key, options.loose_json, options.presplit_sentences)
    key = hashlib.sha256(json.dumps([states, tokenizer.fingerprint(), reading]).encode()).hexdigest()[:12]
    prefix = cache / f"{text.paths[0].name.split('.')[0]}-{key}_text_sentence"
    if with_suffix(prefix, ".idx").is_file():
        say(f"tokenized before: {prefix}")
        return prefix
    preprocess.tokenize_files(text.paths, tokenizer, prefix, options, workers=workers, say=say)
    return prefix
