"""Wikitext to plain text: paragraphs, list items and headings on lines of their own, no markup.

The tokens of mwparserfromhell (a parser in C, kept by its community, MIT) are read in one pass; building its tree of
nodes took four times as long. What its grammar leaves as text (an unclosed table, a stray tag) is taken out after it.
"""

from __future__ import annotations

import html
import re
from typing import Any

from megabert.corpora import wikipedia_patterns, wikipedia_templates
from megabert.corpora import wikipedia_words as words
from megabert.corpora.wikipedia_lines import APOSTROPHE, tidy

HEADING = "\0"
"""Before a heading's line, with its level: XML, and so wikitext, holds no such character."""

_APOSTROPHE = "<nowiki>'</nowiki>"


class Reader:
    """Reads the pages of one wiki.

    Args:
        file_names, category_names: of the wiki's own namespaces, in any case.
    """

    def __init__(self, file_names: tuple[str, ...] = (), category_names: tuple[str, ...] = ()) -> None:
        """Import the parser."""
        from mwparserfromhell.parser import tokens
        from mwparserfromhell.parser._tokenizer import CTokenizer  # pyright: ignore[reportAttributeAccessIssue]

        self._files = words.FILE_WORDS | {_key(name) for name in file_names}
        self._categories = words.CATEGORY_WORDS | {_key(name) for name in category_names}
        self._tokenizer, self._tokens = CTokenizer, tokens

    def text(self, wikitext: str) -> str:
        """The text of a page; empty where there is none.

        Raises:
            Exception: whatever the parser raises on a page that defeats it.
        """
        return self.text_of_the_rest(wikipedia_patterns.reduce(wikitext, self.link, wikipedia_templates.text_of))

    def text_of_the_rest(self, wikitext: str) -> str:
        """The text of a page by the parser alone."""
        if _APOSTROPHE in wikitext:  # it stays apart from marks of bold and italic beside it
            wikitext = wikitext.replace(_APOSTROPHE, APOSTROPHE)
        return tidy(_Page(self, self._tokenizer().tokenize(wikitext, 0, True), self._tokens).read())

    def link(self, target: str, text: str | None) -> str:
        """What a reader sees of `[[target|text]]`."""
        shown = target.lstrip()
        colon = shown.startswith(":")
        if colon:
            shown = shown[1:]
        prefix, has_prefix, rest = shown.partition(":")
        if has_prefix and not colon:
            key = _key(prefix)
            if key in self._files or key in self._categories:
                return ""
            if shown.lower().rstrip().endswith(words.MEDIA_ENDING) and key not in words.PROJECT_PREFIXES:
                return ""
            if _is_language(prefix.strip()):
                return ""
        if text is None:
            if not colon and shown.startswith("#"):
                shown = shown[1:]
            return shown.replace("_", " ")
        if not text.strip():  # the pipe trick: [[Paris (Texas)|]]
            return re.sub(r"\s*\([^()]*\)$", "", rest if has_prefix else shown)
        return text


def _key(name: str) -> str:
    return name.strip().lower().replace(" ", "_")


def _is_language(prefix: str) -> bool:
    if prefix in words.LONG_LANGUAGES:
        return True
    head, dash, tail = prefix.partition("-")
    if not (2 <= len(head) <= 3 and head.isascii() and head.isalpha() and head.islower()):
        return False
    return prefix not in words.PROJECT_PREFIXES and (not dash or (tail.isascii() and tail.replace("-", "").isalpha()))


class _Page:
    """One pass over the tokens of a page. What stands open is a stack of (kind, its own output so far, more)."""

    def __init__(self, reader: Reader, tokens: list[Any], kinds: Any) -> None:
        self.reader, self.tokens, self.kinds = reader, tokens, kinds
        self.out: list[str] = []
        self.stack: list[tuple[list[str], Any]] = []
        self.opens = {
            kinds.TemplateOpen: self._template, kinds.TemplateClose: self._end_template,
            kinds.TemplateParamSeparator: self._parameter, kinds.TemplateParamEquals: self._equals,
            kinds.ArgumentOpen: self._argument, kinds.ArgumentSeparator: self._default,
            kinds.ArgumentClose: self._end_argument, kinds.WikilinkOpen: self._link,
            kinds.WikilinkSeparator: self._link_text, kinds.WikilinkClose: self._end_link,
            kinds.ExternalLinkOpen: self._outside, kinds.ExternalLinkSeparator: self._outside_text,
            kinds.ExternalLinkClose: self._end_outside, kinds.HTMLEntityStart: self._entity,
            kinds.HeadingStart: self._heading, kinds.HeadingEnd: self._end_heading, kinds.CommentStart: self._comment,
            kinds.TagOpenOpen: self._tag, kinds.TagOpenClose: self._end_tag,
        }  # fmt: skip

    def read(self) -> str:
        tokens, opens, text_kind = self.tokens, self.opens, self.kinds.Text
        place, end = 0, len(tokens)
        while place < end:
            token = tokens[place]
            kind = token.__class__
            if kind is text_kind:
                self.out.append(token["text"])
                place += 1
            else:
                place = opens[kind](place, token)
        return "".join(self.out)

    def _push(self, more: Any = None) -> None:
        self.stack.append((self.out, more))
        self.out = []

    def _pop(self) -> tuple[str, Any]:
        inner = "".join(self.out)
        self.out, more = self.stack.pop()
        return inner, more

    def _skip(self, place: int, opening: Any, *closing: Any) -> int:
        """The place behind the end of what opens at `place`."""
        tokens, depth = self.tokens, 0
        while True:
            kind = tokens[place].__class__
            if kind is opening:
                depth += 1
            elif kind in closing:
                depth -= 1
                if depth == 0:
                    return place + 1
            place += 1

    def _template(self, place: int, _token: Any) -> int:
        kinds = self.kinds
        first, second = self.tokens[place + 1], self.tokens[place + 2] if place + 2 < len(self.tokens) else None
        if first.__class__ is kinds.Text and second.__class__ in (kinds.TemplateParamSeparator, kinds.TemplateClose):
            name = first["text"].strip().lower().replace("_", " ")
            if wikipedia_templates.is_plain(name) and second.__class__ is kinds.TemplateClose:
                self.out.append(wikipedia_templates.text_of(name, []))
                return place + 3
            if wikipedia_templates.is_kept(name):
                self._push((name, []))
                return place + 2
        return self._skip(place, kinds.TemplateOpen, kinds.TemplateClose)

    def _parameter(self, place: int, _token: Any) -> int:
        _, (_, arguments) = self.stack[-1]
        if arguments:
            arguments[-1][1] = "".join(self.out)
        arguments.append(["", ""])
        self.out = []
        return place + 1

    def _equals(self, place: int, _token: Any) -> int:
        _, (_, arguments) = self.stack[-1]
        arguments[-1][0] = "".join(self.out).strip()
        self.out = []
        return place + 1

    def _end_template(self, place: int, _token: Any) -> int:
        inner, (name, arguments) = self._pop()
        if arguments:
            arguments[-1][1] = inner
        self.out.append(wikipedia_templates.text_of(name, arguments))
        return place + 1

    def _argument(self, place: int, _token: Any) -> int:
        self._push()
        return place + 1

    def _default(self, place: int, _token: Any) -> int:
        self.out = []
        self.stack[-1] = (self.stack[-1][0], True)
        return place + 1

    def _end_argument(self, place: int, _token: Any) -> int:
        inner, has_default = self._pop()
        if has_default:
            self.out.append(inner)
        return place + 1

    def _link(self, place: int, _token: Any) -> int:
        self._push()
        return place + 1

    def _link_text(self, place: int, _token: Any) -> int:
        self.stack[-1] = (self.stack[-1][0], "".join(self.out))
        self.out = []
        return place + 1

    def _end_link(self, place: int, _token: Any) -> int:
        inner, target = self._pop()
        self.out.append(self.reader.link(inner, None) if target is None else self.reader.link(target, inner))
        return place + 1

    def _outside(self, place: int, token: Any) -> int:
        self._push(token.get("brackets"))
        return place + 1

    def _outside_text(self, place: int, _token: Any) -> int:
        self.stack[-1] = (self.stack[-1][0], "titled")
        self.out = []
        return place + 1

    def _end_outside(self, place: int, _token: Any) -> int:
        inner, how = self._pop()
        if how is not True:  # an address in brackets without a title is shown as a number
            self.out.append(inner)
        return place + 1

    def _entity(self, place: int, _token: Any) -> int:
        parts = ["&"]
        place += 1
        while (token := self.tokens[place]).__class__ is not self.kinds.HTMLEntityEnd:
            if token.__class__ is self.kinds.HTMLEntityNumeric:
                parts.append("#")
            elif token.__class__ is self.kinds.HTMLEntityHex:
                parts.append(token["char"])
            else:
                parts.append(token["text"])
            place += 1
        self.out.append(html.unescape("".join((*parts, ";"))))
        return place + 1

    def _heading(self, place: int, token: Any) -> int:
        self._push(token["level"])
        return place + 1

    def _end_heading(self, place: int, _token: Any) -> int:
        inner, level = self._pop()
        self.out.append(f"\n{HEADING}{level}{' '.join(inner.split())}\n")
        return place + 1

    def _comment(self, place: int, _token: Any) -> int:
        return self._skip(place, self.kinds.CommentStart, self.kinds.CommentEnd)

    def _tag(self, place: int, token: Any) -> int:
        kinds, tokens = self.kinds, self.tokens
        markup = token.get("wiki_markup")
        name_token = tokens[place + 1]
        name = name_token["text"].strip().lower() if name_token.__class__ is kinds.Text else ""
        if name in words.DROPPED_TAGS:
            self.out.append("\n" if name == "table" else "")
            return self._skip(place, kinds.TagOpenOpen, kinds.TagCloseClose, kinds.TagCloseSelfclose)
        inside, depth = place + 2, 0
        attributes: list[str] = []
        while True:
            kind = tokens[inside].__class__
            if kind is kinds.TagOpenOpen:
                depth += 1
            elif depth and kind in (kinds.TagCloseClose, kinds.TagCloseSelfclose):
                depth -= 1
            elif not depth and kind in (kinds.TagCloseOpen, kinds.TagCloseSelfclose):
                break
            elif kind is kinds.Text:
                attributes.append(tokens[inside]["text"])
            inside += 1
        if attributes and "display:none" in "".join(attributes).replace(" ", "").lower():
            return self._skip(place, kinds.TagOpenOpen, kinds.TagCloseClose, kinds.TagCloseSelfclose)
        if markup == ":" and self.out and not self.out[-1].endswith("\n"):
            self.out.append(": ")  # `; term : what it means`
        elif name in words.LINE_TAGS and not (markup and markup in "*#:;"):
            self.out.append("\n")
        return inside + 1

    def _end_tag(self, place: int, _token: Any) -> int:
        name = self.tokens[place + 1]
        if name.__class__ is self.kinds.Text and name["text"].strip().lower() in words.LINE_TAGS:
            self.out.append("\n")
        while self.tokens[place].__class__ is not self.kinds.TagCloseClose:
            place += 1
        return place + 1
