"""What samples, models and answers need of a vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np


class Tokenizer(Protocol):
    """Text to ids and back.

    Attributes:
        kind: what sort of tokenizer this is, for people: WordPiece, Unigram, BPE, WordLevel.
        tokens: the entries in the order of their ids.
        place: the file or folder that it was read from, if it was.
        lower_case: upper-case letters are read as lower-case ones.
        special_ids: those five that follow, each once.
        vocabulary_size: entries, before any padding of the embedding to a round number.
        cls_id, sep_id, mask_id, pad_id, unknown_id: ids of [CLS], [SEP], [MASK], [PAD] and [UNK].
        continuation: bool [vocabulary_size], true where a piece continues the word of the piece before it.
    """

    kind: str
    place: Path | None
    tokens: list[str]
    vocabulary_size: int
    cls_id: int
    sep_id: int
    mask_id: int
    pad_id: int
    unknown_id: int
    continuation: np.ndarray

    @property
    def lower_case(self) -> bool:
        """Whether case is lost."""
        ...

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids of [PAD], [UNK], [CLS], [SEP] and [MASK]."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text; no special token is added."""
        ...

    def encode_flat(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of `encode_batch`, one text after the other: ([tokens] int32, [texts] int32 tokens of each)."""
        ...

    def encode_with_offsets(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """For each text its ids, and where in it each of them stands: characters `[start, end)`."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids, special tokens included."""
        ...

    def save(self, folder: Path) -> None:
        """Write a Transformers tokenizer folder, with the files that the kind's own programs read in it."""
        ...

    def fingerprint(self) -> str:
        """A hex digest: two tokenizers with the same one give the same ids for any text."""
        ...
