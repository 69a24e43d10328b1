"""Writing Megatron-core's BERT, format `torch` (a file a rank) or `torch_dist` (whole tensors that any ranks load)."""

from __future__ import annotations

import argparse
import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import torch

from megabert.formats import (
    bert_names,
    megatron_arguments,
    megatron_core,
    megatron_core_names,
    megatron_optimizer,
    megatron_write,
    torch_writer,
)
from megabert.formats.checkpoint import Checkpoint, LazyTensor
from megabert.formats.megatron_core_chunks import METADATA
from megabert.formats.megatron_layout import TRACKER
from megabert.formats.table import Row, padded_vocabulary, resize_vocabulary, split
from megabert.formats.target import new_folder

_FILE = "__0_0.distcp"
_STATES = {"exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq", "master": "fp32_param"}
_EMBEDDING = "embedding."
_WORDS = "embedding.word_embeddings.weight"
_OUTPUT = "output_layer.weight"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the target is stored.

    Attributes:
        kind: `torch_dist`, which any number of ranks loads, or `torch`.
        tensor: ranks that share each layer (of `torch`); also decides the padding of the vocabulary.
        pipeline: stages (of `torch`).
        spec: names of `torch`: `te` for Transformer Engine, `local`; `torch_dist` has but one spelling.
        common: `torch_dist` with a `common.pt`, as before 2026-07; otherwise it lies among the chunks.
        divisible_by: the vocabulary is padded to a multiple of this times `tensor`.
    """

    kind: Literal["torch", "torch_dist"] = "torch_dist"
    tensor: int = 1
    pipeline: int = 1
    spec: Literal["te", "local"] = "te"
    common: bool = True
    divisible_by: int = 128


def write(checkpoint: Checkpoint, path: Path, *, layout: Layout | None = None, overwrite: bool = False) -> list[str]:
    """Write a folder that Megatron-core loads: the tracker file, and one folder of an iteration.

    Returns:
        Notes: what was added or could not be kept.

    Raises:
        ValueError: the model cannot be cut so, has weights without a place there, or `path` exists.
        OSError: the disk is full or not writable; nothing half-written stays.
    """
    layout = layout or Layout()
    config = checkpoint.config
    rows = megatron_core.rows_of(checkpoint)
    _check_cut(config, layout)
    notes = [note] if (note := megatron_arguments.check_activation(config)) else []
    size = padded_vocabulary(config["vocab_size"], layout.divisible_by, layout.tensor)
    if size != config["vocab_size"]:
        notes.append(
            f"{size - config['vocab_size']} rows of padding added to the vocabulary of {config['vocab_size']:,}: "
            f"{size:,} are needed for {layout.tensor} tensor ranks"
        )
    notes += megatron_optimizer.left_out(checkpoint.optimizer, checkpoint.tensors)
    iteration = checkpoint.training.get("iteration")
    numbered = isinstance(iteration, int) and iteration > 0
    name = f"iter_{iteration:07d}" if numbered else "release"
    with new_folder(path, overwrite=overwrite) as folder:
        inner = folder / name
        inner.mkdir()
        if layout.kind == "torch":
            _write_ranks(checkpoint, rows, size, layout, inner)
        else:
            _write_distributed(checkpoint, rows, size, layout, inner)
        for file, data in checkpoint.vocabulary.items():
            (folder / file).write_bytes(data)
        (folder / TRACKER).write_text(str(iteration) if numbered else "release")
    return notes


def _check_cut(config: Mapping[str, Any], layout: Layout) -> None:
    if layout.kind == "torch_dist":
        if layout.pipeline > 1:
            raise ValueError(
                "a torch_dist checkpoint is not cut into stages: any pipeline loads it; leave out the ranks"
            )
        return
    for name in ("hidden_size", "intermediate_size", "num_attention_heads"):
        if config[name] % layout.tensor:
            raise ValueError(f"{name} {config[name]} cannot be shared by {layout.tensor} tensor ranks")
    if config["num_hidden_layers"] % layout.pipeline:
        raise ValueError(f"{config['num_hidden_layers']} layers cannot be cut into {layout.pipeline} equal stages")


def _common(checkpoint: Checkpoint, size: int, layout: Layout) -> dict[str, Any]:
    """What every rank's file says besides its weights."""
    training = checkpoint.training
    cut = megatron_write.Layout(tensor=layout.tensor, pipeline=layout.pipeline, divisible_by=layout.divisible_by)
    arguments = vars(megatron_write.arguments(checkpoint, cut, size))
    arguments |= {
        "ckpt_format": layout.kind,
        "transformer_impl": "transformer_engine" if layout.spec == "te" else "local",
        "untie_embeddings_and_output_weights": megatron_core.DECODER in checkpoint.tensors,
    }
    content: dict[str, Any] = {
        "args": argparse.Namespace(**arguments),
        "checkpoint_version": megatron_core.VERSION,
        "iteration": training.get("iteration") or 0,
    }
    if isinstance(training.get("scheduler"), dict):
        content["opt_param_scheduler"] = dict(training["scheduler"])
    return content


def _write_ranks(checkpoint: Checkpoint, rows: Sequence[Row], size: int, layout: Layout, folder: Path) -> None:
    config = checkpoint.config
    if layout.spec == "local":
        rows = bert_names.core(config["num_hidden_layers"], spec="local")
    heads = config["num_attention_heads"]
    tensors = resize_vocabulary(checkpoint.tensors, size)
    ranks = split(rows, tensors, layout.tensor, heads=heads, order="v2")
    states = megatron_write.optimizer_ranks(checkpoint, rows, size, layout.tensor, "v2")
    for rank, held in enumerate(ranks):
        for stage in range(layout.pipeline):
            place = folder / (f"mp_rank_{rank:02d}" + (f"_{stage:03d}" if layout.pipeline > 1 else ""))
            place.mkdir()
            content = _common(checkpoint, size, layout)
            content["model"] = _stage(held, config["num_hidden_layers"], stage, layout.pipeline)
            if states:
                mine = {kind: _stage(states[kind][rank], config["num_hidden_layers"], stage, layout.pipeline)
                        for kind in states}  # fmt: skip
                content["optimizer"] = _optimizer(checkpoint, content["model"], mine)
            torch_writer.save(content, place / "model_optim_rng.pt")


def _optimizer(
    checkpoint: Checkpoint, model: Mapping[str, LazyTensor], states: Mapping[str, Mapping[str, LazyTensor]]
) -> dict[str, Any]:
    decayed: list[dict[str, LazyTensor]] = []
    others: list[dict[str, LazyTensor]] = []
    for name, _, decays in megatron_optimizer.core_parameters(model, canonical=False):
        (decayed if decays else others).append({kind: tensors[name] for kind, tensors in states.items()})
    return megatron_optimizer.write(decayed, others, *megatron_write.optimizer_numbers(checkpoint))


def _stage(held: Mapping[str, LazyTensor], layers: int, stage: int, stages: int) -> dict[str, LazyTensor]:
    """What one stage holds, layers counted from 0 in it, in the order of Megatron-core's modules."""
    count = layers // stages
    found: dict[str, LazyTensor] = {}
    for name, tensor in held.items():
        moved, layer = bert_names.shift(name, -stage * count)
        if moved == name and not name.startswith("encoder.layers."):
            if stage == (0 if name.startswith(_EMBEDDING) else stages - 1):
                found[name] = tensor
        elif 0 <= layer < count:
            found[moved] = tensor
    if stages > 1 and stage == stages - 1 and _OUTPUT not in held and "output_layer.bias" in held:
        found[_OUTPUT] = held[_WORDS]
    return {name: found[name] for name in sorted(found, key=megatron_core_names.place)}


class _Piece(NamedTuple):
    """A tensor of the target: its shape, and its chunks with the place of each."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: list[tuple[tuple[int, ...], LazyTensor]]


def _write_distributed(checkpoint: Checkpoint, rows: Sequence[Row], size: int, layout: Layout, folder: Path) -> None:
    heads = checkpoint.config["num_attention_heads"]
    (whole,) = split(rows, resize_vocabulary(checkpoint.tensors, size), 1, heads=heads, order="v2")
    pieces = _stacked(whole)
    common = _common(checkpoint, size, layout)
    for kind, (state,) in megatron_write.optimizer_ranks(checkpoint, rows, size, 1, "v2").items():
        pieces |= {f"optimizer.state.{_STATES[kind]}.{name}": piece for name, piece in _stacked(state).items()}
    if "step" in checkpoint.optimizer:
        step = int(checkpoint.optimizer["step"].load().item())
        common["optimizer"] = {"optimizer": {"param_groups": [{"params": [], "step": step}]}}
    if layout.common:
        torch_writer.save(common, folder / "common.pt")
    with (folder / _FILE).open("wb") as file:
        _write_chunks(file, pieces, {} if layout.common else {megatron_core.COMMON_OBJECT: common}, folder)
    described: dict[str, Any] = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
    if layout.common:
        described |= {"common_backend": "torch", "common_backend_version": 1}
    (folder / "metadata.json").write_text(json.dumps(described))


def _stacked(tensors: Mapping[str, LazyTensor]) -> dict[str, _Piece]:
    """Layers as one tensor with a dim in front, a chunk for each; by their numbers where layers differ."""
    layers: dict[str, dict[int, LazyTensor]] = {}
    pieces: dict[str, _Piece] = {}
    for name, tensor in tensors.items():
        layer = bert_names.shift(name, 0)[1]
        if layer < 0:
            pieces[name] = _Piece(tensor.shape, tensor.dtype, [((0,) * len(tensor.shape), tensor)])
        else:
            layers.setdefault(name.replace(f".layers.{layer}.", ".layers.", 1), {})[layer] = tensor
    for name, held in layers.items():
        first = held[0]
        if any(tensor.shape != first.shape or tensor.dtype != first.dtype for tensor in held.values()):
            for layer, tensor in held.items():
                numbered = name.replace(".layers.", f".layers.{layer}.", 1)
                pieces[numbered] = _Piece(tensor.shape, tensor.dtype, [((0,) * len(tensor.shape), tensor)])
            continue
        chunks = [
            ((layer, *(0,) * len(first.shape)), tensor.derived((1, *first.shape), lambda loaded: loaded[None]))
            for layer, tensor in sorted(held.items())
        ]
        pieces[name] = _Piece((len(held), *first.shape), first.dtype, chunks)
    return pieces


def _write_chunks(file: IO[bytes], pieces: Mapping[str, _Piece], objects: Mapping[str, Any], folder: Path) -> None:
    """Write all chunks behind one another, then `.metadata`, in torch's own classes."""
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import (
        BytesStorageMetadata,
        ChunkStorageMetadata,
        Metadata,
        MetadataIndex,
        TensorProperties,
        TensorStorageMetadata,
    )

    described: dict[str, Any] = {}
    places: dict[Any, Any] = {}
    for name, piece in pieces.items():
        chunks = []
        for number, (offsets, tensor) in enumerate(piece.chunks):
            begin = file.tell()
            torch_writer.save(tensor, file)
            where, sizes = torch.Size(offsets), torch.Size(tensor.shape)
            places[MetadataIndex(name, where, number)] = _StorageInfo(_FILE, begin, file.tell() - begin)
            chunks.append(ChunkStorageMetadata(where, sizes))
        properties = TensorProperties(dtype=piece.dtype)
        described[name] = TensorStorageMetadata(properties, torch.Size(piece.shape), chunks)
    for name, content in objects.items():
        begin = file.tell()
        torch_writer.save(content, file)
        places[MetadataIndex(name)] = _StorageInfo(_FILE, begin, file.tell() - begin)
        described[name] = BytesStorageMetadata()
    metadata = Metadata(described, planner_data={name: (name,) for name in described}, storage_data=places)
    (folder / METADATA).write_bytes(pickle.dumps(metadata))
