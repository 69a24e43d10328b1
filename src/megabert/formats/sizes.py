"""The sizes of a model from the shapes of its tensors, and whether tensors and config agree."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from megabert.formats.checkpoint import LazyTensor

_LAYER = re.compile(r"bert\.encoder\.layer\.(\d+)\.")
_WORDS = "bert.embeddings.word_embeddings.weight"
_POSITIONS = "bert.embeddings.position_embeddings.weight"
_TYPES = "bert.embeddings.token_type_embeddings.weight"
_HEAD_SIZE = 64

DTYPE_NAMES = {"float64", "float32", "float16", "bfloat16"}


def count_layers(tensors: Mapping[str, LazyTensor]) -> int:
    """How many layers our names tell of.

    Raises:
        ValueError: there is none, or one is missing in between.
    """
    found = {int(match[1]) for match in map(_LAYER.match, tensors) if match}
    if not found:
        raise ValueError("the checkpoint holds no layer of a BERT")
    missing = sorted(set(range(max(found) + 1)) - found)
    if missing:
        raise ValueError(f"layer {missing[0]} of the checkpoint is missing (it holds {len(found)})")
    return len(found)


def infer(tensors: Mapping[str, LazyTensor], heads: int | None = None) -> tuple[dict[str, Any], list[str]]:
    """The fields of a config that shapes tell, and notes about what had to be supposed.

    Args:
        tensors: under our names.
        heads: attention heads of the model, which no shape tells; None: heads of size 64, as in every published
            Megatron BERT.

    Raises:
        ValueError: there is no word embedding or no layer, or the heads cannot be right.
    """
    if _WORDS not in tensors or len(tensors[_WORDS].shape) != 2:
        raise ValueError("the checkpoint holds no word embedding: it is no BERT, or not whole")
    notes: list[str] = []
    vocabulary, hidden = tensors[_WORDS].shape
    if heads is None:
        heads = supposed_heads(hidden)
        notes.append(f"no arguments in the file: {heads} attention heads supposed (size {hidden // heads})")
    if heads < 1 or hidden % heads:
        raise ValueError(f"{heads} attention heads do not divide a hidden size of {hidden}")
    config: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "num_hidden_layers": count_layers(tensors),
        "num_attention_heads": heads,
    }
    inner = tensors.get("bert.encoder.layer.0.intermediate.dense.weight")
    if inner is not None:
        config["intermediate_size"] = inner.shape[0]
    if _POSITIONS in tensors:
        config["max_position_embeddings"] = tensors[_POSITIONS].shape[0]
    if _TYPES in tensors:
        config["type_vocab_size"] = tensors[_TYPES].shape[0]
    config["dtype"] = main_dtype(tensors)
    return config, notes


def supposed_heads(hidden: int) -> int:
    """Attention heads when nothing tells: of size 64.

    Raises:
        ValueError: the hidden size is no multiple of 64.
    """
    if hidden % _HEAD_SIZE:
        raise ValueError(
            f"the file does not say how many attention heads there are, and a hidden size of {hidden} is no multiple "
            "of 64; give --num-attention-heads"
        )
    return hidden // _HEAD_SIZE


def main_dtype(tensors: Mapping[str, LazyTensor]) -> str:
    """The type that most numbers have: `float16`, ..."""
    counts: dict[str, int] = {}
    for tensor in tensors.values():
        name = str(tensor.dtype).removeprefix("torch.")
        counts[name] = counts.get(name, 0) + tensor.numbers
    return max(counts, key=lambda name: (counts[name], name)) if counts else "float32"


def check(config: Mapping[str, Any], tensors: Mapping[str, LazyTensor]) -> None:
    """Refuse tensors whose shape is not the one that the config gives them.

    Raises:
        ValueError: one does not fit, or a layer lacks one that others have; file and key are named.
    """
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        _WORDS: (config["vocab_size"], hidden),
        "cls.predictions.decoder.weight": (config["vocab_size"], hidden),
        "cls.predictions.bias": (config["vocab_size"],),
        "intermediate.dense.weight": (inner, hidden),
        "intermediate.dense.bias": (inner,),
        "output.dense.weight": (hidden, inner),
        "cls.seq_relationship.weight": (2, hidden),
        "cls.seq_relationship.bias": (2,),
    }
    if _POSITIONS in tensors:
        shapes[_POSITIONS] = (config["max_position_embeddings"], hidden)
    if _TYPES in tensors:
        shapes[_TYPES] = (config["type_vocab_size"], hidden)
    square = ("pooler.dense.weight", "transform.dense.weight", "attention.output.dense.weight", "query.weight",
              "key.weight", "value.weight")  # fmt: skip
    per_layer: dict[str, set[str]] = {}
    for name, tensor in tensors.items():
        layer = _LAYER.match(name)
        leaf = name[layer.end() :] if layer else name
        if layer:
            per_layer.setdefault(layer[1], set()).add(leaf)
        if name.startswith(("classifier.", "qa_outputs.")):
            continue
        shape = shapes.get(leaf)
        if shape is None:
            shape = (hidden, hidden) if leaf.endswith(square) else (hidden,) if len(tensor.shape) == 1 else None
        if shape is not None and tensor.shape != shape:
            raise ValueError(f"{tensor.origin}: {name} is {list(tensor.shape)}, but must be {list(shape)} by the sizes "
                             "of the model")  # fmt: skip
    whole = per_layer.get("0", set())
    for layer, leaves in per_layer.items():
        if leaves != whole:
            odd = sorted(leaves ^ whole)[0]
            raise ValueError(f"layers differ: one of layers 0 and {layer} lacks {odd}; the checkpoint is not whole")
