"""What samples, models and answers need of a vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np


class Tokenizer(Protocol):
    """Text to ids and back.

    Attributes:
        vocabulary_size: entries, before any padding of the embedding to a round number.
        cls_id, sep_id, mask_id, pad_id, unknown_id: ids of [CLS], [SEP], [MASK], [PAD] and [UNK].
        continuation: bool [vocabulary_size], true where a piece continues the word of the piece before it.
    """

    vocabulary_size: int
    cls_id: int
    sep_id: int
    mask_id: int
    pad_id: int
    unknown_id: int
    continuation: np.ndarray

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text; no special token is added."""
        ...

    def encode_with_offsets(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """For each text its ids, and where in it each of them stands: characters `[start, end)`."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids, special tokens included."""
        ...

    def save(self, folder: Path) -> None:
        """Write a Transformers tokenizer folder with `vocab.txt` in it."""
        ...

    def fingerprint(self) -> str:
        """A hex digest: two tokenizers with the same one give the same ids for any text."""
        ...
