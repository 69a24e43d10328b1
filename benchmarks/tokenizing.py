"""Tokenization beside Megatron-LM's algorithm: MB of text a second of both, with sentence splitting, same workers.

  python benchmarks/tokenizing.py [--vocab bert-vocab.txt] [--input a.jsonl ...] [--workers 2] [--json FILE]
  python benchmarks/tokenizing.py --memory 400                              peak memory of all processes, on 400 MB

The peer is `tokenize_peer.py`: nltk's Punkt and BERT's reference tokenizer in a multiprocessing pool, in a virtual
environment of its own. Both programs are timed from start to end, by turns; medians are compared. Before, the two are
given the same sentence breaks (nltk's), and their .bin and .idx files must be equal, byte for byte. Without flags,
text and vocabulary are those of `material.py`.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import venv
from pathlib import Path

import material

PEER = Path(__file__).with_name("tokenize_peer.py")
PACKAGES = ("nltk==3.10.4", "numpy")


def environment(folder: Path) -> Path:
    """The peer's Python, with nltk."""
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
        (folder / "ready").touch()
    return python


def gather(inputs: list[Path], target: Path) -> int:
    """Write all texts as loose JSON; returns characters."""
    from megabert.corpora import files
    from megabert.corpora.document import Document

    found = (item for path in inputs for item in files.read_documents(path))
    size = 0
    with target.open("w", encoding="utf-8") as file:
        for item in found:
            if isinstance(item, Document):
                file.write(json.dumps({"text": item.text}, ensure_ascii=False) + "\n")
                size += len(item.text)
    return size


def repeated(source: Path, target: Path, size: int) -> None:
    """A file of `size` bytes of the text, again and again."""
    content = source.read_bytes()
    with target.open("wb") as file:
        while file.tell() < size:
            file.write(content)


def seconds_of(command: list[str]) -> float:
    """Of the wall's clock, for the whole program."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def family(process: int) -> list[int]:
    """A process and all below it."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                parents[int(entry)] = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
    found = [process]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def memory_of(process: int) -> int:
    """Bytes of memory that a process has; pages that several share count in parts. File pages count, too."""
    try:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    except OSError:
        return 0
    return 0


def peak_of(command: list[str]) -> tuple[int, float]:
    """(most bytes that all processes of a program had at a time, seconds)."""
    start, peak = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        done = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(0.1):
                peak = max(peak, sum(map(memory_of, family(run.pid))))

        watcher = threading.Thread(target=watch)
        watcher.start()
        status = run.wait()
        done.set()
        watcher.join()
    if status:
        raise SystemExit(f"exit status {status}: {' '.join(command)}")
    return peak, time.perf_counter() - start


class Sides:
    """The two programs on one corpus."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        """Make the corpus, and what the peer needs."""
        self.folder, self.options = folder, options
        self.text = folder / "text.jsonl"
        self.characters = gather(options.input, self.text)
        self.case = ["--cased"] if options.cased else []

    def ours(self, source: Path, name: str, *more: str) -> list[str]:
        """Our program's command."""
        case = self.case or ["--no-cased"]
        return [sys.executable, "-m", "megabert", "tokenize", "--input", str(source), "--output",
                str(self.folder / name), "--tokenizer", str(self.options.vocab), *case, "--workers",
                str(self.options.workers), "--log-interval", "0", *more]  # fmt: skip

    def prepare_peer(self) -> None:
        """Environment, Punkt's parameters, and the text as Punkt splits it."""
        self.python = str(environment(self.options.environment))
        self.punkt, self.split = str(self.folder / "punkt.pickle"), self.folder / "split.jsonl"
        subprocess.run([self.python, str(PEER), "train", str(self.text), self.punkt], check=True)
        subprocess.run(
            [self.python, str(PEER), "split", str(self.text), str(self.split), "--punkt", self.punkt], check=True
        )

    def theirs(self, name: str) -> list[str]:
        """The peer's command."""
        return [self.python, str(PEER), "run", str(self.text), str(self.options.vocab), str(self.folder / name),
                "--punkt", self.punkt, "--workers", str(self.options.workers), *self.case]  # fmt: skip


def compare(sides: Sides, repeats: int) -> dict[str, float]:
    """Equal files given equal breaks, then the race."""
    subprocess.run(sides.theirs("peer"), check=True)
    subprocess.run(sides.ours(sides.split, "same", "--presplit-sentences"), check=True, stdout=subprocess.DEVNULL)
    for suffix in (".bin", ".idx"):
        if not filecmp.cmp(f"{sides.folder}/peer{suffix}", f"{sides.folder}/same{suffix}", shallow=False):
            raise SystemExit(f"the two {suffix} files differ, though the sentence breaks are the same")
    print("given the same sentence breaks, .bin and .idx are equal byte for byte")
    runs: dict[str, list[float]] = {"ours": [], "peer": []}
    for number in range(repeats):
        runs["ours"].append(seconds_of(sides.ours(sides.text, f"ours{number}")))
        runs["peer"].append(seconds_of(sides.theirs("peer")))
    megabytes = sides.text.stat().st_size / 1e6
    rates = {side: megabytes / statistics.median(values) for side, values in runs.items()}
    ratio = statistics.median([peer / ours for ours, peer in zip(runs["ours"], runs["peer"], strict=True)])
    print(f"{megabytes:.1f} MB, {sides.options.workers} workers, {os.cpu_count()} cores, medians of {repeats}: ours "
          f"{rates['ours']:.2f} MB/s, Megatron's algorithm {rates['peer']:.2f} MB/s, ratio {ratio:.2f}")  # fmt: skip
    return {"megabytes": megabytes, **rates, "ratio": ratio}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--vocab", type=Path)
    parser.add_argument("--cased", action="store_true", help="the vocabulary is cased")
    parser.add_argument("--input", nargs="*", type=Path, default=[])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", type=float, default=0, metavar="MB")
    parser.add_argument("--environment", type=Path, default=Path(tempfile.gettempdir()) / "megatron-tokenize-peer")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.vocab = options.vocab or material.vocabulary()
    options.input = options.input or material.texts(6_000_000)
    with tempfile.TemporaryDirectory() as name:
        sides = Sides(Path(name), options)
        if options.memory:
            large = Path(name) / "large.jsonl"
            repeated(sides.text, large, int(options.memory * 1e6))
            peak, seconds = peak_of(sides.ours(large, "large"))
            size = large.stat().st_size / 1e6
            print(f"{size:.0f} MB: {size / seconds:.2f} MB/s, peak of all processes {peak / 1e6:.0f} MB")
            result = {"megabytes": size, "peak_megabytes": peak / 1e6, "megabytes_per_second": size / seconds}
        else:
            sides.prepare_peer()
            result = compare(sides, options.repeats)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
