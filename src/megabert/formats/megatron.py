"""Reading Megatron-LM's own checkpoints (format `torch`): every generation of its BERT, any tensor x pipeline ranks.

The steps: find the ranks (`megatron_layout`), read each file without running it (`unpickle`), bring its names to those
of one generation (`bert_names.canonical`), count layers over the whole model, and join the ranks (`table.join`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megabert.formats import bert_names, megatron_arguments, megatron_optimizer, sizes, unpickle
from megabert.formats.checkpoint import POST_LAYERNORM, PRE_LAYERNORM, Checkpoint, LazyTensor
from megabert.formats.megatron_layout import Layout, find
from megabert.formats.table import ORDERS, Order, join, order_of, resize_vocabulary
from megabert.formats.unpickle_globals import Placeholder

_TRAINING = ("iteration", "total_iters", "num_floating_point_operations_so_far")
_LARGEST_NESTING = 30
ADDED_ROWS = "megabert_vocab_size"
"""In `args` of files written here: the entries of the vocabulary without the padding that the writer added."""


@dataclass(frozen=True)
class Shard:
    """One file of a checkpoint: a tensor rank of a stage.

    Attributes:
        chunks: flat names -> tensors, one mapping for each chunk of an interleaved pipeline.
        arguments: its `args` as plain values; empty when it has none.
        content: the whole content.
    """

    name: str
    chunks: tuple[dict[str, LazyTensor], ...]
    arguments: dict[str, Any]
    version: float
    content: Mapping[str, Any]
    foreign: tuple[str, ...]


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
    known = any(bert_names.canonical(name) for name in names) or _is_first_generation(names)
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
    if _is_first_generation(ranks[0]):
        return _first_generation(layout, first, ranks, heads, order)
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
    notes = [*layout.notes, *_version_notes(first, order)]
    left_out = sorted({name for rank in ranks for name in rank if bert_names.canonical(name) is None})
    if left_out:
        notes.append(f"left out, no weight of a BERT: {', '.join(left_out[:5])}{' ...' if len(left_out) > 5 else ''}")
    ranks = [_canonical(rank) for rank in ranks]
    copy = [rank.pop(bert_names.WORD_EMBEDDING_COPY, None) for rank in ranks]
    config, supposed = megatron_arguments.to_config(first.arguments, first.version)
    rows = _rows(ranks[0])
    heads = heads or first.arguments.get("num_attention_heads") or _supposed_heads(ranks[0])
    chosen = order or order_of(first.version)
    tensors = join(rows, ranks, heads=heads, order=chosen)
    _check_copy(ranks, copy)
    told, more = sizes.infer(tensors, heads)
    if not first.arguments.get("num_attention_heads"):
        more.append(f"the file does not say how many attention heads there are: {heads} taken")
    config = {**told, **config, "intermediate_size": told.get("intermediate_size")}
    sizes.check(config, tensors)
    state: Mapping[str, LazyTensor] = {}
    if optimizer:
        state, said = megatron_optimizer.read(layout, shards, rows, heads, chosen)
        notes += said
    added = first.arguments.get(ADDED_ROWS)
    if isinstance(added, int) and 0 < added < config["vocab_size"]:
        tensors, state = resize_vocabulary(tensors, added), resize_vocabulary(state, added)
        notes.append(f"{config['vocab_size'] - added} rows of padding that this package had added are left out")
        config["vocab_size"] = added
    checkpoint = Checkpoint(
        family=PRE_LAYERNORM, config=config, tensors=tensors, optimizer=state, training=training(first),
        vocabulary=vocabulary_beside(layout.path),
        notes=(*notes, *supposed, *more, *([foreign_note(shards)] if foreign_note(shards) else [])),
    )  # fmt: skip
    return named(checkpoint, multiple_choice="multichoice_head.weight" in ranks[-1])


def read_shard(layout: Layout, place: tuple[int, int]) -> Shard:
    """Read one file.

    Raises:
        ValueError: it is damaged or hostile, or holds no model.
    """
    region = layout.ranks[place]
    content, foreign = unpickle.load(region)
    if not isinstance(content, dict):
        raise ValueError(f"{region.name} holds no checkpoint: a {type(content).__name__} is in it")
    version = content.get("checkpoint_version", 0)
    if not isinstance(version, int | float):
        raise ValueError(f"{region.name}: checkpoint_version is {version!r}, which is no number")
    arguments = content.get("args")
    plain = unpickle.plain(arguments) if isinstance(arguments, Placeholder | dict) else {}
    chunks = []
    names = [name for name in ("model", "sd", *(f"model{index}" for index in range(1000))) if name in content]
    parts = [content[name] for name in names if isinstance(content[name], dict)]
    for part in parts or [content]:
        chunks.append(dict(_flat(part, region.name)))
    if not any(chunks):
        raise ValueError(f"{region.name} holds no model (its keys: {', '.join(map(str, list(content)[:8]))})")
    return Shard(region.name, tuple(chunks), plain if isinstance(plain, dict) else {}, float(version), content, foreign)


def _flat(part: Mapping[Any, Any], where: str) -> list[tuple[str, LazyTensor]]:
    """Nested dicts as flat names, without recursion: a hostile file may nest as deep as it likes."""
    found = []
    pending: list[tuple[str, Any, int]] = [("", part, 0)]
    while pending:
        prefix, value, depth = pending.pop()
        if isinstance(value, dict) and depth < _LARGEST_NESTING:
            pending += [(f"{prefix}.{name}" if prefix else str(name), item, depth + 1) for name, item in value.items()]
        elif isinstance(value, LazyTensor):
            value.origin = f"{where}: {prefix}"
            found.append((prefix, value))
    return found[::-1]


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
        told = (shard.content.get("iteration"), *(shard.arguments.get(name) for name in names))
        expected = (first.content.get("iteration"), *(first.arguments.get(name) for name in names))
        if told != expected:
            raise ValueError(f"{shard.name}: iteration and sizes {told} are not those of {first.name}, {expected}; the "
                             "ranks are not of one run")  # fmt: skip
    arguments = first.arguments
    wanted = arguments.get("tensor_model_parallel_size") or arguments.get("model_parallel_size")
    stages = arguments.get("pipeline_model_parallel_size") or arguments.get("transformer_pipeline_model_parallel_size")
    for said, there, what in ((wanted, layout.tensor_ranks, "tensor"), (stages, layout.stages, "pipeline")):
        if isinstance(said, int) and said != there:
            raise ValueError(f"{layout.path}: its arguments tell of {said} {what}-parallel ranks, but {there} "
                             f"{'is' if there == 1 else 'are'} there")  # fmt: skip


def whole_rank(layout: Layout, shards: Mapping[tuple[int, int], Shard], rank: int) -> dict[str, LazyTensor]:
    """All tensors of one tensor rank, layers counted over the whole model.

    Chunk `c` of stage `s` comes after the chunks before it of all stages, and after the stages before it of chunk `c`.
    """
    stages = [shards[rank, stage] for stage in range(layout.stages)]
    chunks = len(stages[0].chunks)
    if any(len(stage.chunks) != chunks for stage in stages):
        raise ValueError(f"{layout.path}: stages have different numbers of chunks; the ranks are not of one run")
    merged: dict[str, LazyTensor] = {}
    before = 0
    for chunk in range(chunks):
        for stage in stages:
            tensors = stage.chunks[chunk]
            local = 0
            for name, tensor in tensors.items():
                moved, layer = bert_names.shift(name, before)
                local = max(local, layer - before + 1)
                if moved in merged:
                    if _is_word_embedding(moved):
                        continue
                    raise ValueError(f"{tensor.origin}: this weight occurs in two stages")
                merged[moved] = tensor
            before += local
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
    layers = bert_names.count(rank)
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


def training(shard: Shard) -> dict[str, Any]:
    """What a file says of its run: iteration, consumed samples, schedule, `args`; plain values."""
    content = shard.content
    training = {name: unpickle.plain(content[name]) for name in _TRAINING if name in content}
    if "total_iters" in training:
        training.setdefault("iteration", training.pop("total_iters"))
    for name in ("opt_param_scheduler", "lr_scheduler"):
        if isinstance(content.get(name), dict):
            training["scheduler"] = unpickle.plain(content[name])
    for name in ("consumed_train_samples", "consumed_valid_samples"):
        if isinstance(shard.arguments.get(name), int):
            training[name] = shard.arguments[name]
    if shard.arguments:
        training["arguments"] = shard.arguments
    training["checkpoint_version"] = shard.version
    return training


def vocabulary_beside(path: Path) -> dict[str, bytes]:
    """A vocabulary that lies beside the checkpoint."""
    folders = [path if path.is_dir() else path.parent, path.parent]
    for folder in folders:
        file = folder / "vocab.txt"
        if file.is_file() and file.stat().st_size < 64 << 20:
            return {"vocab.txt": file.read_bytes()}
    return {}


def foreign_note(shards: Mapping[tuple[int, int], Shard]) -> str:
    """A note that names classes which were not loaded; empty when there is none."""
    names = sorted({name for shard in shards.values() for name in shard.foreign} - {"argparse.Namespace"})
    shown = ", ".join(names[:6]) + (" ..." if len(names) > 6 else "")
    return f"objects whose classes were not loaded: {shown}" if names else ""


def named(checkpoint: Checkpoint, *, multiple_choice: bool = False) -> Checkpoint:
    """The checkpoint with `architectures` and `add_binary_head` of its config by the parts that are there, and a note
    for each part that is not."""
    parts = checkpoint.parts
    classifier = "classifier.weight" in checkpoint.tensors
    if classifier:
        name = "MegatronBertForMultipleChoice" if multiple_choice else "MegatronBertForSequenceClassification"
    elif "lm_head" in parts:
        name = "MegatronBertForPreTraining" if {"binary_head", "pooler"} <= set(parts) else "MegatronBertForMaskedLM"
    elif "binary_head" in parts:
        name = "MegatronBertForNextSentencePrediction"
    else:
        name = "MegatronBertModel"
    config = {**checkpoint.config, "architectures": [name]}
    if "lm_head" in parts:
        config["add_binary_head"] = name == "MegatronBertForPreTraining"
    wanted = ("pooler", "tokentypes") if classifier else ("lm_head", "binary_head", "pooler", "tokentypes")
    absent = [part for part in wanted if part not in parts]
    notes = checkpoint.notes
    if absent:
        notes = (*notes, f"not in the checkpoint: {', '.join(absent)}")
    return dataclasses.replace(checkpoint, config=config, notes=notes)


def _is_first_generation(names: Any) -> bool:
    return any(name.endswith(".attention.output.LayerNorm.weight") for name in names)


def _first_generation(
    layout: Layout, first: Shard, ranks: list[dict[str, LazyTensor]], heads: int | None, order: Order | None
) -> Checkpoint:
    """Post-LayerNorm BERT of 2019: Transformers' `BertForPreTraining`, never a Megatron BERT."""
    ranks = [{bert_names.without_wrapper(name): tensor for name, tensor in rank.items()} for rank in ranks]
    heads = heads or first.arguments.get("num_attention_heads")
    words = ranks[0].get("bert.embeddings.word_embeddings.weight")
    if words is None or len(words.shape) != 2:
        raise ValueError(f"{first.name} holds no word embedding: it is no BERT, or not whole")
    heads = heads or sizes.supposed_heads(words.shape[1])
    tensors = join(bert_names.first_generation(bert_names.count(ranks[0])), ranks, heads=heads, order=order or "v0")
    told, notes = sizes.infer(tensors, heads)
    config = {
        **told, "model_type": "bert", "architectures": ["BertForPreTraining"], "hidden_act": "gelu",
        "layer_norm_eps": 1e-12, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02, "pad_token_id": 0, "tie_word_embeddings": True,
    }  # fmt: skip
    if any("query_key_value" in name for name in ranks[0]):
        config["layer_norm_eps"] = first.arguments.get("layernorm_epsilon", 1e-5)
    said = (
        "a post-LayerNorm BERT, as Megatron-LM trained before 2019-10: it is Transformers' BertForPreTraining, not a "
        "Megatron BERT",
        f"numerics: LayerNorm eps {config['layer_norm_eps']:g}, GELU erf",
    )
    optimizer = () if "optimizer" not in first.content else ("the optimizer's state of this generation is not carried",)
    return Checkpoint(
        family=POST_LAYERNORM, config=config, tensors=tensors, training=training(first),
        vocabulary=vocabulary_beside(layout.path), notes=(*layout.notes, *said, *notes, *optimizer),
    )  # fmt: skip
