"""Tell what a run will need and how fast it will be, before anybody pays for it.

  megabert plan --config recipes/bert-3.9b.toml --world-size 512
  megabert plan --config recipes/bert-345m.toml --world-size 8 --hardware a100 --search

Every flag and recipe of `pretrain` is understood. One process of each kind is built and run on tensors without memory,
so parameters, optimizer and collectives are exact; times come from the cost model of docs/parallelism.md.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import partial
from typing import Literal

from megabert import runtime
from megabert.config import option
from megabert.planning.options import PlanOptions, RunOptions

SUMMARY = "memory, messages and speed of a run on any number of GPUs, without running it"


@dataclass(frozen=True, kw_only=True)
class Config(PlanOptions, RunOptions):
    """The command."""

    device: Literal["auto", "cpu", "cuda"] = option("auto", "of pretrain; a plan needs no device", hidden=True)
    workers: int | None = option(None, "of pretrain; a plan needs none", hidden=True, minimum=1)


def run(config: Config) -> None:
    """Print the plan, or the layouts that fit.

    Raises:
        ValueError: an impossible layout or batch, with the nearest possible one; no layout that fits.
    """
    from megabert.planning import report
    from megabert.planning.assembly import assemble
    from megabert.planning.hardware import HARDWARE
    from megabert.planning.plan import make_plan, with_gpus
    from megabert.planning.search import search
    from megabert.planning.subject import Subject

    subject = Subject.of(config, config.world_size)
    hardware = with_gpus(HARDWARE[config.hardware], config.gpus_per_node)
    if config.search:
        plans = search(subject, hardware, assemble, partial(print, file=sys.stderr, flush=True))
        if not plans:
            raise ValueError(
                f"no layout of {config.world_size} processes fits {hardware.title}: take more of them, a smaller "
                "--micro-batch-size, or other --hardware"
            )
        answer = [report.as_json(plan) for plan in plans]
        lines = list(report.as_search(plans))
    else:
        plan = make_plan(subject, hardware, assemble)
        answer, lines = report.as_json(plan), list(report.as_text(plan))
    written = json.dumps(answer, indent=1)
    if config.output is not None:
        with runtime.atomic_write(config.output) as file:
            file.write(written + "\n")
    print(written if config.json else "\n".join(lines))
