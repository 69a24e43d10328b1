"""Heads of NeMo's fine-tuned models, under our names.

NeMo's heads are `mlp.layer0`, `mlp.layer2`, ... with ReLU between them, on every token or on the last hidden state of
[CLS], without a pooler; some models have two beside each other. Heads of one layer on every token are Transformers' own
(two are one matrix, their rows below each other); all others are our `LayeredHead` (`head_layers` and `head_parts` in
the config), which plain Transformers has not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from megabert.formats import bert_names
from megabert.formats.checkpoint import LazyTensor
from megabert.formats.table import concatenate

_HEAD = re.compile(r"^(?:.*\.)?(\w*classifier(?:\.\w+_mlp)?|pooler(?=\.mlp))\.")
_LAYER = re.compile(r"^(?:.*\.)?((?:\w+_)?classifier\.(?:\w+_)?mlp|pooler\.mlp)\.layer(\d{1,3})\.(weight|bias)$")
_TEXT = "MegatronBertForSequenceClassification"
_TOKENS = "MegatronBertForTokenClassification"

CLASSES = {
    "TokenClassificationModel": (_TOKENS, "classifier"),
    "QAModel": ("MegatronBertForQuestionAnswering", "qa_outputs"),
    "TextClassificationModel": (_TEXT, "classifier"),
    "GLUEModel": (_TEXT, "classifier"),
    "ZeroShotIntentModel": (_TEXT, "classifier"),
    "IntentSlotClassificationModel": (_TOKENS, "classifier"),
    "PunctuationCapitalizationModel": (_TOKENS, "classifier"),
}
"""NeMo's class -> ours, and what its head is called here."""
_PLACES: Mapping[str, tuple[str, ...]] = {
    "GLUEModel": ("pooler.mlp",),
    "IntentSlotClassificationModel": ("classifier.intent_mlp", "classifier.slot_mlp"),
    "PunctuationCapitalizationModel": ("punct_classifier.mlp", "capit_classifier.mlp"),
}
"""NeMo's class -> what its heads are called there, where that is not `classifier.mlp`."""


def _places(task: str) -> tuple[str, ...]:
    return _PLACES.get(task, ("classifier.mlp",))


class Head(NamedTuple):
    """What becomes of a head: tensors under our names, fields of the config, notes, outputs of each classifier."""

    tensors: dict[str, LazyTensor]
    fields: dict[str, Any]
    notes: list[str]
    parts: tuple[int, ...] = ()


def names(rank: Mapping[str, LazyTensor]) -> set[str]:
    """The weights that are a task's."""
    return {name for name in rank if _HEAD.match(name) and not bert_names.canonical(name)}


def head(held: Mapping[str, LazyTensor], task: str, activation: Any = None) -> Head:
    """A task's head as ours, or a note that says why it is left out.

    Args:
        held: the task's weights.
        task: NeMo's class.
        activation: between the head's layers, where the configuration tells it.
    """
    if not held:
        return Head({}, {}, [])
    found = {(match[1], int(match[2]), match[3]): tensor for name, tensor in held.items()
             if (match := _LAYER.match(name))}  # fmt: skip
    places, layers = _places(task), sorted({number for _, number, _ in found})
    every = {(place, 2 * number, leaf) for place in places for number in range(len(layers))
             for leaf in ("weight", "bias")}  # fmt: skip
    whole = len(found) == len(held) and set(found) == every
    odd = activation not in (None, "relu") and len(layers) > 1
    if task not in CLASSES or not whole or odd:
        shown = ", ".join(sorted(held)[:4]) + (" ..." if len(held) > 4 else "")
        why = f"{activation} between its layers" if odd and whole else _why(task, held)
        return Head({}, {}, [f"left out, a task's head that this network has not: {shown} ({why})"])
    ours, to = CLASSES[task]
    plain = len(layers) == 1 and ours != _TEXT
    tensors = {
        f"{to}.{leaf}" if plain else f"{to}.mlp.layer{number}.{leaf}":
            concatenate([found[place, number, leaf] for place in places], 0)
        for number in layers for leaf in ("weight", "bias")
    }  # fmt: skip
    parts = tuple(found[place, layers[-1], "weight"].shape[0] for place in places)
    fields: dict[str, Any] = {"architectures": [ours], "num_labels": sum(parts)}
    if not plain:
        fields |= {"head_layers": len(layers), **({"head_parts": list(parts)} if len(parts) > 1 else {})}
    said = "" if plain else f", with NeMo's {len(layers)} layers, which plain Transformers has not"
    return Head(tensors, fields, [f"the task's head is carried: {ours}{said}"], parts)


def _why(task: str, held: Mapping[str, LazyTensor]) -> str:
    heads = {match[1] if (match := _HEAD.match(name)) else name for name in held}
    if task in CLASSES:
        return f"not the layers of {' and '.join(_places(task))}, alike and whole"
    if len(heads) > 1:
        return f"{len(heads)} heads on one encoder"
    return f"{task or 'a model whose class is not told'} has no counterpart here"


def theirs(tensors: Mapping[str, LazyTensor], task: str, parts: Sequence[int], hidden: int) -> dict[str, LazyTensor]:
    """Our head's weights under the names of NeMo's class; empty where there is no head.

    Args:
        parts: outputs of each classifier.
        hidden: outputs of the layers below the last one.
    """
    found, places = {}, _places(task)
    mine = {name.partition(".")[2]: tensor for name, tensor in tensors.items()
            if name.startswith(("classifier.", "qa_outputs."))}  # fmt: skip
    last = max((int(name.split(".")[1].removeprefix("layer")) for name in mine if name.startswith("mlp.")), default=0)
    for name, tensor in mine.items():
        leaf = name if name.startswith("mlp.") else f"mlp.layer0.{name}"
        _, layer, kind = leaf.split(".")
        rows = list(parts) if layer == f"layer{last}" else [hidden] * len(places)
        for at, place in enumerate(places):
            found[f"{place}.{layer}.{kind}"] = _rows(tensor, sum(rows[:at]), rows[at]) if len(places) > 1 else tensor
    return found


def _rows(tensor: LazyTensor, start: int, count: int) -> LazyTensor:
    return tensor.derived((count, *tensor.shape[1:]), lambda whole: whole[start : start + count].clone())
