"""Documents to fingerprints, rows of numbers that are equal or alike where the texts are.

`exact` is a digest of the text, white space aside. `minhash` is MinHash of its runs of five words (Broder 1997, "On the
resemblance and containment of documents"), by the library datasketch: the share of equal numbers estimates the share of
runs that two texts have in common. Who repeats whom is found in `duplicates.py`.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

Dedup = Literal["none", "exact", "minhash"]

WIDTHS = {"exact": 4, "minhash": 128}
"""Numbers of a fingerprint."""
_RUN = 5  # words
_SEED = 1
_UNSPACED = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # no space parts their words: letters count as words
_WORDS = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_MOST_WORDS = 1 << 17  # remembered


def maker(kind: Dedup) -> Callable[[Sequence[str]], np.ndarray]:
    """What gives the fingerprints of texts: [texts, width] uint32.

    Raises:
        ValueError: a library is missing.
    """
    return _digests if kind == "exact" else _Signatures()


def check(kind: Dedup) -> None:
    """Fail early where fingerprints of this kind cannot be made.

    Raises:
        ValueError: a library is missing; says how to get it.
    """
    if kind != "none":
        maker(kind)


def _digests(texts: Sequence[str]) -> np.ndarray:
    content = b"".join(
        hashlib.blake2b(" ".join(text.split()).encode(), digest_size=4 * WIDTHS["exact"]).digest() for text in texts
    )
    return np.frombuffer(content, "<u4").reshape(len(texts), WIDTHS["exact"])


class _Checksums(dict[str, int]):
    def __missing__(self, word: str) -> int:
        if len(self) > _MOST_WORDS:
            self.clear()
        value = self[word] = zlib.crc32(word.encode())
        return value


class _Signatures:
    def __init__(self) -> None:
        try:
            from datasketch import MinHash
        except ImportError:
            raise ValueError(
                "--dedup minhash needs the library datasketch: pip install 'megabert[dedup]' (or take --dedup exact)"
            ) from None
        self._new = MinHash(WIDTHS["minhash"], seed=_SEED, hashfunc=int, scheme="affine32")
        self._checksums = _Checksums()

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        rows = np.empty((len(texts), WIDTHS["minhash"]), np.uint32)
        for row, text in zip(rows, texts, strict=True):
            signature = self._new.copy()
            signature.update_batch(self._runs(text))
            row[:] = signature.hashvalues
        return rows

    def _runs(self, text: str) -> list[int]:
        """A 32-bit number for each run of five words; a shorter text is one run."""
        words = _WORDS.findall(text.lower()) or [text]
        sums = np.fromiter(map(self._checksums.__getitem__, words), np.uint64, len(words))
        length = min(_RUN, len(sums))
        mixed = np.zeros(len(sums) - length + 1, np.uint64)
        for place in range(length):
            mixed = (mixed ^ sums[place : len(sums) - length + 1 + place]) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(32)
        return (mixed & np.uint64(0xFFFFFFFF)).tolist()
