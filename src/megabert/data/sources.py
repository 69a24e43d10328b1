"""From what a user names as data to indexed data: prefixes as they are, text tokenized once into a cache."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from megabert.config import flag_name
from megabert.corpora import builtin, files, lazy_folder, tables
from megabert.corpora.document import good_documents
from megabert.data import lazy, preprocess, stored_reading
from megabert.data.blend import Source, is_weighted, parse_sources
from megabert.data.encoding import Reading
from megabert.data.indexed import find_prefix, with_suffix
from megabert.data.lazy import open_data
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
    texts: list[Text] = []
    indexed: list[Source] = []
    weighted = is_weighted(values)
    for source in parse_sources(values, flag):
        paths: list[Path] = []
        prefixes: list[Source] = []
        for name in options.corpora.get(source.path, (source.path,)):
            if name == BUILTIN and not Path(BUILTIN).exists():
                paths.append(_builtin(cache))
            elif find_prefix(name) is not None:
                prefixes.append(source._replace(path=name))
            else:
                paths += _files(name, flag, options)
        if weighted and len(prefixes) + bool(paths) > 1:
            raise ValueError(
                f"{flag}: {source.path} stands for several data sets, which one weight does not divide; give each its "
                "own name and weight"
            )
        indexed += prefixes
        if paths:
            texts.append(Text(source.weight, tuple(paths)))
    if options.use_tfrecords and indexed:
        raise ValueError(f"{flag}: {indexed[0].path} is indexed data; --use-tfrecords is for files of stored samples")
    if texts and not weighted:
        texts = [Text(1.0, tuple(path for text in texts for path in text.paths))]
    return Named(tuple(texts), tuple(indexed), weighted)


def _files(name: str, flag: str, options: DataOptions) -> list[Path]:
    """The files that a name stands for, each of a kind that the options read."""
    paths = files.matching([name])
    if not paths[0].exists():
        known = f", or one of the table [corpora] ({', '.join(options.corpora)})" if options.corpora else ""
        raise ValueError(
            f"{flag}: {name}: there is no such text file and no indexed data of this name ({paths[0].name}.idx); a "
            f"path is needed{known}, or the name {BUILTIN}. To give a path this name, write [corpora] and below it "
            f'{name} = "PATH" into a --config file, or say --corpora {name}=PATH'
        )
    for path in paths:
        if options.use_tfrecords:
            stored_reading.shape_of(path)
        elif (kind := stored_reading.kind_of(path)) is not None:
            raise ValueError(f"{flag}: {path} holds samples stored as {kind.upper()}, no text; add --use-tfrecords")
        else:
            files.detect(path, options.loose_json or None, options.text_layout)
    return paths


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
    if options.use_tfrecords:
        raise ValueError("--tokenizer is missing: stored samples need the vocabulary that they were made with")
    paths = [path for text in named.texts for path in text.paths]
    delimiter = tables.checked_delimiter(options.delim)
    reading = {"text_key": options.text_key, "loose_json": options.loose_json or None, "delimiter": delimiter}
    items = itertools.chain.from_iterable(
        files.read_documents(path, text_layout=options.text_layout, **reading) for path in paths
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
    opened = [(source, open_data(source.path, tokenizer, check=False)) for source in sources]
    for _, data in opened:
        data.check_tokenizer(tokenizer.fingerprint())
    if named.weighted or len(opened) == 1:
        return sources
    return [source._replace(weight=float(max(data.num_tokens, 1))) for source, data in opened]


def digest(sources: Sequence[Source]) -> str:
    """A short name for the content and the weights of indexed data."""
    content = [(source.weight, open_data(source.path, None, check=False).digest()) for source in sources]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _tokenized(
    text: Text, tokenizer: Tokenizer, options: DataOptions, cache: Path, workers: int | None, say: Callable[[str], None]
) -> Path:
    """The prefix of what the cache keeps of the text; its name depends on files, tokenizer and way of reading."""
    reading, ending = _reading(text, options, say)
    states = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in text.paths]
    key = hashlib.sha256(json.dumps([states, tokenizer.fingerprint(), asdict(reading)]).encode()).hexdigest()[:12]
    first = text.paths[0].parent if lazy_folder.is_data(text.paths[0]) else text.paths[0]
    prefix = cache / f"{first.name.split('.')[0]}-{key}{ending}"
    if with_suffix(prefix, lazy.SUFFIXES[2] if isinstance(reading, lazy.LazyReading) else ".idx").is_file():
        say(f"{reading.unit} read before: {prefix}")
        return prefix
    preprocess.tokenize_files(text.paths, tokenizer, prefix, reading, workers=workers, say=say)
    return prefix


def _reading(text: Text, options: DataOptions, say: Callable[[str], None]) -> tuple[Reading, str]:
    """How the files are read, and the end of the name of what is made of them."""
    if options.use_tfrecords:
        shape = stored_reading.shape_of(text.paths[0])
        stored_reading.check_shape(shape, options, str(text.paths[0]))
        stored = stored_reading.StoredReading(
            positions=shape.positions, predictions=shape.predictions, max_bad_fraction=options.max_bad_fraction
        )
        return stored, "_samples"
    reading = Reading(
        text_key=options.text_key, loose_json=options.loose_json or None, presplit=options.presplit_sentences,
        max_bad_fraction=options.max_bad_fraction, text_layout=options.text_layout,
        delimiter=tables.checked_delimiter(options.delim),
    )  # fmt: skip
    if not options.lazy_loader:
        return reading, "_text_sentence"
    for path in text.paths:
        if why := lazy.why_not(path, reading):
            say(f"--lazy-loader: {path} cannot be read at any place, since {why}; its tokens are written to the disk")
            return reading, "_text_sentence"
    return lazy.LazyReading(**asdict(reading)), "_text"
