"""Megatron's `args` and the fields of our config, in both directions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from megabert.formats import fields

TANH_GELU = "gelu_pytorch_tanh"
ADDED_ROWS = "megabert_vocab_size"
"""In `args` of files written here: the entries of the vocabulary without the rows of padding that were added."""

# ours -> Megatron's names, the newest last
_SAME: dict[str, tuple[str, ...]] = {
    "num_attention_heads": ("num_attention_heads",),
    "hidden_dropout_prob": ("hidden_dropout",),
    "attention_probs_dropout_prob": ("attention_dropout",),
    "initializer_range": ("init_method_std",),
    "layer_norm_eps": ("layernorm_epsilon", "norm_epsilon"),
    "apply_residual_connection_post_layernorm": ("apply_residual_connection_post_layernorm",),
}
DEFAULTS: dict[str, Any] = {
    "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "initializer_range": 0.02,
    "layer_norm_eps": 1e-5, "head_act": "gelu", "pad_token_id": 0, "tie_word_embeddings": True,
    "apply_residual_connection_post_layernorm": False,
}  # fmt: skip
"""Megatron's defaults, where a file has no `args`."""

_REFUSED = {
    "swiglu": (True,), "squared_relu": (True,), "use_rotary_position_embeddings": (True,),
    "position_embedding_type": ("rope", "none", "mrope", "yarn", "relative"), "normalization": ("RMSNorm",),
    "apply_layernorm_1p": (True,), "multi_query_attention": (True,), "group_query_attention": (True,),
}  # fmt: skip


def to_config(arguments: Mapping[str, Any], version: float, where: str) -> tuple[dict[str, Any], list[str]]:
    """Fields of our config from `args` (empty when the file has none), and notes about what had to be supposed.

    Args:
        arguments: plain values by name.
        version: the file's `checkpoint_version`, which dates it.
        where: the file, for the error.

    Raises:
        ValueError: the arguments describe a network that a Megatron BERT cannot be, or one is of a wrong type.
    """
    for name, values in _REFUSED.items():
        value = arguments.get(name)
        if isinstance(value, str | bool) and value in values:
            raise ValueError(f"{where}: the checkpoint was trained with {name} = {value}, which this BERT has not")
    config = dict(DEFAULTS)
    for ours, names in _SAME.items():
        for name in names:
            if arguments.get(name) is not None:
                config[ours] = fields.field(ours, arguments[name], f"{where}: args.{name}")
    switches = {
        name: fields.switch(arguments[name], f"{where}: args.{name}")
        for name in ("openai_gelu", "bias_gelu_fusion", "onnx_safe", "untie_embeddings_and_output_weights")
        if arguments.get(name) is not None
    }
    notes = []
    if switches.get("openai_gelu"):
        tanh, config["head_act"] = True, TANH_GELU
    elif "bias_gelu_fusion" in switches:
        tanh = switches["bias_gelu_fusion"] and not switches.get("onnx_safe")
    else:
        tanh = version >= 1
        why = "the fused kernel's, on by default from 2020-09 on" if tanh else "the default before 2020-09"
        notes.append(f"the file does not say which GELU the MLP has: {'tanh' if tanh else 'erf'} supposed ({why})")
    config["hidden_act"] = TANH_GELU if tanh else "gelu"
    if switches.get("untie_embeddings_and_output_weights"):
        config["tie_word_embeddings"] = False
    notes.append(
        f"numerics: LayerNorm eps {config['layer_norm_eps']:g}, GELU {'tanh' if tanh else 'erf'} in the MLP and "
        f"{'tanh' if config['head_act'] == TANH_GELU else 'erf'} in the head"
    )
    return config, notes


def check_sizes(arguments: Mapping[str, Any], told: Mapping[str, Any], where: str) -> None:
    """Refuse `args` that tell of another model than the shapes of the tensors.

    Args:
        told: fields of our config by the shapes.
        where: the file or folder, for the error.

    Raises:
        ValueError: a layer is missing at the end, say.
    """
    for theirs, ours in (("num_layers", "num_hidden_layers"), ("hidden_size", "hidden_size")):
        if arguments.get(theirs) is None:
            continue
        said = fields.whole(arguments[theirs], f"{where}: args.{theirs}")
        if said != told[ours]:
            raise ValueError(f"{where}: args tell of {theirs} {said}, but its tensors are those of {told[ours]}; it is "
                             "damaged, or not whole")  # fmt: skip


def heads_of(arguments: Mapping[str, Any], given: int | None, where: str) -> int | None:
    """The attention heads that `args` tell, or that were given where they do not; None when nobody says.

    Raises:
        ValueError: both say it, and differ, or `args` hold no number there.
    """
    said = arguments.get("num_attention_heads")
    if said is None:
        return given
    told = fields.whole(said, f"{where}: args.num_attention_heads")
    if given is not None and given != told:
        raise ValueError(f"{where} tells of {told} attention heads, but {given} were asked for; leave out "
                         "--num-attention-heads, and num_attention_heads of a --config-file")  # fmt: skip
    return told


def own_rows(arguments: Mapping[str, Any], vocabulary: int, where: str) -> int | None:
    """Rows of the vocabulary without padding that this package had added; None when it had added none.

    Raises:
        ValueError: the number is none, or larger than the vocabulary.
    """
    said = arguments.get(ADDED_ROWS)
    if said is None:
        return None
    rows = fields.whole(said, f"{where}: args.{ADDED_ROWS}", most=vocabulary)
    return rows if rows < vocabulary else None


def from_config(config: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    """The `args` that say what our config says.

    Args:
        kept: plain arguments of the file that the model came from; ours win.
    """
    tanh_head = (config.get("head_act") or config.get("hidden_act", "gelu")) in (TANH_GELU, "gelu_new")
    tanh = config.get("hidden_act", "gelu") in (TANH_GELU, "gelu_new")
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    arguments = {name: value for name, value in kept.items() if name not in _OWN}
    arguments |= {
        "num_layers": config["num_hidden_layers"],
        "encoder_num_layers": config["num_hidden_layers"],
        "hidden_size": hidden,
        "ffn_hidden_size": config["intermediate_size"],
        "num_attention_heads": heads,
        "kv_channels": hidden // heads,
        "max_position_embeddings": config["max_position_embeddings"],
        "seq_length": _length(kept.get("seq_length")) or config["max_position_embeddings"],
        "hidden_dropout": config.get("hidden_dropout_prob", 0.1),
        "attention_dropout": config.get("attention_probs_dropout_prob", 0.1),
        "init_method_std": config.get("initializer_range", 0.02),
        "layernorm_epsilon": config.get("layer_norm_eps", 1e-12),
        "norm_epsilon": config.get("layer_norm_eps", 1e-12),
        "apply_residual_connection_post_layernorm": bool(config.get("apply_residual_connection_post_layernorm")),
        "openai_gelu": tanh and tanh_head,
        "bias_gelu_fusion": tanh and not tanh_head,
        "onnx_safe": None,
        "bert_binary_head": bool(config.get("add_binary_head", True)),
        "tokenizer_type": kept.get("tokenizer_type") or "BertWordPieceLowerCase",
        "params_dtype": getattr(torch, str(config.get("dtype", "float32")).removeprefix("torch.")),
        "fp16": config.get("dtype") == "float16",
        "bf16": config.get("dtype") == "bfloat16",
    }
    return arguments


def _length(kept: Any) -> int | None:
    return kept if type(kept) is int and 0 < kept < fields.MOST else None


_OWN = {"tensor_model_parallel_size", "pipeline_model_parallel_size", "virtual_pipeline_model_parallel_size",
        "num_layers_per_virtual_pipeline_stage", "model_parallel_size", "world_size", "rank", "local_rank",
        "params_dtype", "data_parallel_size", "transformer_pipeline_model_parallel_size"}  # fmt: skip


def check_activation(config: Mapping[str, Any]) -> str | None:
    """A note when Megatron has no name for the activations of a config."""
    tanh = {"gelu_pytorch_tanh", "gelu_new"}
    inner = config.get("hidden_act", "gelu")
    head = config.get("head_act") or inner
    if inner not in {"gelu", *tanh} or head not in {"gelu", *tanh}:
        return f"Megatron has GELU only; the activation {inner if inner not in {'gelu', *tanh} else head} is not kept"
    if head in tanh and inner not in tanh:
        return "Megatron cannot have an exact GELU in the MLP and the tanh one in the head; both become exact there"
    return None
