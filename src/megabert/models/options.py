"""The options of the network: its sizes, its regularisation and the numerics of Megatron that a run may choose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megabert.config import option


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The network: sizes (the defaults are the 345M model), dropout, initialisation, numerics."""

    num_layers: int = option(24, "transformer layers", example="12", minimum=1)
    hidden_size: int = option(
        1024, "width of the hidden states, a multiple of --num-attention-heads", example="768", minimum=1
    )
    num_attention_heads: int = option(16, "attention heads in each layer", example="12", minimum=1)
    intermediate_size: int | None = option(
        None, "width inside the MLP; 4 x --hidden-size when left out", aliases=("ffn-hidden-size",), example="3072",
        minimum=1,
    )  # fmt: skip
    max_position_embeddings: int = option(
        512, "positions that have an embedding: the longest sample, in tokens", example="1024", minimum=1
    )
    hidden_dropout: float = option(
        0.1,
        "probability of dropping an element after the embedding, the attention and the MLP",
        minimum=0,
        maximum=0.99,
    )
    attention_dropout: float = option(0.1, "probability of dropping an attention weight", minimum=0, maximum=0.99)
    layernorm_epsilon: float = option(
        1e-5, "added to the variance in each LayerNorm", aliases=("norm-epsilon",), example="1e-12", above=0
    )
    init_method_std: float = option(0.02, "standard deviation of the initial weights", above=0)
    init_method_xavier_uniform: bool = option(
        False, "draw the initial weights from Xavier's uniform distribution instead of a normal one"
    )
    scaled_init: bool = option(
        True,
        "divide the initial standard deviation of the last matrix of the attention and of the MLP by sqrt(2 x layers), "
        "as Megatron does",
        aliases=("deep-init",),
    )
    zero_init_tokentypes: bool = option(
        False,
        "start the token type table at zero: no LayerNorm behind the embedding takes out what all tokens share, and a "
        "random vector slows the first thousand updates of a small model (measured)",
    )
    gelu: Literal["erf", "tanh"] = option(
        "erf",
        "GELU in the MLP: the exact one or the tanh approximation of Megatron's fused kernel; the head's is exact",
        example="tanh",
    )
    openai_gelu: bool = option(False, "the tanh approximation of GELU in the MLP and in the head (wins over --gelu)")
    bias_gelu_fusion: bool | None = option(
        None,
        "Megatron's fused kernel, here its numerics: on means --gelu tanh, off means --gelu erf (wins over --gelu)",
    )
    apply_residual_connection_post_layernorm: bool = option(
        False, "take the residual from the output of each LayerNorm instead of its input"
    )
    make_vocab_size_divisible_by: int = option(
        128, "pad the vocabulary to a multiple of this many entries, so that matrix products are fast", minimum=1
    )
    vocab_extra_ids: int = option(
        0, "ids behind those of the vocabulary that have an embedding but no entry, before the padding", minimum=0
    )
    untie_embeddings_and_output_weights: bool = option(
        False, "give the masked-word head a matrix of its own instead of the word embedding"
    )
    attention_implementation: Literal["auto", "sdpa", "fused", "eager", "unfused", "local", "flex", "flash"] = option(
        "auto",
        "attention kernel: auto, sdpa and fused are PyTorch's (with this package's own on a CPU in training); eager, "
        "unfused and local write every matrix out; flex and flash are FlexAttention and FlashAttention 2 and need a "
        "GPU",
        aliases=("attention-backend",),
    )


@dataclass(frozen=True, kw_only=True)
class RecomputeOptions:
    """Memory for work: what is computed again in the backward pass instead of being kept."""

    checkpoint_activations: bool = option(
        False,
        "compute the activations of each layer again in the backward pass instead of keeping them: less memory, about "
        "a third more work; the same as --recompute-granularity full",
    )
    recompute_activations: bool = option(
        False, "compute only the attention weights again: the same as --recompute-granularity selective"
    )
    recompute_granularity: Literal["full", "selective"] | None = option(
        None,
        "full keeps the input of layers (or of groups of layers), selective all but what the attention makes between "
        "its queries, keys and values and its result; left out, everything is kept",
    )
    recompute_method: Literal["uniform", "block"] | None = option(
        None,
        "which layers, with full: uniform keeps the input of every --recompute-num-layers layers, block computes the "
        "first --recompute-num-layers layers again, each for itself, and keeps the others; left out, uniform",
        aliases=("activations-checkpoint-method",),
    )
    recompute_num_layers: int = option(
        1,
        "layers in a group (uniform), or layers computed again (block)",
        aliases=("checkpoint-num-layers", "activations-checkpoint-num-layers"),
        example="4",
        minimum=1,
    )
