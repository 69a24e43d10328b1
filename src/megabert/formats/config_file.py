"""A config that a user gives beside a checkpoint: Transformers' `config.json`, or the JSON of NeMo's documents.

NeMo's has `hidden-size`, `num-attention-heads`, `num-layers`, `max-seq-length`, and others of Megatron's arguments,
with dashes or underscores.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from transformers import MegatronBertConfig

from megabert import runtime
from megabert.formats import fields

# NeMo's and Megatron's names -> ours
_THEIRS = {
    "num_layers": "num_hidden_layers", "max_seq_length": "max_position_embeddings",
    "ffn_hidden_size": "intermediate_size", "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob", "init_method_std": "initializer_range",
    "layernorm_epsilon": "layer_norm_eps", "norm_epsilon": "layer_norm_eps",
}  # fmt: skip
_OURS = {"head_act", "add_binary_head", "apply_residual_connection_post_layernorm", "pair_task", "num_labels",
         "tie_word_embeddings", "pad_token_id"}  # fmt: skip
_OF_THE_FILE = {"architectures", "model_type", "transformers_version", "vocab_size", "dtype", "torch_dtype",
                "_name_or_path"}  # fmt: skip
"""What the checkpoint itself tells, and no config can change."""
_CLOSE = 0.9


def read(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Fields of our config that a file gives, and notes about fields that a Megatron BERT does not have.

    Raises:
        ValueError: the file is missing or damaged; a field is misspelt, of a wrong type, or there twice.
    """
    known = {*MegatronBertConfig().to_dict(), *_OURS, *_OF_THE_FILE}
    changes: dict[str, Any] = {}
    unknown = []
    for given, value in runtime.read_object(path).items():
        plain = given.replace("-", "_")
        name = _THEIRS.get(plain, plain)
        if name not in known:
            close = difflib.get_close_matches(plain, [*known, *_THEIRS], n=1, cutoff=_CLOSE)
            if close:
                raise ValueError(f"{path}: {given[:80]!r} is no field of a Megatron BERT (did you mean {close[0]}?)")
            unknown.append(given[:80])
        elif name not in _OF_THE_FILE:
            value = fields.field(name, value, f"{path}: {given}")
            if changes.setdefault(name, value) != value:
                raise ValueError(f"{path}: {given} is {fields.shown(value)}, but another spelling of it says "
                                 f"{fields.shown(changes[name])}")  # fmt: skip
    if not unknown:
        return changes, []
    shown = ", ".join(unknown[:6]) + (" ..." if len(unknown) > 6 else "")
    return changes, [f"left out, no fields of a Megatron BERT: {shown} of {path}"]
