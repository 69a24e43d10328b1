"""The options of this room."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Literal

from megabert.config import option

TokenizerType = Literal["BertWordPieceTokenizer", "BertWordPieceLowerCase", "BertWordPieceCase"]
OTHER_TYPES = ("SentencePieceTokenizer", "CharacterLevelTokenizer", "GPT2BPETokenizer")
"""Megatron's tokenizers that are not WordPiece."""
OTHER_MODEL_TYPES = ("bpe", "char", "unigram", "word")
"""What --tokenizer-model-type says of them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerOptions:
    """Tokenizer: one that exists, or one that is trained."""

    tokenizer: str | None = option(
        None,
        "an existing tokenizer: a vocab.txt, a Transformers tokenizer folder, or a name such as bert-large-uncased or "
        "megatron-bert-cased, looked for in --cache-dir, in the folder of $MEGABERT_CACHE and on the Hugging Face hub; "
        "left out, one is trained on the corpus",
        metavar="PATH|NAME",
        example="vocab.txt",
    )
    vocab_file: Path | None = option(
        None, "a vocabulary file, one entry a line: the same as --tokenizer FILE", example="bert-vocab.txt"
    )
    tokenizer_model_type: str | None = option(
        None, "name of a vocabulary: the same as --tokenizer NAME", example="bert-large-uncased"
    )
    tokenizer_type: str = option(
        "BertWordPieceTokenizer",
        "BertWordPieceLowerCase lowers letters and drops accents, BertWordPieceCase keeps both, "
        "BertWordPieceTokenizer does what the tokenizer's own files say, or what its entries show",
        metavar="{" + ",".join(typing.get_args(TokenizerType)) + "}",
    )
    cased: bool | None = option(
        None,
        "keep upper case and accents: --cased is BertWordPieceCase, --no-cased is BertWordPieceLowerCase; a tokenizer "
        "that is trained lowers letters unless this is set",
    )
    cache_dir: Path | None = option(
        None,
        "folder with vocabularies by name (NAME-vocab.txt, or folders called NAME), and where a download is kept",
        example="cache",
    )
    vocab_size: int = option(
        30522, "entries of a tokenizer that is trained, special tokens included", minimum=16, example="8192"
    )
