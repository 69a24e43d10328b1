"""What is regular in wikitext, taken by patterns before the parser sees it: innermost templates, links, references.

Half of an article's bytes are templates, references and tables, which say nothing here, and most of its links hold
nothing but text. A pattern takes these from the inside out, in a third of the parser's time; what is not regular
(unbalanced, or with other markup inside) stays for the parser. Both ways give the same text.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from megabert.corpora import wikipedia_templates
from megabert.corpora.wikipedia_lines import without_quotes

# Their content is not wikitext: pages that hold one go to the parser as they are.
_RAW = re.compile(r"<(?:nowiki|pre)\b", re.I)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_EMPTY_REFERENCE = re.compile(r"<ref\b[^<>]*/>", re.I)
_PAIRS = re.compile(
    r"<(ref|math|gallery|timeline|imagemap|source|syntaxhighlight|score|chem|hiero)\b[^<>]*(?<!/)>(?:(?!<\1\b).)*?</\1\s*>",
    re.I | re.S,
)
_TEMPLATE = re.compile(r"(?<!\{)\{\{([^{}]*)\}\}(?!\})")
_LINK = re.compile(r"\[\[([^\[\]{}<>|\n]*)(?:\|([^\[\]{}]*))?\]\](?!\])")
_BAR = re.compile(r"\|(?![^\[\]]*\]\])")
_TABLE_BORDER = re.compile(r"(?m)^[ \t:]*(\{\||\|\}(?!\}))")


def reduce(
    wikitext: str, link: Callable[[str, str | None], str], template: Callable[[str, list[list[str]]], str]
) -> str:
    """Wikitext without what is regular in it.

    Args:
        link: what is seen of `[[target|text]]`.
        template: what stands for a template: its name in lower case and its arguments, as [key or "", value].
    """
    if "<" in wikitext:
        if _RAW.search(wikitext):
            return wikitext
        wikitext = _COMMENT.sub("", wikitext)
        wikitext = _PAIRS.sub("", _EMPTY_REFERENCE.sub("", wikitext))

    def of_template(match: re.Match[str]) -> str:
        inside = match[1]
        name = inside.partition("|")[0].strip().lower().replace("_", " ")
        if not wikipedia_templates.is_kept(name):
            return ""
        arguments = []
        for part in _BAR.split(inside)[1:]:
            key, equals, value = part.partition("=")
            arguments.append([key.strip(), value] if equals and "[" not in key and "<" not in key else ["", part])
        return template(name, arguments)

    def of_link(match: re.Match[str]) -> str:
        return link(match[1], match[2])

    while "{{" in wikitext:
        wikitext, count = _TEMPLATE.subn(of_template, wikitext)
        if not count:
            break
    if "{|" in wikitext:
        wikitext = _without_tables(wikitext)
    while True:
        wikitext, count = _LINK.subn(of_link, wikitext)
        if not count:
            break
    return without_quotes(wikitext) if "''" in wikitext else wikitext


def _without_tables(wikitext: str) -> str:
    """Closed tables, and those in their cells, taken out; an open one stays, with all that follows it."""
    kept: list[str] = []
    place = start = depth = 0
    for border in _TABLE_BORDER.finditer(wikitext):
        if border[1] == "{|":
            if not depth:
                start = border.start()
            depth += 1
        elif depth:
            depth -= 1
            if not depth:
                kept.append(wikitext[place:start])
                place = border.end()
    kept.append(wikitext[place:])
    return "".join(kept)
