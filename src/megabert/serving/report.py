"""Numbers drawn as text, for people at a terminal."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

_BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int = 60) -> str:
    """A curve in one line: each character is the mean of its share of the values; the lowest is `▁`.

    Values that are not finite are left out; without any, the line is empty.
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    width = min(width, len(finite))
    edges = [round(index * len(finite) / width) for index in range(width + 1)]
    means = [sum(finite[begin:end]) / (end - begin) for begin, end in itertools.pairwise(edges) if end > begin]
    low, high = min(means), max(means)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((mean - low) * scale)] for mean in means)


def histogram(edges: Sequence[float], counts: Sequence[int], width: int = 40) -> list[str]:
    """One line for each bin: its range, a bar, its count. The last bin holds what is larger, too.

    Args:
        edges: bounds of the bins, one more than `counts`; what is counted are whole numbers.
    """
    most = max(counts, default=0)
    rows = []
    for (begin, end), count in zip(itertools.pairwise(edges), counts, strict=True):
        first, last = math.ceil(begin), math.ceil(end) - 1
        if last >= first:  # a bin narrower than one holds no whole number
            label = f"{first:,}" if first == last else f"{first:,} to {last:,}"
            rows.append((label, "█" * math.ceil(width * count / most if most else 0), count))
    if rows:
        rows[-1] = (f"{math.ceil(edges[-2]):,} or more", *rows[-1][1:])
    column = max((len(label) for label, _, _ in rows), default=0)
    return [f"{label:>{column}}  {bar:<{width}}  {count:,}" for label, bar, count in rows]


def table(values: Mapping[str, object]) -> list[str]:
    """`name   value`, one a line, the values in one column; whole numbers with commas, None left out."""
    shown = {name: value for name, value in values.items() if value is not None}
    column = max(map(len, shown), default=0)
    return [f"{name:<{column}}  {_plain(value)}" for name, value in shown.items()]


def indented(lines: Iterable[str], by: int = 2) -> Iterator[str]:
    """The lines, moved to the right."""
    return (" " * by + line for line in lines)


def amount(count: float, unit: str = "") -> str:
    """A count for people, of powers of 1000: `336.2 M`, with `unit="B"` `1.3 GB`."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {prefix}{unit}"
    return f"{count:,.0f} {unit}".rstrip()


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.6g}"
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return str(value)
