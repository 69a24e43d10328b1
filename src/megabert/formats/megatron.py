"""Reading Megatron-LM's own checkpoints (format `torch`): every generation of its BERT, any tensor x pipeline ranks.

The steps: find the ranks (`megatron_layout`), read each file without running it (`unpickle`), bring its names to those
of one generation (`bert_names.canonical`), count layers over the whole model, and join the ranks (`table.join`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megabert.formats import (
    bert_names,
    fields,
    megatron_arguments,
    megatron_first,
    megatron_optimizer,
    plausibility,
    sizes,
)
from megabert.formats.checkpoint import PRE_LAYERNORM, Checkpoint, LazyTensor, with_heads
from megabert.formats.megatron_layout import Layout, find
from megabert.formats.megatron_shard import Shard, layers_before, read_shard, training_of, vocabulary_of
from megabert.formats.table import ORDERS, Order, join, order_of, resize_vocabulary


def look(path: Path) -> Layout | None:
    """Whether a checkpoint of Megatron-LM's own BERT lies at a path, by the names of its first file.

    Raises:
        ValueError: one lies there, but it is damaged or not whole.
    """
    layout = find(path)
    if layout is None:
        return None
    shard = read_shard(layout, (0, 0))
    names = [name for chunk in shard.chunks for name in chunk]
    if any("linear_qkv" in name or "linear_fc1" in name for name in names):
        return None  # Megatron-core's
    known = any(bert_names.canonical(name) for name in names) or megatron_first.applies(names)
    return layout if known else None


def read(path: Path, *, heads: int | None = None, order: Order | None = None, optimizer: bool = True) -> Checkpoint:
    """Read a checkpoint of any generation.

    Args:
        heads: attention heads; needed only where the file has no `args` and they are not of size 64.
        order: of the fused rows, where the file's `checkpoint_version` is known to be wrong.
        optimizer: with the state of the optimizer, where it is there.

    Raises:
        ValueError: nothing of the kind is there, or it is damaged or not whole; file and key are named.
    """
    layout = find(path)
    if layout is None:
        raise ValueError(f"{path} holds no checkpoint of Megatron-LM (no mp_rank_* folder, no file of torch.save)")
    shards = {place: read_shard(layout, place) for place in sorted(layout.ranks)}
    first = shards[0, 0]
    check_one_run(layout, shards)
    ranks = [whole_rank(layout, shards, rank) for rank in range(layout.tensor_ranks)]
    if megatron_first.applies(ranks[0]):
        return megatron_first.read(layout, first, ranks, heads, order)
    return assemble(layout, shards, ranks, heads, order, optimizer)


def assemble(
    layout: Layout, shards: Mapping[tuple[int, int], Shard], ranks: list[dict[str, LazyTensor]], heads: int | None,
    order: Order | None, optimizer: bool,
) -> Checkpoint:  # fmt: skip
    """A checkpoint from the flat tensors of each tensor rank (layers counted over the whole model).

    Raises:
        ValueError: it is no BERT, or not whole; file and key are named.
    """
    first = shards[0, 0]
    cut = f"{layout.tensor_ranks} tensor x {layout.stages} pipeline ranks"
    cut += f" x {len(first.chunks)} chunks" if len(first.chunks) > 1 else ""
    notes = [*layout.notes, cut, *_version_notes(first, order)]
    left_out = sorted({name for rank in ranks for name in rank if bert_names.canonical(name) is None})
    if left_out:
        notes.append(f"left out, no weight of a BERT: {', '.join(left_out[:5])}{' ...' if len(left_out) > 5 else ''}")
    ranks = [_canonical(rank) for rank in ranks]
    copy = [rank.pop(bert_names.WORD_EMBEDDING_COPY, None) for rank in ranks]
    config, supposed = megatron_arguments.to_config(first.arguments, first.version, first.name)
    rows = _rows(ranks[0])
    said = megatron_arguments.heads_of(first.arguments, heads, first.name)
    heads = said or _supposed_heads(ranks[0])
    chosen = order or order_of(first.version)
    tensors = join(rows, ranks, heads=heads, order=chosen)
    _check_copy(ranks, copy)
    told, more = sizes.infer(tensors, heads)
    if said is None:
        more.append(f"the file does not say how many attention heads there are: {heads} taken")
    megatron_arguments.check_sizes(first.arguments, told, first.name)
    config = {**told, **config}
    state: Mapping[str, LazyTensor] = {}
    if optimizer:
        held = megatron_optimizer.read(layout, shards)
        state = megatron_optimizer.joined(held, rows, heads, chosen, tensors)
        notes += held.notes
    added = megatron_arguments.own_rows(first.arguments, config["vocab_size"], first.name)
    if added is not None:
        tensors, state = resize_vocabulary(tensors, added), resize_vocabulary(state, added)
        notes.append(f"{config['vocab_size'] - added} rows of padding that this package had added are left out")
        config["vocab_size"] = added
    checkpoint = Checkpoint(
        family=PRE_LAYERNORM, config=config, tensors=tensors, optimizer=state, training=training_of(first),
        vocabulary=vocabulary_of(layout),
        notes=(*notes, *supposed, *more, *([foreign_note(shards)] if foreign_note(shards) else [])),
    )  # fmt: skip
    checkpoint = with_heads(checkpoint, multiple_choice="multichoice_head.weight" in ranks[-1])
    sizes.check_named(first.name, checkpoint.config, tensors)
    doubt = plausibility.doubt(checkpoint, chosen, layout.tensor_ranks)
    return checkpoint if doubt is None else dataclasses.replace(checkpoint, notes=(*checkpoint.notes, doubt))


def check_one_run(layout: Layout, shards: Mapping[tuple[int, int], Shard]) -> None:
    """Refuse files that do not belong together.

    Raises:
        ValueError: versions, iterations, sizes or counts of ranks differ; the file is named.
    """
    first = shards[0, 0]
    names = ("num_layers", "hidden_size", "num_attention_heads", "padded_vocab_size")
    for shard in shards.values():
        if shard.version != first.version:
            raise ValueError(f"{shard.name}: checkpoint_version {shard.version:g}, but {first.version:g} in "
                             f"{first.name}; the ranks are not of one run")  # fmt: skip
        told = (shard.iteration, *(shard.arguments.get(name) for name in names))
        expected = (first.iteration, *(first.arguments.get(name) for name in names))
        if told != expected:
            one, two = (", ".join(map(fields.shown, values)) for values in (told, expected))
            raise ValueError(f"{shard.name}: iteration and sizes ({one}) are not those of {first.name} ({two}); the "
                             "ranks are not of one run")  # fmt: skip
    arguments = first.arguments
    wanted = arguments.get("tensor_model_parallel_size") or arguments.get("model_parallel_size")
    stages = arguments.get("pipeline_model_parallel_size") or arguments.get("transformer_pipeline_model_parallel_size")
    for said, there, what in ((wanted, layout.tensor_ranks, "tensor"), (stages, layout.stages, "pipeline")):
        if said and fields.whole(said, f"{first.name}: args' {what}-parallel ranks") != there:
            raise ValueError(f"{layout.path}: its arguments tell of {said} {what}-parallel ranks, but {there} "
                             f"{'is' if there == 1 else 'are'} there")  # fmt: skip


def whole_rank(layout: Layout, shards: Mapping[tuple[int, int], Shard], rank: int) -> dict[str, LazyTensor]:
    """All tensors of one tensor rank, layers counted over the whole model."""
    stages = [shards[rank, stage] for stage in range(layout.stages)]
    chunks = len(stages[0].chunks)
    counts = [bert_names.count(chunk) for stage in stages for chunk in stage.chunks]
    if len(set(counts)) > 1 and stages[0].arguments.get("num_layers") is None:
        raise ValueError(f"{layout.path}: its stages hold {', '.join(map(str, counts))} layers, and no args tell how "
                         "many there should be; a layer is missing")  # fmt: skip
    if any(len(stage.chunks) != chunks for stage in stages):
        raise ValueError(f"{layout.path}: stages have different numbers of chunks; the ranks are not of one run")
    merged: dict[str, LazyTensor] = {}
    for (stage, chunk), before in layers_before(shards, rank).items():
        for name, tensor in stages[stage].chunks[chunk].items():
            moved = bert_names.shift(name, before)[0]
            if moved in merged:
                if _is_word_embedding(moved):
                    continue
                raise ValueError(f"{tensor.origin}: this weight occurs in two stages")
            merged[moved] = tensor
    return merged


def _is_word_embedding(name: str) -> bool:
    return name.endswith("word_embeddings.weight")


def _canonical(rank: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    renamed: dict[str, LazyTensor] = {}
    origins: dict[str, str] = {}
    for name, tensor in rank.items():
        to = bert_names.canonical(name)
        if to is None:
            continue
        if to in renamed:
            raise ValueError(f"{tensor.origin}: two weights mean {to} ({origins[to]} is the other): a file of several "
                             "encoders (a biencoder) is not read")  # fmt: skip
        renamed[to], origins[to] = tensor, name
    return renamed


def _rows(rank: Mapping[str, LazyTensor]) -> list[Any]:
    layers = bert_names.count_checked(rank)
    head = "multichoice_head" if "multichoice_head.weight" in rank else "classification_head"
    return bert_names.legacy(layers, head=head)


def _supposed_heads(rank: Mapping[str, LazyTensor]) -> int:
    words = rank.get("language_model.embedding.word_embeddings.weight")
    if words is None or len(words.shape) != 2:
        raise ValueError("the checkpoint holds no word embedding: it is no BERT, or not whole")
    return sizes.supposed_heads(words.shape[1])


def _check_copy(ranks: Sequence[Mapping[str, LazyTensor]], copies: Sequence[LazyTensor | None]) -> None:
    """The last stage's copy of the word embedding must be the first stage's."""
    for rank, copy in zip(ranks, copies, strict=True):
        words = rank.get("language_model.embedding.word_embeddings.weight")
        if copy is None or words is None:
            continue
        if copy.shape != words.shape or not bool((copy.load() == words.load()).all()):
            raise ValueError(f"{copy.origin}: the copy of the word embedding differs from {words.origin}; the stages "
                             "are not of one run")  # fmt: skip


def _version_notes(shard: Shard, order: Order | None) -> list[str]:
    stamped = order_of(shard.version)
    said = f"checkpoint_version {shard.version:g}" if "checkpoint_version" in shard.content else "no checkpoint_version"
    notes = [f"{said}: rows of the fused query-key-value are {ORDERS[stamped]}"]
    if order is not None and order != stamped:
        notes.append(f"taken as {ORDERS[order]} instead, as was asked for")
    return notes


def foreign_note(shards: Mapping[tuple[int, int], Shard]) -> str:
    """A note that names classes which were not loaded; empty when there is none."""
    names = sorted({name for shard in shards.values() for name in shard.foreign} - {"argparse.Namespace"})
    shown = ", ".join(names[:6]) + (" ..." if len(names) > 6 else "")
    return f"objects whose classes were not loaded: {shown}" if names else ""
