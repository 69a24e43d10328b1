"""Sentence splitting, on `sentencex` (rules for many languages, compiled, kept by Wikimedia)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from sentencex import segment  # pyright: ignore[reportAttributeAccessIssue]  (a compiled module without types)

_LONGEST_PIECE = 1 << 16  # characters
_LONGEST_SENTENCE = 1 << 19
# Languages that the library has rules for; it reads others by those of a related one, or of English.
LANGUAGES = frozenset(
    "am ar bg bn ca da de el en es fi fr gu hi hy it ja kk kn ml mr my nl pa pl pt ru sk ta te uk".split()
)


def remark(language: str) -> str:
    """What a user should know about the rules for a language; empty when it has its own.

    Raises:
        ValueError: not the code of a language.
    """
    if not re.fullmatch(r"[a-z]{2,3}(-[a-z0-9]{2,8})*", language, re.ASCII | re.IGNORECASE):
        raise ValueError(f"--lang: {language!r} is not the code of a language, such as en or de (ISO 639)")
    if language in LANGUAGES:
        return ""
    return (
        f"--lang {language}: there are no rules of its own for this code, so those of a related language or of English "
        f"find the sentence ends; codes with rules: {', '.join(sorted(LANGUAGES))}"
    )


def split(text: str, language: str = "en", *, presplit: bool = False) -> list[str]:
    """The sentences of a text in order, stripped, none of them empty.

    A line break always ends a sentence: it ends a paragraph, or a sentence of a corpus that is split already.

    A sentence of over 500,000 characters is cut.

    Args:
        language: code of two or three letters (ISO 639); one that is not in `LANGUAGES` is read by the rules of a
            related one, or of English.
        presplit: lines are sentences; look no further (`--presplit-sentences` of Megatron).
    """
    sentences: list[str] = []
    for line in text.split("\n"):
        line = line.strip()
        if not line:
            continue
        if presplit:
            sentences.append(line)
        else:
            sentences.extend(piece for part in _segments(language, line) if (piece := part.strip()))
    return sentences


def _segments(language: str, line: str) -> Iterator[str]:
    """What `segment` gives. Its time grows faster than a line, so a long one is given to it in pieces."""
    if len(line) <= _LONGEST_PIECE:
        yield from segment(language, line)
        return
    rest = ""  # a sentence that may go on in the next piece
    for at in range(0, len(line), _LONGEST_PIECE):
        *whole, rest = segment(language, rest + line[at : at + _LONGEST_PIECE])
        yield from whole
        if len(rest) > _LONGEST_SENTENCE:
            yield rest
            rest = ""
    yield rest
