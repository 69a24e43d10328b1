"""WordPiece: loading, saving, and ids that equal those of Transformers' `BertTokenizer`.

Finding a tokenizer by name lives in `named`, training one in `trainer`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from megabert.tokenization import fast
from megabert.tokenization.fast import PREFIX, SPECIAL_TOKENS, FastTokenizer
from megabert.tokenization.word_cache import WordCache

_BRACKETED = re.compile(r"\[.+\]|<.+>")
# Uncased vocabularies have a few odd upper-case entries (SciBERT's has), cased ones have a third.
_STRAY_UPPER_CASE = 0.01


class WordPiece(FastTokenizer):
    """A WordPiece tokenizer.

    Text is cleaned, lower-cased if the vocabulary is uncased, split at white space and punctuation, and each word is
    spelled with the longest pieces that the vocabulary has (Devlin et al. 2018, arXiv 1810.04805).
    """

    @cached_property
    def _cache(self) -> WordCache | None:
        """Of the parts of texts; None where the tokenizer's settings let words go on over spaces or marks."""
        settings = json.loads(self._backend.to_str())
        kinds = [(settings[step] or {}).get("type") for step in ("normalizer", "pre_tokenizer")]
        added = settings["added_tokens"]
        if kinds != ["BertNormalizer", "BertPreTokenizer"] or any(entry["normalized"] for entry in added):
            return None
        self._added = re.compile("|".join(re.escape(entry["content"]) for entry in added))
        return WordCache(super().encode_batch, lower_case=self.lower_case)

    def encode_flat(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of `encode_batch`, one text after the other: ([tokens] int32, [texts] int32 tokens of each)."""
        # A special token written in a text has punctuation marks in it.
        if self._cache is None or self._added.search("\n".join(texts)):
            return super().encode_flat(texts)
        return self._cache.encode(texts)

    @property
    def lower_case(self) -> bool:
        """Whether letters are lowered before pieces are looked up."""
        return bool(getattr(self._backend.normalizer, "lowercase", False))

    def config(self) -> dict[str, Any]:
        """What `tokenizer_config.json` says, special tokens aside."""
        normalizer = self._backend.normalizer
        config: dict[str, Any] = {"tokenizer_class": "BertTokenizer", "do_lower_case": self.lower_case}
        if isinstance(normalizer, normalizers.BertNormalizer):
            config["strip_accents"] = normalizer.strip_accents
            config["tokenize_chinese_chars"] = normalizer.handle_chinese_chars
        return config

    def own_files(self) -> dict[str, bytes]:
        """`vocab.txt`, one entry a line."""
        return {"vocab.txt": "".join(token + "\n" for token in self.tokens).encode("utf-8")}


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
    backend.decoder = decoders.WordPiece(prefix=PREFIX)
    tokenizer = WordPiece(backend, special, source=source)
    fast.add_frame(backend, special)
    return tokenizer


def make_normalizer(
    lower_case: bool, strip_accents: bool | None = None, chinese_characters: bool = True
) -> normalizers.BertNormalizer:
    """BERT's own cleaning of text: control characters dropped, CJK ideographs set apart, case and accents."""
    return normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=chinese_characters, strip_accents=strip_accents, lowercase=lower_case
    )


def load_vocabulary(
    path: Path, settings: Mapping[str, Any], special: Mapping[str, str], lower_case: bool | None
) -> WordPiece:
    """Read a `vocab.txt`.

    Args:
        settings: what a `tokenizer_config.json` beside it says.
        lower_case: whether to lower letters; None leaves it to the settings, and where there are none, to the entries:
            a vocabulary with next to no upper-case letter is uncased.

    Raises:
        ValueError: it is damaged, or lacks what BERT needs.
    """
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


def _read_vocabulary(path: Path) -> list[str]:
    try:
        text = fast.read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a vocabulary: it is not UTF-8 text ({error.reason})") from None
    tokens = [token.removesuffix("\r") for token in text.removesuffix("\n").split("\n")]
    if tokens == [""]:
        raise ValueError(f"{path} is an empty vocabulary: one entry a line is needed")
    return tokens
