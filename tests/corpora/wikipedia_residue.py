"""Counts what an extraction missed of a dump: articles, and lines with markup left in them.

  python tests/corpora/wikipedia_residue.py DUMP ...

Prints one line a dump: articles found and wanted (pages of namespace 0 without `<redirect`, counted by other
means), articles without text, pages that were skipped or read coarsely, lines, lines with residue and their share.
"""

import bz2
import json
import re
import sys
import tempfile
from pathlib import Path

from megabert.corpora import wikipedia

RESIDUE = re.compile(
    r"\[\[|\]\]|\{\{|\}\}|\{\||\|\}|'''|\bthumb\||<!--|__[A-Z]{3,}__|^\s*(?:\||!!|! )|^=="
    r"|&(?:nbsp|amp|lt|gt|quot|ndash|mdash|#\d+);"
    r"|</?(?:ref|references|br|div|span|small|big|center|table|tr|td|th|gallery|math|sup|sub|blockquote|nowiki|font|poem"
    r"|i|b|u|p|s|li|ul|ol|dl|dd|code|tt|pre|cite|del|ins|source|syntaxhighlight|timeline|imagemap|onlyinclude)\b[^<>]*>",
    re.IGNORECASE,
)  # fmt: skip


def wanted(dump):
    """Articles of a dump, by a plain count of its XML."""
    data = dump.read_bytes()
    data = bz2.decompress(data) if data.startswith(b"BZh") else data
    text = data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8")
    heads = (page.partition("<revision")[0] for page in text.split("<page>")[1:])
    return sum("<ns>0</ns>" in head and "<redirect" not in head for head in heads)


def lines_of(folder):
    """(title, line) of all texts that were written."""
    for path in sorted(Path(folder).glob("part-*.jsonl")):
        for record in map(json.loads, path.open(encoding="utf-8")):
            for line in record["text"].split("\n"):
                yield record["title"], line


def measure(dump, folder):
    """(counts, articles wanted, number of lines, lines with residue) of one dump, extracted to `folder`."""
    counts = wikipedia.extract(dump, Path(folder), workers=1).counts
    lines = list(lines_of(folder))
    return counts, wanted(dump), len(lines), [(title, line) for title, line in lines if RESIDUE.search(line)]


def main(dumps):
    total = left = 0
    for dump in dumps:
        with tempfile.TemporaryDirectory() as folder:
            counts, articles, lines, found = measure(Path(dump), folder)
        total, left = total + lines, left + len(found)
        print(
            f"{Path(dump).name[:44]:44} articles {counts.articles} of {articles}, {counts.empty} empty, "
            f"{counts.skipped} skipped, {counts.coarse} coarse; residue in {len(found)} of {lines} lines "
            f"({100 * len(found) / max(lines, 1):.3f} %)"
        )
        for title, line in found[:5]:
            place = RESIDUE.search(line).start()
            print(f"    {title}: ...{line[max(place - 40, 0) : place + 60]}")
    print(f"all: residue in {left} of {total} lines ({100 * left / max(total, 1):.4f} %)")


if __name__ == "__main__":
    main(sys.argv[1:])
