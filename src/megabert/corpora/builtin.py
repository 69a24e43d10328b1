"""The embedded corpus: the English documentation of Python and of the packages that megabert needs.

Source files are read as text and never imported or run. Documentation strings are found by a pattern and not by
parsing: on the same 120 MB of source, parsing took ten times as long.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import json
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from megabert import runtime
from megabert.corpora import prose
from megabert.corpora.document import Document

# All of them come with megabert's own requirements.
PACKAGES = ("torch", "numpy", "transformers", "matplotlib", "sympy", "networkx", "huggingface_hub", "fsspec", "jinja2")
_SKIPPED_FOLDERS = {
    "test", "tests", "testing", "idle_test", "idlelib", "lib2to3", "_vendor", "site-packages", "dist-packages",
    "__pycache__", "ensurepip", "turtledemo",
}  # fmt: skip
# Transformers generates its modeling files from these.
_SKIPPED_PREFIXES = ("modular_", "test_", "convert_")
_STRING = re.compile(r"""(?P<quotes>\"\"\"|\'\'\')(?P<body>.*?)(?<!\\)(?P=quotes)""", re.DOTALL)
_PREFIX = re.compile(r"[A-Za-z]*$")
# Long enough for a few training samples, short enough that held-out documents are many.
_DOCUMENT_CHARACTERS = 6000
# How often a sentence may occur, names and numbers apart: phrases that documentation lives on, not whole templates.
_REPEATS = 30
# Read as what it names, not as text, by a tokenizer.
_SPECIAL = re.compile(r"\[(?:PAD|UNK|CLS|SEP|MASK)\]")
_NAME = re.compile(r"\S*[A-Z0-9_]\S*")


def documents(packages: Sequence[str] = PACKAGES) -> Iterator[Document]:
    """The documents of the corpus: some paragraphs that stand together in one module, sentences in their order.

    The order is that of a hash, so that packages are mixed; equal packages give equal documents. Left out are sentences
    that came often before, up to names and numbers, and documents that came before. About 16 MB in ten seconds.

    Args:
        packages: whose documentation to read beside the standard library's; one that is not installed is passed over.
    """
    seen: Counter[str] = Counter()
    found: dict[bytes, Document] = {}  # by the hash of the text: equal documents are one
    for title, objects in _modules(packages):
        for part in _parts(objects, seen):
            document = Document("\n".join(part), title)
            found.setdefault(hashlib.sha256(document.text.encode()).digest(), document)
    for digest in sorted(found):
        yield found[digest]


def write(path: Path, items: Iterable[Document]) -> None:
    """Write documents as loose JSON, one `{"text": ..., "title": ...}` a line; the file appears when it is whole."""
    with runtime.atomic_write(path) as file:
        for item in items:
            file.write(json.dumps({"text": item.text, "title": item.title}, ensure_ascii=False) + "\n")


def _modules(packages: Sequence[str]) -> Iterator[tuple[str, list[list[str]]]]:
    """(name of a module, paragraphs of each of its objects), sorted by name."""
    roots = {"python": Path(sysconfig.get_paths()["stdlib"])}
    for package in packages:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.submodule_search_locations:
            roots[package] = Path(spec.submodule_search_locations[0])
    for package, root in roots.items():
        for path in sorted(root.rglob("*.py")):
            relative = path.relative_to(root)
            if _SKIPPED_FOLDERS.intersection(relative.parts) or path.name.startswith(_SKIPPED_PREFIXES):
                continue
            try:
                source = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            if relative.parts == ("pydoc_data", "topics.py"):
                texts = _topics(source)
            else:
                texts = [[text] for text in documentation_strings(source)]
            objects = [[line for text in group for line in prose.paragraphs(text)] for group in texts]
            if any(objects):
                yield ".".join((package, *relative.with_suffix("").parts)).removesuffix(".__init__"), objects


def documentation_strings(source: str) -> Iterator[str]:
    """The triple-quoted strings of a Python file that may be documentation, indentation taken off, in order."""
    for match in _STRING.finditer(source):
        body = match["body"]
        if len(body) < 40:
            continue
        start = match.start()
        prefix = _PREFIX.search(source[max(start - 3, 0) : start])[0].lower()  # type: ignore[index]
        if "b" in prefix or "f" in prefix:
            continue
        if "\\" in body and "r" not in prefix:
            try:
                with warnings.catch_warnings(action="ignore"):  # of escapes that are none
                    body = ast.literal_eval(match["quotes"] + body + match["quotes"])
            except (SyntaxError, ValueError):
                continue
        yield inspect.cleandoc(body)


def _topics(source: str) -> list[list[str]]:
    """The language reference: one dictionary of long strings."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Dict):
            values = (ast.literal_eval(value) for value in node.values)
            return [[inspect.cleandoc(value)] for value in values if isinstance(value, str)]
    return []


def _parts(objects: list[list[str]], seen: Counter[str]) -> Iterator[list[str]]:
    """Documents of a module: objects joined until they are long enough, repeated sentences left out."""
    part: list[str] = []
    length = count = 0
    for lines in (*objects, []):
        for line in lines:
            new = [
                sentence
                for sentence in prose.sentences(line)
                if not _SPECIAL.search(sentence) and _is_new(sentence, seen)
            ]
            if new:
                part.append(" ".join(new))
                length += len(part[-1])
                count += len(new)
        if length >= _DOCUMENT_CHARACTERS or (not lines and count >= 2):
            yield part
            part, length, count = [], 0, 0


def _is_new(sentence: str, seen: Counter[str]) -> bool:
    head, _, tail = sentence.partition(" ")
    key = f"{head} {_NAME.sub('#', tail)}".lower()
    seen[key] += 1
    return seen[key] <= _REPEATS
