"""The one table of names: ours (Transformers') beside Megatron's of every generation and Megatron-core's.

`legacy` and `core` give rows; `canonical` brings any spelling of the older generations, with any prefix, to the names
of `legacy`, and `dress` does the opposite for an era. Source: the checkpoints' own layouts, tabulated in
docs/formats.md.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Literal

from megabert.formats.table import Row

Era = Literal["v1", "v2", "v4"]
"""`v1`: transformer, attention (2019-10 to 2020); `v2`: encoder, self_attention, 2021 on; `v4`: *_norm, 2023-09 on."""

_OURS_LAYER = "bert.encoder.layer.{n}."
_SELF = "attention.self."
_LM = "cls.predictions."

# ours below the layer -> (legacy, core with Transformer Engine, core local, dim shared by ranks)
_LAYER: tuple[tuple[str, str, str, str, int | None], ...] = (
    ("attention.ln.weight", "input_layernorm.weight", "self_attention.linear_qkv.layer_norm_weight",
     "input_layernorm.weight", None),
    ("attention.ln.bias", "input_layernorm.bias", "self_attention.linear_qkv.layer_norm_bias",
     "input_layernorm.bias", None),
    ("QKV.weight", "self_attention.query_key_value.weight", "self_attention.linear_qkv.weight",
     "self_attention.linear_qkv.weight", 0),
    ("QKV.bias", "self_attention.query_key_value.bias", "self_attention.linear_qkv.bias",
     "self_attention.linear_qkv.bias", 0),
    ("attention.output.dense.weight", "self_attention.dense.weight", "self_attention.linear_proj.weight",
     "self_attention.linear_proj.weight", 1),
    ("attention.output.dense.bias", "self_attention.dense.bias", "self_attention.linear_proj.bias",
     "self_attention.linear_proj.bias", None),
    ("ln.weight", "post_attention_layernorm.weight", "mlp.linear_fc1.layer_norm_weight",
     "pre_mlp_layernorm.weight", None),
    ("ln.bias", "post_attention_layernorm.bias", "mlp.linear_fc1.layer_norm_bias", "pre_mlp_layernorm.bias", None),
    ("intermediate.dense.weight", "mlp.dense_h_to_4h.weight", "mlp.linear_fc1.weight", "mlp.linear_fc1.weight", 0),
    ("intermediate.dense.bias", "mlp.dense_h_to_4h.bias", "mlp.linear_fc1.bias", "mlp.linear_fc1.bias", 0),
    ("output.dense.weight", "mlp.dense_4h_to_h.weight", "mlp.linear_fc2.weight", "mlp.linear_fc2.weight", 1),
    ("output.dense.bias", "mlp.dense_4h_to_h.bias", "mlp.linear_fc2.bias", "mlp.linear_fc2.bias", None),
)  # fmt: skip

# ours -> (legacy, core, dim shared by ranks), before the layers
_FIRST: tuple[tuple[str, str, str, int | None], ...] = (
    ("bert.embeddings.word_embeddings.weight", "language_model.embedding.word_embeddings.weight",
     "embedding.word_embeddings.weight", 0),
    ("bert.embeddings.position_embeddings.weight", "language_model.embedding.position_embeddings.weight",
     "embedding.position_embeddings.weight", None),
    ("bert.embeddings.token_type_embeddings.weight", "language_model.embedding.tokentype_embeddings.weight",
     "embedding.tokentype_embeddings.weight", None),
)  # fmt: skip

# the same, after the layers, in the order in which Megatron's modules hold them
_LAST: tuple[tuple[str, str, str, int | None], ...] = (
    ("bert.encoder.ln.weight", "language_model.encoder.final_layernorm.weight", "encoder.final_layernorm.weight", None),
    ("bert.encoder.ln.bias", "language_model.encoder.final_layernorm.bias", "encoder.final_layernorm.bias", None),
    ("bert.pooler.dense.weight", "language_model.pooler.dense.weight", "pooler.dense.weight", None),
    ("bert.pooler.dense.bias", "language_model.pooler.dense.bias", "pooler.dense.bias", None),
    (_LM + "bias", "lm_head.bias", "output_layer.bias", 0),
    (_LM + "transform.dense.weight", "lm_head.dense.weight", "lm_head.dense.weight", None),
    (_LM + "transform.dense.bias", "lm_head.dense.bias", "lm_head.dense.bias", None),
    (_LM + "transform.LayerNorm.weight", "lm_head.layernorm.weight", "lm_head.layer_norm.weight", None),
    (_LM + "transform.LayerNorm.bias", "lm_head.layernorm.bias", "lm_head.layer_norm.bias", None),
    ("cls.seq_relationship.weight", "binary_head.weight", "binary_head.weight", None),
    ("cls.seq_relationship.bias", "binary_head.bias", "binary_head.bias", None),
)  # fmt: skip

WORD_EMBEDDING_COPY = "word_embeddings_for_head.weight"
"""The last stage's copy of the word embedding, when a pipeline has several stages."""

_UNTIED = (_LM + "decoder.weight", "output_layer.weight")


def _ours(name: str, layer: int) -> tuple[str, ...]:
    prefix = _OURS_LAYER.format(n=layer)
    kind, _, leaf = name.partition(".")
    if kind == "QKV":
        return tuple(f"{prefix}{_SELF}{part}.{leaf}" for part in ("query", "key", "value"))
    return (prefix + name,)


def legacy(
    layers: int, *, head: Literal["classification_head", "multichoice_head"] = "classification_head"
) -> list[Row]:
    """Rows of Megatron-LM's own BERT, in the names of 2021 to 2023 (`v2`); see `dress` for other eras.

    Args:
        layers: of the whole model.
        head: what Megatron calls our `classifier`.
    """
    rows = [Row((ours,), theirs, cut, "first") for ours, theirs, _, cut in _FIRST]
    for layer in range(layers):
        for ours, theirs, _, _, cut in _LAYER:
            rows.append(Row(_ours(ours, layer), f"language_model.encoder.layers.{layer}.{theirs}", cut, "layer", layer))
    rows += [Row((ours,), theirs, cut, "last") for ours, theirs, _, cut in _LAST]
    rows += [Row((f"classifier.{leaf}",), f"{head}.{leaf}", None, "last") for leaf in ("weight", "bias")]
    return rows


def core(layers: int, *, spec: Literal["te", "local"] = "te") -> list[Row]:
    """Rows of Megatron-core's BERT, with one name a layer.

    Args:
        layers: of the whole model.
        spec: LayerNorms fused into the products after them (Transformer Engine), or modules of their own.
    """
    rows = [Row((ours,), theirs, cut, "first") for ours, _, theirs, cut in _FIRST]
    for layer in range(layers):
        for ours, _, engine, local, cut in _LAYER:
            theirs = engine if spec == "te" else local
            rows.append(Row(_ours(ours, layer), f"encoder.layers.{layer}.{theirs}", cut, "layer", layer))
    rows += [Row((ours,), theirs, cut, "last") for ours, _, theirs, cut in _LAST]
    rows.append(Row((_UNTIED[0],), _UNTIED[1], 0, "last"))
    return rows


def first_generation(layers: int) -> list[Row]:
    """Rows of the post-LayerNorm BERT of 2019-07 to 2019-10, whose names are Transformers' but for the fused QKV."""
    rows = [
        Row((ours,), ours, cut, "first")
        for ours, cut in (
            ("bert.embeddings.word_embeddings.weight", 0),
            ("bert.embeddings.position_embeddings.weight", None),
            ("bert.embeddings.token_type_embeddings.weight", None),
            ("bert.embeddings.LayerNorm.weight", None),
            ("bert.embeddings.LayerNorm.bias", None),
        )
    ]
    for layer in range(layers):
        prefix = _OURS_LAYER.format(n=layer)
        for leaf in ("weight", "bias"):
            rows.append(Row(_ours(f"QKV.{leaf}", layer), f"{prefix}{_SELF}query_key_value.{leaf}", 0, "layer", layer))
            rows += [
                Row((f"{prefix}{_SELF}{part}.{leaf}",), f"{prefix}{_SELF}{part}.{leaf}", 0, "layer", layer)
                for part in ("query", "key", "value")
            ]
            for name, cut in (
                ("attention.output.dense", 1), ("attention.output.LayerNorm", None), ("intermediate.dense", 0),
                ("output.dense", 1), ("output.LayerNorm", None),
            ):  # fmt: skip
                shared = cut if leaf == "weight" or cut == 0 else None
                rows.append(Row((f"{prefix}{name}.{leaf}",), f"{prefix}{name}.{leaf}", shared, "layer", layer))
    last = ("bert.pooler.dense", _LM + "transform.dense", _LM + "transform.LayerNorm", "cls.seq_relationship")
    rows += [Row((f"{name}.{leaf}",), f"{name}.{leaf}", None, "last") for name in last for leaf in ("weight", "bias")]
    rows.append(Row((_LM + "bias",), _LM + "bias", 0, "last"))
    return rows


_WITHIN_LAYER = re.compile(r"(?:^|\.)layers\.(\d{1,9})\.(.+)$")
_OUTSIDE = re.compile(
    r"(?:^|\.)("
    r"(?:word|position|tokentype)_embeddings\.weight|word_embeddings_for_head\.weight"
    r"|final_(?:layer)?norm\.(?:weight|bias)|pooler\.dense\.(?:weight|bias)"
    r"|lm_head\.(?:bias|(?:dense|layernorm|norm)\.(?:weight|bias))"
    r"|(?:binary_head|classification_head|multichoice_head)\.(?:weight|bias)"
    r")$"
)
_ENGINE = {
    "self_attention.layernorm_qkv.layer_norm_": "input_layernorm.",
    "self_attention.layernorm_qkv.": "self_attention.query_key_value.",
    "self_attention.proj.": "self_attention.dense.",
    "layernorm_mlp.layer_norm_": "post_attention_layernorm.",
    "layernorm_mlp.fc1_": "mlp.dense_h_to_4h.",
    "layernorm_mlp.fc2_": "mlp.dense_4h_to_h.",
}


def canonical(name: str) -> str | None:
    """A name of any legacy generation, flat (dots between levels) and with any prefix, as `legacy` spells it.

    Returns:
        The name, with the layer's number as it was; None when it is no weight of a BERT.
    """
    within = _WITHIN_LAYER.search(name)
    if within:
        leaf = within[2]
        for begin, to in _ENGINE.items():
            if leaf.startswith(begin):
                leaf = to + leaf[len(begin) :]
                break
        leaf = re.sub(r"^attention\.", "self_attention.", leaf)
        leaf = re.sub(r"^(input|post_attention)_norm\.", r"\1_layernorm.", leaf)
        return f"language_model.encoder.layers.{within[1]}.{leaf}"
    outside = _OUTSIDE.search(name)
    if not outside:
        return None
    leaf = outside[1].replace("final_norm.", "final_layernorm.").replace("lm_head.norm.", "lm_head.layernorm.")
    if leaf == WORD_EMBEDDING_COPY:
        return leaf
    if "_embeddings." in leaf:
        return f"language_model.embedding.{leaf}"
    if leaf.startswith("final_"):
        return f"language_model.encoder.{leaf}"
    return f"language_model.{leaf}" if leaf.startswith("pooler.") else leaf


def dress(name: str, era: Era) -> str:
    """A name of `legacy` as `era` spelled it."""
    if era == "v1":
        name = name.replace("language_model.encoder.", "language_model.transformer.", 1)
        return re.sub(r"(layers\.\d+\.)self_attention\.", r"\1attention.", name)
    if era == "v4":
        name = re.sub(r"(input|post_attention|final)_layernorm\.", r"\1_norm.", name)
        return name.replace("lm_head.layernorm.", "lm_head.norm.")
    return name


_LAYERS = re.compile(r"(?<![^.])(layers|layer)\.(\d{1,9})\.")


def shift(name: str, by: int) -> tuple[str, int]:
    """A name with `by` added to the number of its layer, and that number (-1 outside the layers)."""
    found = _LAYERS.search(name)
    if not found:
        return name, -1
    layer = int(found[2]) + by
    return f"{name[: found.start()]}{found[1]}.{layer}.{name[found.end() :]}", layer


def count(names: Iterable[str]) -> int:
    """How many layers the names tell of; 0 when there is none."""
    return 1 + max((shift(name, 0)[1] for name in names), default=-1)


def count_checked(names: Collection[str]) -> int:
    """As `count`, for names that a file gave: one that counts to a billion shall not make as many rows.

    Raises:
        ValueError: there are fewer names than layers.
    """
    layers = count(names)
    if layers > len(names):
        raise ValueError(f"the checkpoint names layer {layers - 1}, but holds {len(names)} tensors; it is damaged")
    return layers


def without_wrapper(name: str) -> str:
    """A name of the first generation without the prefixes of wrappers (`module.`, `model.`)."""
    return (
        name[name.find("bert.") :]
        if "bert." in name and not name.startswith("cls.")
        else re.sub(r"^(?:module\.|model\.)+", "", name)
    )
