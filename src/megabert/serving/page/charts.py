"""Charts as SVG, coloured by the page's style so that they are right in the light and in the dark."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from megabert.metrics.calibration import Bin
from megabert.serving.page.elements import Safe, tag

WIDTH = 520
HEIGHT = 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 12, 14, 40
MOST_POINTS = 400

Points = Sequence[tuple[float, float]]


class Series(NamedTuple):
    """A curve: its name, its points, and a class of the style (`one` or `two`); `dots` marks each point."""

    name: str
    points: Points
    style: str
    dots: bool = False


@dataclass(frozen=True)
class Frame:
    """Where numbers stand in a picture: `[low, high]` of each direction."""

    x: tuple[float, float]
    y: tuple[float, float]
    height: int = HEIGHT

    def at_x(self, value: float) -> float:
        """From the left, in pixels."""
        low, high = self.x
        return round(_LEFT + (value - low) / (high - low or 1) * (WIDTH - _LEFT - _RIGHT), 1)

    def at_y(self, value: float) -> float:
        """From the top, in pixels."""
        low, high = self.y
        return round(self.height - _BOTTOM - (value - low) / (high - low or 1) * (self.height - _TOP - _BOTTOM), 1)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, both ends covered."""
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    power = 10 ** math.floor(math.log10(span / about))
    step = next(power * one for one in (1, 2, 2.5, 5, 10) if span / (power * one) <= about)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def short(value: float) -> str:
    """A number on an axis: `12k`, `0.25`."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.6g}"


def thinned(points: Points, most: int = MOST_POINTS) -> Points:
    """At most so many points: each the mean of its neighbours."""
    if len(points) <= most:
        return points
    edges = [round(number * len(points) / most) for number in range(most + 1)]
    groups = [points[begin:end] for begin, end in itertools.pairwise(edges)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _axes(frame: Frame, across: Sequence[float], upward: Sequence[float], names: tuple[str, str]) -> list[Safe]:
    made = []
    for value in upward:
        y = frame.at_y(value)
        made.append(tag("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=y, y2=y, class_="grid"))
        made.append(tag("text", short(value), x=_LEFT - 7, y=y + 4, class_="tick end"))
    bottom = frame.at_y(frame.y[0])
    for value in across:
        made.append(tag("text", short(value), x=frame.at_x(value), y=bottom + 16, class_="tick middle"))
    made.append(tag("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=bottom, y2=bottom, class_="axis"))
    middle = (_TOP + bottom) / 2
    made.append(tag("text", names[0], x=(_LEFT + WIDTH - _RIGHT) / 2, y=frame.height - 6, class_="name middle"))
    made.append(tag("text", names[1], x=12, y=middle, transform=f"rotate(-90 12 {middle})", class_="name middle"))
    return made


def picture(title: str, description: str, height: int, *content: object) -> Safe:
    """An SVG that tells what it shows to who cannot see it."""
    return tag(
        "svg", tag("title", title), tag("desc", description), *content, viewBox=f"0 0 {WIDTH} {height}", role="img",
        aria_label=f"{title}. {description}",
    )  # fmt: skip


def lines(title: str, series: Sequence[Series], names: tuple[str, str], best: float | None = None) -> Safe:
    """Curves over one axis, with a legend.

    Args:
        names: of the axis across and the axis upward.
        best: a place across that is marked, such as the step of the best checkpoint.
    """
    drawn = [one._replace(points=thinned(one.points)) for one in series if one.points]
    xs = [x for one in drawn for x, _ in one.points] + ([] if best is None else [best])
    ys = [y for one in drawn for _, y in one.points]
    across, upward = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    low, high = (upward[0], upward[-1]) if len(upward) > 1 else (upward[0] - 0.5, upward[0] + 0.5)
    frame = Frame((min(xs), max(xs)), (low, high))
    content: list[object] = [*_axes(frame, [x for x in across if min(xs) <= x <= max(xs)], upward, names)]
    if best is not None:
        x = frame.at_x(best)
        content.append(tag("line", x1=x, x2=x, y1=_TOP, y2=frame.at_y(frame.y[0]), class_="best"))
        content.append(tag("text", "best", x=x + (-5 if x > WIDTH / 2 else 5), y=_TOP + 9,
                           class_=f"tick {'end' if x > WIDTH / 2 else ''}"))  # fmt: skip
    for one in drawn:
        places = [(frame.at_x(x), frame.at_y(y)) for x, y in one.points]
        if len(places) > 1:
            content.append(tag("polyline", points=" ".join(f"{x},{y}" for x, y in places), class_=one.style))
        if one.dots or len(places) == 1:
            content += [
                tag("circle", tag("title", f"{x:g}: {y:.4g}"), cx=at, cy=height, r=3.5, class_=one.style)
                for (at, height), (x, y) in zip(places, one.points, strict=True)
            ]
    ends = "; ".join(f"{one.name} from {one.points[0][1]:.4g} to {one.points[-1][1]:.4g}" for one in drawn)
    return tag("figure", picture(title, ends, HEIGHT, content), _legend(title, drawn))


def _legend(title: str, drawn: Sequence[Series]) -> Safe:
    entries = [tag("span", tag("i", class_=f"key {one.style}"), one.name) for one in drawn]
    return tag("figcaption", tag("b", title), entries)


def reliability(bins: Sequence[Bin], description: str) -> Safe:
    """How often decisions are right against how sure the model was, and how many there are of each."""
    height, strip = 300, 60
    frame = Frame((0, 1), (0, 1), height - strip)
    axis = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    content: list[object] = [*_axes(frame, axis, axis, ("probability", "share that is right"))]
    content.append(tag("line", x1=frame.at_x(0), y1=frame.at_y(0), x2=frame.at_x(1), y2=frame.at_y(1), class_="ideal"))
    floor, most = frame.at_y(0), max((one.decisions for one in bins), default=1) or 1
    for one in bins:
        if not one.decisions:
            continue
        x, width = frame.at_x(one.low) + 1.5, frame.at_x(one.high) - frame.at_x(one.low) - 3
        told = (f"{one.low:.0%} to {one.high:.0%}: {one.decisions:,} decisions, {one.accuracy:.1%} right, mean "
                f"probability {one.confidence:.1%}")  # fmt: skip
        top = frame.at_y(one.accuracy)
        content.append(tag("rect", tag("title", told), x=round(x, 1), y=top, width=round(width, 1),
                           height=round(floor - top, 1), class_="one"))  # fmt: skip
        content.append(tag("circle", cx=frame.at_x(one.confidence), cy=top, r=3, class_="two"))
        tall = max(1.0, round((strip - 22) * one.decisions / most, 1))
        content.append(tag("rect", tag("title", told), x=round(x, 1), y=height - tall, width=round(width, 1),
                           height=tall, class_="quiet"))  # fmt: skip
    content.append(tag("text", "how many", x=_LEFT - 7, y=height - 4, class_="tick end"))
    return tag("figure", picture("Calibration", description, height, content))


def scatter(points: Points, names: tuple[str, str], most: int = 2000) -> Safe:
    """Points, and the line on which both numbers are equal; at most so many, evenly chosen."""
    step = max(1, math.ceil(len(points) / most))
    shown = points[::step]
    values = [value for point in points for value in point]
    marks = ticks(min(values), max(values))
    if len(marks) < 2:
        marks = [marks[0] - 1, marks[0] + 1]
    height = 380
    frame = Frame((marks[0], marks[-1]), (marks[0], marks[-1]), height)
    content: list[object] = [*_axes(frame, marks, marks, names)]
    content.append(tag("line", x1=frame.at_x(marks[0]), y1=frame.at_y(marks[0]), x2=frame.at_x(marks[-1]),
                       y2=frame.at_y(marks[-1]), class_="ideal"))  # fmt: skip
    content += [tag("circle", cx=frame.at_x(x), cy=frame.at_y(y), r=2.6, class_="one faint") for x, y in shown]
    told = f"{len(points):,} examples" + ("" if step == 1 else f", {len(shown):,} of them drawn")
    return tag("figure", picture("Numbers", told, height, content), tag("figcaption", told))
