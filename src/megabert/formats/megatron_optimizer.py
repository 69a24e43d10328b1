"""The optimizer's state in Megatron-LM's files of format `torch`: read and written with the weights' own rows.

An optimizer numbers its parameters: first those of the group that decays, then the others, each in the order in which
the modules of its stage hold them. Moments are cut, fused and ordered as their weights are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from megabert.formats import bert_names
from megabert.formats.checkpoint import LazyTensor
from megabert.formats.table import Order, Row, join

if TYPE_CHECKING:
    from megabert.formats.megatron_layout import Layout
    from megabert.formats.megatron_shard import Shard

MOMENTS = ("exp_avg", "exp_avg_sq")
KINDS = (*MOMENTS, "master")

# Within a layer and after the layers, modules in the order in which they are made.
_LAYER_MODULES = ("input_layernorm", "self_attention.query_key_value", "self_attention.dense",
                  "post_attention_layernorm", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")  # fmt: skip
_BEFORE = tuple(f"language_model.embedding.{name}_embeddings" for name in ("word", "position", "tokentype"))
_AFTER = ("language_model.encoder.final_layernorm", "language_model.pooler.dense", "word_embeddings_for_head",
          "lm_head", "lm_head.dense", "lm_head.layernorm", "binary_head", "classification_head",
          "multichoice_head")  # fmt: skip


def groups(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """The canonical names of one stage's parameters, in the optimizer's order: decayed, and not decayed."""
    present = set(names)
    layers = sorted({layer for layer in (bert_names.shift(name, 0)[1] for name in present) if layer >= 0})
    modules = list(_BEFORE)
    modules += [f"language_model.encoder.layers.{layer}.{module}" for layer in layers for module in _LAYER_MODULES]
    modules += _AFTER
    decayed, others = [], []
    for module in modules:
        for leaf in ("weight", "bias"):
            name = f"{module}.{leaf}"
            if name in present:
                (others if "layernorm" in module or leaf == "bias" else decayed).append(name)
    return decayed, others


def read(
    layout: Layout, shards: Mapping[tuple[int, int], Shard], rows: Sequence[Row], heads: int, order: Order
) -> tuple[dict[str, LazyTensor], list[str]]:
    """The state under our names (`exp_avg/<name>`, ..., `step`), and notes.

    Raises:
        ValueError: there is a state, but it does not fit the weights; the file is named.
    """
    states = [shard.content.get("optimizer") for shard in shards.values()]
    if layout.optimizer_apart:
        return {}, ["the optimizer's state lies in files of a distributed optimizer, which are not carried"]
    if any(not isinstance(state, dict) for state in states):
        return {}, [] if all(state is None for state in states) else ["the optimizer's state is not of a known kind"]
    ranks: dict[str, list[dict[str, LazyTensor]]] = {kind: [{} for _ in range(layout.tensor_ranks)] for kind in KINDS}
    step = None
    for (rank, stage), shard in shards.items():
        if len(shard.chunks) > 1:
            return {}, ["the optimizer's state of an interleaved pipeline is not carried"]
        before = _layers_before(shards, rank, stage)
        decayed, others = groups(_canonical(shard))
        found = _of_shard(shard, decayed, others)
        if found is None:
            return {}, ["the optimizer's state holds no moments of Adam; it is not carried"]
        step = step if step is not None else found.pop("step")
        for kind in KINDS:
            for name, tensor in found.get(kind, {}).items():
                ranks[kind][rank][bert_names.shift(name, before)[0]] = tensor
    state: dict[str, LazyTensor] = {}
    for kind, held in ranks.items():
        if any(held):
            copies = [{name: part for name, part in rank.items() if name != bert_names.WORD_EMBEDDING_COPY}
                      for rank in held]  # fmt: skip
            state |= {f"{kind}/{name}": tensor for name, tensor in join(rows, copies, heads=heads, order=order).items()}
    if step is not None:
        state["step"] = LazyTensor.of(torch.tensor(float(step)), "step")
    return state, []


def _canonical(shard: Shard) -> dict[str, LazyTensor]:
    names = ((bert_names.canonical(name), tensor) for name, tensor in shard.chunks[0].items())
    return {name: tensor for name, tensor in names if name is not None}


def _layers_before(shards: Mapping[tuple[int, int], Shard], rank: int, stage: int) -> int:
    return sum(bert_names.count(shards[rank, earlier].chunks[0]) for earlier in range(stage))


def _of_shard(shard: Shard, decayed: list[str], others: list[str]) -> dict[str, Any] | None:
    outer = shard.content["optimizer"]
    inner = outer.get("optimizer") or outer.get("optimizer_state_dict") or outer
    states, listed = inner.get("state"), inner.get("param_groups")
    if not isinstance(states, dict) or not isinstance(listed, list) or not states:
        return None
    names = [*decayed, *others]
    shapes = _canonical(shard)
    if len(states) != len(names):
        raise ValueError(f"{shard.name}: optimizer: {len(states)} states do not fit {len(names)} weights; give "
                         "--no-optimizer to convert the weights alone")  # fmt: skip
    found: dict[str, Any] = {kind: {} for kind in KINDS}
    found["step"] = next((group["step"] for group in listed if isinstance(group, dict) and "step" in group), None)
    for index, name in enumerate(names):
        entry = states.get(index)
        for kind in MOMENTS:
            tensor = entry.get(kind) if isinstance(entry, dict) else None
            found[kind][name] = _fitting(shard, f"{index} {kind}", tensor, name, shapes[name])
        if found["step"] is None and isinstance(entry, dict):
            found["step"] = entry.get("step")
    if isinstance(found["step"], LazyTensor):
        found["step"] = found["step"].load().item()
    masters = outer.get("fp32_from_fp16_params", outer.get("fp32_from_fp16"))
    if isinstance(masters, list):
        flat = [tensor for group in masters if isinstance(group, list) for tensor in group]
        if len(flat) == len(names):
            for name, tensor in zip(names, flat, strict=True):
                found["master"][name] = _fitting(shard, "fp32_from_fp16_params", tensor, name, shapes[name])
    return found


def _fitting(shard: Shard, key: str, tensor: Any, name: str, weight: LazyTensor) -> LazyTensor:
    if not isinstance(tensor, LazyTensor) or tensor.shape != weight.shape:
        shape = list(tensor.shape) if isinstance(tensor, LazyTensor) else "missing"
        raise ValueError(f"{shard.name}: optimizer {key} is {shape}, but its weight {name} is {list(weight.shape)}; "
                         "give --no-optimizer to convert the weights alone")  # fmt: skip
    tensor.origin = f"{shard.name}: optimizer {key} of {name}"
    return tensor


def write(
    ranks: Mapping[str, Mapping[str, LazyTensor]], names: Iterable[str], step: float, numbers: Mapping[str, Any]
) -> dict[str, Any]:
    """The `optimizer` entry of one rank's file.

    Args:
        ranks: kind -> canonical name -> tensor, of this rank and stage.
        names: the canonical names of its weights.
        numbers: of the run (`lr`, `betas`, `eps`, `weight_decay`).
    """
    decayed, others = groups(names)
    everything = [*decayed, *others]
    states = {index: {kind: ranks[kind][name] for kind in MOMENTS if name in ranks.get(kind, {})}
              for index, name in enumerate(everything)}  # fmt: skip
    common = {"lr": numbers.get("lr", 0.0), "bias_correction": True, "betas": tuple(numbers.get("betas", (0.9, 0.999))),
              "eps": numbers.get("eps", 1e-8), "step": int(step)}  # fmt: skip
    count = len(decayed)
    inner = {
        "state": states,
        "param_groups": [
            {**common, "weight_decay": numbers.get("weight_decay", 0.01), "params": list(range(count))},
            {**common, "weight_decay": 0.0, "params": list(range(count, len(everything)))},
        ],
    }
    masters = ranks.get("master", {})
    if not all(name in masters for name in everything):
        return inner
    return {
        "optimizer": inner,
        "fp32_from_fp16_params": [[masters[name] for name in group] for group in (decayed, others)],
    }
