"""The base class that all heads share, and `MegatronBertModel`.

Classes, arguments, outputs and state-dict keys are those of Transformers' Megatron BERT; the network inside is ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import MegatronBertConfig
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import (
    BaseModelOutputWithPastAndCrossAttentions,
    BaseModelOutputWithPoolingAndCrossAttentions,
)
from transformers.modeling_utils import PreTrainedModel

from megabert.models.attention import takes_borders
from megabert.models.bert.config import settings
from megabert.models.bert.heads import MegatronBertLMPredictionHead
from megabert.models.bert.layers import MegatronBertEmbeddings, MegatronBertPooler, OutputLinear, places
from megabert.models.bert.stack import MegatronBertEncoder
from megabert.models.masks import OWN_KERNELS, check_mask_shape, foreign_mask, own_mask, packed_rows

Opener = Callable[[Any, Mapping[str, Any]], tuple[MegatronBertConfig, dict[str, Tensor]] | None]
"""(path or name, keywords of `from_pretrained`) -> config and weights by Transformers' names; None: not one of its."""

UNDIVIDED = ["MegatronBertEmbeddings", "MegatronBertLayer"]
"""Modules that `device_map` keeps on one device."""


FOR_STRANGERS = [r"megabert_only\..*"]
"""Tensors that are written for other packages to stumble over."""


class MegatronBertPreTrainedModel(PreTrainedModel):
    """What all nine classes share: loading, saving, initial weights, and what Transformers may do with them."""

    config: MegatronBertConfig
    config_class = MegatronBertConfig
    base_model_prefix = "bert"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = UNDIVIDED
    _keys_to_ignore_on_load_unexpected = FOR_STRANGERS
    open_elsewhere: ClassVar[Opener | None] = None
    """What reads checkpoints that Transformers does not know; `megabert` sets it, this room knows no format."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Self:  # type: ignore[override]
        """As Transformers', and from a checkpoint of every format that this package opens.

        Raises:
            ValueError, OSError: the checkpoint is damaged, or there is none.
        """
        opener = MegatronBertPreTrainedModel.open_elsewhere
        found = opener(pretrained_model_name_or_path, kwargs) if opener is not None else None
        if found is None:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        config, tensors = found
        kwargs.setdefault("config", config)
        if cls is MegatronBertModel and not any(name.startswith("bert.pooler.") for name in tensors):
            kwargs.setdefault("add_pooling_layer", False)  # not one of random numbers
        return super().from_pretrained(None, *args, state_dict=tensors, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Transformers passes over modules of other packages that hold no parameter or buffer themselves, so everything
        # here hangs on the modules that do.
        super()._init_weights(module)
        chosen = settings(self.config)
        if isinstance(module, nn.Linear | nn.Embedding) and chosen.xavier_uniform_init:
            init.xavier_uniform_(module.weight)
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, OutputLinear) and chosen.scaled_output_init:
            std = self.config.initializer_range / math.sqrt(2.0 * self.config.num_hidden_layers)
            init.normal_(module.weight, mean=0.0, std=std)
        elif isinstance(module, MegatronBertEmbeddings):
            positions = torch.arange(module.position_ids.shape[-1]).expand((1, -1))
            init.copy_(module.position_ids, positions)
            if chosen.zero_token_type_init:
                init.zeros_(module.token_type_embeddings.weight)
        elif isinstance(module, MegatronBertLMPredictionHead) and module.bias is not None:
            init.zeros_(module.bias)


def tuple_or_output(output: Any, return_dict: bool | None, config: MegatronBertConfig) -> Any:
    """A model output as it is, or as the tuple of its fields that are not None."""
    return output if (config.return_dict if return_dict is None else return_dict) else output.to_tuple()


class MegatronBertModel(MegatronBertPreTrainedModel):
    """The encoder (or decoder) with a pooler and no head.

    Args:
        config: Transformers' configuration, with settings of ours in it where wanted (`bert.config.Settings`).
        add_pooling_layer: with a pooler on the first token.
    """

    def __init__(self, config: MegatronBertConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = MegatronBertEmbeddings(config)
        self.encoder = MegatronBertEncoder(config)
        self.pooler = MegatronBertPooler(config) if add_pooling_layer else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The word embedding."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embedding."""
        self.embeddings.word_embeddings = value  # type: ignore[assignment]

    def _chosen(self, *given: bool | None) -> tuple[bool, bool, bool]:
        """Whether to cache, to return attention weights and hidden states: as asked, else as the config says."""
        config = self.config
        defaults = (config.use_cache, config.output_attentions, config.output_hidden_states)
        cache, weights, states = (bool(own if one is None else one) for one, own in zip(given, defaults, strict=True))
        return cache and config.is_decoder, weights, states

    def _compute_dtype(self, device: torch.device) -> torch.dtype:
        if torch.is_autocast_enabled(device.type):
            return torch.get_autocast_dtype(device.type)
        return self.encoder.dtype

    def _masks(
        self,
        hidden: Tensor,
        attention_mask: Tensor | None,
        encoder_hidden_states: Tensor | None,
        encoder_attention_mask: Tensor | None,
        sample_ids: Tensor | None,
        sample_starts: Tensor | None,
        past_key_values: Cache | None,
        output_attentions: bool,
    ) -> tuple[Any, Any]:
        """The masks of self and cross attention, in the form of the kernel that this call will use."""
        config = self.config
        causal = bool(config.is_decoder)
        queries = hidden.shape[1]
        past = 0 if past_key_values is None else int(past_key_values.get_seq_length())
        check_mask_shape("attention_mask", attention_mask, queries, past + queries)
        if encoder_hidden_states is not None:
            check_mask_shape("encoder_attention_mask", encoder_attention_mask, queries, encoder_hidden_states.shape[1])
        if output_attentions or self.config._attn_implementation in OWN_KERNELS:
            dtype, device = self._compute_dtype(hidden.device), hidden.device
            kernel, width = config._attn_implementation or "sdpa", config.hidden_size // config.num_attention_heads
            alone = attention_mask is None and not (past or causal or output_attentions)
            if sample_ids is not None and alone and takes_borders(kernel, device, dtype, width):
                most = None if sample_starts is None else sample_starts.shape[1]
                mask = packed_rows(sample_ids, most, dtype=dtype)
            else:
                mask = own_mask(
                    attention_mask, sample_ids, query_length=queries, past_length=past, causal=causal,
                    dtype=dtype, device=device,
                )  # fmt: skip
            cross = own_mask(
                encoder_attention_mask, None, query_length=queries, past_length=0, causal=False,
                dtype=dtype, device=device,
            )  # fmt: skip
            return mask, cross
        mask = foreign_mask(
            self.config, hidden, attention_mask, sample_ids, past_key_values=past_key_values, causal=causal
        )
        if encoder_hidden_states is None or encoder_attention_mask is None:
            return mask, None
        cross = foreign_mask(
            self.config, encoder_hidden_states, encoder_attention_mask, None, past_key_values=None, causal=False
        )
        return mask, cross

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        *,
        sample_ids: Tensor | None = None,
        sample_starts: Tensor | None = None,
        wanted_positions: Tensor | None = None,
        **kwargs: object,
    ) -> tuple | BaseModelOutputWithPoolingAndCrossAttentions:
        """Encode a batch.

        Args:
            input_ids: [batch, seq]; or `inputs_embeds` [batch, seq, hidden].
            attention_mask: as `masks.own_mask`: usually [batch, key], 1 = attend.
            token_type_ids, position_ids: [batch, seq]; zeros and 0, 1, ... when left out.
            encoder_hidden_states, encoder_attention_mask: [batch, key, hidden] and [batch, key], for cross attention.
            past_key_values, use_cache: keys and values of earlier calls; return them (decoders).
            sample_ids: [batch, seq] for packed rows: attention stays among equal numbers; 0 is padding.
            sample_starts: [batch, samples]: the pooler answers for each of these places.
            wanted_positions: [batch, wanted]: hidden states at these places only; the last layer spares the others.
            kwargs: for a registered attention kernel.

        Returns:
            Transformers' output or tuple; `pooler_output` [batch, hidden], with starts [batch, samples, hidden].

        Raises:
            ValueError: both or none of `input_ids` and `inputs_embeds`, masks of a wrong shape, too long sequences.
        """
        use_cache, output_attentions, states_wanted = self._chosen(use_cache, output_attentions, output_hidden_states)
        self._check_inputs(input_ids, inputs_embeds, attention_mask, sample_ids)
        hidden = self.embeddings(
            input_ids, token_type_ids, position_ids, inputs_embeds,
            past_key_values_length=0 if past_key_values is None else int(past_key_values.get_seq_length()),
            dtype=self.encoder.dtype,
        )  # fmt: skip
        whole = output_attentions or states_wanted or use_cache
        positions = None if whole else self._positions(sample_starts, wanted_positions)
        mask, cross_mask = self._masks(
            hidden, attention_mask, encoder_hidden_states, encoder_attention_mask, sample_ids, sample_starts,
            past_key_values, output_attentions,
        )  # fmt: skip
        encoded = self.encoder(
            hidden, mask, encoder_hidden_states, cross_mask, past_key_values, use_cache, output_attentions,
            states_wanted, positions=positions, **kwargs,
        )  # fmt: skip
        output = self._finish(encoded, sample_starts, wanted_positions, positions)
        if self.config.return_dict if return_dict is None else return_dict:
            return output
        return (*output[:1], output.pooler_output, *output[1 if output.pooler_output is None else 2 :])

    def _check_inputs(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        attention_mask: Tensor | None,
        sample_ids: Tensor | None,
    ) -> None:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds, and not both")
        if input_ids is not None and sample_ids is None:
            self.warn_if_padding_and_no_attention_mask(input_ids, attention_mask)

    def _positions(self, sample_starts: Tensor | None, wanted_positions: Tensor | None) -> Tensor | None:
        """All places that the result depends on: those of the pooler, then the wanted ones."""
        if wanted_positions is None or self.config._attn_implementation not in OWN_KERNELS or not self.encoder.layer:
            return None
        if self.pooler is None:
            return wanted_positions
        starts = wanted_positions.new_zeros(wanted_positions.shape[0], 1) if sample_starts is None else sample_starts
        return torch.cat([starts, wanted_positions], dim=1)

    def _finish(
        self,
        encoded: BaseModelOutputWithPastAndCrossAttentions,
        sample_starts: Tensor | None,
        wanted_positions: Tensor | None,
        positions: Tensor | None,
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """The output, from the encoder's everywhere or (with `positions`) from the encoder's at places."""
        sequence, pooled = encoded.last_hidden_state, None
        assert sequence is not None
        if positions is None:
            pooled = None if self.pooler is None else self.pooler(sequence, sample_starts)
            sequence = sequence if wanted_positions is None else places(sequence, wanted_positions)
        elif self.pooler is not None:
            count = 1 if sample_starts is None else sample_starts.shape[1]
            pooled = self.pooler.pool(sequence[:, 0] if sample_starts is None else sequence[:, :count])
            sequence = sequence[:, count:]
        return BaseModelOutputWithPoolingAndCrossAttentions(
            **{**encoded, "last_hidden_state": sequence, "pooler_output": pooled}
        )
