"""Megatron's CharacterLevelTokenizer of 2019: eight command tokens and the 256 characters of Latin-1."""

from __future__ import annotations

import tokenizers
from tokenizers import decoders, models

from megabert.tokenization import fast
from megabert.tokenization.fast import FastTokenizer
from megabert.tokenization.sentence_piece import COMMANDS

_CHARACTERS = 256


def make() -> FastTokenizer:
    """The tokenizer: a character's id is its code point and eight. Any beyond the 256 is unknown, id 3."""
    commands = [f"<{name}>" for name in COMMANDS]
    ids = {name: index for index, name in enumerate([*commands, *map(chr, range(_CHARACTERS))])}
    special = {"pad": "<pad>", "unk": "<unk>", "cls": "<ENC>", "sep": "<sep>", "mask": "<MASK>"}
    backend = tokenizers.Tokenizer(models.BPE(ids, [], unk_token=special["unk"], fuse_unk=False))
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(commands)
    fast.add_frame(backend, special)
    return FastTokenizer(backend, special, source="CharacterLevelTokenizer")
