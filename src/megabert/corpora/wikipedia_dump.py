"""MediaWiki's XML dumps: the head with its table of namespaces, and the pages of a piece of the file.

A dump is cut at `<page>` and `</page>`, which cannot stand inside one (its text is escaped), and each page is parsed on
its own by expat. A document type, and with it any entity of its own, cannot stand in what is parsed.

Source: MediaWiki's schemas export-0.3 to export-0.11.
"""

from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from typing import NamedTuple

_OPEN, _CLOSE = b"<page>", b"</page>"
_SITE = re.compile(rb"<siteinfo\b.*?</siteinfo>", re.DOTALL)
_NAMESPACE = re.compile(rb"<ns>\s*(-?\d+)\s*</ns>")
_TITLE = re.compile(rb"<title>(.*?)</title>", re.DOTALL)
_REDIRECT = re.compile(rb"<redirect\b")
_REDIRECT_TEXT = re.compile(r"\s*#[^\W\d]+\s*:?\s*\[\[[^\]\n]+\]\]")
FILE, CATEGORY = 6, 14


@dataclasses.dataclass(frozen=True)
class Site:
    """What the head of a dump says of its wiki.

    Attributes:
        base: address of the folder of articles, such as `https://en.wikipedia.org/wiki`; empty if it is not told.
        namespaces: (name in the wiki's language, number) of each namespace but the articles'.
    """

    base: str = ""
    namespaces: tuple[tuple[str, int], ...] = ()

    def names(self, number: int) -> tuple[str, ...]:
        """The names of a namespace."""
        return tuple(name for name, key in self.namespaces if key == number)

    def number(self, title: str) -> int:
        """The namespace of a title; for dumps older than 2012, whose pages do not tell it."""
        prefix, colon, _ = title.partition(":")
        if not colon:
            return 0
        folded = prefix.strip().replace("_", " ").lower()
        return next((number for name, number in self.namespaces if name.lower() == folded), 0)


class Page(NamedTuple):
    """An article as the dump holds it; `text` is wikitext."""

    identity: str
    revision: str
    title: str
    text: str


class Bad(NamedTuple):
    """A page that cannot be read, and why."""

    title: str
    reason: str


def read_site(head: bytes) -> Site | None:
    """What the head of a dump says; None when `head` is too short to tell.

    Raises:
        ValueError: it is no MediaWiki dump.
    """
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if len(start) >= 1000 and b"<mediawiki" not in start[:1000] and b"<page>" not in start[:1000]:
        raise ValueError("it is no MediaWiki XML dump: <mediawiki> is missing at its beginning")
    found = _SITE.search(head)
    if found is None:
        return Site() if _OPEN in head else None
    try:
        root = ElementTree.fromstring(found[0])
    except ElementTree.ParseError as error:
        raise ValueError(f"its <siteinfo> is not well-formed XML: {error}") from None
    names = []
    for element in root.iter("namespace"):
        key = element.get("key", "")
        if element.text and key.lstrip("-").isdigit():
            names.append((element.text, int(key)))
    return Site((root.findtext("base") or "").rpartition("/")[0], tuple(names))


def cut(data: bytes) -> tuple[bytes, bytes, bytes]:
    """(what belongs to the piece before, whole pages, what the next piece completes) of a piece of a dump."""
    first = data.find(_OPEN)
    if first < 0:
        return data, b"", b""
    last = data.rfind(_CLOSE) + len(_CLOSE)
    if last < first + len(_CLOSE):
        return data[:first], b"", data[first:]
    return data[:first], data[first:last], data[last:]


def articles(data: bytes, site: Site) -> Iterator[Page | Bad]:
    """The articles among the pages in `data`: pages of namespace 0 that are no redirects and hold wikitext."""
    place = data.find(_OPEN)
    while place >= 0:
        end = data.find(_CLOSE, place)
        if end < 0:
            return
        page = data[place : end + len(_CLOSE)]
        item = _article(page, site)
        if item is not None:
            yield item
        place = data.find(_OPEN, end)


def _article(data: bytes, site: Site) -> Page | Bad | None:
    head, _, _ = data.partition(b"<revision")
    number = _NAMESPACE.search(head)
    if (number is not None and int(number[1]) != 0) or _REDIRECT.search(head):
        return None
    try:
        page = ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        title = _TITLE.search(head)
        return Bad(title[1].decode("utf-8", "replace") if title else "?", f"is not well-formed XML: {error}")
    title = page.findtext("title") or ""
    if number is None and site.number(title) != 0:
        return None
    revision = next(reversed(page.findall("revision")), None)
    if revision is None:
        return Bad(title, "has no revision")
    text = revision.findtext("text") or ""
    if (revision.findtext("model") or "wikitext") != "wikitext":
        return Bad(title, f"holds {revision.findtext('model')}, not wikitext")
    if _REDIRECT_TEXT.match(text):
        return None
    return Page(page.findtext("id") or "", revision.findtext("id") or "", title, text)
