"""Entity-level scores of tag sequences: an entity is right when its type and both its ends are.

`spans_of` reads tags as `conlleval` (Tjong Kim Sang and Buchholz 2000) and seqeval's default mode do; `strict_spans_of`
as seqeval's strict mode does. Tags are `O`, or a prefix and a type: `B-PER`; a prefix alone has the type `_`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from megabert.metrics.classification import ClassScores, macro, per_class, scores_of, share

Scheme = Literal["iob1", "iob2", "iobes", "io"]
_TAG = re.compile(r"([BIESLU])(?:-(.+))?")
_LAST, _ALONE = ("E", "L"), ("S", "U")


class Span(NamedTuple):
    """An entity: words `[start, stop)` and its type."""

    start: int
    stop: int
    type: str


def split_tag(tag: str, scheme: Scheme = "iob2") -> tuple[str, str]:
    """`B-PER` -> (`B`, `PER`); `O` -> (`O`, ``). BILOU's `L` and `U` are read as `E` and `S`; with `io` every tag but
    `O` is a type.

    Raises:
        ValueError: the tag is none of the scheme's.
    """
    if tag == "O":
        return "O", ""
    if scheme == "io":
        return "I", tag
    match = _TAG.fullmatch(tag)
    if match is None:
        raise ValueError(f"tag {tag!r} is neither O nor a prefix and a type, such as B-PER")
    prefix = "E" if match[1] in _LAST else "S" if match[1] in _ALONE else match[1]
    return prefix, match[2] or "_"


def find_scheme(sequences: Iterable[Sequence[str]]) -> Scheme:
    """The scheme of tag sequences as they are given for training.

    `io` when a tag has no prefix of the others; `iobes` when one has E, S, L or U; `iob1` when an entity begins with I;
    else `iob2`.
    """
    begins_inside = begins_b = ends = False
    for tags in sequences:
        before = ("O", "")
        for tag in tags:
            if tag != "O" and _TAG.fullmatch(tag) is None:
                return "io"
            prefix, kind = split_tag(tag)
            ends |= prefix in ("E", "S")
            begins_b |= prefix == "B" and (before[0] == "O" or before[1] != kind)
            begins_inside |= prefix == "I" and (before[0] == "O" or before[1] != kind)
            before = (prefix, kind)
    if ends:
        return "iobes"
    # A sloppy IOB2 file has an I too many here and there, but also entities that begin with B after O: IOB1 has none.
    return "iob1" if begins_inside and not begins_b else "iob2"


def spans_of(tags: Sequence[str], scheme: Scheme = "iob2") -> list[Span]:
    """The entities of a sentence, by `conlleval`'s rules, which are the same for IOB1, IOB2 and IOBES.

    A new entity begins at B and S, and at I and E after O, after E or S, or after another type.

    Raises:
        ValueError: a tag that is none of the scheme's.
    """
    spans: list[Span] = []
    start, kind, before = 0, "", "O"
    for place, tag in enumerate(tags):
        prefix, type_ = split_tag(tag, scheme)
        begins = prefix in ("B", "S") or (prefix != "O" and (before in ("O", "E", "S") or type_ != kind))
        if before != "O" and (begins or prefix == "O"):
            spans.append(Span(start, place, kind))
        if begins:
            start, kind = place, type_
        before = prefix
    if before != "O":
        spans.append(Span(start, len(tags), kind))
    return spans


def strict_spans_of(tags: Sequence[str], scheme: Scheme) -> list[Span]:
    """The entities that are written just as the scheme wants them; others are none.

    IOB2: B, then I of its type. IOBES: S, or B, I..., E of one type. IOB1 and IO have no wrong sequences here.

    Raises:
        ValueError: a tag that is none of the scheme's.
    """
    if scheme in ("iob1", "io"):
        return spans_of(tags, scheme)
    spans: list[Span] = []
    parts = [split_tag(tag, scheme) for tag in tags]
    for start, (prefix, kind) in enumerate(parts):
        if scheme == "iobes" and prefix == "S":
            spans.append(Span(start, start + 1, kind))
        if prefix != "B":
            continue
        stop = start + 1
        while stop < len(parts) and parts[stop] == ("I", kind):
            stop += 1
        if scheme == "iob2":
            spans.append(Span(start, stop, kind))
        elif stop < len(parts) and parts[stop] == ("E", kind):
            spans.append(Span(start, stop + 1, kind))
    return spans


class EntityScores(NamedTuple):
    """Over all entities (`micro`), averaged over types (`macro`), by type, and the share of right tags."""

    micro: ClassScores
    macro: ClassScores
    by_type: dict[str, ClassScores]
    tag_accuracy: float


def entity_scores(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], scheme: Scheme = "iob2", *, strict: bool = False
) -> EntityScores:
    """Scores of tagged sentences.

    Args:
        strict: read tags by `strict_spans_of`, as seqeval's `mode="strict"`, else by `spans_of`, as `conlleval`.

    Raises:
        ValueError: numbers of sentences or tags differ, there is no sentence, or a tag is none of the scheme's.
    """
    if len(gold) != len(predicted) or not gold:
        raise ValueError(f"{len(predicted)} tagged sentences do not fit {len(gold)}")
    wanted, given, right = Counter[str](), Counter[str](), Counter[str]()
    tags = same = 0
    for number, (ours, theirs) in enumerate(zip(gold, predicted, strict=True), 1):
        if len(ours) != len(theirs):
            raise ValueError(f"sentence {number}: {len(theirs)} predicted tags do not fit {len(ours)} words")
        tags += len(ours)
        same += sum(left == other for left, other in zip(ours, theirs, strict=True))
        read = strict_spans_of if strict else spans_of
        left, other = set(read(ours, scheme)), set(read(theirs, scheme))
        wanted.update(span.type for span in left)
        given.update(span.type for span in other)
        right.update(span.type for span in left & other)
    by_type = {kind: scores_of(right[kind], given[kind], wanted[kind]) for kind in sorted(wanted | given)}
    overall = scores_of(right.total(), given.total(), wanted.total())
    return EntityScores(overall, macro(by_type.values()), by_type, share(same, tags))


def nemo_tokens(gold: Sequence[str], predicted: Sequence[str]) -> ClassScores:
    """What NeMo 1.x logged for token classification: the mean over labels, `O` among them, of the scores of single
    words, over the labels that occur. For comparison with NeMo's logs only: entity-level F1 is lower.

    Raises:
        ValueError: lengths differ, or there is no word.
    """
    return macro(per_class(gold, predicted, sorted(set(gold))).values())
