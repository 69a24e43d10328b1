"""The stack of layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import MegatronBertConfig
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.utils import logging

from megabert.models.bert.layers import LayerNorm, MegatronBertLayer
from megabert.models.masks import rows_of_mask

logger = logging.get_logger(__name__)


class MegatronBertEncoder(nn.Module):
    """The layers and the LayerNorm after the last one."""

    def __init__(self, config: MegatronBertConfig) -> None:
        super().__init__()
        self.config = config
        self.layer = nn.ModuleList([MegatronBertLayer(config, index) for index in range(config.num_hidden_layers)])
        self.ln = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.gradient_checkpointing = False
        self.compute_dtype: torch.dtype | None = None
        self.recomputed: list[range] = []
        """Groups of layers, from the first one on, that keep only their input in training (`bert.recompute`)."""
        self.saving: Callable[[], AbstractContextManager] = nullcontext
        """Makes what is entered around each of these groups: it says how the input is kept."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the layers compute in: `compute_dtype` where it is set, else that of their matrices."""
        if self.compute_dtype is not None:
            return self.compute_dtype
        if len(self.layer) == 0:
            return self.ln.weight.dtype
        return self.layer[0].intermediate.dense.weight.dtype  # type: ignore[union-attr,return-value]

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        positions: Tensor | None = None,
        **kwargs: object,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Run the layers over [batch, seq, hidden].

        With `positions` [batch, wanted] the result is [batch, wanted, hidden], the places that are wanted: the last
        layer then does no more than these need. The masks must be this package's own.

        `hidden_states` of the result has one entry more than there are layers: the embeddings, each layer's output but
        the last one's, and the normalised output.
        """
        if (self.gradient_checkpointing or self.recomputed) and self.training and use_cache:
            logger.warning_once("use_cache=True does not go with gradient checkpointing; no cache is kept")
            use_cache = False
        if use_cache and past_key_values is None:
            past_key_values = EncoderDecoderCache(DynamicCache(config=self.config), DynamicCache(config=self.config))
        states: list[Tensor] = []
        attentions: list[Tensor | None] = []
        crossings: list[Tensor] = []
        for layers, run in self._parts():
            hidden_states, inputs, weights, cross_weights = run(
                layers, hidden_states, attention_mask, encoder_hidden_states, encoder_attention_mask, past_key_values,
                output_attentions, output_hidden_states, positions, **kwargs,
            )  # fmt: skip
            states += inputs
            attentions += weights
            crossings += cross_weights
        hidden_states = self.ln(hidden_states)
        states.append(hidden_states)
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=hidden_states,  # type: ignore[arg-type]
            past_key_values=past_key_values,
            hidden_states=tuple(states) if output_hidden_states else None,  # type: ignore[arg-type]
            attentions=tuple(attentions) if output_attentions else None,  # type: ignore[arg-type]
            cross_attentions=tuple(crossings) if output_attentions and self.config.add_cross_attention else None,  # type: ignore[arg-type]
        )

    def _parts(self) -> Iterator[tuple[range, Callable[..., Any]]]:
        """All layers in groups, each with what runs it."""
        kept = 0
        if self.training and torch.is_grad_enabled():
            for layers in self.recomputed:
                yield layers, self._recompute
                kept = layers.stop
        yield range(kept, len(self.layer)), self._run

    def _recompute(self, *arguments: Any, **kwargs: Any) -> Any:
        """`_run`, keeping only the input."""
        with self.saving():
            return checkpoint(self._run, *arguments, use_reentrant=False, **kwargs)

    def _run(
        self,
        layers: range,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        encoder_hidden_states: Tensor | None,
        encoder_attention_mask: Tensor | None,
        past_key_values: Cache | None,
        output_attentions: bool,
        output_hidden_states: bool,
        positions: Tensor | None,
        **kwargs: object,
    ) -> tuple[Tensor, list[Tensor], list[Tensor | None], list[Tensor]]:
        """Run some layers: their output, their inputs if wanted, their weights, their weights of cross attention."""
        states: list[Tensor] = []
        attentions: list[Tensor | None] = []
        crossings: list[Tensor] = []
        for index in layers:
            if output_hidden_states:
                states.append(hidden_states)
            if positions is not None and index == len(self.layer) - 1:
                kwargs["positions"] = positions
                attention_mask = rows_of_mask(attention_mask, positions)
            # Positional: reentrant checkpointing carries gradients through positional arguments only.
            hidden_states, weights, cross_weights = self.layer[index](
                hidden_states, attention_mask, encoder_hidden_states, encoder_attention_mask, past_key_values,
                output_attentions, **kwargs,
            )  # fmt: skip
            attentions.append(weights)
            if cross_weights is not None:
                crossings.append(cross_weights)
        return hidden_states, states, attentions, crossings
