"""The parts of the encoder: embeddings, attention, MLP, layer, pooler.

Modules have Transformers' names, and so have the keys of a state dict.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import MegatronBertConfig
from transformers.activations import ACT2FN, GELUActivation
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import apply_chunking_to_forward

from megabert.models.attention import attend
from megabert.models.bert.config import check_heads, settings
from megabert.models.cpu_linear import Linear, gelu_of, is_untouched
from megabert.models.dropout import Dropout, drop_and_add
from megabert.models.remade import remade


class LayerNorm(nn.LayerNorm):
    """LayerNorm that computes in the dtype of its weights and answers in that of its input.

    So float32 norms inside a half-precision network (Megatron's `--fp32-layernorm`) need no more than their weights.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `input` [..., hidden]."""
        # On a CPU the kernel itself takes float32 weights with half activations.
        kind = input.device.type
        mixed = kind == "cpu" and self.weight.dtype == torch.float32
        if input.dtype == self.weight.dtype or mixed or torch.is_autocast_enabled(kind):
            normed = super().forward(input)
            return remade(normed, input.shape[-1], self._again, input, self.weight, self.bias)
        return super().forward(input.to(self.weight.dtype)).to(input.dtype)

    def _again(self, input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return nn.functional.layer_norm(input, self.normalized_shape, weight, bias, self.eps)


class OutputLinear(Linear):
    """The last matrix of a block, whose result is added to the residual: Megatron scales its initial weights down."""


class MegatronBertEmbeddings(nn.Module):
    """Word + segment + position embedding, then dropout; Megatron has no LayerNorm here."""

    def __init__(self, config: MegatronBertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.dropout = Dropout(config.hidden_dropout_prob)
        positions = torch.arange(config.max_position_embeddings).expand((1, -1))
        self.position_ids: Tensor
        self.register_buffer("position_ids", positions, persistent=False)

    def forward(
        self,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values_length: int = 0,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Embed `input_ids` [batch, seq], or take `inputs_embeds` [batch, seq, hidden] for the words.

        Args:
            past_key_values_length: first position when `position_ids` are left out.
            dtype: of the result; None: that of the embedding weights.

        Raises:
            ValueError: more positions than there are embeddings for.
        """
        words = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        length = words.shape[1]
        if position_ids is None:
            end = past_key_values_length + length
            if end > self.position_embeddings.num_embeddings:
                raise ValueError(
                    f"a sequence of {end} tokens is longer than the model's "
                    f"{self.position_embeddings.num_embeddings} positions (max_position_embeddings)"
                )
            position_ids = self.position_ids[:, past_key_values_length:end]
        if token_type_ids is None:
            token_type_ids = torch.zeros(1, dtype=torch.long, device=words.device)
        embedded = words + self.token_type_embeddings(token_type_ids) + self.position_embeddings(position_ids)
        return self.dropout(embedded if dtype is None else embedded.to(dtype))


class MegatronBertSelfAttention(nn.Module):
    """Multi-head attention without its output matrix; over the sequence itself, or over an encoder's."""

    def __init__(self, config: MegatronBertConfig, layer_idx: int, is_cross_attention: bool = False) -> None:
        super().__init__()
        if not hasattr(config, "embedding_size"):
            check_heads(config.hidden_size, config.num_attention_heads)
        self.config = config
        self.layer_idx = layer_idx
        self.attention_head_size = config.hidden_size // config.num_attention_heads
        self.scaling = self.attention_head_size**-0.5
        self.is_causal = bool(config.is_decoder) and not is_cross_attention
        width = self.attention_head_size * config.num_attention_heads
        self.query = Linear(config.hidden_size, width)
        self.key = Linear(config.hidden_size, width)
        self.value = Linear(config.hidden_size, width)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)
        self.recompute_core = False  # in training, compute the attention weights again on the way back

    def _heads(self, projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (-1, self.attention_head_size)).transpose(1, 2)

    def _recomputes(self) -> bool:
        return self.recompute_core and self.training and torch.is_grad_enabled()

    def _keys_and_values(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor | None, cache: Cache | None
    ) -> tuple[Tensor, Tensor]:
        crossing = encoder_hidden_states is not None
        own: Cache | None = cache
        if cache is not None and isinstance(cache, EncoderDecoderCache):
            own = cache.cross_attention_cache if crossing else cache.self_attention_cache
            if crossing and cache.is_updated.get(self.layer_idx):
                layer = cache.cross_attention_cache.layers[self.layer_idx]
                return layer.keys, layer.values  # type: ignore[return-value]
        source = encoder_hidden_states if crossing else hidden_states
        key, value = self._heads(self.key(source)), self._heads(self.value(source))
        if own is not None:
            key, value = own.update(key, value, self.layer_idx)
            if crossing and cache is not None and isinstance(cache, EncoderDecoderCache):
                cache.is_updated[self.layer_idx] = True
        return key, value

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        past_key_values: Cache | None = None,
        output_attentions: bool = False,
        positions: Tensor | None = None,
        **kwargs: object,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            hidden_states: [batch, query, hidden].
            attention_mask: in the form of the kernel in use.
            encoder_hidden_states: [batch, key, hidden]; keys and values come from there when given.
            output_attentions: use the mathematics that has the weights, for this call.
            positions: [batch, query]: only these places ask, all are asked; the mask has their rows.

        Returns:
            [batch, query, hidden] and the weights [batch, heads, query, key], or None.
        """
        asking = hidden_states if positions is None else places(hidden_states, positions)
        query = self._heads(self.query(asking))
        key, value = self._keys_and_values(hidden_states, encoder_hidden_states, past_key_values)
        attention: Any = partial(checkpoint, attend, use_reentrant=False) if self._recomputes() else attend
        context, weights = attention(
            self, query, key, value, attention_mask,
            kernel="eager" if output_attentions else self.config._attn_implementation or "sdpa",
            probability=self.dropout.p if self.training else 0.0,
            scaling=self.scaling, **kwargs,
        )  # fmt: skip
        return context.flatten(2), weights


class MegatronBertSelfOutput(nn.Module):
    """The output matrix of the attention, dropout, and the residual."""

    def __init__(self, config: MegatronBertConfig) -> None:
        super().__init__()
        self.dense = OutputLinear(config.hidden_size, config.hidden_size)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: Tensor, residual: Tensor) -> Tensor:
        """[batch, seq, hidden] twice -> [batch, seq, hidden]."""
        return drop_and_add(self.dense(hidden_states), residual, self.dropout.p, self.training)


class MegatronBertAttention(nn.Module):
    """LayerNorm, attention, output matrix, residual."""

    def __init__(self, config: MegatronBertConfig, layer_idx: int, is_cross_attention: bool = False) -> None:
        super().__init__()
        self.ln = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self = MegatronBertSelfAttention(config, layer_idx, is_cross_attention)
        self.output = MegatronBertSelfOutput(config)
        self.residual_after_norm = settings(config).apply_residual_connection_post_layernorm

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        past_key_values: Cache | None = None,
        output_attentions: bool = False,
        positions: Tensor | None = None,
        **kwargs: object,
    ) -> tuple[Tensor, Tensor | None]:
        """Arguments and result as `MegatronBertSelfAttention.forward`'s."""
        normed = self.ln(hidden_states)
        context, weights = self.self(
            normed, attention_mask, encoder_hidden_states, past_key_values, output_attentions, positions, **kwargs
        )
        residual = normed if self.residual_after_norm else hidden_states
        return self.output(context, residual if positions is None else places(residual, positions)), weights


class MegatronBertIntermediate(nn.Module):
    """The first matrix of the MLP and its activation."""

    def __init__(self, config: MegatronBertConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.intermediate_size)
        self.intermediate_act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[batch, seq, hidden] -> [batch, seq, intermediate]."""
        answer = gelu_of(self.dense, hidden_states) if self.has_gelu() else None
        if answer is not None:
            return answer
        projected = self.dense(hidden_states)
        act = self.intermediate_act_fn
        return remade(act(projected), hidden_states.shape[-1], act, projected)

    def has_gelu(self) -> bool:
        """Whether the activation is the exact GELU, as it was made."""
        act = self.intermediate_act_fn
        return type(act) is GELUActivation and act.act is nn.functional.gelu and is_untouched(act)


class MegatronBertOutput(nn.Module):
    """The second matrix of the MLP, dropout, and the residual."""

    def __init__(self, config: MegatronBertConfig) -> None:
        super().__init__()
        self.dense = OutputLinear(config.intermediate_size, config.hidden_size)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        """[batch, seq, intermediate] and the residual [batch, seq, hidden] -> [batch, seq, hidden]."""
        return drop_and_add(self.dense(hidden_states), input_tensor, self.dropout.p, self.training)


class MegatronBertLayer(GradientCheckpointingLayer):
    """One transformer layer: attention, in a decoder also attention to an encoder, then the MLP."""

    def __init__(self, config: MegatronBertConfig, layer_idx: int) -> None:
        super().__init__()
        self.chunk_size_feed_forward = config.chunk_size_feed_forward
        self.attention = MegatronBertAttention(config, layer_idx)
        if config.add_cross_attention:
            if not config.is_decoder:
                raise TypeError("add_cross_attention needs a decoder: set is_decoder=True in the config")
            self.crossattention = MegatronBertAttention(config, layer_idx, is_cross_attention=True)
        self.ln = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.intermediate = MegatronBertIntermediate(config)
        self.output = MegatronBertOutput(config)
        self.residual_after_norm = settings(config).apply_residual_connection_post_layernorm

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        output_attentions: bool = False,
        positions: Tensor | None = None,
        **kwargs: object,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """[batch, seq, hidden] -> the same, the weights of self attention and those of cross attention (or None).

        With `positions` [batch, wanted] the first is [batch, wanted, hidden]: the layer's output at these places.

        Raises:
            ValueError: `encoder_hidden_states` for a layer without cross attention.
        """
        hidden, weights = self.attention(
            hidden_states, attention_mask, None, past_key_values, output_attentions, positions, **kwargs
        )
        cross_weights = None
        if encoder_hidden_states is not None:
            if not hasattr(self, "crossattention"):
                raise ValueError("encoder_hidden_states need a model with add_cross_attention=True in its config")
            hidden, cross_weights = self.crossattention(
                hidden, encoder_attention_mask, encoder_hidden_states, past_key_values, output_attentions, **kwargs
            )
        output = apply_chunking_to_forward(self.feed_forward_chunk, self.chunk_size_feed_forward, 1, hidden)
        return output, weights, cross_weights

    def feed_forward_chunk(self, hidden: Tensor) -> Tensor:
        """LayerNorm, MLP and residual of [batch, part of seq, hidden]."""
        normed = self.ln(hidden)
        return self.output(self.intermediate(normed), normed if self.residual_after_norm else hidden)


class MegatronBertPooler(nn.Module):
    """tanh of a matrix on the first token, or on the first token of each sample of a packed row."""

    def __init__(self, config: MegatronBertConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size)
        self.activation = nn.Tanh()

    def forward(self, hidden_states: Tensor, sample_starts: Tensor | None = None) -> Tensor:
        """[batch, seq, hidden] -> [batch, hidden]; with starts [batch, samples] -> [batch, samples, hidden]."""
        return self.pool(hidden_states[:, 0] if sample_starts is None else places(hidden_states, sample_starts))

    def pool(self, first: Tensor) -> Tensor:
        """[..., hidden] of first tokens -> [..., hidden]."""
        return self.activation(self.dense(first))


def places(hidden_states: Tensor, positions: Tensor) -> Tensor:
    """The rows of [batch, seq, hidden] at `positions` [batch, n]: [batch, n, hidden]."""
    batch, length, width = hidden_states.shape
    offsets = torch.arange(batch, device=positions.device)[:, None] * length
    # index_select on flat rows: its backward adds whole rows, where indexing with two tensors adds single numbers.
    return (
        hidden_states.reshape(-1, width).index_select(0, (positions + offsets).flatten()).unflatten(0, positions.shape)
    )
