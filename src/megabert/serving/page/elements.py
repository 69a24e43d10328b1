"""HTML and SVG from Python: whatever is not made here is text, and is escaped."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_VOID = frozenset({"meta", "input", "br"})
_WITHOUT_END = frozenset({"line", "path", "rect", "circle", "polyline"})


class Safe(str):
    """Markup, to be put into a page as it is."""

    __slots__ = ()


def escaped(text: object) -> Safe:
    """A text as markup; what no page may hold (control characters, halves of surrogate pairs) becomes a mark."""
    clean = _CONTROL.sub("�", str(text)).encode("utf-8", "replace").decode("utf-8")
    return Safe(html.escape(clean))


def joined(children: Iterable[object]) -> Safe:
    """Children one after the other: markup, texts, numbers, lists of these; None is nothing."""
    parts = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, Safe):
            parts.append(child)
        elif isinstance(child, Iterable) and not isinstance(child, str):
            parts.append(joined(child))
        else:
            parts.append(escaped(child))
    return Safe("".join(parts))


def tag(name: str, /, *children: object, **attributes: object) -> Safe:
    """An element.

    Args:
        attributes: a `_` at the end is left off, others become `-`; None leaves an attribute out, True writes its name.
    """
    written = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escaped(value)}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _VOID:
        return Safe(f"<{name}{written}>")
    if name in _WITHOUT_END and not children:
        return Safe(f"<{name}{written}/>")
    return Safe(f"<{name}{written}>{joined(children)}</{name}>")
