"""What stands in a sentence for a template that is part of it; any other template says nothing in running text.

A template expands to what a wiki's own pages of templates say, which a dump of articles does not hold. The tables keep
the words that an author wrote into the sentence; names are those of the larger Wikipedias, in lower case with blanks.
"""

from __future__ import annotations

import re

_FIRST, _SECOND, _LAST, _JOINED, _GLUED = "first", "second", "last", "joined", "glued"


def _each(names: str, way: str) -> dict[str, str]:
    return {" ".join(name.split()): way for name in names.split("|")}


# What of the arguments is kept: one of them, or all in some way.
KEPT = (
    _each(
        """
        nowrap|nobr|nobreak|no wrap|no break|nowrap begin|small|smaller|big|larger|em|strong|sc|smallcaps|abbr|tooltip|
        blockquote|quote|cquote|quotation|center|val|num|nombre|nb|formatnum|fmtn|visible anchor|vanchor|mono|kbd|code|
        math|mvar|var|ill|interlanguage link|illm|not a typo|sic|citation needed span|poemquote|verse translation|zh-cn|
        angbr|script/hebrew|script/arabic|nihongo|gloss|chiarire|citazione necessaria|maiuscoletto|
        polytonic|railgauge|nts|iast|lit|literal translation|linktext|keypress|key press|chem2|sup|sub|clarify span|
        仮リンク|unicode|nobold|noitalic|ta|s-|date-
        """,
        _FIRST,
    )
    | _each("lang|langue|langx|llang|lang2|sort", _SECOND)
    | _each("transl|transliteration|tlit|resize|color|font color|w", _LAST)
    | _each("ship|date|bibleverse|date de naissance", _JOINED)
    | _each("chem", _GLUED)
    | _each("frac|fraction|sfrac", "fraction")
    | _each("cog|noncog|mention|l|link", "word 2")  # of Wiktionary, as the next
    | _each("der|inh|bor|lbor|der+|inh+|bor+|derived|inherited|borrowed", "word 3")
    | _each("convert|cvt|unité|unit", "measure")
    | _each("start date|end date|birth date|death date|dts", "date")
    | {
        "as of": "as of", "uss": "before USS ", "hms": "before HMS ", "ss": "before SS ", "us$": "before US$",
        "usd": "before US$", "a$": "before A$", "gbp": "before £", "£": "before £", "eur": "before €", "€": "before €",
        "¥": "before ¥", "inr": "before ₹", "₹": "before ₹", "séc": "before século ", "siglo": "before siglo ",
        "m": "measure or word", "s": "century", "sp-": "century", "euro": "after  €", "heure": "hour",
        "incise": "aside", "tmp": "prefixed measure",
    }
)  # fmt: skip
PLAIN = {
    "'": "'", "'s": "'s", "`": "'", "ndash": "–", "mdash": "—", "snd": " – ", "spaced ndash": " – ", "snds": " – ",
    "spaced en dash": " – ", "nbsp": " ", "space": " ", "sp": " ", "thinsp": " ", "!": "|", "=": "=", "dot": " · ",
    "·": " · ", "•": " • ", "bull": " • ", "bullet": " • ", "middot": " · ", "circa": "c. ", "c.": "c. ", "ca.": "c. ",
    "--": "—", "—": "—", "–": "–", "spd": " – ", "emdash": "—", "endash": "–", "okina": "ʻ", "hamza": "ʼ", "ayin": "ʽ",
    "year": "", "pi": "π", "degree": "°", "deg": "°", "times": "×", "minus": "−", "e": "e", "...": "…", "er": "er",
    "ère": "ère", "ier": "Ier", "ière": "Ière", "n°": "no", "av jc": "av. J.-C.", "av. j.-c.": "av. J.-C.",
    "ap jc": "apr. J.-C.", "m s.l.m.": "m s.l.m.", "tex": "TeX", "latex": "LaTeX", "co2": "CO2", "h2o": "H2O",
    "b.c.e.": "BCE", "bce": "BCE", "ce": "CE", "bc": "BC", "ad": "AD", "dag": "†", "ddag": "‡", "sharp": "♯",
    "flat": "♭", "$": "$", "',": "',", "'\"": "'\"", "\"'": "\"'",
}  # fmt: skip
# Codes of {{convert}} as they are written in a text; the words only where the number is no adjective.
_UNITS = {
    "C": "°C", "F": "°F", "km2": "km²", "sqkm": "km²", "m2": "m²", "sqm": "m²", "m3": "m³", "sqmi": "sq mi",
    "mi2": "sq mi", "sqft": "sq ft", "ft2": "sq ft", "/km2": "per km²", "/sqmi": "per sq mi", "cuft": "cu ft",
    "cumi": "cu mi",
}  # fmt: skip
_UNIT_WORDS = {
    "acre": "acres", "mi": "miles", "in": "inches", "lb": "pounds", "nmi": "nautical miles", "kn": "knots",
    "oz": "ounces", "yd": "yards",
}  # fmt: skip
_MONTHS = "January February March April May June July August September October November December".split()
_RANGES = ("-", "–", "to", "and", "by", "x", "×", "or", "xx", "to(-)", "à", "et")
_CENTURY = re.compile(r"[IVXLC]+", re.IGNORECASE)
_ROMAN_CENTURY = re.compile(r"[ivxlc]+e( siècle)?")
_NUMBER = re.compile(r"[-−+]?[\d.,\s]+\Z")
# One template for each language: {{lang-de|text}}, the same of the Latgalian wiki, {{link-de|text|title there}}.
_FAMILIES = ("formatnum:", "lang-", "vol-", "link-")
_TEXT_KEYS = ("text", "texte", "testo", "texto")


def is_kept(name: str) -> bool:
    """Whether a template, by its name in lower case, is part of a sentence."""
    return name in KEPT or name in PLAIN or name.startswith(_FAMILIES) or _ROMAN_CENTURY.fullmatch(name) is not None


def is_plain(name: str) -> bool:
    """Whether a template without arguments stands for a text of its own."""
    return name in PLAIN or name.startswith("formatnum:") or _ROMAN_CENTURY.fullmatch(name) is not None


def text_of(name: str, arguments: list[list[str]]) -> str:
    """What stands in the sentence for a template that `is_kept`.

    Args:
        arguments: [key or "", value] of each, as they are written.
    """
    if name.startswith("formatnum:"):
        return name.removeprefix("formatnum:")
    given = [value.strip() for key, value in arguments if not key or key in _TEXT_KEYS or key.isdigit()]
    if name in PLAIN:
        return PLAIN[name] + (given[0] if given and name in ("circa", "c.", "ca.") else "")
    if _ROMAN_CENTURY.fullmatch(name):  # {{XIXe siècle}} is its own text
        roman, e, rest = name.partition("e")
        return roman.upper() + e + rest
    if not given:
        return ""
    way = KEPT.get(name, _FIRST)  # the others are of _FAMILIES
    if way in (_FIRST, _LAST):
        unit = next((value.strip() for key, value in arguments if key in ("u", "ul")), "") if name == "val" else ""
        return f"{given[0 if way == _FIRST else -1]} {unit}".rstrip()
    if way == _SECOND:
        return given[1] if len(given) > 1 else ""
    if way in (_JOINED, _GLUED):
        return (" " if way == _JOINED else "").join(given)
    return _composed(way, given, {key: value.strip() for key, value in arguments})


def _composed(way: str, given: list[str], named: dict[str, str]) -> str:
    """Ways in which words are added or arguments are put in another order."""
    if way.startswith("before "):
        return way.removeprefix("before ") + given[0]
    if way.startswith("after "):
        return given[0] + way.removeprefix("after ")
    if way == "measure":
        return _measure(given, in_words=named.get("abbr") != "on" and named.get("adj") != "on")
    if way in ("prefixed measure", "measure or word"):
        if way == "measure or word" and not _NUMBER.match(given[0]):
            return _word(given, 2)  # Italian {{M|1|c|m}} is a measure, Wiktionary's {{m|la|mare}} a word
        return f"{given[0]} {''.join(given[1:3])}".rstrip()
    if way.startswith("word "):
        return _word(given, int(way.removeprefix("word ")))
    if way == "as of":
        return f"{'as of' if 'lc' in named else 'As of'} {_date(given, day_first=True)}"
    if way == "date":
        return _date(given, day_first="df" in named)
    if way == "fraction":
        return "/".join(given[-2:]) if len(given) < 3 else f"{given[0]} {given[1]}/{given[2]}"
    if way == "century":  # {{s|XIX|e}}: XIXe siècle; elsewhere {{s}} names a topic
        return f"{''.join(given[:2])} siècle" if len(given) > 1 and _CENTURY.fullmatch(given[0]) else ""
    if way == "hour":
        return " h ".join(given[:2]) if len(given) > 1 else f"{given[0]} h"
    assert way == "aside"
    return f"– {given[0]} –"


def _word(given: list[str], place: int) -> str:
    """The word behind the codes of languages, as it is to be shown where that is given too."""
    shown = next((word for word in reversed(given[place - 1 : place + 1]) if word), "")
    return "" if shown == "-" else shown


def _date(given: list[str], *, day_first: bool) -> str:
    """Year, month and day, of which the later ones may be missing; a month may be a number."""
    year, month, day = (*given[:3], "", "")[:3]
    if month.isdecimal() and 1 <= int(month) <= 12:
        month = _MONTHS[int(month) - 1]
    elif month.isdecimal():
        return " ".join(given[:3])
    if day and not day_first:
        return f"{month} {day}, {year}"
    return " ".join(part for part in (day, month, year) if part)


def _measure(given: list[str], *, in_words: bool) -> str:
    """`{{convert|5|to|6|km2}}`, French `{{unité|5|km}}`: numbers and the unit."""
    if len(given) == 1:
        return given[0]
    if len(given) > 3 and given[1] in _RANGES:
        low, between, high, unit = given[:4]
        number = f"{low}–{high}" if between in ("-", "–") else f"{low} {between} {high}"
    else:
        number, unit = given[:2]
    word = _UNIT_WORDS.get(unit) if in_words else None
    return f"{number} {word or _UNITS.get(unit, unit)}".rstrip()
