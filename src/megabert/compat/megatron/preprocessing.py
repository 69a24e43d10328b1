"""Megatron-LM's `tools/preprocess_data.py` with the flags of v1.0 to v2.6, on `megabert tokenize`.

  python tools/preprocess_data.py --input wiki.json --output-prefix my-bert --vocab-file bert-vocab.txt \\
      --dataset-impl mmap --tokenizer-type BertWordPieceLowerCase --split-sentences
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from megabert import config as configuration
from megabert.commands import tokenize
from megabert.config import option

PROGRAM = "preprocess_data.py"


@dataclass(frozen=True, kw_only=True)
class Config(tokenize.Config):
    """The script: what `megabert tokenize` takes, and what only the script had."""

    json_keys: tuple[str, ...] = option(("text",), "keys of the JSON objects, each to a data set of its own")
    text_key: str = dataclasses.field(default="text", metadata={**option("", "")})
