"""SentencePiece models (`.model`) on the `tokenizers` library; training one lives in `sentence_piece_trainer`.

A model whose pieces include `[CLS]`, `[SEP]`, `[MASK]` and a padding piece keeps its own ids. Any other is numbered as
Megatron-LM of 2019 did it: eight command tokens come first, and the model's own ids are shifted by eight. Format:
sentencepiece_model.proto of github.com/google/sentencepiece, a protobuf message, read here without running anything.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from megabert.tokenization import fast
from megabert.tokenization.fast import SPACE, FastTokenizer

COMMANDS = ("pad", "eos", "bos", "unk", "sep", "L2R", "ENC", "MASK")
"""The command tokens of 2019, in the order of their ids."""
_ROLE_OF_COMMAND = {"pad": "pad", "cls": "ENC", "sep": "sep", "mask": "MASK"}
_OWN_NAMES = {
    "pad": ("[PAD]", "<pad>"), "cls": ("[CLS]", "<cls>"), "sep": ("[SEP]", "<sep>"), "mask": ("[MASK]", "<mask>"),
}  # fmt: skip
_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = range(1, 7)
_MOST_PIECES = 1 << 22


class Piece(NamedTuple):
    """An entry of a model."""

    text: str
    score: float
    type: int


class Model(NamedTuple):
    """What a `.model` file says."""

    pieces: list[Piece]
    type: str  # unigram, bpe, word, char
    charsmap: bytes  # the library's compiled table of normalization; empty: none
    dummy_prefix: bool
    squeeze_spaces: bool
    byte_fallback: bool


def load(path: Path, lower_case: bool | None = None) -> FastTokenizer:
    """Read a `.model`.

    Raises:
        ValueError: it is damaged, or of a kind that cannot be read.
    """
    data = fast.read_bytes(path)
    tokenizer = from_bytes(data, str(path))
    if lower_case is not None and lower_case != tokenizer.lower_case:
        raise ValueError(f"{path} normalizes text in its own way: --cased and --tokenizer-type cannot change it")
    return tokenizer


def from_bytes(data: bytes, source: str) -> FastTokenizer:
    """The tokenizer of the content of a `.model`.

    Raises:
        ValueError: as `load`.
    """
    try:
        model = _read(data)
    except (IndexError, struct.error, UnicodeDecodeError, TypeError):
        raise ValueError(f"{source} is no SentencePiece model, or a damaged one") from None
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    if not model.pieces or sum(piece.type == _UNKNOWN for piece in model.pieces) != 1:
        raise ValueError(f"{source} is no SentencePiece model: it has no pieces, or not one for the unknown")
    names = [piece.text for piece in model.pieces]
    if len(set(names)) != len(names):
        raise ValueError(f"{source}: is damaged: a piece stands in it twice")
    commands, special = _numbering(model)
    backend = _backend(model, commands, special["unk"], source)
    atomic = [piece.text for piece in model.pieces if piece.type in (_CONTROL, _UNKNOWN)]
    backend.add_special_tokens([*commands, *atomic])
    # A piece that its maker defined is never split, and unlike a special token it may stand inside a word.
    backend.add_tokens([AddedToken(piece.text, normalized=False) for piece in model.pieces if piece.type == _USER])
    fast.add_frame(backend, special)
    files = {"tokenizer.model": data, "tokenizer.vocab": vocabulary_file(model)}
    return FastTokenizer(backend, special, source=source, files=files)


def vocabulary_file(model: Model) -> bytes:
    """The `.vocab` beside a model: a piece and its score on each line, as the library writes it."""
    return "".join(f"{piece.text}\t{piece.score:g}\n" for piece in model.pieces).encode("utf-8")


def _numbering(model: Model) -> tuple[list[str], dict[str, str]]:
    """(entries before the model's own, role -> entry)."""
    names = {piece.text for piece in model.pieces}
    unknown = next(piece.text for piece in model.pieces if piece.type == _UNKNOWN)
    found = {role: next((name for name in known if name in names), None) for role, known in _OWN_NAMES.items()}
    if None not in found.values():
        return [], {"unk": unknown, **{role: str(name) for role, name in found.items()}}
    commands = {name: f"<{name}>" if f"<{name}>" not in names else f"<command {name}>" for name in COMMANDS}
    special = {role: commands[name] for role, name in _ROLE_OF_COMMAND.items()}
    return list(commands.values()), {"unk": unknown, **special}


def _backend(model: Model, commands: list[str], unknown: str, source: str) -> tokenizers.Tokenizer:
    entries = [*(Piece(name, 0.0, _CONTROL) for name in commands), *model.pieces]
    ids = {piece.text: index for index, piece in enumerate(entries)}
    if model.type == "unigram":
        scored = [(piece.text, piece.score) for piece in entries]
        kind: Any = models.Unigram(scored, ids[unknown], model.byte_fallback)
    elif model.type == "word":
        kind = models.WordLevel(ids, unk_token=unknown)
    else:
        merges = _merges(entries, ids) if model.type == "bpe" else []
        kind = models.BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=model.byte_fallback)
    backend = tokenizers.Tokenizer(kind)
    steps: list[Any] = []
    if model.charsmap:
        try:
            steps.append(normalizers.Precompiled(model.charsmap))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{source} is damaged: its table of normalization: {error}") from None
    if model.squeeze_spaces:
        steps += [
            normalizers.Replace(tokenizers.Regex("^ +| +$"), ""), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")
        ]  # fmt: skip
    if steps:
        backend.normalizer = normalizers.Sequence(steps)
    scheme = "always" if model.dummy_prefix else "never"
    inside = any(SPACE in piece.text[1:] for piece in model.pieces if piece.type == _NORMAL)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme=scheme, split=not inside)
    decoder = decoders.Metaspace(SPACE, prepend_scheme=scheme, split=not inside)
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoder]) if model.byte_fallback else decoder
    return backend


def _merges(entries: list[Piece], ids: Mapping[str, int]) -> list[tuple[str, str]]:
    """The merges that a BPE model's pieces imply: each way to make a piece of two, by the piece's score."""
    whole = {piece.text for piece in entries if piece.type == _NORMAL}
    found = [
        (-piece.score, ids[piece.text[:at]], ids[piece.text[at:]])
        for piece in entries
        if piece.type == _NORMAL
        for at in range(1, len(piece.text))
        if piece.text[:at] in whole and piece.text[at:] in whole
    ]
    return [(entries[left].text, entries[right].text) for _, left, right in sorted(found)]


def _read(data: bytes) -> Model:
    """The message `ModelProto`; field numbers are those of sentencepiece_model.proto."""
    pieces: list[Piece] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for number, value in _fields(data):
        if number == 1:
            piece = dict(_fields(value))
            score = struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0
            pieces.append(Piece(piece.get(1, b"").decode("utf-8"), score, piece.get(3, _NORMAL)))
            if len(pieces) > _MOST_PIECES:
                raise ValueError(f"a SentencePiece model of over {_MOST_PIECES:,} pieces cannot be read")
        elif number == 2:
            trainer = dict(_fields(value))
        elif number == 3:
            normalizer = dict(_fields(value))
    if trainer.get(24):
        raise ValueError("a SentencePiece model that writes the space behind a word cannot be read")
    kind = _TYPES.get(trainer.get(3, 1))
    if kind is None:
        raise ValueError(f"a SentencePiece model of type {trainer[3]}; only {', '.join(_TYPES.values())} are known")
    return Model(
        pieces, kind, normalizer.get(2, b""), bool(normalizer.get(3, 1)), bool(normalizer.get(4, 1)),
        bool(trainer.get(35, 0)),
    )  # fmt: skip


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of a message's fields: whole numbers, or bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        if key & 7 == 0:
            value, at = _varint(data, at)
        else:
            if key & 7 == 2:
                length, at = _varint(data, at)
            else:
                length = {1: 8, 5: 4}[key & 7] if key & 7 in (1, 5) else len(data)
            if at + length > len(data):
                raise IndexError("the message ends too early")
            value, at = data[at : at + length], at + length
        yield key >> 3, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        shift += 7
        if byte < 0x80:
            return value, at
    raise IndexError("a number of over ten bytes")
