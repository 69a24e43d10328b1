"""What a user can choose about a plan. Nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megabert.config import option
from megabert.data.options import DataOptions
from megabert.models.options import ModelOptions, RecomputeOptions
from megabert.parallel.options import ParallelOptions
from megabert.tokenization.options import TokenizerOptions
from megabert.training.former_flags import FormerFlags
from megabert.training.options import TrainingOptions


@dataclass(frozen=True, kw_only=True)
class RunOptions(
    TrainingOptions, DataOptions, TokenizerOptions, ModelOptions, RecomputeOptions, ParallelOptions, FormerFlags
):
    """The run that is planned."""


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """The plan."""

    world_size: int = option(1, "processes, one on each GPU", example="512", minimum=1, maximum=65536)
    hardware: Literal["v100-32g", "a100", "h100", "h200"] = option(
        "h100", "the GPU and its node that memory and times are told for", example="a100"
    )
    gpus_per_node: int | None = option(
        None, "GPUs in one node; left out, as the hardware is usually built", example="4", minimum=1
    )
    search: bool = option(
        False,
        "try every layout of the world size (tensor sizes up to a node, pipeline, sharding, recomputation) and list "
        "the fastest that fit, in place of the one that the flags describe",
    )
    json: bool = option(False, "print one JSON object and nothing else")
    output: Path | None = option(None, "write the JSON object here as well", metavar="FILE", example="plan.json")
