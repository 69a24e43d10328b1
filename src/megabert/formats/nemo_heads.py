"""Heads of NeMo's fine-tuned models, and whether ours are the same function.

NeMo's heads are `mlp.layer0`, `mlp.layer2`, ... with ReLU between them. A head of one layer on every token is
Transformers' for token classification and question answering. NeMo's text classifier is no head of Transformers,
whatever its number of layers: it reads the last hidden state of [CLS] without the pooler (dense and tanh) before it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from megabert.formats import bert_names
from megabert.formats.checkpoint import LazyTensor

_HEAD = re.compile(r"^(?:.*\.)?(\w*classifier)\.")
_LAYER = re.compile(r"^(?:.*\.)?\w*classifier\.mlp\.layer(\d+)\.(weight|bias)$")

# NeMo's class -> ours, and the name of its layer here; a head of one layer only
_SAME = {
    "TokenClassificationModel": ("MegatronBertForTokenClassification", "classifier"),
    "QAModel": ("MegatronBertForQuestionAnswering", "qa_outputs"),
}
_TEXT = ("TextClassificationModel", "GLUEModel", "ZeroShotIntentModel", "PTuneTextClassificationModel")


class Head(NamedTuple):
    """What becomes of a head: tensors under our names, fields of the config, notes."""

    tensors: dict[str, LazyTensor]
    fields: dict[str, Any]
    notes: list[str]


def names(rank: Mapping[str, LazyTensor]) -> set[str]:
    """The weights that are a task's."""
    return {name for name in rank if "classifier." in name and not bert_names.canonical(name)}


def head(held: Mapping[str, LazyTensor], target: str) -> Head:
    """A task's head as ours, where both are the same function; otherwise a note that says why it is left out.

    Args:
        held: the task's weights.
        target: NeMo's class path.
    """
    if not held:
        return Head({}, {}, [])
    task = target.rpartition(".")[2]
    heads = {found[1] if (found := _HEAD.match(name)) else name for name in held}
    layers = {found[1]: name for name in held if (found := _LAYER.match(name)) and found[2] == "weight"}
    if task in _SAME and len(heads) == 1 and set(layers) == {"0"} and all(map(_LAYER.match, held)):
        ours, to = _SAME[task]
        tensors = {f"{to}.{name.rpartition('.')[2]}": tensor for name, tensor in held.items()}
        fields = {"architectures": [ours], "num_labels": tensors[f"{to}.weight"].shape[0]}
        return Head(tensors, fields, [f"the task's head is carried: {ours}"])
    shown = ", ".join(sorted(held)[:4]) + (" ..." if len(held) > 4 else "")
    return Head({}, {}, [f"left out, a task's head that this network has not: {shown} ({_why(task, layers, heads)})"])


def _why(task: str, layers: Mapping[str, str], heads: set[str]) -> str:
    if len(heads) > 1:
        return f"{len(heads)} heads on one encoder"
    if task in _TEXT:
        return "it reads the hidden state of [CLS]; MegatronBertForSequenceClassification reads a pooler's output"
    if len(layers) > 1:
        return f"{len(layers)} layers with ReLU between them, where Transformers has one"
    return f"{task or 'a model whose class is not told'} is no class of Transformers"
