"""Flags of Megatron-LM's BERT pretraining, 2019 to today, that choose nothing here.

Each is read, so that an old command line need not be cut down. One that cannot change the result is passed over; one
that would is refused, with what to use in its place. Nothing is written to `run.toml` for a flag that was not given.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from megabert.config import flag_name, option


def _former(meaning: str, **keywords: object) -> bool | None:
    return option(None, f"accepted for old command lines: {meaning}", hidden=True, **keywords)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class PassedFlags:
    """Flags whose result is what happens anyway."""

    resume_dataloader: bool | None = _former("a resumed run always goes on with the row after its last one")
    shuffle: bool | None = _former("samples are always in random order")
    mmap_warmup: bool | None = _former("reads the data once in advance")
    use_cpu_initialization: bool | None = _former("initial weights are always drawn on the CPU")
    onnx_safe: bool | None = _former("speaks of the exported graph")
    query_key_layer_scaling: bool | None = _former(
        "the scores are divided by a number and multiplied by it again", aliases=("apply-query-key-layer-scaling",)
    )
    attention_softmax_in_fp32: bool | None = _former("the softmax always adds up in float32")
    masked_softmax_fusion: bool | None = _former("speed of kernels")
    bias_dropout_fusion: bool | None = _former("speed of kernels")
    eod_mask_loss: bool | None = _former("of GPT only")
    reset_position_ids: bool | None = _former("of GPT only")
    reset_attention_mask: bool | None = _former("of GPT only")
    exit_signal_handler: bool | None = _former("SIGTERM always saves and ends the run")
    use_legacy_models: bool | None = _former("the same network")
    log_timers_to_tensorboard: bool | None = _former("times are always written")
    log_batch_size_to_tensorboard: bool | None = _former("the batch size is always written when it changes")
    log_validation_ppl_to_tensorboard: bool | None = _former("perplexity is always written")
    log_memory_to_tensorboard: bool | None = _former("peak memory is always written, on a GPU")
    log_throughput: bool | None = _former("tokens per second are always written")
    tensorboard_queue_size: int | None = _former("events are always flushed at each checkpoint")  # type: ignore[assignment]
    timing_log_level: int | None = _former("seconds per step are always written")  # type: ignore[assignment]
    bert_embedder_type: str | None = _former("of retrieval only")  # type: ignore[assignment]
    contiguous_buffers_in_local_ddp: bool | None = _former("gradients are always reduced in buckets")
    scatter_gather_tensors_in_pipeline: bool | None = _former("speed of messages between stages")
    async_tensor_model_parallel_allreduce: bool | None = _former("speed of messages between tensor ranks")
    lazy_mpu_init: bool | None = _former("processes always meet before the model is made")
    empty_unused_memory_level: int | None = _former("PyTorch keeps the memory of tensors that are gone")  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class JudgedFlags:
    """Flags that are refused, at some value or at all."""

    fp32_residual_connection: bool | None = _former("true of float32 runs")
    fp16_lm_cross_entropy: bool | None = _former("refused")
    adlr_autoresume: bool | None = _former("refused")
    adlr_autoresume_interval: int | None = _former("of --adlr-autoresume")  # type: ignore[assignment]
    use_flash_attn: bool | None = _former("refused")
    kv_channels: int | None = _former("the width of a head")  # type: ignore[assignment]
    dataloader_type: str | None = _former("single only")  # type: ignore[assignment]
    data_impl: str | None = _former("mmap or infer")  # type: ignore[assignment]
    transformer_impl: str | None = _former("local only")  # type: ignore[assignment]
    spec: tuple[str, ...] | None = _former("local only")  # type: ignore[assignment]
    ckpt_format: str | None = _former("refused")  # type: ignore[assignment]
    tensorboard_log_interval: int | None = _former("that of --log-interval")  # type: ignore[assignment]
    wandb_project: str | None = _former("refused")  # type: ignore[assignment]
    wandb_exp_name: str | None = _former("refused")  # type: ignore[assignment]
    wandb_entity: str | None = _former("refused")  # type: ignore[assignment]
    wandb_save_dir: Path | None = _former("refused")  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class FormerFlags(PassedFlags, JudgedFlags):
    """Flags of old command lines."""


_WANDB = (
    "Weights & Biases is not written; metrics.jsonl has the same numbers, one object a line, and so has TensorBoard"
)
_REFUSED = {
    "fp16_lm_cross_entropy": "the loss is always computed in float32; leave it out",
    "adlr_autoresume": "belongs to one company's cluster; SIGTERM and --exit-duration-in-mins save and end the run, "
    "and the same command goes on with it",
    "use_flash_attn": "say --attention-implementation flash (on a GPU); the default needs no other package",
    "ckpt_format": "a run's checkpoints have one format; megabert convert RUN/model --to FORMAT writes Megatron's",
    "wandb_project": _WANDB,
    "wandb_exp_name": _WANDB,
    "wandb_entity": _WANDB,
    "wandb_save_dir": _WANDB,
}
_ONLY = {
    "dataloader_type": (("single",), "rows are read in the order of one shuffled map; leave the flag out"),
    "data_impl": (
        ("mmap", "infer"),
        "write the data anew with megabert tokenize, or preprocess_data.py --dataset-impl mmap",
    ),
    "transformer_impl": (("local",), "the kernels here are PyTorch's; leave the flag out"),
    "spec": ((("local",),), "the kernels here are PyTorch's; leave the flag out"),
}


def check_former_flags(flags: FormerFlags, *, head_width: float, log_interval: int, half: bool) -> None:
    """Refuse the flags that would change the result.

    Args:
        head_width: numbers of each attention head.
        log_interval: updates between two lines of metrics.
        half: the layers compute in float16 or bfloat16.

    Raises:
        ValueError: one was given; says what to use in its place.
    """
    for field in dataclasses.fields(JudgedFlags):
        value, flag = getattr(flags, field.name), f"--{flag_name(field.name)}"
        if value is None or value is False:
            continue
        if field.name in _REFUSED:
            raise ValueError(f"{flag}: {_REFUSED[field.name]}")
        allowed, advice = _ONLY.get(field.name, ((), ""))
        if allowed and value not in allowed:
            names = " or ".join(str(item) for item in allowed if not isinstance(item, tuple)) or "local"
            said = " ".join(value) if isinstance(value, tuple) else value
            raise ValueError(f"{flag}: {said} has no meaning here, only {names} has; {advice}")
    if flags.fp32_residual_connection and half:
        raise ValueError(
            "--fp32-residual-connection: the residual has the type that the layers compute in; leave the flag out, or "
            "train in float32, without --fp16 and --bf16"
        )
    if flags.kv_channels is not None and flags.kv_channels != head_width:
        raise ValueError(
            f"--kv-channels: {flags.kv_channels} is not --hidden-size / --num-attention-heads, which is "
            f"{head_width:g}; other widths have no Megatron BERT checkpoint format: leave the flag out"
        )
    if flags.tensorboard_log_interval not in (None, log_interval):
        raise ValueError(
            f"--tensorboard-log-interval: {flags.tensorboard_log_interval} is not --log-interval "
            f"{log_interval}: both get the same lines, means over the interval; set --log-interval"
        )
