"""The heads of language modelling: masked words, and the next word."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import GenerationMixin, MegatronBertConfig
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithCrossAttentions, MaskedLMOutput
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils import logging

from megabert.models.bert.encoder import MegatronBertModel, MegatronBertPreTrainedModel, tuple_or_output
from megabert.models.bert.heads import TIED, UNREAD, MegatronBertOnlyMLMHead, rows_to_score
from megabert.models.losses import IGNORED, counted, mean_of_sum

logger = logging.get_logger(__name__)


class MegatronBertForMaskedLM(MegatronBertPreTrainedModel):
    """The masked-word head alone, without a pooler."""

    _tied_weights_keys = TIED
    _keys_to_ignore_on_load_unexpected = UNREAD

    def __init__(self, config: MegatronBertConfig) -> None:
        super().__init__(config)
        if config.is_decoder:
            logger.warning("MegatronBertForMaskedLM with is_decoder=True sees only the words before the masked one")
        self.bert = MegatronBertModel(config, add_pooling_layer=False)
        self.cls = MegatronBertOnlyMLMHead(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The matrix to the vocabulary."""
        return self.cls.predictions.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the matrix to the vocabulary."""
        self.cls.predictions.replace_decoder(new_embeddings)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        *,
        sample_ids: Tensor | None = None,
        masked_positions: Tensor | None = None,
        full_logits: bool = False,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: object,
    ) -> tuple | MaskedLMOutput:
        """Score words; arguments, shapes and loss as those of the word term of `MegatronBertForPreTraining.forward`.

        Args:
            encoder_hidden_states, encoder_attention_mask: as `MegatronBertModel.forward`.
        """
        encoded = self.bert(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, encoder_hidden_states,
            encoder_attention_mask, output_attentions=output_attentions, output_hidden_states=output_hidden_states,
            return_dict=True, sample_ids=sample_ids, wanted_positions=masked_positions, **kwargs,
        )  # fmt: skip
        rows, row_labels = rows_to_score(
            encoded.last_hidden_state, labels, masked_positions, only_labelled=self.training and not full_logits
        )
        scores = self.cls(rows)
        loss = None
        if row_labels is not None:
            loss = mean_of_sum(self.cls.predictions.loss(scores, row_labels), counted(row_labels), num_items_in_batch)
        output = MaskedLMOutput(
            loss=loss,  # type: ignore[arg-type]
            logits=scores,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return tuple_or_output(output, return_dict, self.config)


class MegatronBertForCausalLM(MegatronBertPreTrainedModel, GenerationMixin):
    """A head for the next word; the config should say `is_decoder=True`."""

    _tied_weights_keys = TIED
    _keys_to_ignore_on_load_unexpected = UNREAD

    def __init__(self, config: MegatronBertConfig) -> None:
        super().__init__(config)
        if not config.is_decoder:
            logger.warning("MegatronBertForCausalLM sees the words to come unless its config says is_decoder=True")
        self.bert = MegatronBertModel(config, add_pooling_layer=False)
        self.cls = MegatronBertOnlyMLMHead(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The matrix to the vocabulary."""
        return self.cls.predictions.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the matrix to the vocabulary."""
        self.cls.predictions.replace_decoder(new_embeddings)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        *,
        shift_labels: Tensor | None = None,
        sample_ids: Tensor | None = None,
        full_logits: bool = False,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: object,
    ) -> tuple | CausalLMOutputWithCrossAttentions:
        """Score the next word of each place.

        Args:
            encoder_hidden_states, encoder_attention_mask, past_key_values, use_cache: as `MegatronBertModel.forward`.
            labels: [batch, seq], the words themselves (they are shifted here); -100 where there is none. With labels no
                cache is kept.
            logits_to_keep: logits of that many last places only (0: all), or of these places.
            shift_labels: [batch, seq] labels that are shifted already, instead of `labels`.
            full_logits, num_items_in_batch: as `MegatronBertForPreTraining.forward`.
        """
        if shift_labels is None and labels is not None:
            shift_labels = nn.functional.pad(labels, (0, 1), value=IGNORED)[..., 1:]
        encoded = self.bert(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, encoder_hidden_states,
            encoder_attention_mask, past_key_values, False if shift_labels is not None else use_cache,
            output_attentions=output_attentions, output_hidden_states=output_hidden_states, return_dict=True,
            sample_ids=sample_ids, **kwargs,
        )  # fmt: skip
        hidden = slice_logits_to_keep(encoded.last_hidden_state, logits_to_keep)
        if shift_labels is not None and not (isinstance(logits_to_keep, int) and logits_to_keep == 0):
            shift_labels = slice_logits_to_keep(shift_labels[..., None], logits_to_keep)[..., 0]
        rows, row_labels = rows_to_score(hidden, shift_labels, None, only_labelled=self.training and not full_logits)
        scores = self.cls(rows)
        loss = None
        if row_labels is not None:
            loss = mean_of_sum(self.cls.predictions.loss(scores, row_labels), counted(row_labels), num_items_in_batch)
        output = CausalLMOutputWithCrossAttentions(
            loss=loss,  # type: ignore[arg-type]
            logits=scores,
            past_key_values=encoded.past_key_values,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
            cross_attentions=encoded.cross_attentions,
        )
        return tuple_or_output(output, return_dict, self.config)
