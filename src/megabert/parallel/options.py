"""What a user can choose about how a run is spread over processes. Nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megabert.config import option


@dataclass(frozen=True, kw_only=True)
class ParallelOptions:
    """Many processes: how the model and the batch are cut. One process needs none of it."""

    tensor_model_parallel_size: int = option(
        1,
        "processes that share each layer: heads, MLP and vocabulary are cut among them; best within one machine",
        aliases=("model-parallel-size",),
        example="2",
        minimum=1,
    )
    pipeline_model_parallel_size: int = option(
        1, "processes that share the layers as stages, one after the other", example="2", minimum=1
    )
    num_layers_per_virtual_pipeline_stage: int | None = option(
        None,
        "layers in one piece of the interleaved pipeline schedule, which gives each process several pieces; left out, "
        "one piece each (1F1B)",
        example="2",
        minimum=1,
    )
    sequence_parallel: bool = option(
        False,
        "with --tensor-model-parallel-size: also share LayerNorm, dropout and residuals, by cutting the sequence",
    )
    distribute_saved_activations: bool = option(
        False,
        "with --tensor-model-parallel-size and --recompute-granularity full: each process keeps a part of what "
        "recomputed layers start from, and they gather it in the backward pass",
        aliases=("distribute-checkpointed-activations",),
    )
    data_parallel_sharding: Literal["none", "optimizer", "full"] = option(
        "none",
        "what the processes that read different rows share: none (each holds all weights), optimizer (masters, moments "
        "and gradients), or full (the weights as well, gathered layer by layer)",
        example="optimizer",
    )
    use_distributed_optimizer: bool = option(
        False, "Megatron's name for --data-parallel-sharding optimizer", hidden=True
    )
    distributed_backend: Literal["nccl", "gloo"] | None = option(
        None, "what carries the messages; left out, nccl between GPUs and gloo between CPUs", example="gloo"
    )
    distributed_timeout_minutes: float = option(
        10.0, "a process that is not heard of for so long ends the run", example="30", above=0
    )
    overlap_grad_reduce: bool = option(
        True, "add gradients up over processes while the backward pass still runs (data parallel)"
    )
    overlap_param_gather: bool = option(
        True, "accepted for old command lines: sharded weights are always gathered ahead", hidden=True
    )
    local_rank: int | None = option(None, "accepted for old launchers: torchrun's variables say it", hidden=True)
    ddp_impl: Literal["local", "torch"] = option(
        "torch", "accepted for old command lines: gradients are always reduced in buckets", aliases=("DDP-impl",),
        hidden=True,
    )  # fmt: skip
    use_cpu_initialization: bool = option(
        True, "accepted for old command lines: initial weights never depend on the layout", hidden=True
    )


def sharding_of(options: ParallelOptions) -> Literal["none", "optimizer", "full"]:
    """--data-parallel-sharding, or what --use-distributed-optimizer means.

    Raises:
        ValueError: both, with different meanings.
    """
    if not options.use_distributed_optimizer or options.data_parallel_sharding == "optimizer":
        return options.data_parallel_sharding
    if options.data_parallel_sharding == "full":
        raise ValueError(
            "--use-distributed-optimizer means --data-parallel-sharding optimizer, but full was given: give one of them"
        )
    return "optimizer"
