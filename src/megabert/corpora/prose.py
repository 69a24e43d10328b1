"""Plain English from documentation strings: markup, code, tables and formulas are left behind.

A light reader of what Python's documentation is written in (reStructuredText with numpy's and Google's habits, and
Markdown), not a parser of either: what does not look like prose in the end is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_KEPT_DIRECTIVES = {
    "note", "warning", "tip", "seealso", "important", "attention", "caution", "hint", "versionadded",
    "versionchanged", "deprecated", "admonition", "topic",
}  # fmt: skip
_DIRECTIVE = re.compile(r"\.\. *(?:(?P<name>[\w:-]+)::)?(?P<rest>.*)$")
_UNDERLINE = re.compile(r"([=\-~^\"'`*+#])\1{2,}$")
_BULLET = re.compile(r"(?:[-*+•]|\(?[0-9a-z][.)])\s+(?=\S)")
_FIELD = re.compile(r":(?P<name>[a-z]+)[^:]*:\s*(?P<rest>.*)$")
# numpy's `name, other : type` and Google's `name (type): text`.
_ENTRY = re.compile(
    r"[\w*., ]+ : \S.*$|[*`]{0,2}[A-Za-z_][\w.]*`{0,2}(?:\s*[,/]\s*[*`]{0,2}\w+`{0,2})*\s*(?:\(.*\))?\s*:(?:\s+.*)?$"
)
# (a text that must be there for the pattern to be tried, pattern, replacement)
_INLINE = (
    ("\\", re.compile(r"`[^`]*?\\[^`]*`"), " \0 "),  # a formula
    ("$", re.compile(r"\$[^$]+\$"), " \0 "),
    ("``", re.compile(r"``([^`]+)``"), r"\1"),
    (":`", re.compile(r":[\w:+-]+:`[~.]*([^`<]+?)\s*(?:<[^`>]*>)?`"), r"\1"),
    ("[`", re.compile(r"\[`[~.]*([^`\]]+)`\](?:\([^)]*\))?"), r"\1"),
    ("](", re.compile(r"\[([^\]]+)\]\([^)]*\)"), r"\1"),
    ("`_", re.compile(r"`([^`<]+?)\s*<[^`>]*>`_{1,2}"), r"\1"),
    ("`", re.compile(r"`[~.]*([^`]+)`_{0,2}"), r"\1"),
    ("]_", re.compile(r"\s*\[[\w.-]{1,16}\]_"), ""),
    ("http", re.compile(r"\s*\(?<?https?://[^\s)>]+[)>]?"), ""),
    ("<", re.compile(r"</?[a-z]+/?>"), ""),
    ("*", re.compile(r"\*\*([^*]+)\*\*|(?<!\w)\*([^*\s][^*]*)\*(?!\w)"), r"\1\2"),
    ("(", re.compile(r"\(\s*\)"), ""),
    (" ", re.compile(r" ([.,;:!?)])(?![\w=])"), r"\1"),
)
_SHORTEST = 25  # characters of a paragraph
_FUNCTION_WORDS = frozenset(
    {
        "a", "an", "and", "are", "as", "at", "be", "been", "but", "by", "can", "do", "does", "each", "for",
        "from", "has", "have", "if", "in", "into", "is", "it", "its", "may", "more", "must", "no", "not", "of",
        "on", "only", "or", "other", "should", "so", "such", "than", "that", "the", "their", "then", "there",
        "these", "they", "this", "to", "use", "used", "was", "we", "when", "where", "which", "will", "with",
        "would", "you", "your",
    }
)  # fmt: skip
_SYMBOLS = re.compile(r"[(){}\[\]=<>_\\|@#$%^&*/~+\"'`]")
_WORD = re.compile(r"[A-Za-z]+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"(])")


def paragraphs(text: str) -> list[str]:
    """The paragraphs of a documentation string that are prose, each on one line.

    Args:
        text: with indentation already taken off (`inspect.cleandoc`).
    """
    found = []
    for raw in _blocks(text.split("\n")):
        if len(raw) < _SHORTEST:
            continue
        for trigger, pattern, replacement in _INLINE:
            if trigger in raw:
                raw = pattern.sub(replacement, raw)
        paragraph = " ".join(raw.split()).strip("-*").strip()
        if paragraph.endswith(":"):
            paragraph = paragraph[:-1].rstrip(".") + "."
        if is_prose(paragraph):
            found.append(paragraph)
    return found


def is_prose(paragraph: str) -> bool:
    """Whether a paragraph reads as English: whole sentences, words more than symbols, function words among them."""
    if (
        len(paragraph) < _SHORTEST
        or "\0" in paragraph
        or not (paragraph[0].isalpha() or paragraph[0] in '"(')
        or paragraph[-1] not in ".!?)"
    ):
        return False
    words = _WORD.findall(paragraph)
    if len(words) < 5 or len(_SYMBOLS.findall(paragraph)) > 0.1 * len(paragraph):
        return False
    letters = sum(map(len, words))
    glue = sum(word.lower() in _FUNCTION_WORDS for word in words)
    return letters > 0.6 * len(paragraph) and glue >= 0.1 * len(words)


def sentences(paragraph: str) -> list[str]:
    """A quick split at full stops before capitals: good enough to find what is said twice."""
    return _SENTENCE_END.split(paragraph)


def _blocks(lines: list[str]) -> Iterator[str]:
    """Runs of lines that belong together, joined, without code, tables and headings."""
    current: list[str] = []
    first_indent = 0  # of the current run
    hidden_above = -1  # lines indented deeper than this belong to a literal block; -1: there is none
    fenced = in_session = False
    for line in lines:
        content = line.strip()
        indent = len(line) - len(line.lstrip())
        if content.startswith("```"):
            fenced = not fenced
            content = ""
        elif fenced:
            continue
        elif hidden_above >= 0:
            if not content or indent > hidden_above:
                continue
            hidden_above = -1
        if in_session and content:
            continue
        in_session = content.startswith((">>>", "... ", "In ["))
        if not content or in_session or content[0] == "|" or content.startswith(("+-", "+=")):
            yield " ".join(current)
            current = []
            continue
        if _UNDERLINE.match(content):
            current = current[:-1]  # the heading above it
            yield " ".join(current)
            current = []
            continue
        directive = _DIRECTIVE.match(content)
        if directive:
            yield " ".join(current)
            current = []
            if directive["name"] in _KEPT_DIRECTIVES:
                content = directive["rest"].strip() if directive["name"] in ("note", "warning", "tip") else ""
            else:
                hidden_above, content = indent, ""
        else:
            starts, content = _start_of_block(content)
            if starts or (current and _ends(current, indent - first_indent)):
                yield " ".join(current)
                current = []
            if content.endswith("::"):
                yield " ".join((*current, content[:-1]))
                hidden_above, content, current = indent, "", []
        if content:
            if not current:
                first_indent = indent
            current.append(content)
    yield " ".join(current)


def _ends(current: list[str], indent: int) -> bool:
    """Whether a run is over before a line that is indented by so much more than its first one."""
    if indent <= 0:
        return indent < 0
    is_entry = len(current) == 1 and _ENTRY.match(current[0])  # its text stands below it
    return current[-1][-1:] in ".:" and not is_entry


def _start_of_block(content: str) -> tuple[bool, str]:
    """(whether a line opens a run of its own, the line without bullet or field name).

    The entry of a parameter opens one and keeps its name: the text behind it often makes no sentence without.
    """
    bullet = _BULLET.match(content)
    if bullet:
        content = content[bullet.end() :]
    field = _FIELD.match(content)
    if field:
        return True, "" if field["name"].endswith("type") else field["rest"]
    return bool(bullet or _ENTRY.match(content)), content
