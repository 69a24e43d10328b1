"""The sizes of a model from the shapes of its tensors, and whether tensors and config agree."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from megabert.formats import bert_names, fields
from megabert.formats.checkpoint import POST_LAYERNORM, PRE_LAYERNORM, LazyTensor

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


def check(config: Mapping[str, Any], tensors: Mapping[str, LazyTensor], family: str = PRE_LAYERNORM) -> None:
    """Refuse tensors that are not those of the config's model: too few, or of another shape.

    Args:
        config: the sizes as whole numbers (`fields.checked`).

    Raises:
        ValueError: one does not fit, or is missing; file and key are named.
    """
    layers, hidden, heads = count_layers(tensors), config["hidden_size"], config["num_attention_heads"]
    if layers != config["num_hidden_layers"]:
        raise ValueError(
            f"its config tells of {config['num_hidden_layers']} layers, but its weights are those of {layers}"
        )
    if hidden % heads:
        raise ValueError(f"{heads} attention heads do not divide a hidden size of {hidden}")
    if (config.get("pad_token_id") or 0) >= config["vocab_size"]:
        raise ValueError(f"pad_token_id {config['pad_token_id']} is no entry of a vocabulary of {config['vocab_size']}")
    _check_shapes(config, tensors)
    _check_whole(tensors, layers, family)


def check_named(
    where: str, config: Mapping[str, Any], tensors: Mapping[str, LazyTensor], family: str = PRE_LAYERNORM
) -> None:
    """As `check`, of a config that still has to prove that it holds sizes; errors name `where`.

    Raises:
        ValueError: as `check`, or a size is not told.
    """
    absent = next((name for name in fields.SIZES if name not in config and name != "type_vocab_size"), None)
    if absent is not None:
        raise ValueError(f"{where}: nothing tells {absent}; it is no BERT, or not whole")
    try:
        check(config, tensors, family)
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(where) else f"{where}: {text}") from None


def labels(config: Mapping[str, Any]) -> int:
    """Classes of a task's head, by a config."""
    named = config.get("id2label")
    return len(named) if named else config.get("num_labels") or 2


def _check_shapes(config: Mapping[str, Any], tensors: Mapping[str, LazyTensor]) -> None:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    multiple = "MultipleChoice" in " ".join(config.get("architectures") or ())
    classes = 1 if multiple else labels(config)
    shapes: dict[str, tuple[int, ...]] = {
        _WORDS: (config["vocab_size"], hidden),
        "cls.predictions.decoder.weight": (config["vocab_size"], hidden),
        "cls.predictions.bias": (config["vocab_size"],),
        "intermediate.dense.weight": (inner, hidden),
        "intermediate.dense.bias": (inner,),
        "output.dense.weight": (hidden, inner),
        "cls.seq_relationship.weight": (2, hidden),
        "cls.seq_relationship.bias": (2,),
        "classifier.weight": (classes, hidden),
        "classifier.bias": (classes,),
        "qa_outputs.weight": (2, hidden),
        "qa_outputs.bias": (2,),
    }
    layers, parts = config.get("head_layers") or 1, config.get("head_parts") or [classes]
    for head in ("classifier", "qa_outputs"):
        for number in range(layers):
            rows = classes if number == layers - 1 else len(parts) * hidden
            place = f"{head}.mlp.layer{2 * number}"
            shapes |= {f"{place}.weight": (rows, hidden), f"{place}.bias": (rows,)}
    if _POSITIONS in tensors:
        shapes[_POSITIONS] = (config["max_position_embeddings"], hidden)
    if _TYPES in tensors:
        shapes[_TYPES] = (config["type_vocab_size"], hidden)
    square = ("pooler.dense.weight", "transform.dense.weight", "attention.output.dense.weight", "query.weight",
              "key.weight", "value.weight")  # fmt: skip
    for name, tensor in tensors.items():
        layer = _LAYER.match(name)
        leaf = name[layer.end() :] if layer else name
        shape = shapes.get(leaf)
        if shape is None:
            shape = (hidden, hidden) if leaf.endswith(square) else (hidden,) if len(tensor.shape) == 1 else None
        if shape is not None and tensor.shape != shape:
            raise ValueError(f"{tensor.origin}: {name} is {list(tensor.shape)}, but must be {list(shape)} by the sizes "
                             "of the model")  # fmt: skip


def _check_whole(tensors: Mapping[str, LazyTensor], layers: int, family: str) -> None:
    """Refuse a layer that lacks a weight or has one that others have not, and half a head."""
    rows = bert_names.first_generation(1) if family == POST_LAYERNORM else bert_names.legacy(1)
    needed = [name for row in rows if row.place != "last" for name in row.ours]
    needed += ["bert.encoder.ln.weight", "bert.encoder.ln.bias"] if family == PRE_LAYERNORM else []
    if family == PRE_LAYERNORM:
        needed.remove(_TYPES)
    per_layer: dict[int, set[str]] = {layer: set() for layer in range(layers)}
    for name in tensors:
        layer = _LAYER.match(name)
        if layer:
            per_layer[int(layer[1])].add(name[layer.end() :])
    first = {name[layer.end() :] for name in needed if (layer := _LAYER.match(name))} | per_layer[0]
    for layer, leaves in per_layer.items():
        if leaves != first:
            odd = sorted(leaves ^ first)[0]
            place = layer if odd not in leaves else 0
            raise ValueError(f"layer {place} lacks {odd}; the checkpoint is not whole")
    absent = [name for name in needed if name not in tensors and not _LAYER.match(name)]
    for beginning in ("bert.pooler.", "cls.predictions.", "cls.seq_relationship.", "classifier.", "qa_outputs."):
        if any(name.startswith(beginning) and ".mlp." not in name for name in tensors):
            every = [name for row in rows for name in row.ours if name.startswith(beginning)]
            absent += [name for name in every if name not in tensors]
    if absent:
        raise ValueError(f"{absent[0]} is missing; the checkpoint is not whole")
