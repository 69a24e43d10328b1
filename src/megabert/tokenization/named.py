"""From what the user named to a tokenizer: a path, a name in a cache folder, or a name on the Hugging Face hub."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from megabert.tokenization import opening

# The vocabulary of each casing is one file, byte for byte, for every size of BERT and for Megatron's BERT.
_UNCASED = (
    "bert-large-uncased", "bert-base-uncased", "megatron-bert-uncased", "megatron-bert-345m-uncased",
    "megatron-bert-uncased-345m", "biomegatron-bert-345m-uncased",
)  # fmt: skip
_CASED = (
    "bert-large-cased", "bert-base-cased", "megatron-bert-cased", "megatron-bert-345m-cased",
    "megatron-bert-cased-345m", "biomegatron-bert-345m-cased",
)  # fmt: skip
_HUB = {name: f"google-bert/{names[0]}" for names in (_UNCASED, _CASED) for name in names}
_HUB_FILES = ["vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]


def find(name: str, cache_dir: Path | None = None) -> Path:
    """The file or folder of a tokenizer.

    Looked for in this order: `name` as a path, which may be a run folder; `NAME-vocab.txt`, `NAME.txt`, or a folder
    NAME with a tokenizer, in `cache_dir` and in the folder that the environment variable MEGABERT_CACHE names; the
    Hugging Face hub (not when HF_HUB_OFFLINE is set), whose download is kept in `cache_dir`.

    Raises:
        ValueError: it is nowhere; says where the file can be put.
    """
    path = Path(name).expanduser()
    if path.exists():
        inside = (path, path / "tokenizer", path / "model")  # a run folder holds its tokenizer in there
        return next((place for place in inside if _holds_tokenizer(place)), path)
    if path.is_absolute() or path.suffix in (".txt", ".json") or name.count("/") > 1 or name.startswith((".", "~")):
        raise ValueError(f"there is no tokenizer at {name}: no such file or folder")
    folders = [Path(folder) for folder in (cache_dir, os.environ.get("MEGABERT_CACHE")) if folder]
    for folder in folders:
        for candidate in _candidates(name, folder):
            if candidate.is_file() or _holds_tokenizer(candidate):
                return candidate
    try:
        return _download(name, cache_dir)
    except ValueError as error:
        place = folders[0] if folders else Path("FOLDER")
        known = "" if name in _HUB else f" (known names: {', '.join((*_UNCASED[:3], *_CASED[:3]))})"
        raise ValueError(
            f"no tokenizer {name!r} was found as a path, in a cache folder or on the Hugging Face hub ({error}); give "
            f"a path instead, or put its vocabulary at {place / (name.replace('/', '--') + '-vocab.txt')} and name "
            f"that folder with --cache-dir{known}"
        ) from None


def _holds_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in opening.FILES)


def _candidates(name: str, folder: Path) -> Iterator[Path]:
    same = next((names for names in (_UNCASED, _CASED) if name in names), ())
    for alias in (name, *same):
        alias = alias.replace("/", "--")
        yield from (folder / f"{alias}-vocab.txt", folder / f"{alias}.txt", folder / alias)


def _download(name: str, cache_dir: Path | None) -> Path:
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(
                _HUB.get(name, name), allow_patterns=_HUB_FILES, cache_dir=cache_dir, etag_timeout=10
            )
        )
    except Exception as error:  # the hub's client raises its own, HTTP's and the operating system's
        raise ValueError(" ".join(str(error).split())[:120] or type(error).__name__) from None
