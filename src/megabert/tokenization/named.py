"""From what the user named to a tokenizer: a path, a name in a cache folder, or a name on the Hugging Face hub."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megabert import runtime
from megabert.tokenization import opening, published
from megabert.tokenization.published import Published

_FILES_END = (".txt", ".json", ".model", ".vocab")
_HUB_FILES = ["vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model"]


def find(name: str, cache_dir: Path | None = None) -> Path:
    """The file or folder of a tokenizer.

    Looked for in this order: `name` as a path, which may be a run folder; `NAME-vocab.txt`, `NAME.txt`, `NAME_vocab`
    (NeMo's), or a folder NAME with a tokenizer, in `cache_dir` and in the folder that the environment variable
    MEGABERT_CACHE names (left out, `~/.cache/megabert`); the Hugging Face hub (not when HF_HUB_OFFLINE is set), whose
    download is kept in `cache_dir`. A published vocabulary goes by all its names and must be the file it was; one of
    the user's own under such a name, in a cache folder, is taken, but not a published one of another name.

    Raises:
        ValueError: it is nowhere; says where the file can be put.
    """
    path = Path(name).expanduser()
    if path.exists():
        inside = (path, path / "tokenizer", path / "model")  # a run folder holds its tokenizer in there
        return next((place for place in inside if _holds_tokenizer(place)), path)
    if path.is_absolute() or path.suffix in _FILES_END or name.count("/") > 1 or name.startswith((".", "~")):
        raise ValueError(f"there is no tokenizer at {name}: no such file or folder")
    known = published.vocabulary_of(name)
    folders = [cache_dir, runtime.cache_folder()] if cache_dir else [runtime.cache_folder()]
    for folder in folders:
        for candidate in _candidates(name, known, folder):
            if candidate.is_file() or _holds_tokenizer(candidate):
                _refuse_another(candidate, name, known)
                return candidate
    place = folders[0] / (name.replace("/", "--") + "-vocab.txt")
    if known is None and published.lies_in_archive(name):
        raise ValueError(
            f"the vocabulary of {name} lies in the model's own archive: `megabert convert {name} FOLDER` writes it "
            f"into FOLDER, which is then the tokenizer to name; or put the vocabulary at {place}"
        )
    try:
        return _download(name, known, cache_dir)
    except ValueError as error:
        some = ", ".join(name for known in published.VOCABULARIES.values() for name in known.names[:3])
        by_hand = f"fetch {known.url} elsewhere and put it at {place}" if known else f"put its vocabulary at {place}"
        raise ValueError(
            f"no tokenizer {name!r} was found as a path, in a cache folder or on the Hugging Face hub ({error}); give "
            f"a path instead, or {by_hand}{'' if known else f' (known names: {some})'}"
        ) from None


def _holds_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in opening.FILES)


def _refuse_another(place: Path, name: str, known: Published | None) -> None:
    """Refuse a published vocabulary in a cache folder under the name of another one."""
    path = place if place.is_file() else place / "vocab.txt"
    if known is None or not path.is_file():
        return
    for other in published.VOCABULARIES.values():
        if other != known and path.stat().st_size == other.size and _digest(path.read_bytes()) == other.sha256:
            raise ValueError(f"{path} is the vocabulary of {other.names[0]}, not of {name}: rename or remove it")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _candidates(name: str, known: Published | None, folder: Path) -> Iterator[Path]:
    for alias in dict.fromkeys((name, published.canonical(name), *(known.names if known else ()))):
        alias = alias.replace("/", "--")
        for file in (f"{alias}-vocab.txt", f"{alias}.txt", f"{alias}_vocab", alias):
            yield folder / file


def _download(name: str, known: Published | None, cache_dir: Path | None) -> Path:
    import huggingface_hub

    options: dict[str, Any] = {"cache_dir": cache_dir, "etag_timeout": 10}
    try:
        if known is None:
            return Path(huggingface_hub.snapshot_download(name, allow_patterns=_HUB_FILES, **options))
        path = Path(huggingface_hub.hf_hub_download(known.repository, "vocab.txt", **options))
    except Exception as error:  # the hub's client raises its own, HTTP's and the operating system's
        reason = " ".join(str(error).split())[:120].strip() or type(error).__name__
        raise ValueError(f"HF_HUB_OFFLINE forbids the network: {reason}" if _offline() else reason) from None
    content = path.read_bytes()
    if (len(content), _digest(content)) != (known.size, known.sha256):
        raise ValueError(
            f"{path} is not the file that was published: {len(content):,} bytes, with another SHA-256 than "
            f"{known.sha256[:16]}...; delete it to fetch it again"
        )
    return path


def _offline() -> bool:
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE
