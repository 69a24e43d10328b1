"""What a user can choose about a training run. Nothing heavy is imported here, so that `--help` is instant."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from megabert.config import option

DEFAULT_UPDATES = 1_000_000


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """Batches and the length of the run."""

    batch_size: int = option(
        4,
        "rows in one forward pass (Megatron's micro-batch); memory grows with it, the result does not depend on it",
        aliases=("micro-batch-size",),
        example="32",
        minimum=1,
    )
    global_batch_size: int | None = option(
        None,
        "rows in one update of the weights: a multiple of --batch-size times the processes that read different rows; "
        "left out, that product",
        example="256",
        minimum=1,
    )
    rampup_batch_size: tuple[int, ...] | None = option(
        None,
        "begin with updates of START rows and add INCREMENT rows at equal distances, until --global-batch-size is "
        "reached after SAMPLES rows; only with --train-samples",
        metavar="START INCREMENT SAMPLES",
        example="32 32 1000000",
    )
    train_iters: int | None = option(
        None,
        f"updates of the weights in the whole run; left out, {DEFAULT_UPDATES:,}; with --epochs, in each epoch",
        aliases=("max-steps",),
        example="20000",
        minimum=1,
    )
    epochs: int | None = option(
        None,
        "length of the run in passes over the training rows, in place of --train-iters; with --train-iters N, as in "
        "2019, the run has N updates in each epoch",
        example="3",
        minimum=1,
    )
    train_samples: int | None = option(
        None,
        "length of the run in rows instead of updates; takes the place of --train-iters, and learning rates are then "
        "given in samples too (--lr-decay-samples, --lr-warmup-samples)",
        example="64000000",
        minimum=1,
    )
    seed: int = option(
        1234,
        "seed of the initial weights, the sample order, the masking and the dropout",
        example="7",
        minimum=0,
        maximum=2**63 - 1,
    )
    eval_batch_size: int | None = option(
        None, "rows in one forward pass of an evaluation; left out, --batch-size", example="64", minimum=1
    )
    num_workers: int = option(
        2,
        "processes that prepare rows ahead of the training; 0 prepares them between the steps; the result does not "
        "depend on it",
        example="1",
        minimum=0,
        maximum=256,
    )


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """Optimizer and learning rate."""

    optimizer: Literal["adam", "lamb", "sgd"] = option(
        "adam", "adam is AdamW (decoupled weight decay), lamb is for very large batches, sgd has momentum"
    )
    lr: float = option(1e-4, "highest learning rate", example="6e-4", above=0)
    min_lr: float = option(0.0, "the decay ends at this learning rate", example="1e-5", minimum=0)
    lr_decay_style: Literal[
        "linear", "cosine", "constant", "exponential", "inverse-square-root", "WSD", "square-root", "square"
    ] = option(
        "linear",
        "shape of the way from --lr to --min-lr after the warm-up; exponential halves once over the decay, WSD (warm "
        "up, stay, decay) falls only in its last part, square-root and square are NeMo's annealings",
    )
    lr_decay_iters: int | None = option(
        None,
        "updates until --min-lr is reached, warm-up included; left out, the whole run",
        example="990000",
        minimum=1,
    )
    lr_decay_samples: int | None = option(
        None, "as --lr-decay-iters, in rows; only with --train-samples", example="60000000", minimum=1
    )
    warmup: float = option(
        0.01,
        "share of the decay length in which the learning rate rises to --lr",
        aliases=("lr-warmup-fraction",),
        example="0.06",
        minimum=0,
        maximum=0.99,
    )
    lr_warmup_iters: int | None = option(
        None, "length of the warm-up in updates, in place of --warmup", example="10000", minimum=0
    )
    lr_warmup_samples: int | None = option(
        None, "length of the warm-up in rows, in place of --warmup; only with --train-samples", minimum=0
    )
    lr_warmup_init: float = option(0.0, "learning rate of the very first update, where the warm-up starts", minimum=0)
    lr_wsd_decay_style: Literal["linear", "cosine", "exponential", "minus_sqrt"] = option(
        "exponential", "shape of WSD's last part"
    )
    lr_wsd_decay_iters: int | None = option(
        None, "length of WSD's last part in updates; left out, a tenth of the decay length", example="2000", minimum=1
    )
    lr_wsd_decay_samples: int | None = option(
        None, "as --lr-wsd-decay-iters, in rows; only with --train-samples", minimum=1
    )
    use_checkpoint_lr_scheduler: bool = option(
        False, "go on with the schedules of learning rate and weight decay that the checkpoint was saved under"
    )
    override_lr_scheduler: bool = option(
        False,
        "accepted for old command lines: without --use-checkpoint-lr-scheduler the flags given now set the schedules",
        hidden=True,
    )
    weight_decay: float = option(
        0.01, "decay of all weights but biases and LayerNorm, per update and unit of learning rate", minimum=0
    )
    start_weight_decay: float | None = option(
        None, "weight decay of the first update, with --weight-decay-incr-style linear or cosine", minimum=0
    )
    end_weight_decay: float | None = option(
        None, "weight decay of the last update, with --weight-decay-incr-style linear or cosine", minimum=0
    )
    weight_decay_incr_style: Literal["constant", "linear", "cosine"] = option(
        "constant",
        "shape of the way from --start-weight-decay to --end-weight-decay over the run; constant stays at "
        "--weight-decay",
    )
    clip_grad: float = option(
        1.0, "gradients are scaled down to this global L2 norm when theirs is larger; 0 leaves them", minimum=0
    )
    adam_beta1: float = option(0.9, "decay of the mean of gradients (adam, lamb)", minimum=0, maximum=0.9999999)
    adam_beta2: float = option(
        0.999, "decay of the mean of squared gradients (adam, lamb)", minimum=0, maximum=0.9999999
    )
    adam_eps: float = option(1e-8, "added to the root of the mean of squares (adam, lamb)", above=0)
    sgd_momentum: float = option(0.9, "momentum of sgd", minimum=0, maximum=0.9999999)


@dataclass(frozen=True, kw_only=True)
class PrecisionOptions:
    """Number formats."""

    fp16: bool = option(False, "compute in float16, with float32 master weights and a loss scale")
    bf16: bool = option(False, "compute in bfloat16, with float32 master weights")
    fp32_layernorm: bool = option(False, "keep LayerNorm weights in float32 (with --fp16 or --bf16)")
    fp32_embedding: bool = option(False, "keep all embedding tables in float32 (with --fp16 or --bf16)")
    fp32_tokentypes: bool = option(False, "keep the token type table in float32 (with --fp16 or --bf16)")
    loss_scale: float | None = option(
        None, "fixed loss scale; left out, --fp16 finds one by itself and the other formats use none", example="1024",
        above=0,
    )  # fmt: skip
    initial_loss_scale: float = option(2.0**32, "the loss scale that --fp16 starts from", example="65536", above=0)
    min_loss_scale: float = option(
        1.0, "the loss scale never goes below this", aliases=("min-scale",), example="128", above=0
    )
    loss_scale_window: int = option(
        1000, "updates without an overflow after which the loss scale is doubled", minimum=1
    )
    hysteresis: int = option(2, "overflows that are passed over before the loss scale is halved", minimum=1)
    accumulate_allreduce_grads_in_fp32: bool = option(
        True,
        "accepted for old command lines: gradients are always added up in float32",
        aliases=("fp32-allreduce",),
        hidden=True,
    )
    compile: bool = option(False, "run the model through torch.compile: a slow start, then faster steps")


@dataclass(frozen=True, kw_only=True)
class AcceleratorOptions:
    """What a GPU can do besides; a command that inherits this acts on it."""

    cuda_graphs: bool = option(
        False,
        "start the forward and the backward pass with one call each, as CUDA graphs: for small batches, where the GPU "
        "waits for the host; needs --pack and one process",
        aliases=("enable-cuda-graph",),
    )
    fp8: bool = option(
        False,
        "with --bf16: products of the layers' matrices in 8-bit floating point, by torchao; needs an H100 or newer; "
        "fast only with --compile",
    )


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Run folder, checkpoints and reports."""

    save: Path | None = option(
        None,
        "run folder: checkpoints, metrics, the finished model; if it already holds checkpoints, the run goes on from "
        "the newest; left out, runs/<time>-<name>",
        metavar="FOLDER",
        example="runs/small",
    )
    save_interval: int | None = option(
        5000, "updates between two checkpoints", aliases=("save-iters",), example="1000", minimum=1
    )
    async_save: bool = option(
        True,
        "write checkpoints while training goes on: an update waits only until what it changes is copied, which takes "
        "the memory of a checkpoint once more",
    )
    keep_last: int = option(
        2, "newest checkpoints to keep, besides the best one; 0 keeps all of them", example="5", minimum=0
    )
    save_best: bool = option(True, "also save when the validation loss is the lowest so far, and keep that checkpoint")
    save_optim: bool = option(True, "store the optimizer's state in checkpoints (needed to resume exactly)")
    save_rng: bool = option(
        True, "store the random state in checkpoints (needed to resume exactly)", aliases=("save-all-rng",)
    )
    load: Path | None = option(
        None,
        "go on from this checkpoint: a run folder (its newest) or one of its checkpoints/step-* folders; with "
        "--finetune also the weights of a checkpoint of any other format, by path or name",
        metavar="FOLDER",
        example="runs/small/checkpoints/step-00010000",
    )
    load_optim: bool = option(True, "take the optimizer's state from the checkpoint")
    load_rng: bool = option(True, "take the random state from the checkpoint", aliases=("load-all-rng",))
    finetune: bool = option(
        False, "take only the weights from --load, and start at step 0 with a fresh optimizer, schedule and data"
    )
    pretrained_bert: bool = option(
        False, "begin with the weights of the Megatron BERT that --tokenizer-model-type, or --tokenizer, names or is "
        "the folder of: the same as --load NAME --finetune",
    )  # fmt: skip
    log_interval: int = option(100, "updates between two lines of metrics", example="10", minimum=1)
    eval_interval: int = option(
        1000, "updates between two evaluations on the validation rows; 0 evaluates only at the end", minimum=0
    )
    eval_iters: int = option(100, "batches of --eval-batch-size rows in one evaluation; 0 never evaluates", minimum=0)
    exit_interval: int | None = option(
        None, "save and stop at the first multiple of this many updates", example="5000", minimum=1
    )
    exit_duration_in_mins: float | None = option(
        None, "save and stop after this many minutes (for queues with a time limit)", example="230", above=0
    )
    on_nan: Literal["stop", "skip"] = option(
        "stop",
        "when a loss or gradient is not finite: stop before the weights change, or skip the update and count it "
        "(overflows that a loss scale is there to find are always skipped)",
    )
    tensorboard: bool = option(True, "write TensorBoard events too, when TensorBoard is installed")
    tensorboard_dir: Path | None = option(
        None, "where TensorBoard events go; left out, tensorboard/ in the run folder", metavar="FOLDER"
    )
    log_learning_rate_to_tensorboard: bool = option(
        True, "write the learning rate into TensorBoard events too", aliases=("no-log-learnig-rate-to-tensorboard",)
    )
    log_loss_scale_to_tensorboard: bool = option(True, "write the loss scale into TensorBoard events too")
    log_params_norm: bool = option(False, "add the L2 norm of all weights to the lines of metrics")
    log_num_zeros_in_grad: bool = option(
        False, "add the number of zeros in the gradient of the last update to the lines of metrics"
    )


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(BatchOptions, OptimizerOptions, PrecisionOptions, RunOptions):
    """All that the loop reads; a command's config inherits it."""


def other_default(owner: type, name: str, default: Any) -> Any:
    """The field `name` of an options class, for a command that has another default; help and limits stay."""
    field = next(field for field in dataclasses.fields(owner) if field.name == name)
    return dataclasses.field(default=default, metadata=field.metadata)


def check_precision(options: PrecisionOptions) -> None:
    """Refuse number formats that do not go together.

    Raises:
        ValueError: --fp16 with --bf16, or --initial-loss-scale below --min-loss-scale.
    """
    if options.fp16 and options.bf16:
        raise ValueError("--fp16 and --bf16 exclude each other: give one of them")
    if options.initial_loss_scale < options.min_loss_scale:
        raise ValueError(
            f"--initial-loss-scale: {options.initial_loss_scale} is below --min-loss-scale {options.min_loss_scale}"
        )


def evaluation_rows_of(options: TrainingOptions) -> int:
    """The number of rows that one evaluation reads at most."""
    return options.eval_iters * (options.eval_batch_size or options.batch_size)


def rows_of(options: BatchOptions) -> int:
    """The number of rows in one update.

    Raises:
        ValueError: --global-batch-size is not a multiple of --batch-size.
    """
    rows = options.global_batch_size or options.batch_size
    if rows % options.batch_size:
        raise ValueError(
            f"--global-batch-size: {rows} is not a multiple of --batch-size {options.batch_size}; "
            f"the next one is {-(-rows // options.batch_size) * options.batch_size}"
        )
    return rows
