"""Rates of each step from a dump to indexed tokens on one core, and the hours that a given number of cores takes.

  taskset -c 0 chrt -r 1 python benchmarks/corpora.py [DUMP.xml.bz2] [--vocab bert-vocab.txt] [--text FILE ...]

Without flags: the largest English dump, the vocabulary and the texts of `material.py`.

The work on pieces, which any number of processes or machines shares, is measured apart from what the one process does
that cuts the input and writes the output: the same run is done again with the results of all pieces at hand. The best
of some repeats counts. A dump of 13 MB or more is cut into pieces as long as those of a whole Wikipedia.
"""

from __future__ import annotations

import argparse
import bz2
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import material
from megabert import runtime
from megabert.corpora import bzip2_blocks, wikipedia
from megabert.data.encoding import Reading
from megabert.data.preprocess import tokenize
from megabert.tokenization import opening

WIKIPEDIA = {"packed": 21e9, "xml": 100e9}
PAPER = 174e9  # bytes of text


class Kept:
    """An executor that keeps the results of its first run, and gives them in the second."""

    def __init__(self) -> None:
        self.results: list[Any] = []
        self.seconds = 0.0

    def first(self, make: Any, arguments: Any, items: Any, workers: int) -> Any:
        """Compute, and take the time of it."""
        function = make(*arguments)
        for item in items:
            start = time.perf_counter()
            self.results.append(function(item))
            self.seconds += time.perf_counter() - start
            yield item, self.results[-1]

    def again(self, make: Any, arguments: Any, items: Any, workers: int) -> Any:
        """Give what was computed."""
        yield from zip(items, self.results, strict=True)


def both(run: Callable[[Any, Path], Any], folder: Path, name: str) -> tuple[float, float]:
    """Seconds of (the work on pieces, the process that writes)."""
    kept = Kept()
    run(kept.first, folder / f"{name}-first")
    start = time.perf_counter()
    run(kept.again, folder / f"{name}-again")
    return kept.seconds, time.perf_counter() - start


def measure(dump: Path, texts: list[Path], vocabulary: Path, folder: Path) -> dict[str, Any]:
    """MB/s of each step; of a dump in bytes of its XML, of texts in bytes of the files."""
    packed = dump.read_bytes()
    xml = len(bz2.decompress(packed)) / 1e6
    start = time.perf_counter()
    bzip2_blocks.unpack_part(dump, 0, len(packed))
    rates: dict[str, Any] = {"unpack": xml / (time.perf_counter() - start)}
    counts = []

    def extract(executor: runtime.MapInOrder, out: Path) -> None:
        counts.append(wikipedia.extract(dump, out, workers=1, map_in_order=executor).counts)

    work, writing = both(extract, folder, "wiki")
    rates |= {"extract": xml / work, "extract, writer": xml / writing, "pages a second": counts[0].articles / work}
    rates["text of the XML"] = counts[0].text_bytes / 1e6 / xml
    texts = texts or [folder / "wiki-first" / "part-00000.jsonl"]
    tokenizer = opening.load(vocabulary)
    size = sum(path.stat().st_size for path in texts) / 1e6
    for dedup in ("none", "exact", "minhash"):
        reading = Reading(dedup=dedup)

        def encode(executor: runtime.MapInOrder, out: Path, reading: Reading = reading) -> None:
            tokenize(texts, tokenizer, out, reading=reading, workers=1, map_in_order=executor)

        work, writing = both(encode, folder, dedup)
        rates |= {f"tokenize, dedup {dedup}": size / work, f"tokenize, dedup {dedup}, writer": size / writing}
    rates["MB of text"] = size
    return rates


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("dump", type=Path, nargs="?")
    parser.add_argument("--vocab", type=Path)
    parser.add_argument("--text", type=Path, nargs="*", default=[])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.dump is None:
        options.dump, options.text = material.largest_dump(), options.text or material.texts(20_000_000)
    options.vocab = options.vocab or material.vocabulary()
    rates: dict[str, Any] = {}
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as name:
            found = measure(options.dump, options.text, options.vocab, Path(name))
        rates = {step: max(rate, rates.get(step, 0)) for step, rate in found.items()}
    for step, rate in rates.items():
        print(f"{step:32} {rate:10.2f}")
    wiki_text = WIKIPEDIA["xml"] * rates["text of the XML"]
    for what, size, step in (
        ("Wikipedia: extract", WIKIPEDIA["xml"], "extract"),
        ("Wikipedia: tokenize", wiki_text, "tokenize, dedup none"),
        ("174 GB: tokenize", PAPER, "tokenize, dedup none"),
        ("174 GB: tokenize, near duplicates", PAPER, "tokenize, dedup minhash"),
    ):
        hours = size / 1e6 / rates[step] / 3600
        writer = size / 1e6 / rates[f"{step}, writer"] / 3600
        table = ", ".join(f"{cores} cores {max(hours / cores, writer):.1f} h" for cores in (16, 64, 256))
        print(f"{what:36} {hours:8.1f} core hours; its writer {writer:.1f} h: {table}")
    if options.json:
        options.json.write_text(json.dumps(rates, indent=1))


if __name__ == "__main__":
    main()
