"""The last step from wikitext to text: what a parser left of markup, spaces, brackets round nothing, empty sections."""

from __future__ import annotations

import html
import re

from megabert.corpora import wikipedia_words as words

_TAG = re.compile(rf"</?(?:{'|'.join(sorted(words.KNOWN_TAGS, key=len, reverse=True))})(?:\s[^<>]*)?/?\s*>", re.I)
_OPEN_TAG = re.compile(rf"<(?:{'|'.join(sorted(words.KNOWN_TAGS, key=len, reverse=True))})\s[^<>]*$", re.I | re.M)
_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_REFERENCE = re.compile(r"<ref\b[^<>]*?/>|<ref\b[^<>]*>.*?</ref\s*>", re.DOTALL | re.I)
_PAIR = re.compile(r"<(gallery|math|timeline|imagemap|source|syntaxhighlight|table)\b[^<>]*>.*?</\1\s*>", re.S | re.I)
_TEMPLATE = re.compile(r"\{\{[^{}]*\}\}|\{\{\{[^{}]*\}\}\}")
_LINK = re.compile(r"\[\[([^\[\]|\n]*)(?:\|([^\[\]]*))?\]\]")
_OPEN_LINK = re.compile(r"\[\[([^\[\]|]{0,120})\|")
_OPEN_TEMPLATE = re.compile(r"\{\{+[^\n]*")
_CONVERSION = re.compile(r"-\{([^{}]*)\}-")
_QUOTES = re.compile(r"'{2,}")
_SWITCH = re.compile(r"__[^\W\d_]{3,}(?:_[^\W\d_]+)*__")
_ADDRESS = re.compile(
    r"\[(?:https?|ftp|mailto|news|irc):[^\s\[\]]+(?:\s+([^\[\]]*))?\]|\[//[^\s\[\]]+(?:\s+([^\[\]]*))?\]"
)
_SPACE = re.compile(r"[\t\r\f\v\xa0\u2002-\u200a\u3000]")
_SPACES = re.compile(r"  +")
_UNSEEN = "\u200b\u2060\ufeff\x7f"
_EMPTY_BRACKETS = re.compile(r"\((?:[ ,;:/–—-]|\bor\b)*\)|（[ ，、；：，;:]*）|\[[ ,;]*\]")
_AFTER_OPENING = re.compile(r"([(（])[ ,;:，；、]+")
APOSTROPHE = "\1"
"""One that is no mark of bold or italic; XML holds no such character."""
_STOPS = " ,;，；、"
_BEFORE_STOP = re.compile(r" ([,.;:!?])(?=\s|$)")
_REPEATED_STOP = re.compile(r"([,;])(?: ?[,;])+")
_TABLE_LINE = re.compile(r"\s*(?:\{\||\||!!|! |!\s*(?:scope|style|align|width|colspan|rowspan|class|bgcolor)\b)")
_TABLE_START = re.compile(r"(?m)^\s*:*\{\|")
_LIST = re.compile(r"[*#:;]+\s*")
_RULE = re.compile(r"-{4,}")
_FILE_OPTION = re.compile(
    r"^\s*(?:thumb|thumbnail|miniatur|mini|frame|left|right|center|none|upright(?:=[\d.]+)?|\d+px)\s*\|(?:.*\|)?", re.I
)  # fmt: skip


def tidy(raw: str) -> str:
    """Text in its final form, from what a reader of wikitext gathered."""
    if "<" in raw:
        raw = _without_tags(raw)
    if "[" in raw or "{" in raw or "}" in raw or "]" in raw:
        raw = _without_brackets(raw)
    if "''" in raw:
        raw = without_quotes(raw)
    raw = raw.replace(APOSTROPHE, "'")
    if "__" in raw:
        raw = _SWITCH.sub("", raw)
    if "&" in raw:
        raw = html.unescape(raw)
    for character in _UNSEEN:  # most pages have none, which is soon seen
        raw = raw.replace(character, "")
    raw = _SPACE.sub(" ", raw)
    if "(" in raw or "（" in raw or "[" in raw:
        raw = _without_empty_brackets(raw)
    raw = _REPEATED_STOP.sub(r"\1", _BEFORE_STOP.sub(r"\1", _SPACES.sub(" ", raw)))
    return _sections([line for line in map(_line, raw.split("\n")) if line])


def without_markup(wikitext: str) -> str:
    """The text of a page by patterns alone, for a page that defeats the parser: coarser, and never fails."""
    raw = _REFERENCE.sub("", _COMMENT.sub("", wikitext))
    raw = re.sub(r"(?m)^(=+)\s*(.*?)\s*\1\s*$", lambda match: f"\0{min(len(match[1]), 6)}{match[2]}", raw)
    raw = "\n".join(line for line in raw.split("\n") if not _TABLE_LINE.match(line))
    return tidy(raw)


def without_quotes(text: str) -> str:
    """Text without the marks of bold and italic; which apostrophes are meant is decided a line at a time.

    Source: the rules of MediaWiki's parser (`doQuotes`): in a line whose bold and italic marks are both odd in number,
    one `'''` is an apostrophe and `''`, first one behind a single letter, then behind a word.
    """
    return "\n".join([_without_quotes(line) if "''" in line else line for line in text.split("\n")])


def _without_quotes(line: str) -> str:
    runs = [(found.start(), len(found[0])) for found in _QUOTES.finditer(line)]
    bold = [place for place, length in runs if length == 3]
    both = sum(length >= 5 for _, length in runs)
    italics = sum(length == 2 for _, length in runs) + both
    kept = {place: 1 for place, length in runs if length == 4} | {
        place: length - 5 for place, length in runs if 5 < length < 8
    }
    bolds = len(bold) + len([1 for _, length in runs if length == 4]) + both
    if bolds % 2 and italics % 2 and bold:
        before = [line[max(place - 2, 0) : place].rjust(2) for place in bold]
        single = [place for place, two in zip(bold, before, strict=True) if two[0] == " " and two[1] != " "]
        word = [place for place, two in zip(bold, before, strict=True) if two[1] != " "]
        kept[(single or word or bold)[0]] = 1
    return _QUOTES.sub(lambda run: "'" * kept.get(run.start(), 0), line)


def _without_tags(raw: str) -> str:
    raw = _PAIR.sub("", _REFERENCE.sub("", _COMMENT.sub("", raw)))
    return _OPEN_TAG.sub("", _TAG.sub("", raw))


def _without_brackets(raw: str) -> str:
    if "-{" in raw:
        raw = _CONVERSION.sub(lambda match: _variant(match[1]), raw)
    for _ in range(8):  # from the inside out
        shorter = _LINK.sub(_leftover_link, _TEMPLATE.sub("", raw))
        if shorter == raw:
            break
        raw = shorter
    if "{|" in raw:
        raw = _without_open_tables(raw)
    raw = _OPEN_TEMPLATE.sub("", raw).replace("}}", "").replace("{|", "").replace("|}", "")
    raw = _ADDRESS.sub(lambda match: match[1] or match[2] or "", raw)
    if "[[" in raw:
        raw = "\n".join(_without_open_link(line) if "[[" in line else line for line in raw.split("\n"))
    return raw.replace("]]", "")


def _leftover_link(match: re.Match[str]) -> str:
    target, text = match[1], match[2]
    prefix, has_prefix, _ = target.strip().partition(":")
    name = prefix.strip().lower().replace(" ", "_")
    if has_prefix and (name in words.FILE_WORDS or name in words.CATEGORY_WORDS):
        return ""
    if target.strip().lower().endswith(words.MEDIA_ENDING):
        return ""
    return text if text is not None else target.lstrip(":")


def _without_open_link(line: str) -> str:
    """A line whose `[[` is never closed: of a file all that follows goes, of another link brackets and target."""
    for link in _OPEN_LINK.finditer(line):
        target = link[1].strip().lower()
        if target.partition(":")[0].strip() in words.FILE_WORDS or target.endswith(words.MEDIA_ENDING):
            line = line[: link.start()]
            break
    return _OPEN_LINK.sub("", line).replace("[[", "")


def _without_open_tables(raw: str) -> str:
    """Lines of tables that are never closed."""
    lines: list[str] = []
    inside = False
    for line in raw.split("\n"):
        if _TABLE_START.match(line):
            inside = True
        elif inside and line.lstrip().startswith("|}"):
            inside, line = False, line.lstrip()[2:]
        elif inside and not line.strip():
            inside = False
        if not inside or (line.startswith("\0")):
            inside = False
            lines.append(line)
    return "\n".join(lines)


def _variant(inside: str) -> str:
    """One variant of `-{zh-hans:...; zh-hant:...}-`; nothing of a rule that is only declared."""
    flag, bar, rest = inside.partition("|")
    if bar and flag.strip() and set(flag.strip()) & set("HT-D"):
        return ""
    first = next((part for part in (rest if bar else inside).split(";") if part.strip()), "")
    return first.partition(":")[2] if re.match(r"\s*[a-z-]{2,10}:", first) else first


def _without_empty_brackets(raw: str) -> str:
    """Brackets round nothing, and stops at the inner side of others: a template stood there."""
    for _ in range(3):
        raw, count = _EMPTY_BRACKETS.subn("", raw)
        if not count:
            break
    for closing in ")）":
        *parts, last = raw.split(closing)
        raw = closing.join([*(part.rstrip(_STOPS) for part in parts), last])
    return _AFTER_OPENING.sub(r"\1", raw)


def _line(line: str) -> str:
    """A line, cleaned; empty if it says nothing. A heading keeps its mark and level."""
    line = line.strip()
    if not line:
        return ""
    first = line[0]
    if first == "\0":
        return line if any(map(str.isalnum, line[2:])) else ""
    if not first.isalnum():
        if _TABLE_LINE.match(line):
            return ""
        if first in "*#:;":
            line = _LIST.sub("", line, count=1)
        elif line.startswith("----"):
            line = _RULE.sub("", line, count=1)
        elif line.startswith("=="):  # a heading that is not closed
            line = line.lstrip("=")
        line = line.lstrip(" ,;:•·|")
    if "|" in line:
        line = _FILE_OPTION.sub("", line)
    line = line.rstrip(" •·|")
    return line if any(map(str.isalnum, line)) else ""


def _sections(lines: list[str]) -> str:
    """Lines joined; a heading under which nothing stands is left out."""
    kept: list[str] = []
    filled = 0  # headings of lower levels than this have text below them
    for line in reversed(lines):
        if line.startswith("\0"):
            level = int(line[1])
            if level < filled:
                kept.append(line[2:].strip())
                filled = level
        else:
            kept.append(line)
            filled = 9
    return "\n".join(reversed(kept))
