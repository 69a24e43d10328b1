"""The optimizer's state in Megatron's files of format `torch`: read and written with the weights' own rows.

An optimizer numbers its parameters: first those of the group that decays, then the others, each in the order in which
the modules of its stage hold them, chunk after chunk. Moments are cut, fused and ordered as their weights are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from megabert.formats import bert_names, fields, megatron_core_names
from megabert.formats.checkpoint import LazyTensor
from megabert.formats.megatron_shard import layers_before
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


class Parameter(NamedTuple):
    """One that the optimizer steps: its name with layers counted in its chunk, its weight, whether it decays."""

    name: str
    weight: LazyTensor
    decays: bool


class State(NamedTuple):
    """What was found.

    Attributes:
        ranks: kind -> of each tensor rank, its tensors by the names of their weights, layers over the whole model.
        step: of Adam.
        notes: what could not be carried.
    """

    ranks: dict[str, list[dict[str, LazyTensor]]]
    step: float | None
    notes: list[str]


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


def legacy_parameters(chunk: Mapping[str, LazyTensor]) -> list[Parameter]:
    """The parameters of a chunk of Megatron-LM's own model, in the optimizer's order."""
    named = {to: tensor for name, tensor in chunk.items() if (to := bert_names.canonical(name)) is not None}
    decayed, others = groups(named)
    return [Parameter(name, named[name], name in decayed) for name in (*decayed, *others)]


def core_parameters(chunk: Mapping[str, LazyTensor], *, canonical: bool = True) -> list[Parameter]:
    """The parameters of a chunk of Megatron-core's, whose files hold them in the order of its modules.

    Args:
        canonical: by their canonical names.
    """
    found = []
    for name, tensor in chunk.items():
        if not megatron_core_names.is_state(name):
            name = megatron_core_names.canonical(name) if canonical else name
            found.append(Parameter(name, tensor, len(tensor.shape) > 1 and not name.endswith(".bias")))
    return found


def read(
    layout: Layout, shards: Mapping[tuple[int, int], Shard],
    parameters: Callable[[Mapping[str, LazyTensor]], list[Parameter]] = legacy_parameters,
) -> State:  # fmt: skip
    """The state of every rank.

    Args:
        parameters: what the optimizer of one chunk steps, in its order.

    Raises:
        ValueError: there is a state, but it does not fit the weights; the file is named.
    """
    nothing: dict[str, list[dict[str, LazyTensor]]] = {}
    states = [shard.content.get("optimizer") for shard in shards.values()]
    if layout.optimizer_apart:
        return State(nothing, None, [
            "the optimizer's state lies in the flat buffers of a distributed optimizer (distrib_optim.pt, optim.pt), "
            "whose order no file tells; it is not carried"
        ])  # fmt: skip
    if any(not isinstance(state, dict) for state in states):
        absent = all(state is None for state in states)
        return State(nothing, None, [] if absent else ["the optimizer's state is not of a known kind: not carried"])
    ranks: dict[str, list[dict[str, LazyTensor]]] = {kind: [{} for _ in range(layout.tensor_ranks)] for kind in KINDS}
    notes: list[str] = []
    step = None
    for (rank, stage), shard in shards.items():
        before = layers_before(shards, rank)
        stepped = [
            (bert_names.shift(parameter.name, before[stage, number])[0], parameter)
            for number, chunk in enumerate(shard.chunks)
            for parameter in parameters(chunk)
        ]
        found = _of_shard(shard, stepped)
        if found is None:
            return State(nothing, None, ["the optimizer's state holds no moments of Adam; it is not carried"])
        tensors, its_step, said = found
        step = its_step if step is None else step
        notes += [note for note in said if note not in notes]
        for kind in KINDS:
            ranks[kind][rank].update(tensors[kind])
    if notes:
        del ranks["master"]
    return State({kind: held for kind, held in ranks.items() if any(held)}, step, notes)


def joined(
    state: State, rows: Sequence[Row], heads: int, order: Order, weights: Mapping[str, LazyTensor]
) -> dict[str, LazyTensor]:
    """The state of the whole model under our names: `exp_avg/<name>`, ..., `step`.

    Args:
        weights: those of the whole model; what steps none of them (a stage's copy of the embedding) is left out.

    Raises:
        ValueError: a tensor does not fit its weight; file and key are named.
    """
    found: dict[str, LazyTensor] = {}
    for kind, ranks in state.ranks.items():
        for name, tensor in join(rows, ranks, heads=heads, order=order).items():
            if name not in weights:
                continue
            if tensor.shape != weights[name].shape:
                raise ValueError(
                    f"{tensor.origin}: {kind} is {list(tensor.shape)}, but its weight {name} is "
                    f"{list(weights[name].shape)}; give --no-optimizer to convert the weights alone"
                )
            found[f"{kind}/{name}"] = tensor
    if found and state.step is not None:
        found["step"] = LazyTensor.of(torch.tensor(float(state.step)), "step")
    return found


_Held = dict[str, dict[str, LazyTensor]]


def _of_shard(shard: Shard, stepped: list[tuple[str, Parameter]]) -> tuple[_Held, float | None, list[str]] | None:
    outer = shard.content["optimizer"]
    inner = outer.get("optimizer") or outer.get("optimizer_state_dict") or outer
    states, listed = (inner.get(name) if isinstance(inner, dict) else None for name in ("state", "param_groups"))
    if not isinstance(states, dict) or not isinstance(listed, list) or not states:
        return None
    if len(states) != len(stepped):
        raise ValueError(f"{shard.name}: optimizer: {len(states)} states do not fit {len(stepped)} weights; give "
                         "--no-optimizer to convert the weights alone")  # fmt: skip
    numbered = _numbered(shard, listed, stepped)
    found: _Held = {kind: {} for kind in KINDS}
    step = next((group["step"] for group in listed if isinstance(group, dict) and "step" in group), None)
    for index, name, weight in (entry for group in numbered for entry in group):
        entry = states.get(index)
        for kind in MOMENTS:
            tensor = entry.get(kind) if isinstance(entry, dict) else None
            found[kind][name] = _fitting(shard, f"{index} {kind}", tensor, name, weight)
        if step is None and isinstance(entry, dict):
            step = entry.get("step")
    if isinstance(step, LazyTensor):
        step = step.load().item() if step.numbers == 1 else None
    notes = []
    masters = outer.get("fp32_from_fp16_params", outer.get("fp32_from_fp16"))
    if isinstance(masters, list):
        if [len(group) if isinstance(group, list) else -1 for group in masters] == [len(group) for group in numbered]:
            for group, tensors in zip(numbered, masters, strict=True):
                for (_, name, weight), tensor in zip(group, tensors, strict=True):
                    found["master"][name] = _fitting(shard, "fp32_from_fp16_params", tensor, name, weight)
        else:
            notes.append("the optimizer's float32 masters are not those of all weights; only its moments are carried")
    if step is not None:
        step = fields.real(step, f"{shard.name}: the optimizer's step")
    return found, step, notes


def _numbered(
    shard: Shard, listed: list[Any], stepped: list[tuple[str, Parameter]]
) -> list[list[tuple[Any, str, LazyTensor]]]:
    """Of each group, (number, name over the whole model, weight); a file says which of its groups decays."""
    decayed = [(name, held.weight) for name, held in stepped if held.decays]
    others = [(name, held.weight) for name, held in stepped if not held.decays]
    given = [group["params"] for group in listed if isinstance(group, dict) and isinstance(group.get("params"), list)]
    if not all(isinstance(number, int | str) for numbers in given for number in numbers):
        raise ValueError(f"{shard.name}: optimizer: its groups do not number their parameters")
    full = [group for group in listed if isinstance(group, dict) and group.get("params")]
    expected = [held for held in (decayed, others) if held]
    if len(full) == 2 and _rate(full[0]) == 0 and _rate(full[1]) != 0:
        expected.reverse()
    if len(full) == 1 and len(expected) == 2:
        expected = [[(name, held.weight) for name, held in stepped]]
    filled = [numbers for numbers in given if numbers]
    if [len(numbers) for numbers in filled] != [len(names) for names in expected]:
        raise ValueError(f"{shard.name}: optimizer: groups of {[len(numbers) for numbers in filled]} parameters, where "
                         f"the weights make {[len(names) for names in expected]}; give --no-optimizer to convert the "
                         "weights alone")  # fmt: skip
    found = iter(
        [(number, *entry) for number, entry in zip(numbers, names, strict=True)]
        for numbers, names in zip(filled, expected, strict=True)
    )
    return [next(found) if numbers else [] for numbers in given]


def _rate(group: Mapping[str, Any]) -> Any:
    """What a group decays by."""
    return group.get("wd_mult", group.get("weight_decay"))


def _fitting(shard: Shard, key: str, tensor: Any, name: str, weight: LazyTensor) -> LazyTensor:
    if not isinstance(tensor, LazyTensor) or tensor.shape != weight.shape:
        shape = list(tensor.shape) if isinstance(tensor, LazyTensor) else "missing"
        raise ValueError(f"{shard.name}: optimizer {key} is {shape}, but its weight {name} is {list(weight.shape)}; "
                         "give --no-optimizer to convert the weights alone")  # fmt: skip
    tensor.origin = f"{shard.name}: optimizer {key} of {name}"
    return tensor


def left_out(optimizer: Mapping[str, LazyTensor], weights: Iterable[str]) -> list[str]:
    """A note when a state lacks what a file of format `torch` must have: both moments of every weight."""
    lacking = [f"{kind} of {name}" for name in weights for kind in MOMENTS if f"{kind}/{name}" not in optimizer]
    if not optimizer or not lacking:
        return []
    return [f"the optimizer's state is left out: it lacks {lacking[0]}{' and others' if len(lacking) > 1 else ''}"]


def write(
    decayed: Sequence[Mapping[str, LazyTensor]], others: Sequence[Mapping[str, LazyTensor]], step: float,
    numbers: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """The `optimizer` entry of one rank's file.

    Args:
        decayed: kind -> tensor, of each parameter that decays, in the optimizer's order.
        others: those of the parameters that do not.
        numbers: of the run (`lr`, `betas`, `eps`, `weight_decay`).
    """
    everything = [*decayed, *others]
    states = {index: {kind: held[kind] for kind in MOMENTS} for index, held in enumerate(everything)}
    common = {"lr": numbers.get("lr", 0.0), "bias_correction": True, "betas": tuple(numbers.get("betas", (0.9, 0.999))),
              "eps": numbers.get("eps", 1e-8), "step": int(step), "lr_mult": 1.0}  # fmt: skip
    count, rate = len(decayed), numbers.get("weight_decay", 0.01)
    inner = {
        "state": states,
        "param_groups": [
            {**common, "weight_decay": rate, "wd_mult": 1.0, "params": list(range(count))},
            {**common, "weight_decay": 0.0, "wd_mult": 0.0, "params": list(range(count, len(everything)))},
        ],
    }
    if not all("master" in held for held in everything):
        return inner
    return {
        "optimizer": inner,
        "fp32_from_fp16_params": [[held["master"] for held in group] for group in (decayed, others)],
    }
