"""A tokenizer on the `tokenizers` library, of whatever kind: what WordPiece, SentencePiece and byte-level BPE share.

How each kind is made of its files lives in `word_piece`, `sentence_piece`, `byte_level` and `characters`; which of them
a path holds, in `opening`.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import normalizers, processors

from megabert import runtime

# In the order that a vocabulary trained here begins with.
SPECIAL_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
PREFIX = "##"
SPACE = "▁"  # how SentencePiece writes the space before a word
_BYTE_SPACE = "Ġ"  # how byte-level BPE does
_MAXIMUM_FILE_BYTES = 256 << 20
# Letters of these scripts are words of their own: no space parts their words (the first as in BERT's own tokenizer).
_UNSPACED = (
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2FA1F), (0x3040, 0x30FF), (0x0E00, 0x0EFF),
)  # fmt: skip
# WordPiece's digest is older than the other kinds; these entries are added for them.
_DECISIVE = ("type", "vocab", "merges", "unk_id", "byte_fallback", "fuse_unk", "dropout", "ignore_merges",
             "end_of_word_suffix")  # fmt: skip


class FastTokenizer:
    """A tokenizer; implements `base.Tokenizer`.

    Special tokens written in a text, such as `[MASK]`, are read as what they name, as Transformers reads them.

    Attributes:
        kind: what sort of tokenizer this is: WordPiece, Unigram, BPE, WordLevel.
        tokens: the entries, in the order of their ids.
        place: the file or folder that it was read from, if it was.
    """

    place: Path | None = None

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        special: Mapping[str, str],
        *,
        source: str,
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        """Wrap a `tokenizers.Tokenizer`.

        Args:
            special: role (a key of `SPECIAL_TOKENS`) -> entry that plays it.
            source: what to call the tokenizer in errors.
            files: name -> content of more files for `save` to write, such as `tokenizer.model`.

        Raises:
            ValueError: an entry that a role needs is missing, or ids have gaps.
        """
        self._backend = backend
        self._special = dict(special)
        self._files = dict(files or {})
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
        settings = json.loads(backend.to_str())
        self.kind: str = settings["model"]["type"]
        added = {entry["content"] for entry in settings["added_tokens"]}
        marker = _space_marker(settings)
        self._spaced = marker in (SPACE, _BYTE_SPACE)
        self.continuation = np.array([token not in added and _continues(token, marker) for token in self.tokens])

    @property
    def lower_case(self) -> bool:
        """Whether upper-case letters are read as lower-case ones."""
        if self._backend.normalizer is None:
            return False
        return self._backend.normalizer.normalize_str("A") == "a"

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids of [PAD], [UNK], [CLS], [SEP] and [MASK]."""
        return (self.pad_id, self.unknown_id, self.cls_id, self.sep_id, self.mask_id)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, no special token added; in parallel unless `TOKENIZERS_PARALLELISM` is `false`."""
        return [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_flat(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of `encode_batch`, one text after the other: ([tokens] int32, [texts] int32 tokens of each)."""
        encoded = self.encode_batch(texts)
        lengths = np.fromiter(map(len, encoded), np.int32, len(encoded))
        return np.fromiter(chain.from_iterable(encoded), np.int32, int(lengths.sum())), lengths

    def encode_with_offsets(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """For each text its ids, as `encode_batch`, and where in it each of them stands: characters `[start, end)`."""
        texts = list(texts)
        encodings = self._backend.encode_batch(texts, add_special_tokens=False)
        if not self._spaced:
            return [(encoding.ids, encoding.offsets) for encoding in encodings]
        return [
            (encoding.ids, [self._place(text, *both) for both in zip(encoding.ids, encoding.offsets, strict=True)])
            for text, encoding in zip(texts, encodings, strict=True)
        ]

    def _place(self, text: str, index: int, place: tuple[int, int]) -> tuple[int, int]:
        """A piece's place without white space. One that is a space alone has none: it may have been put there."""
        start, end = place
        if self.tokens[index] in (SPACE, _BYTE_SPACE):
            return start, start
        while start < end and text[start].isspace():
            start += 1
        while end > start and text[end - 1].isspace():
            end -= 1
        return start, end

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
            "unknown": model.get("unk_token"),
            "prefix": model.get("continuing_subword_prefix"),
            "longest_word": model.get("max_input_chars_per_word"),
            "added": sorted(
                (added["content"], added["single_word"], added["lstrip"], added["rstrip"], added["normalized"])
                for added in settings["added_tokens"]
            ),
        }
        if self.kind != "WordPiece":
            decisive["model"] = {key: model[key] for key in _DECISIVE if key in model}
        if self.kind == "Unigram":  # a score that was written and read differs in its last bits
            decisive["model"]["vocab"] = [[piece, float(np.float32(score))] for piece, score in model["vocab"]]
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()

    def config(self) -> dict[str, Any]:
        """What `tokenizer_config.json` says, special tokens aside."""
        # Transformers' generic class takes tokenizer.json as it is, whatever model lies beside it.
        return {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": self.lower_case}

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json`, `tokenizer_config.json` and the kind's own files; Transformers reads the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        config = self.config() | {f"{role}_token": entry for role, entry in self._special.items()}
        files = {
            "tokenizer.json": (self._backend.to_str(pretty=True) + "\n").encode(),
            "tokenizer_config.json": (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode(),
            **self.own_files(),
        }
        for name, content in files.items():
            with runtime.atomic_write(folder / name, "wb") as file:
                file.write(content)

    def own_files(self) -> dict[str, bytes]:
        """Name -> content of the files that only this kind of tokenizer has."""
        return self._files


def add_frame(backend: tokenizers.Tokenizer, special: Mapping[str, str]) -> None:
    """Let Transformers put [CLS] before a text and [SEP] behind each of two, as BERT has them."""
    cls, sep = special["cls"], special["sep"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(name, backend.token_to_id(name)) for name in (cls, sep)],
    )


def _in_order(vocabulary: Mapping[str, int], source: str) -> list[str]:
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    if not tokens:
        raise ValueError(f"{source}: the vocabulary is empty")
    for expected, token in enumerate(tokens):
        if vocabulary[token] != expected:
            raise ValueError(f"{source}: ids are not 0, 1, 2, ...: {token!r} has {vocabulary[token]}, not {expected}")
    return tokens


def _space_marker(settings: Mapping[str, Any]) -> str:
    """How the entries tell that a word begins, or with `##` that it goes on; empty when they are characters alone."""
    if settings["model"]["type"] == "WordPiece":
        return settings["model"].get("continuing_subword_prefix") or PREFIX
    described = json.dumps([settings["pre_tokenizer"], settings["decoder"]])
    return SPACE if '"Metaspace"' in described else _BYTE_SPACE if '"ByteLevel"' in described else ""


def _continues(token: str, marker: str) -> bool:
    """Whether an entry goes on with the word before it; punctuation and ideographs begin words of their own."""
    if marker not in (SPACE, _BYTE_SPACE, ""):
        return token.startswith(marker)
    if not token or (marker and token.startswith(marker)):
        return False
    if marker == SPACE and len(token) == 6 and token.startswith("<0x"):
        return True  # a byte of a character that the vocabulary lacks
    first = ord(token[0])
    if any(low <= first <= high for low, high in _UNSPACED):
        return False
    # Byte-level BPE writes bytes from 0x80 on as letters between U+00A1 and U+0143, so they go on with a word too.
    byte = marker == _BYTE_SPACE and first > 0x7F and token[0] not in "ĊĉčĠ"
    return byte or unicodedata.category(token[0])[0] in "LMN"


def read_bytes(path: Path) -> bytes:
    """A file of a tokenizer.

    Raises:
        ValueError: it is too large for one.
    """
    if path.stat().st_size > _MAXIMUM_FILE_BYTES:
        raise ValueError(f"{path} is over {_MAXIMUM_FILE_BYTES >> 20} MiB, too large for a vocabulary")
    return path.read_bytes()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: the file holds none.
    """
    try:
        value = json.loads(read_bytes(path).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is JSON but not an object")
    return value


def read_backend(path: Path, settings: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """The library's tokenizer of the settings that `path` holds.

    Raises:
        ValueError: the settings make none.
    """
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(settings))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{path} is damaged: {error}") from None


def relowered(backend: tokenizers.Tokenizer, lower_case: bool | None, path: Path) -> None:
    """Lower letters or not, whatever the file says; None leaves it as it is.

    Raises:
        ValueError: the tokenizer normalizes in a way that has no such switch, and the wish is another.
    """
    if lower_case is None:
        return
    normalizer = backend.normalizer
    if isinstance(normalizer, normalizers.BertNormalizer):
        backend.normalizer = normalizers.BertNormalizer(
            clean_text=True, handle_chinese_chars=normalizer.handle_chinese_chars, strip_accents=None,
            lowercase=lower_case,
        )  # fmt: skip
    elif lower_case != (normalizer is not None and normalizer.normalize_str("A") == "a"):
        raise ValueError(f"{path} normalizes text in its own way: --cased and --tokenizer-type cannot change it")
