"""A tokenizer from a file or folder, of whichever kind lies there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megabert.tokenization import byte_level, fast, sentence_piece, word_piece
from megabert.tokenization.fast import SPECIAL_TOKENS, FastTokenizer
from megabert.tokenization.word_piece import WordPiece

FILES = ("tokenizer.json", "vocab.txt", "tokenizer.model", "spiece.model", "vocab.json")
"""What tells that a folder holds a tokenizer, the first that is there is read."""
COMPANIONS = ("tokenizer.model", "tokenizer.vocab")
"""Files beside a `tokenizer.json` that belong to it: what SentencePiece's own programs read."""


def load(path: Path, lower_case: bool | None = None) -> FastTokenizer:
    """Read a tokenizer.

    Args:
        path: a `vocab.txt` with one entry a line, a `tokenizer.json`, a SentencePiece `.model` or the `.vocab` beside
            it, a `vocab.json` with `merges.txt` beside it, or a folder with one of these in it.
        lower_case: whether to lower letters; None leaves it to the files, and where only entries are known, to these.

    Raises:
        ValueError: no tokenizer is there, or it is damaged, of an unknown kind, or lacks what BERT needs.
    """
    if not path.exists():
        raise ValueError(f"there is no tokenizer at {path}: no such file or folder")
    tokenizer = _load(path, lower_case)
    tokenizer.place = path
    return tokenizer


def remembered(place: str, fingerprint: str) -> FastTokenizer | None:
    """The tokenizer that was at a place, if it still is there and gives the ids that it gave."""
    if not place or not Path(place).exists():
        return None
    try:
        tokenizer = load(Path(place))
    except (ValueError, OSError):
        return None
    return tokenizer if tokenizer.fingerprint() == fingerprint else None


def _load(path: Path, lower_case: bool | None) -> FastTokenizer:
    settings: dict[str, Any] = {}
    if path.is_dir():
        folder = path
        if (folder / "tokenizer_config.json").is_file():
            settings = fast.read_json(folder / "tokenizer_config.json")
        names = [name for name in FILES if (folder / name).is_file()]
        if not names:
            raise ValueError(
                f"{folder} holds no tokenizer: tokenizer.json, vocab.txt, tokenizer.model, or vocab.json with "
                "merges.txt is needed in it"
            )
        path = folder / names[0]
    if path.suffix == ".vocab" and path.with_suffix(".model").is_file():
        path = path.with_suffix(".model")  # SentencePiece writes both; the one lists the other's pieces
    if path.suffix == ".model":
        return sentence_piece.load(path, lower_case)
    if path.name.endswith("vocab.json"):
        return byte_level.load(path, path.with_name(path.name.replace("vocab.json", "merges.txt")), lower_case)
    special = {role: _entry(settings.get(f"{role}_token"), entry) for role, entry in SPECIAL_TOKENS.items()}
    if path.suffix == ".json":
        return _load_json(path, special, lower_case)
    return word_piece.load_vocabulary(path, settings, special, lower_case)


def _entry(setting: Any, otherwise: str) -> str:
    """A special token's entry; older files write it as an object."""
    if isinstance(setting, dict):
        setting = setting.get("content")
    return setting if isinstance(setting, str) else otherwise


def _load_json(path: Path, special: Mapping[str, str], lower_case: bool | None) -> FastTokenizer:
    settings = fast.read_json(path)
    kind = settings.get("model", {}).get("type") if isinstance(settings.get("model"), dict) else None
    if kind not in ("WordPiece", "BPE", "Unigram", "WordLevel"):
        raise ValueError(f"{path} holds a tokenizer of type {kind!r}; WordPiece, BPE, Unigram or WordLevel is needed")
    backend = fast.read_backend(path, settings)
    fast.relowered(backend, lower_case, path)
    if kind == "WordPiece":
        return WordPiece(backend, special, source=str(path))
    files = {name: fast.read_bytes(path.parent / name) for name in COMPANIONS if (path.parent / name).is_file()}
    return FastTokenizer(backend, special, source=str(path), files=files)
