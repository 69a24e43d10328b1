"""Extraction beside WikiExtractor 3.1.0: pages a second of both on the same dump, with as many processes each.

  python benchmarks/extract.py [DUMP ...] [--processes 2] [--repeats 3] [--copies 8] [--json out.json]

WikiExtractor is AGPL: it is installed into a virtual environment of its own, run as a program, never imported. The
dumps' pages are joined and repeated `--copies` times, so that starting a program does not count; both sides run by
turns, and the medians are compared. Once WikiExtractor expands templates (its default), once it does not. Without a
dump it is the largest English one of `material.py`.
"""

from __future__ import annotations

import argparse
import bz2
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

import material

PACKAGE = "wikiextractor==3.1.0"


def installed(folder: Path) -> Path:
    """The program, in an environment of its own below `folder`."""
    program = folder / "bin" / "wikiextractor"
    if not program.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", PACKAGE], check=True)
    return program


def joined(dumps: list[Path], copies: int, target: Path) -> tuple[int, int]:
    """Write one dump of all pages, `copies` times; returns (articles, bytes of XML)."""
    pages, head = [], b"<mediawiki>\n"
    for path in dumps:
        data = bz2.decompress(path.read_bytes()) if path.suffix == ".bz2" else path.read_bytes()
        first, last = data.index(b"<page>"), data.rindex(b"</page>") + len(b"</page>")
        head = max(head, data[:first], key=len)
        pages.append(data[first:last])
    body = b"\n".join(pages * copies)
    target.write_bytes(bz2.compress(head + body + b"\n</mediawiki>\n"))
    found = re.findall(rb"<ns>0</ns>(?:(?!</page>|<redirect|<revision).)*<revision", body, re.DOTALL)
    return len(found), len(body)


def timed(command: list[str], folder: Path) -> tuple[float, float, int]:
    """(seconds of the wall's clock, of the processors, bytes written) of one run."""
    shutil.rmtree(folder, ignore_errors=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder.parent)
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, used, sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("dumps", nargs="*", type=Path)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--copies", type=int, default=8)
    parser.add_argument("--environment", type=Path, default=Path(tempfile.gettempdir()) / "wikiextractor-3.1.0")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    dumps = options.dumps or [material.largest_dump()]
    program = str(installed(options.environment))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dump = folder / "dump.xml.bz2"
        articles, size = joined(dumps, options.copies, dump)
        count, out = str(options.processes), folder / "out"
        theirs = [program, str(dump), "--json", "--quiet", "--processes", count, "--output", str(out)]
        ours = [sys.executable, "-m", "megabert", "extract", str(dump), "--output", str(out), "--workers", count]
        sides = {"megabert": ours, "WikiExtractor": theirs, "WikiExtractor --no-templates": [*theirs, "--no-templates"]}
        runs: dict[str, list[tuple[float, float, int]]] = {side: [] for side in sides}
        for _ in range(options.repeats):
            for side, command in sides.items():
                runs[side].append(timed(command, out))
    print(f"{articles:,} articles, {size / 1e6:.1f} MB of XML, {count} processes, {os.cpu_count()} cores; medians of "
          f"{options.repeats}")  # fmt: skip
    table = {}
    for side, values in runs.items():
        seconds, used = (statistics.median(value[index] for value in values) for index in (0, 1))
        table[side] = {"pages_per_second": articles / seconds, "seconds": seconds, "processor_seconds": used}
        print(f"{side:30} {articles / seconds:9.1f} pages/s {seconds:8.2f} s {used:8.2f} s of processors "
              f"{values[0][2] / 1e6:8.1f} MB written")  # fmt: skip
    for side in list(sides)[1:]:
        ratio = table[side]["ratio"] = table["megabert"]["pages_per_second"] / table[side]["pages_per_second"]
        print(f"ratio to {side}: {ratio:.2f}")
    if options.json:
        options.json.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
