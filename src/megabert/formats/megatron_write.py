"""Writing Megatron-LM's own checkpoints (format `torch`), at any tensor x pipeline (x interleaved) ranks."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megabert.formats import bert_names, megatron_arguments, megatron_optimizer, torch_writer
from megabert.formats.bert_names import Era
from megabert.formats.checkpoint import PRE_LAYERNORM, Checkpoint, LazyTensor
from megabert.formats.megatron_arguments import ADDED_ROWS
from megabert.formats.megatron_layout import TRACKER
from megabert.formats.table import Order, Row, padded_vocabulary, resize_vocabulary, split
from megabert.formats.target import new_folder

_WORDS = "language_model.embedding.word_embeddings.weight"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the target is cut.

    Attributes:
        tensor: ranks that share each layer.
        pipeline: stages.
        chunks: of each stage (interleaved pipeline); 1: not interleaved.
        era: whose names.
        divisible_by: the vocabulary is padded to a multiple of this times `tensor`.
    """

    tensor: int = 1
    pipeline: int = 1
    chunks: int = 1
    era: Era = "v2"
    divisible_by: int = 128

    @property
    def order(self) -> Order:
        """The order of the fused rows."""
        return "v0" if self.era == "v1" else "v2"


def write(checkpoint: Checkpoint, path: Path, *, layout: Layout | None = None, overwrite: bool = False) -> list[str]:
    """Write a folder that Megatron-LM loads: the tracker file, and one folder of ranks.

    Returns:
        Notes: what was added or could not be kept.

    Raises:
        ValueError: the model cannot be cut so, has weights without a place there, or `path` exists.
        OSError: the disk is full or not writable; nothing half-written stays.
    """
    layout = layout or Layout()
    rows = check(checkpoint, layout)
    config = checkpoint.config
    notes = [note] if (note := megatron_arguments.check_activation(config)) else []
    size = padded_vocabulary(config["vocab_size"], layout.divisible_by, layout.tensor)
    grown = size - config["vocab_size"]
    if grown:
        notes.append(f"{grown} rows of padding added to the vocabulary of {config['vocab_size']:,}: {size:,} are "
                     f"needed for {layout.tensor} tensor ranks")  # fmt: skip
    tensors = resize_vocabulary(checkpoint.tensors, size)
    heads, order = config["num_attention_heads"], layout.order
    ranks = split(rows, tensors, layout.tensor, heads=heads, order=order)
    states = optimizer_ranks(checkpoint, rows, size, layout.tensor, order)
    notes += megatron_optimizer.left_out(checkpoint.optimizer, checkpoint.tensors)
    iteration = checkpoint.training.get("iteration")
    numbered = isinstance(iteration, int) and iteration > 0
    folder_name = f"iter_{iteration:07d}" if numbered else "release"
    with new_folder(path, overwrite=overwrite) as folder:
        for rank, held in enumerate(ranks):
            for stage in range(layout.pipeline):
                place = f"mp_rank_{rank:02d}" + (f"_{stage:03d}" if layout.pipeline > 1 else "")
                content = _content(checkpoint, layout, size, stage, held)
                if states:
                    mine = {kind: states[kind][rank] for kind in states}
                    content["optimizer"] = _optimizer(checkpoint, layout, stage, held, mine)
                (folder / folder_name / place).mkdir(parents=True)
                torch_writer.save(content, folder / folder_name / place / "model_optim_rng.pt")
        for name, data in checkpoint.vocabulary.items():
            (folder / name).write_bytes(data)
        (folder / TRACKER).write_text(str(iteration) if numbered else "release")
    return notes


def check(checkpoint: Checkpoint, layout: Layout) -> list[Row]:
    """The rows of the target, when the model fits into it.

    Raises:
        ValueError: it is post-LayerNorm, has weights without a place, or cannot be cut so.
    """
    if checkpoint.family != PRE_LAYERNORM:
        raise ValueError("this is a post-LayerNorm BERT: Megatron-LM's format since 2019-10 has none; only --to "
                         "huggingface takes it")  # fmt: skip
    layers = checkpoint.config["num_hidden_layers"]
    multiple = "multiple_choice" in checkpoint.parts
    rows = bert_names.legacy(layers, head="multichoice_head" if multiple else "classification_head")
    known = {name for row in rows for name in row.ours}
    homeless = sorted(name for name in checkpoint.tensors if name not in known)
    if "token_classification" in checkpoint.parts:
        homeless = [name for name in checkpoint.tensors if name.startswith("classifier.")]
    if homeless:
        shown = ", ".join(homeless[:3]) + (" ..." if len(homeless) > 3 else "")
        raise ValueError(f"Megatron-LM's format has no place for {shown}")
    pieces = layout.pipeline * layout.chunks
    if layers % pieces:
        raise ValueError(f"{layers} layers cannot be cut into {pieces} equal pieces (pipeline stages x chunks)")
    if layout.chunks > 1 and layout.pipeline < 2:
        raise ValueError("an interleaved pipeline needs 2 stages or more")
    if layout.era == "v1" and layout.pipeline > 1:
        raise ValueError("Megatron-LM v1 had no pipeline: give --pipeline-model-parallel-size 1")
    heads = checkpoint.config["num_attention_heads"]
    for name in ("hidden_size", "intermediate_size", "num_attention_heads"):
        if checkpoint.config[name] % layout.tensor:
            raise ValueError(f"{name} {checkpoint.config[name]} cannot be shared by {layout.tensor} tensor ranks")
    assert heads
    return rows


def optimizer_ranks(
    checkpoint: Checkpoint, rows: Sequence[Row], size: int, tensor_ranks: int, order: Order
) -> dict[str, list[dict[str, LazyTensor]]]:
    """Kind -> what each tensor rank holds of the optimizer's state; empty when both moments are not there."""
    states = {}
    for kind in megatron_optimizer.KINDS:
        prefix = f"{kind}/"
        mine = {name.removeprefix(prefix): tensor for name, tensor in checkpoint.optimizer.items()
                if name.startswith(prefix)}  # fmt: skip
        if set(mine) >= set(checkpoint.tensors):
            grown = resize_vocabulary(mine, size, moments=kind != "master")
            heads = checkpoint.config["num_attention_heads"]
            states[kind] = split(rows, grown, tensor_ranks, heads=heads, order=order)
    return states if set(megatron_optimizer.MOMENTS) <= set(states) else {}


def _content(
    checkpoint: Checkpoint, layout: Layout, size: int, stage: int, held: Mapping[str, LazyTensor]
) -> dict[str, Any]:
    training = checkpoint.training
    content: dict[str, Any] = {
        "args": arguments(checkpoint, layout, size),
        "iteration": training.get("iteration") or 0,
    }
    if layout.era != "v1":
        content["checkpoint_version"] = 3.0
    for chunk in range(layout.chunks):
        model: dict[str, Any] = {}
        for name, tensor in _stage(checkpoint, layout, stage, chunk, held).items():
            _nest(model, bert_names.dress(name, layout.era), tensor)
        content["model" if layout.chunks == 1 else f"model{chunk}"] = model
    if isinstance(training.get("scheduler"), dict):
        newer = "lr_decay_style" in training["scheduler"]
        content["opt_param_scheduler" if newer else "lr_scheduler"] = dict(training["scheduler"])
    return content


def _stage(
    checkpoint: Checkpoint, layout: Layout, stage: int, chunk: int, held: Mapping[str, LazyTensor]
) -> dict[str, LazyTensor]:
    """What one chunk of one stage holds, layers counted from 0 in it."""
    layers = checkpoint.config["num_hidden_layers"]
    pieces = layout.pipeline * layout.chunks
    piece = chunk * layout.pipeline + stage
    begin, count = piece * (layers // pieces), layers // pieces
    found: dict[str, LazyTensor] = {}
    for name, tensor in held.items():
        moved, layer = bert_names.shift(name, -begin)
        if layer == -1 and moved == name:
            first = name.startswith("language_model.embedding.")
            if piece == (0 if first else pieces - 1):
                found[name] = tensor
        elif 0 <= layer < count:
            found[moved] = tensor
    if pieces > 1 and piece == pieces - 1 and "lm_head.bias" in held:
        found[bert_names.WORD_EMBEDDING_COPY] = held[_WORDS]
    return found


def _optimizer(
    checkpoint: Checkpoint, layout: Layout, stage: int, held: Mapping[str, LazyTensor],
    states: Mapping[str, Mapping[str, LazyTensor]],
) -> dict[str, Any]:  # fmt: skip
    decayed: list[dict[str, LazyTensor]] = []
    others: list[dict[str, LazyTensor]] = []
    for chunk in range(layout.chunks):
        mine = {kind: _stage(checkpoint, layout, stage, chunk, tensors) for kind, tensors in states.items()}
        names = megatron_optimizer.groups(_stage(checkpoint, layout, stage, chunk, held))
        for target, group in zip((decayed, others), names, strict=True):
            target += [{kind: tensors[name] for kind, tensors in mine.items()} for name in group]
    return megatron_optimizer.write(decayed, others, *optimizer_numbers(checkpoint))


def optimizer_numbers(checkpoint: Checkpoint) -> tuple[float, dict[str, Any]]:
    """The optimizer's step, and the numbers of its groups."""
    step = checkpoint.optimizer["step"].load().item() if "step" in checkpoint.optimizer else 0
    arguments = checkpoint.training.get("arguments") or {}
    numbers = {"lr": arguments.get("lr", 0.0), "eps": arguments.get("adam_eps", 1e-8),
               "betas": (arguments.get("adam_beta1", 0.9), arguments.get("adam_beta2", 0.999)),
               "weight_decay": arguments.get("weight_decay", 0.01)}  # fmt: skip
    return step, numbers


def arguments(checkpoint: Checkpoint, layout: Layout, size: int) -> argparse.Namespace:
    """The `args` of a file: what our config says, the target's ranks, and what is kept of the source's."""
    training = checkpoint.training
    arguments = megatron_arguments.from_config(checkpoint.config, training.get("arguments") or {})
    arguments.pop(ADDED_ROWS, None)
    arguments |= {
        "padded_vocab_size": size,
        "make_vocab_size_divisible_by": layout.divisible_by,
        "tensor_model_parallel_size": layout.tensor,
        "pipeline_model_parallel_size": layout.pipeline,
        "iteration": training.get("iteration") or 0,
        "consumed_train_samples": training.get("consumed_train_samples", 0),
        "consumed_valid_samples": training.get("consumed_valid_samples", 0),
    }
    if layout.era == "v1":
        arguments["model_parallel_size"] = layout.tensor
    if layout.chunks > 1:
        arguments["virtual_pipeline_model_parallel_size"] = layout.chunks
    if size != checkpoint.config["vocab_size"]:
        arguments[ADDED_ROWS] = checkpoint.config["vocab_size"]
    return argparse.Namespace(**arguments)


def _nest(model: dict[str, Any], name: str, tensor: LazyTensor) -> None:
    """Megatron's nesting: dicts down to the part of the model, flat names below it."""
    for part in ("language_model.embedding.word_embeddings", "language_model.embedding.position_embeddings",
                 "language_model.embedding.tokentype_embeddings", "language_model.encoder",
                 "language_model.transformer", "language_model.pooler", "lm_head", "binary_head",
                 "classification_head", "multichoice_head", "word_embeddings_for_head"):  # fmt: skip
        if name.startswith(part + "."):
            level = model
            for key in part.split("."):
                level = level.setdefault(key, {})
            level[name[len(part) + 1 :]] = tensor
            return
    raise AssertionError(name)
