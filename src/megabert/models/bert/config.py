"""The configuration of a Megatron BERT: Transformers' own class, and our settings beside its fields.

Transformers keeps unknown keywords of a config as plain attributes and writes them to `config.json`, so a folder of
ours opens in plain Transformers and keeps what we say about it. `settings` is the one place that reads them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

import torch
from transformers import MegatronBertConfig
from transformers.utils import is_flash_attn_2_available

from megabert.models.options import ModelOptions

KERNELS = {
    "auto": "sdpa", "sdpa": "sdpa", "fused": "sdpa", "eager": "eager", "unfused": "eager", "local": "eager",
    "flex": "flex_attention", "flash": "flash_attention_2",
}  # fmt: skip
TANH_GELU = "gelu_pytorch_tanh"
_MOST_HEAD_LAYERS = 100


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What our network reads from a config beyond Transformers' fields; each default is Transformers' behaviour."""

    head_act: str | None = None
    """Activation of the masked-word head; None: that of the MLP, `hidden_act`."""
    scaled_output_init: bool = False
    """Initial weights of the last matrix of attention and MLP are divided by sqrt(2 x layers)."""
    xavier_uniform_init: bool = False
    """Initial weights from Xavier's uniform distribution; wins over `initializer_range` and `scaled_output_init`."""
    zero_token_type_init: bool = False
    """The token type table starts as zeros instead of random numbers."""
    apply_residual_connection_post_layernorm: bool = False
    """The residual is the output of the LayerNorm before a block, not its input."""
    add_binary_head: bool = True
    """`MegatronBertForPreTraining` has a pooler and a sentence-pair head."""


def settings(config: MegatronBertConfig) -> Settings:
    """The settings of ours that `config` holds, defaults for the others.

    Raises:
        ValueError: one of them has the wrong type.
    """
    values = {}
    for field in fields(Settings):
        value = getattr(config, field.name, field.default)
        allowed = (str, type(None)) if field.name == "head_act" else (bool,)
        if not isinstance(value, allowed):
            names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in allowed)
            raise ValueError(f"config: {field.name} is {value!r}, but must be {names}")
        values[field.name] = value
    return Settings(**values)


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """What a task's head reads from a config; each default is Transformers' head."""

    layers: int | None = None
    """`head_layers`: so many matrices with ReLU between them, as NeMo's heads have; for a whole sequence they read the
    hidden state of the first token, without a pooler."""
    dropout: float | None = None
    """`head_dropout`: before the head; None: `hidden_dropout_prob`, for spans none."""
    parts: tuple[int, ...] = ()
    """`head_parts`: the outputs of several classifiers side by side; with `head_layers` each has matrices of its own.
    Empty: there is one."""


def head_settings(config: MegatronBertConfig) -> HeadSettings:
    """The settings of ours that `config` holds about a task's head.

    Raises:
        ValueError: one of them is of a wrong type or out of its limits.
    """
    layers, dropout, parts = (getattr(config, f"head_{field.name}", field.default) for field in fields(HeadSettings))
    if layers is not None and (type(layers) is not int or not 1 <= layers <= _MOST_HEAD_LAYERS):
        raise ValueError(f"config: head_layers is {layers!r}, but must be null or from 1 to {_MOST_HEAD_LAYERS}")
    if dropout is not None and (isinstance(dropout, bool) or not isinstance(dropout, int | float)
                                or not 0 <= dropout < 1):  # fmt: skip
        raise ValueError(f"config: head_dropout is {dropout!r}, but must be null or from 0 to below 1")
    given = parts or ()
    listed = isinstance(given, list | tuple) and all(type(part) is int and part > 0 for part in given)
    if not isinstance(given, list | tuple) or not listed or (given and sum(given) != config.num_labels):
        raise ValueError(f"config: head_parts is {given!r}, but must be null or whole numbers that make the "
                         f"{config.num_labels} labels together")  # fmt: skip
    return HeadSettings(layers=layers, dropout=dropout, parts=tuple(given))


def check_kernel(name: str, device: torch.device, attention_dropout: float) -> None:
    """Refuse an attention kernel that cannot train here.

    Args:
        name: of `KERNELS`.

    Raises:
        ValueError: FlexAttention or FlashAttention without a GPU, the first with dropout, the second not installed.
    """
    kernel, reason = KERNELS[name], ""
    if kernel in ("flex_attention", "flash_attention_2") and device.type != "cuda":
        reason = f"trains on a GPU only, and this run is on {device.type}"
    elif kernel == "flex_attention" and attention_dropout:
        reason = "has no dropout: --attention-dropout 0 goes with it"
    elif kernel == "flash_attention_2" and not is_flash_attn_2_available():
        reason = "is of the package flash-attn, which is not installed"
    if reason:
        raise ValueError(f"--attention-implementation: {name} {reason}; auto needs nothing more")


def padded_vocabulary_size(vocabulary_size: int, multiple: int) -> int:
    """The least multiple of `multiple` that holds `vocabulary_size` entries."""
    return -(-vocabulary_size // multiple) * multiple


def check_heads(hidden_size: int, num_attention_heads: int) -> None:
    """Refuse heads that do not divide the hidden size.

    Raises:
        ValueError: they do not; the nearest number of heads that does is named.
    """
    if hidden_size % num_attention_heads:
        divisors = [heads for heads in range(1, hidden_size + 1) if hidden_size % heads == 0]
        nearest = min(divisors, key=lambda heads: (abs(heads - num_attention_heads), heads))
        raise ValueError(
            f"num_attention_heads {num_attention_heads} does not divide hidden_size {hidden_size} "
            f"(the nearest number of heads that does is {nearest})"
        )


def make_config(
    options: ModelOptions,
    vocabulary_size: int,
    *,
    pad_token_id: int = 0,
    type_vocab_size: int = 2,
    add_binary_head: bool = True,
    architectures: tuple[str, ...] = ("MegatronBertForPreTraining",),
) -> MegatronBertConfig:
    """The config of a model to be pretrained.

    Args:
        options: sizes and numerics.
        vocabulary_size: entries of the tokenizer; with `options.vocab_extra_ids` padded to
            `options.make_vocab_size_divisible_by`.
        pad_token_id: its row of the word embedding starts as zeros and gets no gradient from the input.
        type_vocab_size: segments that have an embedding.
        add_binary_head: with a pooler and a sentence-pair head.
        architectures: class names written to `config.json`.

    Raises:
        ValueError: the heads do not divide the hidden size, or there is no vocabulary.
    """
    if vocabulary_size < 1:
        raise ValueError(f"a vocabulary of {vocabulary_size} entries is empty")
    check_heads(options.hidden_size, options.num_attention_heads)
    tanh = options.gelu == "tanh" if options.bias_gelu_fusion is None else options.bias_gelu_fusion
    chosen = Settings(
        head_act=TANH_GELU if options.openai_gelu else "gelu",
        scaled_output_init=options.scaled_init,
        xavier_uniform_init=options.init_method_xavier_uniform,
        zero_token_type_init=options.zero_init_tokentypes,
        apply_residual_connection_post_layernorm=options.apply_residual_connection_post_layernorm,
        add_binary_head=add_binary_head,
    )
    config = MegatronBertConfig(
        vocab_size=padded_vocabulary_size(
            vocabulary_size + options.vocab_extra_ids, options.make_vocab_size_divisible_by
        ),
        hidden_size=options.hidden_size,
        num_hidden_layers=options.num_layers,
        num_attention_heads=options.num_attention_heads,
        intermediate_size=options.intermediate_size or 4 * options.hidden_size,
        hidden_act=TANH_GELU if tanh or options.openai_gelu else "gelu",
        hidden_dropout_prob=options.hidden_dropout,
        attention_probs_dropout_prob=options.attention_dropout,
        max_position_embeddings=options.max_position_embeddings,
        type_vocab_size=type_vocab_size,
        initializer_range=options.init_method_std,
        layer_norm_eps=options.layernorm_epsilon,
        pad_token_id=pad_token_id,
        tie_word_embeddings=not options.untie_embeddings_and_output_weights,
        architectures=list(architectures),
        **asdict(chosen),
    )
    config._attn_implementation = KERNELS[options.attention_implementation]
    return config
