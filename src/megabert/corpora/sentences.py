"""Sentence splitting, on `sentencex` (rules for many languages, compiled, kept by Wikimedia)."""

from __future__ import annotations

from sentencex import segment  # pyright: ignore[reportAttributeAccessIssue]  (a compiled module without types)


def split(text: str, language: str = "en", *, presplit: bool = False) -> list[str]:
    """The sentences of a text in order, stripped, none of them empty.

    A line break always ends a sentence: it ends a paragraph, or a sentence of a corpus that is split already.

    Args:
        language: code of two or three letters (ISO 639); one without rules of its own is read by those of English.
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
            sentences.extend(piece for part in segment(language, line) if (piece := part.strip()))
    return sentences
