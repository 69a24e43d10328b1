"""Heads of NeMo's fine-tuned models, under our names.

NeMo's heads are `mlp.layer0`, `mlp.layer2`, ... with ReLU between them, on every token or on the last hidden state of
[CLS], without a pooler. A head of one layer on every token is Transformers'; all others are our `LayeredHead`
(`head_layers` in the config), which plain Transformers has not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from megabert.formats import bert_names
from megabert.formats.checkpoint import LazyTensor

_HEAD = re.compile(r"^(?:.*\.)?(\w*classifier)\.")
_LAYER = re.compile(r"^(?:.*\.)?classifier\.mlp\.(layer(\d{1,3})\.(?:weight|bias))$")

CLASSES = {
    "TokenClassificationModel": ("MegatronBertForTokenClassification", "classifier"),
    "QAModel": ("MegatronBertForQuestionAnswering", "qa_outputs"),
    "TextClassificationModel": ("MegatronBertForSequenceClassification", "classifier"),
}
"""NeMo's class -> ours, and what its head is called here."""


class Head(NamedTuple):
    """What becomes of a head: tensors under our names, fields of the config, notes."""

    tensors: dict[str, LazyTensor]
    fields: dict[str, Any]
    notes: list[str]


def names(rank: Mapping[str, LazyTensor]) -> set[str]:
    """The weights that are a task's."""
    return {name for name in rank if "classifier." in name and not bert_names.canonical(name)}


def head(held: Mapping[str, LazyTensor], task: str, activation: Any = None) -> Head:
    """A task's head as ours, or a note that says why it is left out.

    Args:
        held: the task's weights.
        task: NeMo's class.
        activation: between the head's layers, where the configuration tells it.
    """
    if not held:
        return Head({}, {}, [])
    found = {name: match for name in held if (match := _LAYER.match(name))}
    layers = sorted({int(match[2]) for match in found.values()})
    whole = len(found) == len(held) == 2 * len(layers) and layers == list(range(0, 2 * len(layers), 2))
    odd = activation not in (None, "relu") and len(layers) > 1
    if task not in CLASSES or not whole or odd:
        shown = ", ".join(sorted(held)[:4]) + (" ..." if len(held) > 4 else "")
        why = f"{activation} between its layers" if odd and whole else _why(task, held)
        return Head({}, {}, [f"left out, a task's head that this network has not: {shown} ({why})"])
    ours, to = CLASSES[task]
    plain = len(layers) == 1 and task != "TextClassificationModel"
    tensors = {
        f"{to}.{match[1].removeprefix('layer0.') if plain else f'mlp.{match[1]}'}": held[name]
        for name, match in found.items()
    }
    last = next(held[name] for name, match in found.items() if match[1] == f"layer{layers[-1]}.weight")
    fields: dict[str, Any] = {"architectures": [ours], "num_labels": last.shape[0]}
    if not plain:
        fields["head_layers"] = len(layers)
    said = "" if plain else f", with NeMo's {len(layers)} layers, which plain Transformers has not"
    return Head(tensors, fields, [f"the task's head is carried: {ours}{said}"])


def _why(task: str, held: Mapping[str, LazyTensor]) -> str:
    heads = {match[1] if (match := _HEAD.match(name)) else name for name in held}
    if len(heads) > 1:
        return f"{len(heads)} heads on one encoder"
    if task in CLASSES:
        return "its layers are not those of NeMo's classifiers"
    return f"{task or 'a model whose class is not told'} has no counterpart here"


def theirs(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Our head's weights under NeMo's names; empty where there is no head, or one that NeMo has not."""
    found = {}
    for name, tensor in tensors.items():
        begin, _, rest = name.partition(".")
        if begin in ("classifier", "qa_outputs"):
            found[f"classifier.{rest if rest.startswith('mlp.') else f'mlp.layer0.{rest}'}"] = tensor
    return found
