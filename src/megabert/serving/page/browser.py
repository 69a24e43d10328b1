"""The error browser: examples with what is right and what was said, mistakes first."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence

from megabert.serving.page.elements import Safe, tag
from megabert.tasks.cases import Case, Mark, Passage

MOST_CASES = 400
MOST_RIGHT = 100
MOST_BYTES = 1_500_000
MOST_CHARACTERS = 1200
CONTEXT = 300
"""Characters around the marks of a long text that are shown."""


def browser(cases: Sequence[Case], predictions: str) -> Safe:
    """A section with as many cases as a page can hold: the worst first, then the least sure.

    Args:
        predictions: name of the file that holds all of them.
    """
    chosen: list[Safe] = []
    size = 0
    for place in _order(cases):
        made = _article(cases[place], place)
        size += len(made.encode())
        if chosen and size > MOST_BYTES:
            break
        chosen.append(made)
    shown = f"{len(chosen):,} of {len(cases):,} examples"
    if len(chosen) < len(cases):
        shown += f", the worst and the least certain ones; {predictions} holds all"
    marked = any(passage.marks for case in cases for passage in case.passages)
    return tag(
        "section", tag("h2", "Examples"), tag("p", shown + ".", class_="note"), _legend() if marked else None,
        _controls(cases), tag("div", chosen, id="cases"),
        tag("button", "Show more", id="more", type="button", hidden=True), id="examples", class_="wide",
    )  # fmt: skip


def _order(cases: Sequence[Case]) -> list[int]:
    """Numbers of cases, as many as are shown: wrong ones by how far off they are; then doubtful right ones."""

    def rank(place: int) -> tuple[float, float, int]:
        case = cases[place]
        sure = 0.0 if case.confidence is None else case.confidence
        return -case.off, -sure if case.off else sure, place

    wrong = sorted((place for place, case in enumerate(cases) if case.off > 0), key=rank)
    right = sorted((place for place, case in enumerate(cases) if case.off <= 0), key=rank)
    return (wrong[: MOST_CASES - min(MOST_RIGHT, len(right))] + right)[:MOST_CASES]


def _controls(cases: Sequence[Case]) -> Safe:
    pairs = Counter((case.gold, case.said) for case in cases if case.right is False and case.gold and case.said)
    common = [pair for pair, count in pairs.most_common(30) if count > 1]
    confused = [("", "any"), *((_pair(*one), _pair(*one)) for one in common)]
    verdicts = [("", "all"), ("wrong", "wrong"), ("right", "right")]
    orders = [("worst", "worst first"), ("sure", "most certain first"), ("unsure", "least certain first"),
              ("file", "as in the file")]  # fmt: skip
    return tag(
        "form", _choice("Show", "verdict", verdicts) if any(case.right is not None for case in cases) else None,
        _choice("Confusion", "pair", confused) if common else None,
        _choice("Order", "order", orders),
        tag("label", "Search ", tag("input", type="search", id="search", placeholder="words in the text")),
        tag("output", id="found", aria_live="polite"), id="controls", hidden=True,
    )  # fmt: skip


def _choice(name: str, key: str, options: Sequence[tuple[str, str]]) -> Safe:
    return tag(
        "label", f"{name} ", tag("select", [tag("option", said, value=value) for value, said in options], id=key)
    )


def _pair(gold: str | None, said: str | None) -> str:
    return f"{_clipped(gold or '')} → {_clipped(said or '')}"


def _clipped(text: str, most: int = 80) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _article(case: Case, place: int) -> Safe:
    verdict = "" if case.right is None else "right" if case.right else "wrong"
    told: list[object] = [tag("b", verdict, class_="verdict") if verdict else None]
    if case.said is not None:
        told.append(tag("span", "said ", tag("bdi", _clipped(case.said, 200), class_="answer")))
    if case.gold is not None and case.right is not True:
        told.append(tag("span", "should be ", tag("bdi", _clipped(case.gold, 200), class_="answer")))
    if case.numbers is not None:
        told.append(tag("span", f"off by {case.off:.3g}"))
    if case.confidence is not None:
        told.append(tag("span", f"{case.confidence:.1%} sure"))
    told.append(tag("span", "example ", tag("bdi", _clipped(case.id, 60)), class_="id"))
    texts = [
        [tag("dt", passage.name), tag("dd", list(marked(passage)), dir="auto")]
        for passage in case.passages
    ]  # fmt: skip
    return tag(
        "article", tag("p", told, class_="head"), tag("dl", texts), class_=verdict or None, data_place=place,
        data_verdict=verdict, data_off=f"{case.off:.6g}",
        data_sure=None if case.confidence is None else f"{case.confidence:.6f}",
        data_pair=_pair(case.gold, case.said) if case.right is False and case.gold and case.said else None,
    )  # fmt: skip


def _legend() -> Safe:
    kinds = [("hit", "found"), ("missed", "missed"), ("extra", "said, but not right"), ("other", "found as another")]
    return tag("p", [tag("mark", name, class_=kind) for kind, name in kinds], class_="note legend")


def marked(passage: Passage) -> Iterator[object]:
    """The text with its marks; of a long one the part around them."""
    begin, end = _part(passage)
    if begin:
        yield "… "
    marks = [mark for mark in passage.marks if mark.start < end and mark.end > begin and mark.end > mark.start]
    inner = {edge for mark in marks for edge in (mark.start, mark.end) if begin < edge < end}
    edges = sorted({begin, end} | inner)
    for start, stop in itertools.pairwise(edges):
        text = passage.text[start:stop]
        over = [mark for mark in marks if mark.start <= start and mark.end >= stop]
        yield _segment(text, over, stop) if over else text
    if end < len(passage.text):
        yield " …"


def _segment(text: str, over: Sequence[Mark], stop: int) -> Safe:
    gold = sorted({mark.label for mark in over if mark.side == "gold"})
    said = sorted({mark.label for mark in over if mark.side == "said"})
    if gold and said:
        kind, name = ("hit", gold[0]) if gold == said else ("other", f"{'/'.join(gold)} → {'/'.join(said)}")
    elif gold:
        kind, name = "missed", f"{'/'.join(gold)} missed"
    else:
        kind, name = "extra", f"{'/'.join(said)} said"
    ends = any(mark.end == stop for mark in over)
    return tag("mark", text, tag("small", name.strip()) if ends and name.strip() else None, class_=kind)


def _part(passage: Passage) -> tuple[int, int]:
    """The characters that are shown: all of a short text; of a long one, those around the marks, else the first."""
    length = len(passage.text)
    if length <= MOST_CHARACTERS:
        return 0, length
    # What was said comes first: there may be many gold answers, far apart.
    marks = sorted(passage.marks, key=lambda mark: (mark.side != "said", mark.start))
    if not marks:
        return 0, MOST_CHARACTERS
    begin, end = marks[0].start, marks[0].end
    for mark in marks[1:]:
        wider = min(begin, mark.start), max(end, mark.end)
        if wider[1] - wider[0] <= MOST_CHARACTERS:
            begin, end = wider
    begin = max(0, begin - CONTEXT)
    return begin, min(length, max(end + CONTEXT, begin + CONTEXT), begin + MOST_CHARACTERS + 2 * CONTEXT)
