"""The map of samples: sentences a second, on made documents of the shape of Wikipedia's.

  python benchmarks/sample_map.py [--sentences 10000000] [--repeats 5] [--json FILE]
  taskset -c 0 chrt -r 1 python benchmarks/sample_map.py        on one core, undisturbed

One row for one epoch of next-sentence pairs at sequence length 512, and the same without shuffling, and with sequences
of 128; by numpy alone, and by numba's loops (`pip install 'megabert[compiled]'`). Equality with Megatron's own numbers
is a matter of the tests.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from pathlib import Path

import numpy as np

from megabert.data import pairs, sample_loops


def made(sentences: int) -> tuple[np.ndarray, np.ndarray]:
    """(document boundaries, tokens of each sentence): about 20 sentences of 27 tokens, both widely spread."""
    generator = np.random.default_rng(1)
    sizes = np.clip(generator.lognormal(3.1, 0.6, sentences), 1, 700).astype(np.int32)
    lengths = np.clip(generator.lognormal(2.5, 1.0, sentences // 10), 1, 3000).astype(np.int64)
    ends = np.cumsum(lengths)
    return np.concatenate([[0], ends[ends < sentences], [sentences]]), sizes


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sentences", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    documents, sizes = made(options.sentences)
    print(f"{len(sizes):,} sentences in {len(documents) - 1:,} documents, {sizes.mean():.1f} tokens on average")
    table = {}
    cases = [("512", 509, True), ("512, in order", 509, False), ("128", 125, True)]
    ways = [("numpy", False), *([("compiled", True)] if sample_loops.usable() else [])]
    for (name, length, shuffle), (way, compiled) in itertools.product(cases, ways):
        seconds = []
        for number in range(options.repeats + 1):
            start = time.perf_counter()
            rows = pairs.build_sample_map(
                documents, sizes, length=length, short_seq_prob=0.1, seed=1234, least_sentences=2, shuffle=shuffle,
                compiled=compiled,
            )  # fmt: skip
            if number:  # the first one touches memory for the first time, or compiles
                seconds.append(time.perf_counter() - start)
        rate = len(sizes) / statistics.median(seconds) / 1e6
        table[f"{name}, {way}"] = {"samples": len(rows), "million_sentences_per_second": rate}
        print(f"sequence length {name:14} {way:9} {len(rows):10,} samples {rate:7.2f} M sentences/s")
    if options.json:
        options.json.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
