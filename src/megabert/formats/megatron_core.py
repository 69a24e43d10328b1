"""Reading Megatron-core's BERT: its folders of ranks (format `torch`) and its distributed checkpoints (`torch_dist`).

    torch        iter_0001000/mp_rank_00[_000]/model_optim_rng.pt, flat names
    torch_dist   iter_0001000/{metadata.json, .metadata, __0_0.distcp, ..., common.pt until 2026-07}, whole tensors

Both LayerNorm spellings (Transformer Engine's and the local one), one name a layer or layers stacked in one tensor.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from megabert.formats import (
    bert_names,
    fields,
    megatron,
    megatron_arguments,
    megatron_core_chunks,
    megatron_core_names,
    megatron_layout,
    megatron_optimizer,
    megatron_shard,
    sizes,
    unpickle,
)
from megabert.formats.checkpoint import PRE_LAYERNORM, Checkpoint, LazyTensor, with_heads
from megabert.formats.megatron_core_chunks import METADATA
from megabert.formats.table import ORDERS, Order, Row, join, resize_vocabulary
from megabert.formats.unpickle_globals import Placeholder

Kind = Literal["torch", "torch_dist", "torch_dcp"]

DECODER = "cls.predictions.decoder.weight"
WORDS = "bert.embeddings.word_embeddings.weight"
COMMON_OBJECT = "common_state/shard_0_1"
VERSION = 3.0
_LARGEST_JSON = 1 << 20
_OPTIMIZER = re.compile(r"(?:^|\.)optimizer\.state\.(exp_avg_sq|exp_avg|fp32_param)\.(.+)$")
_KINDS = {"exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq", "fp32_param": "master"}
_STEP_FOLDER = re.compile(r"iter_\d{7,}")
_NO_STATE = megatron_optimizer.State({}, None, [])
_IGNORED = ("rng_state", "rerun_state", "optimizer", "chained_", "common_state")


class Facts(NamedTuple):
    """What lies at a path.

    Attributes:
        kind: how it is stored; `torch_dcp` is PyTorch's own layout without Megatron's `metadata.json`.
        folder: that of the ranks, or of `.metadata`.
    """

    kind: Kind
    folder: Path

    @property
    def said(self) -> str:
        """In words."""
        return f"Megatron-core's BERT, format {self.kind}"


def look(path: Path) -> Facts | None:
    """Whether a checkpoint of Megatron-core lies at a path.

    Raises:
        ValueError: one lies there, but it is damaged or not whole.
    """
    folder = _distributed(path)
    if folder is not None:
        return Facts("torch_dist" if (folder / "metadata.json").is_file() else "torch_dcp", folder)
    layout = megatron_layout.find(path)
    if layout is None:
        return None
    shard = megatron_shard.read_shard(layout, (0, 0))
    return Facts("torch", layout.path) if megatron_core_names.is_core(_names(shard.chunks)) else None


def _names(chunks: Sequence[Mapping[str, LazyTensor]]) -> Iterator[str]:
    for chunk in chunks:
        yield from chunk


def _distributed(path: Path) -> Path | None:
    """The folder of a distributed checkpoint: the path, what its tracker names, the only one in it, or `weights/`."""
    if not path.is_dir():
        return path.parent if path.name == METADATA and path.is_file() else None
    if (path / METADATA).is_file():
        return path
    tracker = path / megatron_layout.TRACKER
    if tracker.is_file():
        text = tracker.read_bytes()[:64].decode("utf-8", "replace").strip()
        folder = path / (text if text == "release" else f"iter_{int(text):07d}" if text.isdecimal() else "-")
        return folder if (folder / METADATA).is_file() else None
    inner = sorted(entry for entry in path.iterdir() if entry.is_dir() and (entry / METADATA).is_file())
    inner = [entry for entry in inner if entry.name in ("weights", "release") or _STEP_FOLDER.fullmatch(entry.name)]
    if len(inner) > 1:
        names = ", ".join(entry.name for entry in inner[:5])
        raise ValueError(f"{path} holds {len(inner)} checkpoints and no {tracker.name}; name one of them: {names}")
    return inner[0] if inner else None


def read(path: Path, *, heads: int | None = None, order: Order | None = None, optimizer: bool = True) -> Checkpoint:
    """Read a checkpoint.

    Args:
        heads: attention heads; needed only where the file has no `args` and they are not of size 64.
        order: of the fused rows; Megatron-core has always written [heads, 3, size].
        optimizer: with the state of the optimizer, where the checkpoint has it tensor by tensor.

    Raises:
        ValueError: nothing of the kind is there, or it is damaged or not whole; file and key are named.
    """
    facts = look(path)
    if facts is None:
        raise ValueError(f"{path} holds no checkpoint of Megatron-core")
    if facts.kind == "torch":
        return _read_ranks(path, facts, heads, order, optimizer)
    return read_contents(megatron_core_chunks.read(facts.folder), heads, order, optimizer, {}, facts.said)


def _read_ranks(path: Path, facts: Facts, heads: int | None, order: Order | None, optimizer: bool) -> Checkpoint:
    layout = megatron_layout.find(path)
    assert layout is not None, path
    shards = {place: megatron_shard.read_shard(layout, place) for place in sorted(layout.ranks)}
    megatron.check_one_run(layout, shards)
    ranks = [
        megatron_core_names.renamed(megatron.whole_rank(layout, shards, rank)) for rank in range(layout.tensor_ranks)
    ]
    first = shards[0, 0]
    notes = [facts.said, *layout.notes]
    state = _NO_STATE
    if optimizer:
        state = megatron_optimizer.read(layout, shards, megatron_optimizer.core_parameters)
    found = Parts(ranks, state, first.arguments, notes)
    foreign = megatron.foreign_note(shards)
    return assemble(facts.folder, found, heads, order, megatron_shard.training_of(first), [foreign] if foreign else [])


class Parts(NamedTuple):
    """What was found: tensors of each tensor rank by canonical names, the optimizer's, `args`."""

    ranks: list[dict[str, LazyTensor]]
    optimizer: megatron_optimizer.State
    arguments: dict[str, Any]
    notes: list[str]


def read_contents(
    contents: megatron_core_chunks.Contents, heads: int | None, order: Order | None, optimizer: bool,
    told: Mapping[str, Any], said: str = "",
) -> Checkpoint:  # fmt: skip
    """A checkpoint of a distributed checkpoint's contents.

    Args:
        told: what is known beside its own `args`, under their names.
        said: the first note.

    Raises:
        ValueError: as `read`.
    """
    _check_metadata(contents)
    common, foreign = _common(contents)
    weights, states = {}, {}
    for name, stored in contents.tensors.items():
        state = _OPTIMIZER.search(name)
        if state:
            states.setdefault(_KINDS[state[1]], {})[state[2]] = stored
        elif not name.startswith(_IGNORED):
            weights[name] = stored
    where = str(contents.folder)
    plain = unpickle.plain(common.get("args"), where) if isinstance(common.get("args"), Placeholder | dict) else {}
    plain = {**told, **plain}
    held = {kind: [megatron_core_names.unstacked(tensors)] for kind, tensors in states.items() if optimizer}
    notes = [said] if said else []
    if optimizer and not held and any("optimizer" in name for name in (*contents.tensors, *contents.objects)):
        notes.append("the optimizer's state is not stored tensor by tensor, and is not carried")
    state = megatron_optimizer.State(held, _step(common), [])
    found = Parts([megatron_core_names.unstacked(weights)], state, plain, notes)
    training = {
        name: unpickle.plain(common[name], where)
        for name in ("iteration", "num_floating_point_operations_so_far")
        if name in common
    }
    if isinstance(common.get("opt_param_scheduler"), dict):
        training["scheduler"] = unpickle.plain(common["opt_param_scheduler"], where)
    for name in ("consumed_train_samples", "consumed_valid_samples"):
        if isinstance(plain.get(name), int):
            training[name] = plain[name]
    if plain:
        training["arguments"] = plain
    classes = sorted({*foreign, *contents.foreign} - {"argparse.Namespace"})
    last = [f"objects whose classes were not loaded: {', '.join(classes[:6])}"] if classes else []
    return assemble(contents.folder, found, heads, order, training, last)


def _check_metadata(contents: megatron_core_chunks.Contents) -> None:
    region = contents.members.get("metadata.json")
    if region is None:
        return
    try:
        value = json.loads(region.read(0, _LARGEST_JSON))
        backend = value["sharded_backend"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{region.name} is damaged: it should name the sharded_backend") from None
    if backend != "torch_dist":
        raise ValueError(f"{region.name}: a checkpoint of the kind {str(backend)[:40]!r} is not read; torch_dist is")


def _common(contents: megatron_core_chunks.Contents) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What is not sharded: in `common.pt`, or as an object among the chunks."""
    region = contents.members.get("common.pt") or contents.objects.get(COMMON_OBJECT)
    if region is None:
        return {}, ()
    loaded = unpickle.load(region)
    if not isinstance(loaded.data, dict):
        raise ValueError(f"{region.name}: the common state is no dictionary")
    return loaded.data, loaded.foreign


def _step(common: Any) -> float | None:
    """The optimizer's step, from wherever the common state has its parameter groups."""
    pending, seen = [common], 0
    while pending and seen < 10_000:
        value, seen = pending.pop(), seen + 1
        if isinstance(value, dict):
            step = value.get("step")
            if "params" in value and isinstance(step, LazyTensor) and step.numbers == 1:
                step = step.load().item()
            if "params" in value and isinstance(step, int | float):
                return fields.real(step, "the optimizer's step")
            pending += [item for name, item in value.items() if name != "args"]
        elif isinstance(value, list):
            pending += value[:100]
    return None


def assemble(
    folder: Path, found: Parts, heads: int | None, order: Order | None, training: dict[str, Any], last: list[str]
) -> Checkpoint:
    """A checkpoint from what was found.

    Args:
        training: what is known of the run.
        last: notes that come last.

    Raises:
        ValueError: it is no BERT, or not whole; file and key are named.
    """
    arguments, ranks = found.arguments, found.ranks
    words = ranks[0].get("embedding.word_embeddings.weight")
    if words is None or len(words.shape) != 2:
        raise ValueError(f"{folder} holds no word embedding: it is no BERT, or not whole")
    heads = megatron_arguments.heads_of(arguments, heads, str(folder))
    notes = list(found.notes)
    if heads is None:
        heads = sizes.supposed_heads(words.shape[1])
        notes.append(f"the checkpoint does not say how many attention heads there are: {heads} taken")
    rows = megatron_core_names.rows(ranks[0])
    chosen: Order = order or "v2"
    if chosen != "v2":
        notes.append(f"rows of the fused query-key-value taken as {ORDERS[chosen]}, as was asked for")
    odd = megatron_core_names.left_out(ranks[0], rows)
    if odd:
        notes.append(f"left out, no weight of a BERT: {', '.join(odd[:5])}{' ...' if len(odd) > 5 else ''}")
    tensors = join(rows, ranks, heads=heads, order=chosen)
    config, supposed = megatron_arguments.to_config(arguments, VERSION, str(folder))
    notes += _tie(tensors, config, bool(arguments.get("untie_embeddings_and_output_weights")))
    told, _ = sizes.infer(tensors, heads)
    megatron_arguments.check_sizes(arguments, told, str(folder))
    config = {**told, **config}
    state = megatron_optimizer.joined(found.optimizer, rows, heads, chosen, tensors)
    notes += found.optimizer.notes
    added = megatron_arguments.own_rows(arguments, config["vocab_size"], str(folder))
    if added is not None:
        tensors, state = resize_vocabulary(tensors, added), resize_vocabulary(state, added)
        notes.append(f"{config['vocab_size'] - added} rows of padding that this package had added are left out")
        config["vocab_size"] = added
    checkpoint = Checkpoint(
        family=PRE_LAYERNORM,
        config=config,
        tensors=tensors,
        optimizer=state,
        training=training,
        vocabulary=megatron_shard.vocabulary_beside(folder),
        notes=(*notes, *supposed, *last),
    )
    checkpoint = with_heads(checkpoint)
    sizes.check_named(str(folder), checkpoint.config, checkpoint.tensors)
    return checkpoint


def _tie(tensors: dict[str, LazyTensor], config: dict[str, Any], untied: bool) -> list[str]:
    """Drop the last stage's copy of the word embedding, which is no weight of its own."""
    decoder = tensors.get(DECODER)
    if decoder is None:
        config["tie_word_embeddings"] = True
        return []
    words = tensors[WORDS]
    if not untied and decoder.shape == words.shape and torch.equal(decoder.load(), words.load()):
        del tensors[DECODER]
        config["tie_word_embeddings"] = True
        return []
    config["tie_word_embeddings"] = False
    return [] if untied else ["output_layer.weight is not the word embedding: the model is taken as untied"]


def rows_of(checkpoint: Checkpoint) -> list[Row]:
    """The rows of a checkpoint to be written, when Megatron-core has a place for each of its weights.

    Raises:
        ValueError: it has none for one, or the model is post-LayerNorm.
    """
    if checkpoint.family != PRE_LAYERNORM:
        raise ValueError(
            "this is a post-LayerNorm BERT: Megatron-core's format has none; only --to huggingface takes it"
        )
    rows = bert_names.core(checkpoint.config["num_hidden_layers"])
    known = {name for row in rows for name in row.ours}
    homeless = sorted(name for name in checkpoint.tensors if name not in known)
    if homeless:
        shown = ", ".join(homeless[:3]) + (" ..." if len(homeless) > 3 else "")
        raise ValueError(f"Megatron-core's format has no place for {shown}")
    return rows
