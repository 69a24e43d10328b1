"""Join, cut or check indexed data (.bin and .idx) as whole files, without its text.

  megabert data merge data/part-0 data/part-1 --output data/all        also a folder: all data sets in it, by name
  megabert data split data/all --output data/wiki --split 98,1,1       data/wiki_train, _valid, _test
  megabert data verify data/all data/wiki_train                        every byte; exit status 2 if one is wrong

The older TNTIDX format is read, too: `megabert data merge OLD --output NEW` writes it anew.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from megabert.config import option

SUMMARY = "join, cut or check indexed data"


@dataclass(frozen=True, kw_only=True)
class Config:
    """The command."""

    action: Literal["merge", "split", "verify"] = option(dataclasses.MISSING, "what to do", positional=True)
    input: tuple[Path, ...] = option(
        dataclasses.MISSING, "prefixes of indexed data, or folders that hold some", positional=True
    )
    output: Path | None = option(
        None, "prefix of the data to write", aliases=("output-prefix",), metavar="PREFIX", example="data/all"
    )
    split: str = option(
        "949,50,1", "shares of training, validation and test, by documents, in their order", example="98,1,1"
    )


def run(config: Config) -> None:
    """Do it, and say what was done.

    Raises:
        ValueError, OSError: damaged data, data that does not fit together, a file that cannot be written.
    """
    from megabert.data import blend, indexed, joining

    prefixes = _prefixes(config.input)
    say = partial(print, flush=True)
    if config.action == "verify":
        for prefix in prefixes:
            facts = indexed.verify(prefix)
            say(
                f"{prefix}: whole: {facts['documents']:,} documents, {facts['sentences']:,} sentences, "
                f"{facts['tokens']:,} tokens of {facts['dtype']}"
                + (
                    ""
                    if facts["checksums"]
                    else "; there are no checksums beside it, so the tokens are not vouched for"
                )
            )
        return
    if config.output is None:
        raise ValueError("--output is missing: name the prefix of the data to write, such as data/all")
    if config.action == "merge":
        joining.merge(prefixes, config.output, say=say)
    elif len(prefixes) > 1:
        raise ValueError(f"split cuts one data set, but {len(prefixes)} were named; merge them first")
    else:
        joining.split(prefixes[0], config.output, blend.parse_split(config.split), say=say)


def _prefixes(given: tuple[Path, ...]) -> list[Path]:
    """The data sets that the paths name; those of a folder by their names.

    Raises:
        ValueError: one of the paths names none.
    """
    from megabert.data.indexed import find_prefix

    found: list[Path] = []
    for path in given:
        if path.is_dir():
            inside = sorted(file.with_name(file.name[:-4]) for file in path.glob("*.idx"))
            if not inside:
                raise ValueError(f"{path} holds no indexed data (no file *.idx)")
            found += inside
        else:
            prefix = find_prefix(path)
            if prefix is None:
                raise ValueError(f"{path}: there is no indexed data of this name (no file {path}.idx)")
            found.append(prefix)
    return found
