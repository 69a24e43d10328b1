"""Names in Megatron-core's files brought to those of `bert_names.core`: prefixes, both specs, stacked layers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal

from megabert.formats import bert_names
from megabert.formats.checkpoint import LazyTensor
from megabert.formats.megatron_core_chunks import Stored
from megabert.formats.table import Row

Spec = Literal["te", "local"]

_MOST_LAYERS = 10_000
_WRAPPERS = re.compile(r"^(?:(?:module|model|bert_model)\.)+")
_STACKED = re.compile(r"^encoder\.layers\.(?!\d)(.+)$")
_POST_LAYERNORM = ("initial_layernorm", "post_att_layernorm", "post_mlp_layernorm")
_LOCAL = re.compile(r"^(encoder\.layers\.\d+\.)(input_layernorm|pre_mlp_layernorm)\.(weight|bias)$")
_ENGINE = {
    "input_layernorm": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm": "mlp.linear_fc1.layer_norm_",
}


def is_core(names: Iterable[str]) -> bool:
    """Whether tensors of these names are Megatron-core's."""
    return any(".linear_qkv." in name or ".linear_fc1." in name for name in names)


def canonical(name: str) -> str:
    """A name without the prefixes of wrappers, LayerNorms named as with Transformer Engine."""
    name = _WRAPPERS.sub("", name)
    local = _LOCAL.match(name)
    return f"{local[1]}{_ENGINE[local[2]]}{local[3]}" if local else name


def is_state(name: str) -> bool:
    """Whether it is Transformer Engine's `_extra_state`, which holds no weight."""
    return "._extra_state" in name


def renamed(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Tensors by their canonical names.

    Raises:
        ValueError: two mean the same, or the model is NeMo 2's post-LayerNorm variant.
    """
    found: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        if is_state(name):
            continue
        _refuse_post_layernorm(name, tensor.origin)
        to = canonical(name)
        if to in found:
            raise ValueError(f"{tensor.origin}: two weights mean {to}: a file of several encoders is not read")
        found[to] = tensor
    return found


def unstacked(stored: Mapping[str, Stored]) -> dict[str, LazyTensor]:
    """Tensors by their canonical names, with one for each layer where layers are stacked along the first dim."""
    found: dict[str, LazyTensor] = {}
    for name, tensor in stored.items():
        if is_state(name):
            continue
        _refuse_post_layernorm(name, tensor.origin)
        plain = _WRAPPERS.sub("", name)
        stacked = _STACKED.match(plain)
        if not stacked:
            found[canonical(plain)] = tensor.lazy()
            continue
        if not tensor.shape or tensor.shape[0] > _MOST_LAYERS:
            raise ValueError(f"{tensor.origin} is no stack of layers: it is {list(tensor.shape)}")
        for layer in range(tensor.shape[0]):
            found[canonical(f"encoder.layers.{layer}.{stacked[1]}")] = tensor.layer(layer)
    return found


def _refuse_post_layernorm(name: str, origin: str) -> None:
    if any(part in name for part in _POST_LAYERNORM):
        raise ValueError(
            f"{origin}: this is NeMo's post-LayerNorm variant of Megatron-core's BERT (bert_type huggingface), which "
            "is not a Megatron BERT and is not read"
        )


# Within a layer, and around the layers: modules in the order in which Megatron-core makes them.
_LAYER_MODULES = ("input_layernorm", "self_attention.linear_proj", "self_attention.linear_qkv", "pre_mlp_layernorm",
                  "mlp.linear_fc1", "mlp.linear_fc2")  # fmt: skip
_MODULES = ("embedding.word_embeddings", "embedding.position_embeddings", "embedding.tokentype_embeddings",
            "encoder.layers", "encoder.final_layernorm", "lm_head.dense", "lm_head.layer_norm", "output_layer",
            "binary_head", "pooler.dense")  # fmt: skip
_LEAVES = ("layer_norm_weight", "layer_norm_bias", "weight", "bias")


def place(name: str) -> tuple[int, int, int, int]:
    """Where a weight comes among its model's, by which an optimizer of format `torch` numbers its parameters."""
    module, _, leaf = name.rpartition(".")
    layer = bert_names.shift(name, 0)[1]
    if layer >= 0:
        within = module.removeprefix(f"encoder.layers.{layer}.")
        return _MODULES.index("encoder.layers"), layer, _LAYER_MODULES.index(within), _LEAVES.index(leaf)
    return _MODULES.index(module), -1, 0, _LEAVES.index(leaf)


def rows(names: Iterable[str]) -> list[Row]:
    """The rows for a model of these canonical names.

    Raises:
        ValueError: there is no layer.
    """
    held = [name for name in names if name.startswith("encoder.layers.")]
    layers = bert_names.count_checked(held)
    if not layers:
        raise ValueError("the checkpoint holds no layer of a BERT")
    return bert_names.core(layers)


def left_out(names: Iterable[str], known: Iterable[Row]) -> list[str]:
    """Canonical names that are no weight of a BERT."""
    theirs = {row.theirs for row in known}
    return sorted(name for name in names if name not in theirs)
