"""Recomputation: which parts of the network keep only their inputs, and are computed again in the backward pass.

Source: Megatron-LM, `--recompute-granularity` and its older spellings. The random state is put back before a part is
computed again, so that dropout drops the same elements and gradients are those of a network that keeps everything.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

from torch import nn

from megabert.models.bert.layers import MegatronBertSelfAttention
from megabert.models.bert.stack import MegatronBertEncoder
from megabert.models.options import RecomputeOptions


@dataclass(frozen=True)
class Recomputation:
    """What is computed again.

    Attributes:
        granularity: `full`: layers; `selective`: what lies between queries, keys, values and the attention's result.
        method: `uniform`: all layers, in groups of `num_layers`; `block`: the first `num_layers`, one by one.
    """

    granularity: Literal["full", "selective"]
    method: Literal["uniform", "block"] = "uniform"
    num_layers: int = 1


def recomputation_of(options: RecomputeOptions, num_layers: int) -> Recomputation | None:
    """What the flags ask for in a network of `num_layers` layers; None: everything is kept.

    Raises:
        ValueError: flags that contradict each other, or more layers than there are.
    """
    granularity = options.recompute_granularity
    if granularity is None and (options.checkpoint_activations or options.recompute_method):
        granularity = "full"
    if granularity is None and options.recompute_activations:
        granularity = "selective"
    if granularity is None:
        if options.recompute_num_layers != 1:
            raise ValueError(
                f"--recompute-num-layers {options.recompute_num_layers} (or --checkpoint-num-layers) needs "
                "--recompute-granularity full (or --checkpoint-activations)"
            )
        return None
    if granularity == "full" and options.recompute_activations:
        raise ValueError("--recompute-activations is selective: leave it out, or the flags that ask for whole layers")
    if granularity == "selective":
        if options.checkpoint_activations:
            raise ValueError("--checkpoint-activations contradicts --recompute-granularity selective; keep one of them")
        if options.recompute_method or options.recompute_num_layers != 1:
            flag = "--recompute-method" if options.recompute_method else "--recompute-num-layers"
            raise ValueError(f"{flag} goes with --recompute-granularity full, not with selective")
    if options.recompute_num_layers > num_layers:
        raise ValueError(
            f"--recompute-num-layers: {options.recompute_num_layers} is over --num-layers {num_layers}, all there are"
        )
    return Recomputation(granularity, options.recompute_method or "uniform", options.recompute_num_layers)


def set_recomputation(
    model: nn.Module,
    chosen: Recomputation | None,
    saving: Callable[[], AbstractContextManager] = nullcontext,
) -> None:
    """Let every encoder inside `model` compute again what was chosen; None: nothing. It acts in training mode only.

    `saving` makes what is entered around each recomputed group of layers: it may say how their input is kept.
    """
    full = chosen is not None and chosen.granularity == "full"
    for module in model.modules():
        if isinstance(module, MegatronBertEncoder):
            count = len(module.layer)
            module.saving = saving
            size, end = 0, 0
            if chosen is not None and full:
                uniform = chosen.method == "uniform"
                size, end = (chosen.num_layers, count) if uniform else (1, min(chosen.num_layers, count))
            module.recomputed = [range(first, min(first + size, end)) for first in range(0, end, size or 1)]
        elif isinstance(module, MegatronBertSelfAttention):
            module.recompute_core = chosen is not None and not full
