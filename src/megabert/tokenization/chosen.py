"""From the options to a tokenizer: one that exists is opened, one that is wanted is trained."""

from __future__ import annotations

import time
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import cast

from megabert.tokenization import byte_level, characters, named, opening, sentence_piece_trainer, trainer
from megabert.tokenization.fast import FastTokenizer
from megabert.tokenization.options import ModelType, TokenizerOptions, TokenizerType

_SENTENCE_PIECE = "SentencePieceTokenizer"
_FORMER_PATH = Path("tokenizer.model")  # --tokenizer-path of 2019, where it was left out
_DEFAULT_MODEL: ModelType = "bpe"
_MODELS = typing.get_args(ModelType)


def open_tokenizer(options: TokenizerOptions) -> FastTokenizer | None:
    """The tokenizer that the options name, or None when they name none and one shall be trained.

    Raises:
        ValueError: options that contradict each other; a tokenizer that is not found, or not good.
    """
    _check(options)
    lower_case = wanted_lower_case(options)
    if options.tokenizer_type == "CharacterLevelTokenizer":
        return characters.make()
    path = sentence_piece_path(options)
    if path is not None:
        path = next((at for at in (path, path.with_name(path.name + ".model")) if at.exists()), None)
        return None if path is None else opening.load(path, lower_case)
    given = _given(options)
    if not given:
        return None
    ((flag, value),) = given.items()
    if isinstance(value, Path):
        if not value.is_file():
            raise ValueError(f"{flag}: there is no file {value}")
        if options.merge_file is not None:
            return byte_level.load(value, options.merge_file, lower_case)
        return opening.load(value, lower_case)
    try:
        found = named.find(str(value), options.cache_dir)
    except ValueError as error:
        raise ValueError(f"{flag}: {error}") from None
    return opening.load(found, lower_case)


def train_tokenizer(
    options: TokenizerOptions, texts: Iterable[str], *, say: Callable[[str], None] = print
) -> FastTokenizer:
    """Train the tokenizer that `open_tokenizer` did not find; a SentencePiece model is written to its path.

    Raises:
        ValueError: the texts hold no word, or the size does not fit them.
        OSError: the model cannot be written.
    """
    begin = time.monotonic()
    lower_case, path = wanted_lower_case(options), sentence_piece_path(options)
    if path is not None:
        kind = cast(ModelType, options.tokenizer_model_type or _DEFAULT_MODEL)
        say(f"there is no {path}: training a SentencePiece model ({kind}) on a sample of the text")
        tokenizer = sentence_piece_trainer.train(texts, options.vocab_size, kind, lower_case=bool(lower_case))
        sentence_piece_trainer.write(tokenizer, path)
    else:
        say("no --tokenizer: training a WordPiece vocabulary on the training text")
        tokenizer = trainer.train(texts, options.vocab_size, lower_case=lower_case is not False)
    say(f"vocabulary: {tokenizer.vocabulary_size:,} entries in {time.monotonic() - begin:.0f} s")
    return tokenizer


def sentence_piece_path(options: TokenizerOptions) -> Path | None:
    """Where the SentencePiece model lies or is to lie; None when the options ask for another kind of tokenizer."""
    if options.tokenizer_path is not None:
        return options.tokenizer_path
    return _FORMER_PATH if options.tokenizer_type == _SENTENCE_PIECE and not _given(options) else None


def _given(options: TokenizerOptions) -> dict[str, str | Path]:
    """Flag -> value of what names an existing tokenizer."""
    kind_of_model = options.tokenizer_model_type in _MODELS
    given = {
        "--tokenizer": options.tokenizer,
        "--vocab-file": options.vocab_file,
        "--tokenizer-model-type": None if kind_of_model else options.tokenizer_model_type,
    }
    named_ones = {flag: value for flag, value in given.items() if value is not None}
    if "--tokenizer-model-type" in named_ones and len(named_ones) > 1:
        del named_ones["--tokenizer-model-type"]  # 2019's command lines name a type beside the file
    return named_ones


def _check(options: TokenizerOptions) -> None:
    """Refuse a type that is none, and flags that belong to different tokenizers."""
    known = typing.get_args(TokenizerType)
    kind, given = options.tokenizer_type, _given(options)
    if kind not in known:
        raise ValueError(f"--tokenizer-type: {kind!r} is not one of {', '.join(known)}")
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} name two tokenizers; keep one of them")
    if options.tokenizer_path is not None and given:
        raise ValueError(f"--tokenizer-path and {next(iter(given))} name two tokenizers; keep one of them")
    if options.tokenizer_path is not None and kind not in (_SENTENCE_PIECE, "BertWordPieceTokenizer"):
        raise ValueError(f"--tokenizer-path is for SentencePiece models, but --tokenizer-type is {kind}")
    if options.tokenizer_model_type in _MODELS and sentence_piece_path(options) is None:
        raise ValueError(
            f"--tokenizer-model-type: {options.tokenizer_model_type} is a kind of SentencePiece model: say where it "
            f"is or shall be with --tokenizer-path, and --tokenizer-type {_SENTENCE_PIECE}"
        )
    if kind == "CharacterLevelTokenizer" and given:
        raise ValueError(f"--tokenizer-type {kind} has no vocabulary: leave {next(iter(given))} out")
    if kind == "GPT2BPETokenizer" and not given:
        raise ValueError(f"--tokenizer-type {kind} needs --vocab-file vocab.json and --merge-file merges.txt")
    if options.merge_file is not None and options.vocab_file is None:
        raise ValueError("--merge-file needs the vocabulary that its merges make: --vocab-file vocab.json")


def wanted_lower_case(options: TokenizerOptions) -> bool | None:
    """Whether the options ask for lower case; None when they leave it open.

    Raises:
        ValueError: `--cased` contradicts `--tokenizer-type`.
    """
    by_type = {"BertWordPieceLowerCase": True, "BertWordPieceCase": False}.get(options.tokenizer_type)
    if options.cased is None:
        return by_type
    if by_type is not None and by_type == options.cased:
        flag = "--cased" if options.cased else "--no-cased"
        raise ValueError(f"{flag} contradicts --tokenizer-type {options.tokenizer_type}")
    return not options.cased
