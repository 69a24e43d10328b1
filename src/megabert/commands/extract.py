"""Take the text out of a Wikipedia dump: one JSON object an article, as WikiExtractor --json writes them.

  megabert extract enwiki-latest-pages-articles.xml.bz2 --output wiki
  megabert extract folder-of-parts --output wiki --workers 16
  megabert extract folder-of-parts --output wiki --executor ray

Articles only: redirects and all other namespaces are left out, by the dump's own table, in any language. What remains
is text with its paragraphs and headings. The output is the input of `megabert tokenize` and `megabert pretrain`. An
interrupted command goes on where it stopped when it is given again.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from megabert import executors, runtime
from megabert.config import option
from megabert.executors import ExecutorOptions

if TYPE_CHECKING:
    from megabert.corpora.wikipedia import Progress

SUMMARY = "take the text out of a Wikipedia dump"


@dataclass(frozen=True, kw_only=True)
class Config(ExecutorOptions):
    """The command."""

    dump: Path | None = option(
        None, "a MediaWiki dump: .xml, plain or packed by bzip2 (one stream or many), gzip, xz or zstd, or a folder of "
        "its parts", positional=True,
    )  # fmt: skip
    output: Path | None = option(
        None, "folder to write part-00000.jsonl and so on to", metavar="FOLDER", example="wiki"
    )
    workers: int | None = option(
        None,
        "processes; left out, one for each core (of the cluster)",
        minimum=1,
        maximum=1024,
        aliases=("processes",),
        example="16",
    )
    file_size: int = option(256, "megabytes after which a file is ended and the next begun", minimum=1, example="1024")
    log_interval: float = option(5, "seconds between two lines of progress (0: none)", minimum=0, example="30")


def run(config: Config) -> None:
    """Extract and say what was written.

    Raises:
        ValueError, OSError: flags that are missing, a dump that cannot be read, a folder that cannot be written.
    """
    if config.dump is None:
        raise ValueError("a dump is missing: name a .xml or .xml.bz2 file, or a folder of parts")
    if config.output is None:
        raise ValueError("--output is missing: name the folder to write to, e.g. --output wiki")
    if config.output.exists() and not config.output.is_dir():
        raise ValueError(f"--output: {config.output} is a file; a folder is needed")
    from megabert.corpora import wikipedia, wikipedia_output

    with executors.chosen(config, config.workers) as (map_in_order, workers):
        result = wikipedia.extract(
            config.dump, config.output, workers=workers, file_bytes=config.file_size << 20,
            on_progress=_report if config.log_interval else None, seconds_between_reports=config.log_interval,
            map_in_order=map_in_order,
        )  # fmt: skip
    counts = result.counts
    print(
        f"{config.output}/part-*.jsonl: {counts.written:,} articles of {counts.articles:,}, "
        f"{counts.text_bytes / 1e6:,.1f} MB; {result.dump_bytes / 1e6:,.1f} MB of the dump read in "
        f"{runtime.duration(result.seconds)}"
    )
    if counts.empty:
        print(f"{counts.empty:,} articles hold no text, only templates or tables: not written")
    if counts.coarse:
        print(f"{counts.coarse:,} articles defeated the parser and were read by patterns")
    report = config.output / wikipedia_output.REPORT
    if counts.skipped or (report.exists() and not counts.unended):
        print(f"{counts.skipped:,} pages could not be read; see {report}")
    if counts.unended:
        print(
            f"warning: {counts.unended:,} of the dump's files {'has' if counts.unended == 1 else 'have'} no end and "
            f"may hold a part of the pages only: was the download cut short? See {report}"
        )


def _report(progress: Progress) -> None:
    print(progress, file=sys.stderr, flush=True)
