"""One file of a Megatron-LM checkpoint: its model as flat names, its arguments, and what it says of training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megabert.formats import bert_names, fields, unpickle
from megabert.formats.bounds import Budget
from megabert.formats.bounds import name as bounded_name
from megabert.formats.checkpoint import LazyTensor
from megabert.formats.megatron_layout import Layout
from megabert.formats.unpickle_globals import Placeholder

_TRAINING = ("num_floating_point_operations_so_far",)
_MOST_ITERATIONS = 10**15
_LARGEST_NESTING = 30
_LARGEST_VOCABULARY = 64 << 20


@dataclass(frozen=True)
class Shard:
    """One file of a checkpoint: a tensor rank of a stage.

    Attributes:
        chunks: flat names -> tensors, one mapping for each chunk of an interleaved pipeline.
        arguments: its `args` as plain values; empty when it has none.
        iteration: at which it was saved; None: it does not say.
        content: the whole content.
    """

    name: str
    chunks: tuple[dict[str, LazyTensor], ...]
    arguments: dict[str, Any]
    version: float
    iteration: int | None
    content: Mapping[str, Any]
    foreign: tuple[str, ...]


def read_shard(layout: Layout, place: tuple[int, int]) -> Shard:
    """Read one file.

    Raises:
        ValueError: it is damaged or hostile, or holds no model.
    """
    region = layout.ranks[place]
    content, foreign = unpickle.load(region)
    if not isinstance(content, dict):
        raise ValueError(f"{region.name} holds no checkpoint: a {type(content).__name__} is in it")
    version = fields.real(content.get("checkpoint_version", 0), f"{region.name}: checkpoint_version", most=100)
    arguments = content.get("args")
    plain = unpickle.plain(arguments, f"{region.name}: args") if isinstance(arguments, Placeholder | dict) else {}
    chunks = []
    names = [name for name in ("model", "sd", *(f"model{index}" for index in range(1000))) if name in content]
    parts = [content[name] for name in names if isinstance(content[name], dict)]
    for part in parts or [content]:
        chunks.append(dict(_flat(part, region.name)))
    if not any(chunks):
        keys = ", ".join(str(name)[:40] for name in list(content)[:8])
        raise ValueError(f"{region.name} holds no model (its keys: {keys})")
    return Shard(
        region.name,
        tuple(chunks),
        plain if isinstance(plain, dict) else {},
        version,
        _iteration(region.name, content),
        content,
        foreign,
    )


def _iteration(where: str, content: Mapping[str, Any]) -> int | None:
    value = content.get("iteration", content.get("total_iters"))
    if isinstance(value, LazyTensor):
        value = unpickle.plain(value, where)
    return None if value is None else fields.whole(value, f"{where}: iteration", least=0, most=_MOST_ITERATIONS)


def _flat(part: Mapping[Any, Any], where: str) -> list[tuple[str, LazyTensor]]:
    """Nested dicts as flat names, without recursion: a hostile file may nest as deep as it likes."""
    found = []
    budget = Budget(where)
    pending: list[tuple[str, Any, int]] = [("", part, 0)]
    while pending:
        prefix, value, depth = pending.pop()
        if isinstance(value, dict) and depth < _LARGEST_NESTING:
            budget.spend(len(value))
            pending += [
                (bounded_name(f"{prefix}.{key}" if prefix else key, where), item, depth + 1)
                for key, item in value.items()
                if isinstance(item, dict | LazyTensor)
            ]
        elif isinstance(value, LazyTensor):
            value.origin = f"{where}: {prefix}"
            found.append((prefix, value))
    return found[::-1]


def layers_before(shards: Mapping[tuple[int, int], Shard], rank: int) -> dict[tuple[int, int], int]:
    """(stage, chunk) -> layers of the model before it, on one tensor rank.

    Chunk `c` of stage `s` comes after the chunks before it of all stages, and after the stages before it of chunk `c`.
    """
    stages = [shard for (owner, _), shard in sorted(shards.items(), key=lambda item: item[0]) if owner == rank]
    found, before = {}, 0
    for chunk in range(len(stages[0].chunks)):
        for stage, shard in enumerate(stages):
            found[stage, chunk] = before
            before += bert_names.count(shard.chunks[chunk])
    return found


def training_of(shard: Shard) -> dict[str, Any]:
    """Iteration, consumed samples, learning rate schedule and arguments, as plain values."""
    content = shard.content
    training = {name: unpickle.plain(content[name], shard.name) for name in _TRAINING if name in content}
    if shard.iteration is not None:
        training["iteration"] = shard.iteration
    for name in ("opt_param_scheduler", "lr_scheduler"):
        if isinstance(content.get(name), dict):
            training["scheduler"] = unpickle.plain(content[name], shard.name)
    for name in ("consumed_train_samples", "consumed_valid_samples"):
        if isinstance(shard.arguments.get(name), int):
            training[name] = shard.arguments[name]
    if shard.arguments:
        training["arguments"] = shard.arguments
    training["checkpoint_version"] = shard.version
    return training


def vocabulary_of(layout: Layout) -> dict[str, bytes]:
    """The vocabulary that lies with the ranks in a zip, or beside them."""
    if layout.vocabulary is not None and layout.vocabulary.length < _LARGEST_VOCABULARY:
        return {"vocab.txt": layout.vocabulary.read()}
    return vocabulary_beside(layout.path)


def vocabulary_beside(path: Path) -> dict[str, bytes]:
    """A vocabulary that lies beside the checkpoint."""
    folders = [path if path.is_dir() else path.parent, path.parent]
    for folder in folders:
        file = folder / "vocab.txt"
        if file.is_file() and file.stat().st_size < _LARGEST_VOCABULARY:
            return {"vocab.txt": file.read_bytes()}
    return {}
