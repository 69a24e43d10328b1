"""How much work a file from anywhere may cause: a few bytes of a pickle or of YAML can stand for 2^50 values."""

from __future__ import annotations

MOST_STEPS = 8_000_000
"""Instructions of one pickle, and what they copy, in values or blocks of 64 bytes: a thousand ranks' metadata needs
fewer."""
MOST_VALUES = 200_000
"""Values that arguments, names or a configuration stand for when shared parts are counted each time."""
LONGEST_NAME = 1_000
"""Letters of a weight's, a key's or a class's name."""


class Budget:
    """Counts down, and refuses when nothing is left.

    Args:
        where: the file, for the error.
        most: what it may cost.
        unit: what is counted.
    """

    __slots__ = ("_left", "_most", "_unit", "_where")

    def __init__(self, where: str, most: int = MOST_VALUES, unit: str = "values"):
        self._where = where
        self._most = self._left = most
        self._unit = unit

    def spend(self, amount: int = 1) -> None:
        """Count `amount`.

        Raises:
            ValueError: that is more than is left.
        """
        self._left -= amount
        if self._left < 0:
            raise ValueError(f"{self._where} stands for more than {self._most:,} {self._unit}: no checkpoint does, and "
                             "it is refused")  # fmt: skip


def name(value: object, where: str) -> str:
    """The text of a key, no longer than a name is.

    Raises:
        ValueError: it is longer.
    """
    text = value if isinstance(value, str) else str(value)
    if len(text) > LONGEST_NAME:
        raise ValueError(f"{where} holds a name of {len(text):,} letters ({text[:40]!r} ...); it is damaged")
    return text
