"""The options of this room."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Literal

from megabert.config import option

WordPieceType = Literal["BertWordPieceTokenizer", "BertWordPieceLowerCase", "BertWordPieceCase"]
TokenizerType = Literal[
    "BertWordPieceTokenizer", "BertWordPieceLowerCase", "BertWordPieceCase", "SentencePieceTokenizer",
    "CharacterLevelTokenizer", "GPT2BPETokenizer",
]  # fmt: skip
"""Megatron's names, from 2019 on."""
ModelType = Literal["bpe", "unigram", "char", "word"]
"""Kinds of SentencePiece models."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerOptions:
    """Tokenizer: one that exists, or one that is trained."""

    tokenizer: str | None = option(
        None,
        "an existing tokenizer: a vocab.txt, a SentencePiece .model, a Transformers tokenizer folder, or a name such "
        "as bert-large-uncased or megatron-bert-cased, looked for in --cache-dir, in the folder of $MEGABERT_CACHE and "
        "on the Hugging Face hub; left out, one is trained on the corpus",
        metavar="PATH|NAME",
        example="vocab.txt",
    )
    vocab_file: Path | None = option(
        None,
        "a vocabulary file, one entry a line: the same as --tokenizer FILE; with --merge-file, GPT-2's vocab.json",
        example="bert-vocab.txt",
    )
    merge_file: Path | None = option(None, "merges of a GPT2BPETokenizer", example="merges.txt")
    tokenizer_path: Path | None = option(
        None,
        "SentencePiece model: read if it is there, else trained on a sample of the corpus and written there, with "
        ".vocab beside it; left out with --tokenizer-type SentencePieceTokenizer, tokenizer.model",
        example="data/tokenizer.model",
    )
    tokenizer_model_type: str | None = option(
        None,
        "name of a vocabulary: the same as --tokenizer NAME; or the kind of a SentencePiece model that is trained: "
        + ", ".join(typing.get_args(ModelType)),
        example="bert-large-uncased",
    )
    tokenizer_type: str = option(
        "BertWordPieceTokenizer",
        "BertWordPieceLowerCase lowers letters and drops accents, BertWordPieceCase keeps both, "
        "BertWordPieceTokenizer does what the tokenizer's own files say, or what its entries show; "
        "SentencePieceTokenizer and GPT2BPETokenizer have files of their own, CharacterLevelTokenizer has none",
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
