"""Megatron-LM's scripts by their names."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from megabert import cli, runtime
from megabert.config import nearest

USUAL = "pretrain_bert"
SCRIPTS = {
    USUAL: ("pretraining", "run"),
    "preprocess_data": ("preprocessing", "run"),
    "merge_datasets": ("corpora", "merge"),
    "presplit_sentences_json": ("corpora", "presplit"),
    "merge_mp_partitions": ("checkpoints", "merge"),
    "checkpoint_util": ("checkpoints", "reshard"),
    "convert": ("checkpoints", "reshard"),
}
"""Script -> the module and the function that take its arguments; `convert` is that of tools/checkpoint/."""


def main(arguments: Sequence[str] | None = None, script: str | None = None) -> int:
    """Run a script and return the exit status, as `megabert` does.

    Args:
        script: which one; None: the first argument says it, where it is no flag.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if script is None:
        script = Path(given.pop(0)).name.removesuffix(".py") if given and not given[0].startswith("-") else USUAL

    def job() -> None:
        if script not in SCRIPTS:
            raise ValueError(f"unknown script {script}{nearest(script, list(SCRIPTS))}; scripts: {', '.join(SCRIPTS)}")
        module, function = SCRIPTS[script]
        getattr(importlib.import_module(f"megabert.compat.megatron.{module}"), function)(given)

    def command() -> int:
        with runtime.termination_interrupts():
            return cli.guarded(f"{script}.py", job)

    return cli.to_the_end(command)
