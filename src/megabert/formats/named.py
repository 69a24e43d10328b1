"""Names that stand where a path stands: published models, names of the user's own, ids of the Hugging Face hub.

How a file is fetched is in `download`; how it is read, in the formats.
"""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megabert.config import nearest
from megabert.formats import download
from megabert.formats.download import Digest, Progress
from megabert.formats.named_models import KNOWN, Known
from megabert.runtime import cache_folder
from megabert.tokenization.published import canonical

_TABLE = "names.toml"
_LARGEST_TABLE = 1 << 20
_WEIGHTS = (".safetensors", ".bin", ".pt", ".zip", ".nemo", ".ckpt")
_FILE_LIKE = re.compile(r"\.(pt|pth|zip|nemo|bin|safetensors|ckpt|toml|json|txt|tar|gz)$")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILES = ["config.json", "vocab.txt", "tokenizer*.json", "special_tokens_map.json", "generation_config.json"]
_KEYS = {"path", "url", "vocabulary", "sha256", "size", "file"}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a model lies.

    Attributes:
        path: a file or a folder, in any of the formats.
        vocabulary: a `vocab.txt` that belongs to it, where the name says one and it does not lie inside `path`.
        said: how it was found, in words.
    """

    path: Path
    vocabulary: Path | None = None
    said: str = ""


def names() -> tuple[str, ...]:
    """The published models that can be fetched."""
    return tuple(known.name for known in KNOWN if known.url)


def resolve(
    name: str | Path,
    *,
    cache: Path | None = None,
    table: Path | None = None,
    known: tuple[Known, ...] = KNOWN,
    progress: Progress | None = None,
    patience: float = 1.0,
) -> Place:
    """Find what a path or a name stands for; the first of these that has it:

    1. the path itself;
    2. `cache` (`MEGABERT_CACHE`, else `~/.cache/megabert`): a folder or file of that name, or what was fetched before;
    3. the user's table of names: `table`, else the file that `MEGABERT_NAMES` names, else `names.toml` in the cache;
    4. the publisher's server, or the Hugging Face hub for `owner/name`; not when `HF_HUB_OFFLINE` is set.

    A table of names is TOML: `my-bert = "/data/iter_0080000"`, or a section `[my-bert]` with `path` or `url`, and if
    wanted `vocabulary` (a path or an address), `sha256` and `size` of what the address gives, `file` (its name).

    Raises:
        ValueError: nothing has that name, or its file is not the one it was; says which file to put where.
        OSError: the network or the disk fails.
    """
    text, path = str(name), Path(name).expanduser()
    if path.exists():
        return Place(path=path, said="the path that was given")
    if isinstance(name, Path) and (path.is_absolute() or len(path.parts) > 2):
        raise ValueError(f"there is no file or folder {name}")
    if _FILE_LIKE.search(text) or text.startswith((".", "~", "/")) or text.count("/") > 1 or not text.strip("/"):
        raise ValueError(f"there is no file or folder {name}")
    folder = cache_folder() if cache is None else cache
    published = known_as(text, known)
    spellings = [text, *([published.name, *sorted(published.spellings)] if published else [])]
    found = _in_cache(spellings, folder)
    if found is not None and published is not None:
        return _with_vocabulary(found, published, folder, progress, patience)
    if found is not None:
        return found
    entries, source = _read_table(table, folder)
    entry = next((entries[spelling] for spelling in spellings if spelling in entries), None)
    if entry is not None:
        return _from_table(text, entry, source, folder, progress, patience)
    if published is not None:
        return _fetch_published(published, folder, progress, patience)
    if _HUB_ID.fullmatch(text):
        return _from_hub(text, folder)
    every = [*entries, *(spelling for item in known for spelling in (item.name, *item.spellings))]
    close = nearest(canonical(text), every)
    raise ValueError(
        f"there is no file or folder {text}, and no model has that name{close}; known names are "
        f"{', '.join([*entries, *(item.name for item in known if item.url)])}, and owner/name of the Hugging Face hub; "
        f"names of your own go into {source}"
    )


def is_name(text: str, *, cache: Path | None = None) -> bool:
    """Whether `resolve` knows a text as a name, without asking a server: a published model, one of the user's table, or
    what lies in the cache.

    Raises:
        ValueError: the user's table of names is damaged.
    """
    folder = cache_folder() if cache is None else cache
    if _FILE_LIKE.search(text) or text.startswith((".", "~", "/")) or text.count("/") > 1 or not text.strip("/"):
        return False
    known = known_as(text) is not None or text in _read_table(None, folder)[0]
    return known or _in_cache([text], folder) is not None


def stands_for(path: str | Path) -> bool:
    """Whether a text where a path may stand is meant as a name: nothing lies there, and `is_name` knows it, or it looks
    like an id of the Hugging Face hub.

    Raises:
        ValueError: the user's table of names is damaged.
    """
    text, path = str(path), Path(path).expanduser()
    if path.exists():
        return False
    return is_name(text) or (_HUB_ID.fullmatch(text) is not None and not path.parent.exists())


def known_as(text: str, known: tuple[Known, ...] = KNOWN) -> Known | None:
    """The published model of a name, in whatever spelling; None when there is none."""
    wanted = canonical(text)
    return next((entry for entry in known if wanted in {canonical(entry.name), *entry.spellings}), None)


def _in_cache(spellings: list[str], folder: Path) -> Place | None:
    for spelling in spellings:
        base = folder / spelling.replace("/", "--")
        candidates = [base, *(base.with_name(base.name + suffix) for suffix in (".nemo", ".zip", ".pt"))]
        for candidate in candidates:
            if candidate.is_dir():
                found = _in_cache_folder(candidate)
                if found is not None:
                    return found
            elif candidate.is_file():
                download.check(candidate)
                vocabulary = base.with_name(base.name + "-vocab.txt")
                return Place(
                    path=candidate,
                    vocabulary=vocabulary if vocabulary.is_file() else None,
                    said=f"a file of that name in {folder}",
                )
    return None


def _in_cache_folder(folder: Path) -> Place | None:
    """A folder of the cache: a fetched file with its vocabulary, or any checkpoint that the user has put there."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix in _WEIGHTS)
    vocabulary = folder / "vocab.txt"
    if (folder / "config.json").is_file() or (not files and any(path.is_dir() for path in folder.iterdir())):
        return Place(path=folder, said=f"a folder of that name in {folder.parent}")
    if len(files) > 1:
        listed = ", ".join(path.name for path in files[:5])
        raise ValueError(f"{folder} holds {len(files)} files of weights ({listed}); keep one, or give its path")
    if not files:
        return None  # a download that was cut off, or only its vocabulary
    download.check(files[0])
    return Place(
        path=files[0],
        vocabulary=vocabulary if vocabulary.is_file() else None,
        said=f"fetched before, or put by hand, into {folder}",
    )


def _read_table(table: Path | None, folder: Path) -> tuple[Mapping[str, Any], Path]:
    given = table or (Path(os.environ["MEGABERT_NAMES"]) if os.environ.get("MEGABERT_NAMES") else None)
    path = given or folder / _TABLE
    if not path.is_file():
        if given is not None:
            raise ValueError(f"there is no table of names {given}")
        return {}, path
    try:
        if path.stat().st_size > _LARGEST_TABLE:
            raise ValueError(f"{path} is too large for a table of names")
        return tomllib.loads(path.read_text(encoding="utf-8")), path
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from None


def _from_table(name: str, entry: Any, source: Path, folder: Path, progress: Progress | None, patience: float) -> Place:
    where = f"{source}: [{name}]"
    if isinstance(entry, str):
        entry = {"url" if entry.startswith(("http://", "https://")) else "path": entry}
    if not isinstance(entry, dict) or ("path" in entry) == ("url" in entry):
        raise ValueError(f"{where} must be a path or an address, or a section with either `path` or `url`")
    unknown = sorted(set(entry) - _KEYS)
    if unknown:
        raise ValueError(f"{where}: unknown key {unknown[0]!r}{nearest(unknown[0], sorted(_KEYS))}")
    wrong = sorted(key for key in entry if not isinstance(entry[key], int if key == "size" else str))
    if wrong or ("sha256" in entry) != ("size" in entry):
        raise ValueError(
            f"{where}: {wrong[0] if wrong else 'sha256 and size are given together; one of them'} is wrong"
        )
    vocabulary = entry.get("vocabulary")
    expected = Digest(entry["size"], entry["sha256"].lower()) if "size" in entry else None
    if "path" in entry:
        path = _beside(source, entry["path"])
        if not path.exists():
            raise ValueError(f"{where}: there is no file or folder {path}")
        if expected is not None:
            download.check(path, expected)
    else:
        file = entry.get("file") or entry["url"].split("?")[0].rstrip("/").rsplit("/", 1)[-1]
        if Path(file).name != file or file in ("", ".", ".."):
            raise ValueError(f"{where}: {file!r} is not the name of a file; say one with `file`")
        target = folder / name.replace("/", "--") / file
        path = _fetch(name, (entry["url"],), target, expected, progress, patience)
    place = None
    if vocabulary is not None and vocabulary.startswith(("http://", "https://")):
        target = folder / name.replace("/", "--") / "vocab.txt"
        place = _fetch(name, (vocabulary,), target, None, progress, patience)
    elif vocabulary is not None:
        place = _beside(source, vocabulary)
        if not place.is_file():
            raise ValueError(f"{where}: there is no vocabulary {place}")
    return Place(path=path, vocabulary=place, said=f"named in {source}")


def _beside(source: Path, text: str) -> Path:
    return source.parent / Path(text).expanduser()


def _fetch_published(known: Known, folder: Path, progress: Progress | None, patience: float) -> Place:
    if not known.url:
        raise ValueError(
            f"{known.name} names a family of models, not one with weights: give the path of your checkpoint, or one "
            f"of {', '.join(names())}"
        )
    home = folder / known.name
    path, vocabulary = home / known.file, home / "vocab.txt" if known.vocabulary_urls else None
    also = f", and {known.vocabulary_urls[0]} at {vocabulary}" if vocabulary and not vocabulary.is_file() else ""
    _fetch(known.name, (known.url,), path, known.digest, progress, patience, also)
    if vocabulary is not None:
        _fetch(known.name, known.vocabulary_urls, vocabulary, known.vocabulary_digest, progress, patience)
    return Place(path=path, vocabulary=vocabulary, said=f"fetched from {known.url}")


def fetch_vocabulary(known: Known, *, progress: Progress | None = None, patience: float = 1.0) -> Path:
    """The `vocab.txt` of a published model in the cache, fetched if it is not there.

    Raises:
        ValueError: no address answers, or the network is forbidden; says which file to put where.
    """
    target = cache_folder() / known.name / "vocab.txt"
    return _fetch(known.name, known.vocabulary_urls, target, known.vocabulary_digest, progress, patience)


def _with_vocabulary(found: Place, known: Known, folder: Path, progress: Progress | None, patience: float) -> Place:
    """What lies in the cache, with the vocabulary that an earlier call could not fetch."""
    home = folder / known.name
    if found.vocabulary or found.path.parent != home or not known.vocabulary_urls or download.offline():
        return found
    target = home / "vocab.txt"
    _fetch(known.name, known.vocabulary_urls, target, known.vocabulary_digest, progress, patience)
    return dataclasses.replace(found, vocabulary=target)


def _fetch(
    name: str,
    urls: tuple[str, ...],
    target: Path,
    expected: Digest | None,
    progress: Progress | None,
    patience: float,
    also: str = "",
) -> Path:
    """Fetch from the first address that answers.

    Raises:
        ValueError: none does, or the network is forbidden; says which file to put where.
    """
    by_hand = f"fetch {urls[0]} on another machine and put it at {target}{also}"
    if target.is_file():
        download.check(target, expected)
        return target
    if download.offline():
        raise ValueError(f"{name} is not in the cache, and HF_HUB_OFFLINE forbids the network; {by_hand}")
    problems = []
    for url in urls:
        try:
            return download.fetch(url, target, expected=expected, progress=progress, patience=patience)
        except (ValueError, OSError) as error:
            problems.append(str(error))
    raise ValueError(f"{name} could not be fetched: {'; '.join(problems)}; {by_hand}")


def _from_hub(name: str, folder: Path) -> Place:
    """A repository of the Hugging Face hub, in that client's own cache; safetensors are preferred to pickles."""
    import huggingface_hub

    def snapshot(patterns: list[str], local: bool) -> Path:
        return Path(
            huggingface_hub.snapshot_download(
                name, allow_patterns=[*_HUB_FILES, *patterns], local_files_only=local, etag_timeout=10
            )
        )

    where = folder / name.replace("/", "--")
    try:
        for patterns in (
            ["*.safetensors", "*.safetensors.index.json"],
            ["*.bin", "*.bin.index.json", "*.pt", "*.nemo"],
        ):
            found = snapshot(patterns, download.offline())
            if any(path.suffix in _WEIGHTS for path in found.iterdir()):
                return Place(path=found, said="from the Hugging Face hub")
    except Exception as error:  # the hub's client raises its own, HTTP's and the operating system's
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise ValueError(
            f"{name} is no file or folder, and could not be had from the Hugging Face hub ({reason}); put its files "
            f"(config.json, the weights, vocab.txt) into {where}"
        ) from None
    raise ValueError(f"{name} on the Hugging Face hub holds no weights that are known here")
