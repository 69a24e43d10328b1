"""WordPiece on the `tokenizers` library: loading, saving, and ids that equal those of Transformers' `BertTokenizer`.

Finding a tokenizer by name lives in `named`, training one in `trainer`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from megabert import runtime

# In the order that a vocabulary trained here begins with.
SPECIAL_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
_PREFIX = "##"
_BRACKETED = re.compile(r"\[.+\]|<.+>")
# Uncased vocabularies have a few odd upper-case entries (SciBERT's has), cased ones have a third.
_STRAY_UPPER_CASE = 0.01
_MAXIMUM_FILE_BYTES = 256 << 20


class WordPiece:
    """A WordPiece tokenizer; implements `base.Tokenizer`.

    Text is cleaned, lower-cased if the vocabulary is uncased, split at white space and punctuation, and each word is
    spelled with the longest pieces that the vocabulary has (Devlin et al. 2018, arXiv 1810.04805). Special tokens
    written in a text, such as `[MASK]`, are read as what they name, as Transformers reads them.
    """

    def __init__(self, backend: tokenizers.Tokenizer, special: Mapping[str, str], *, source: str) -> None:
        """Wrap a `tokenizers.Tokenizer`.

        Args:
            special: role (a key of `SPECIAL_TOKENS`) -> entry that plays it.
            source: what to call the tokenizer in errors.

        Raises:
            ValueError: an entry that a role needs is missing, or ids have gaps.
        """
        self._backend = backend
        self._special = dict(special)
        self.vocabulary_size = backend.get_vocab_size(with_added_tokens=True)
        self.tokens = _in_order(backend.get_vocab(with_added_tokens=True), source)
        ids: dict[str, int] = {}
        for role, entry in special.items():
            index = backend.token_to_id(entry)
            if index is None:
                raise ValueError(
                    f"{source}: the vocabulary has no {entry} (the {role} token); BERT needs "
                    f"{' '.join(special.values())} in it"
                )
            ids[role] = index
        backend.no_padding()
        backend.no_truncation()
        backend.add_special_tokens(list(special.values()))
        self.pad_id, self.unknown_id, self.cls_id, self.sep_id, self.mask_id = (ids[role] for role in SPECIAL_TOKENS)
        self.continuation = np.array([token.startswith(_PREFIX) for token in self.tokens])

    @property
    def lower_case(self) -> bool:
        """Whether letters are lowered before pieces are looked up."""
        return bool(getattr(self._backend.normalizer, "lowercase", False))

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids of [PAD], [UNK], [CLS], [SEP] and [MASK]."""
        return (self.pad_id, self.unknown_id, self.cls_id, self.sep_id, self.mask_id)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, no special token added; in parallel unless `TOKENIZERS_PARALLELISM` is `false`."""
        return [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_with_offsets(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """For each text its ids, as `encode_batch`, and where in it each of them stands: characters `[start, end)`."""
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        return [(encoding.ids, encoding.offsets) for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids, special tokens included."""
        return self._backend.decode(list(ids), skip_special_tokens=False)

    def fingerprint(self) -> str:
        """A hex digest of all that decides on ids: entries in order, normalization, limits, special tokens."""
        settings = json.loads(self._backend.to_str())
        model, normalizer = settings["model"], settings["normalizer"]
        if normalizer and normalizer["type"] == "BertNormalizer" and normalizer["strip_accents"] is None:
            normalizer["strip_accents"] = normalizer["lowercase"]
        decisive = {
            "tokens": self.tokens,
            "normalizer": normalizer,
            "pre_tokenizer": settings["pre_tokenizer"],
            "unknown": model["unk_token"],
            "prefix": model["continuing_subword_prefix"],
            "longest_word": model["max_input_chars_per_word"],
            "added": sorted(
                (added["content"], added["single_word"], added["lstrip"], added["rstrip"], added["normalized"])
                for added in settings["added_tokens"]
            ),
        }
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json`, `tokenizer_config.json` and `vocab.txt`; Transformers' classes read the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        normalizer = self._backend.normalizer
        config: dict[str, Any] = {"tokenizer_class": "BertTokenizer", "do_lower_case": self.lower_case}
        if isinstance(normalizer, normalizers.BertNormalizer):
            config["strip_accents"] = normalizer.strip_accents
            config["tokenize_chinese_chars"] = normalizer.handle_chinese_chars
        config |= {f"{role}_token": entry for role, entry in self._special.items()}
        files = {
            "tokenizer.json": self._backend.to_str(pretty=True) + "\n",
            "tokenizer_config.json": json.dumps(config, indent=2, ensure_ascii=False) + "\n",
            "vocab.txt": "".join(token + "\n" for token in self.tokens),
        }
        for name, content in files.items():
            with runtime.atomic_write(folder / name, "wb") as file:
                file.write(content.encode("utf-8"))


def _in_order(vocabulary: Mapping[str, int], source: str) -> list[str]:
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    if not tokens:
        raise ValueError(f"{source}: the vocabulary is empty")
    for expected, token in enumerate(tokens):
        if vocabulary[token] != expected:
            raise ValueError(f"{source}: ids are not 0, 1, 2, ...: {token!r} has {vocabulary[token]}, not {expected}")
    return tokens


def from_tokens(
    tokens: Sequence[str],
    *,
    lower_case: bool,
    strip_accents: bool | None = None,
    chinese_characters: bool = True,
    special: Mapping[str, str] | None = None,
    source: str = "vocabulary",
) -> WordPiece:
    """A tokenizer from its entries; the place of an entry is its id.

    Args:
        strip_accents: None does it when `lower_case` does.
        chinese_characters: every CJK ideograph is a word of its own.
        special: role -> entry, where they are not [PAD] [UNK] [CLS] [SEP] [MASK].
        source: what to call the vocabulary in errors.

    Raises:
        ValueError: an entry occurs twice, or one that BERT needs is missing.
    """
    special = special or SPECIAL_TOKENS
    vocabulary: dict[str, int] = {}
    for index, token in enumerate(tokens):
        if token in vocabulary:
            raise ValueError(
                f"{source}: entry {token!r} of line {index + 1} stands on line {vocabulary[token] + 1} already"
            )
        vocabulary[token] = index
    backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=special["unk"]))
    backend.normalizer = make_normalizer(lower_case, strip_accents, chinese_characters)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix=_PREFIX)
    tokenizer = WordPiece(backend, special, source=source)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{special['cls']}:0 $A:0 {special['sep']}:0",
        pair=f"{special['cls']}:0 $A:0 {special['sep']}:0 $B:1 {special['sep']}:1",
        special_tokens=[(special["cls"], tokenizer.cls_id), (special["sep"], tokenizer.sep_id)],
    )
    return tokenizer


def make_normalizer(
    lower_case: bool, strip_accents: bool | None = None, chinese_characters: bool = True
) -> normalizers.BertNormalizer:
    """BERT's own cleaning of text: control characters dropped, CJK ideographs set apart, case and accents."""
    return normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=chinese_characters, strip_accents=strip_accents, lowercase=lower_case
    )


def load(path: Path, lower_case: bool | None = None) -> WordPiece:
    """Read a `vocab.txt` or a Transformers tokenizer folder.

    Args:
        path: a vocabulary file with one entry a line, a `tokenizer.json`, or a folder with either in it.
        lower_case: whether to lower letters; None leaves it to the folder's files, and where only entries are known,
            to these: a vocabulary with next to no upper-case letter is uncased.

    Raises:
        ValueError: no tokenizer is there, or it is damaged, not WordPiece, or lacks what BERT needs.
    """
    if not path.exists():
        raise ValueError(f"there is no tokenizer at {path}: no such file or folder")
    settings: dict[str, Any] = {}
    if path.is_dir():
        folder = path
        if (folder / "tokenizer_config.json").is_file():
            settings = _read_json(folder / "tokenizer_config.json")
        names = [name for name in ("tokenizer.json", "vocab.txt") if (folder / name).is_file()]
        if not names:
            raise ValueError(f"{folder} holds no tokenizer: tokenizer.json or vocab.txt is needed in it")
        path = folder / names[0]
    special = {role: _entry(settings.get(f"{role}_token"), entry) for role, entry in SPECIAL_TOKENS.items()}
    if path.suffix == ".json":
        return _load_json(path, special, lower_case)
    tokens = _read_vocabulary(path)
    if lower_case is None:
        lower_case = settings.get("do_lower_case")
    if lower_case is None:
        upper = sum(token != token.lower() and not _BRACKETED.fullmatch(token) for token in tokens)
        lower_case = upper <= _STRAY_UPPER_CASE * len(tokens)
    return from_tokens(
        tokens, lower_case=bool(lower_case), strip_accents=settings.get("strip_accents"),
        chinese_characters=settings.get("tokenize_chinese_chars", True), special=special, source=str(path),
    )  # fmt: skip


def _entry(setting: Any, otherwise: str) -> str:
    """A special token's entry; older files write it as an object."""
    if isinstance(setting, dict):
        setting = setting.get("content")
    return setting if isinstance(setting, str) else otherwise


def _read_bytes(path: Path) -> bytes:
    if path.stat().st_size > _MAXIMUM_FILE_BYTES:
        raise ValueError(f"{path} is over {_MAXIMUM_FILE_BYTES >> 20} MiB, too large for a vocabulary")
    return path.read_bytes()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read_bytes(path).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is JSON but not an object")
    return value


def _read_vocabulary(path: Path) -> list[str]:
    try:
        text = _read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a vocabulary: it is not UTF-8 text ({error.reason})") from None
    tokens = [token.removesuffix("\r") for token in text.removesuffix("\n").split("\n")]
    if tokens == [""]:
        raise ValueError(f"{path} is an empty vocabulary: one entry a line is needed")
    return tokens


def _load_json(path: Path, special: Mapping[str, str], lower_case: bool | None) -> WordPiece:
    settings = _read_json(path)
    kind = settings.get("model", {}).get("type") if isinstance(settings.get("model"), dict) else None
    if kind != "WordPiece":
        raise ValueError(f"{path} holds a tokenizer of type {kind!r}; WordPiece is needed")
    try:
        backend = tokenizers.Tokenizer.from_str(json.dumps(settings))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{path} is damaged: {error}") from None
    if lower_case is not None and isinstance(backend.normalizer, normalizers.BertNormalizer):
        backend.normalizer = make_normalizer(lower_case, None, backend.normalizer.handle_chinese_chars)
    elif lower_case is not None:
        raise ValueError(f"{path} normalizes text in its own way: --cased and --tokenizer-type cannot change it")
    return WordPiece(backend, special, source=str(path))
