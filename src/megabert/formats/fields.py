"""Fields of a config as what they must be: the one place that judges values from files, flags and other programs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
         "max_position_embeddings", "type_vocab_size")  # fmt: skip
MOST = 1_000_000_000
"""No model has more of anything that is counted."""
_MOST_LABELS = 1_000_000
_MOST_HEAD_LAYERS = 100
_MOST_HEADS = 100
_SHARES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "head_dropout")
_SWITCHES = ("tie_word_embeddings", "add_binary_head", "apply_residual_connection_post_layernorm")


def shown(value: Any) -> str:
    """A value in few letters, whatever it is."""
    if isinstance(value, int) and value.bit_length() > 100:
        return f"a number of {value.bit_length():,} bits"
    if isinstance(value, str):
        return repr(value[:40])
    if isinstance(value, int | float | type(None)):
        return repr(value)
    return f"a {type(value).__name__}"


def whole(value: Any, said: str, *, least: int = 1, most: int = MOST) -> int:
    """A whole number; 2.0 is one, True and '2' are none.

    Args:
        said: what the value is and where it stands, for the error.

    Raises:
        ValueError: it is none, or not from `least` to `most`.
    """
    number = isinstance(value, int) and not isinstance(value, bool)
    number = number or (isinstance(value, float) and value.is_integer())
    if not number or not least <= value <= most:
        raise ValueError(f"{said} is {shown(value)}; a whole number from {least} to {most:,} is needed")
    return int(value)


def real(value: Any, said: str, *, least: float = 0.0, most: float = math.inf, above: bool = False) -> float:
    """A finite number.

    Args:
        said: what the value is and where it stands, for the error.
        above: `least` itself is not allowed.

    Raises:
        ValueError: it is none, or not from `least` to `most`.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and -MOST <= value <= MOST:
        value = float(value)
        if (least < value if above else least <= value) and value <= most:
            return value
    begin = "above" if above else "from"
    end = f" to {most:g}" if most != math.inf else f" {'' if above else 'on'}".rstrip()
    raise ValueError(f"{said} is {shown(value)}; a number {begin} {least:g}{end} is needed")


def field(name: str, value: Any, said: str) -> Any:
    """The value of a field of ours as the type that it has; fields that are not known here stay as they are.

    Raises:
        ValueError: it cannot be that; the error begins with `said`.
    """
    if name in SIZES:
        return whole(value, said)
    if name in _SHARES:
        return real(value, said, most=1.0)
    if name == "layer_norm_eps":
        return real(value, said, most=1.0, above=True)
    if name == "initializer_range":
        return real(value, said)
    if name in _SWITCHES:
        return switch(value, said)
    if value is None and name in ("pad_token_id", "head_act", "architectures", "id2label", "num_labels", "head_layers",
                                  "head_dropout", "head_parts"):  # fmt: skip
        return None
    if name == "pad_token_id":
        return whole(value, said, least=0)
    if name == "head_layers":
        return whole(value, said, most=_MOST_HEAD_LAYERS)
    if name == "head_parts":
        if not isinstance(value, list) or not 1 <= len(value) <= _MOST_HEADS:
            raise ValueError(f"{said} is {shown(value)}; a list of whole numbers, one for each classifier, is needed")
        return [whole(part, said, most=_MOST_LABELS) for part in value]
    if name == "num_labels":
        return whole(value, said, most=_MOST_LABELS)
    if name in ("hidden_act", "head_act"):
        return activation(value, said)
    if name == "architectures" and not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
        raise ValueError(f"{said} is {shown(value)}; a list of class names is needed")
    if name == "id2label" and not isinstance(value, dict):
        raise ValueError(f"{said} is {shown(value)}; labels by their numbers are needed")
    return value


def switch(value: Any, said: str) -> bool:
    """True or false.

    Raises:
        ValueError: it is neither.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{said} is {shown(value)}; true or false is needed")
    return value


def activation(value: Any, said: str) -> str:
    """The name of an activation that Transformers has.

    Raises:
        ValueError: it is none.
    """
    from transformers.activations import ACT2FN

    if not isinstance(value, str) or value not in ACT2FN:
        raise ValueError(f"{said} is {shown(value)}; the name of an activation, such as gelu, is needed")
    return value


def checked(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A config whose known fields have their types.

    Args:
        where: the file, for the error.

    Raises:
        ValueError: one has not; file and field are named.
    """
    return {name: field(name, value, f"{where}: {name}") for name, value in config.items()}
