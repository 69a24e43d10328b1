"""The heads of pretraining: masked words with sentence pairs, and sentence pairs alone."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import MegatronBertConfig
from transformers.modeling_outputs import NextSentencePredictorOutput
from transformers.models.megatron_bert.modeling_megatron_bert import MegatronBertForPreTrainingOutput

from megabert.models.bert.config import settings
from megabert.models.bert.encoder import MegatronBertModel, MegatronBertPreTrainedModel, tuple_or_output
from megabert.models.bert.heads import (
    TIED,
    UNREAD,
    MegatronBertOnlyNSPHead,
    MegatronBertPreTrainingHeads,
    rows_to_score,
)
from megabert.models.losses import counted, mean_of_sum, summed_cross_entropy


def _pretraining_loss(
    scores: Tensor,
    labels: Tensor | None,
    pair_scores: Tensor | None,
    pair_labels: Tensor | None,
    num_items_in_batch: Tensor | int | None,
    num_pairs_in_batch: Tensor | int | None,
    word_loss: nn.Module,
) -> Tensor | None:
    """Mean over masked words plus mean over pairs, of the terms that have labels; None without any.

    `num_items_in_batch` counts the labelled words of all micro-batches of a step, `num_pairs_in_batch` the labelled
    pairs. `Trainer` counts the words only; a micro-batch then has the share of the pair term that it has of the words,
    which is one large batch exactly where all micro-batches hold equally many words.
    """
    loss = None
    share: Tensor | float = 1.0
    if labels is not None:
        count = counted(labels)
        loss = mean_of_sum(word_loss(scores, labels), count, num_items_in_batch)
        if num_items_in_batch is not None:
            share = mean_of_sum(count.float(), count, num_items_in_batch)
    if pair_labels is not None:
        if pair_scores is None:
            raise ValueError("next_sentence_label was given, but this model has no binary head (add_binary_head)")
        pair_labels = pair_labels.view(pair_scores.shape[:-1])
        share = share if num_pairs_in_batch is None else 1.0
        total = summed_cross_entropy(pair_scores, pair_labels)
        pair_loss = share * mean_of_sum(total, counted(pair_labels), num_pairs_in_batch)
        loss = pair_loss if loss is None else loss + pair_loss
    return loss


class MegatronBertForPreTraining(MegatronBertPreTrainedModel):
    """Masked-word and sentence-pair heads.

    Args:
        config: Transformers' configuration.
        add_binary_head: with a pooler and the sentence-pair head; None: what the config says (yes by default).
    """

    _tied_weights_keys = TIED
    _keys_to_ignore_on_load_unexpected = UNREAD

    def __init__(self, config: MegatronBertConfig, add_binary_head: bool | None = None) -> None:
        super().__init__(config)
        if add_binary_head is None:
            add_binary_head = settings(config).add_binary_head
        else:
            config.add_binary_head = add_binary_head
        self.bert = MegatronBertModel(config, add_pooling_layer=add_binary_head)
        self.cls = MegatronBertPreTrainingHeads(config, add_binary_head)
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
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        *,
        sample_ids: Tensor | None = None,
        sample_starts: Tensor | None = None,
        masked_positions: Tensor | None = None,
        full_logits: bool = False,
        num_items_in_batch: Tensor | int | None = None,
        num_pairs_in_batch: Tensor | int | None = None,
        **kwargs: object,
    ) -> tuple | MegatronBertForPreTrainingOutput:
        """Score words and pairs; with labels of either kind, or both, also a float32 loss.

        Args:
            input_ids: and the next four: as `MegatronBertModel.forward`.
            labels: [batch, seq], or [batch, places] with `masked_positions`; -100 where there is none.
            next_sentence_label: [batch], with `sample_starts` [batch, samples]; 1 = swapped or random; -100 = none.
            sample_ids, sample_starts: as `MegatronBertModel.forward`.
            masked_positions: [batch, places]: vocabulary logits there only, [batch, places, vocab].
            full_logits: logits everywhere although in training with labels, where they are [labelled, vocab] otherwise.
            num_items_in_batch, num_pairs_in_batch: labelled words and pairs of the whole batch that this is a part of.
                Transformers' `Trainer` counts no pairs: the README ("Under Transformers' Trainer") says what follows.

        Returns:
            Transformers' output. No label at all that is not -100 gives a loss of 0.

        Raises:
            ValueError: labels that do not fit.
        """
        encoded = self.bert(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds,
            output_attentions=output_attentions, output_hidden_states=output_hidden_states, return_dict=True,
            sample_ids=sample_ids, sample_starts=sample_starts, wanted_positions=masked_positions, **kwargs,
        )  # fmt: skip
        rows, row_labels = rows_to_score(
            encoded.last_hidden_state, labels, masked_positions, only_labelled=self.training and not full_logits
        )
        scores, pair_scores = self.cls(rows, encoded.pooler_output)
        loss = _pretraining_loss(
            scores, row_labels, pair_scores, next_sentence_label, num_items_in_batch, num_pairs_in_batch,
            self.cls.predictions.loss,
        )  # fmt: skip
        output = MegatronBertForPreTrainingOutput(
            loss=loss,  # type: ignore[arg-type]
            prediction_logits=scores,
            seq_relationship_logits=pair_scores,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return tuple_or_output(output, return_dict, self.config)


class MegatronBertForNextSentencePrediction(MegatronBertPreTrainedModel):
    """The sentence-pair head alone."""

    def __init__(self, config: MegatronBertConfig) -> None:
        super().__init__(config)
        self.bert = MegatronBertModel(config)
        self.cls = MegatronBertOnlyNSPHead(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        *,
        sample_ids: Tensor | None = None,
        sample_starts: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: object,
    ) -> tuple | NextSentencePredictorOutput:
        """Score pairs: logits [batch, 2], with `sample_starts` [batch, samples, 2].

        Args:
            labels: [batch], or [batch, samples]; 0 = the second segment follows the first, 1 = it does not;
                -100 = none.
            num_items_in_batch: labelled pairs of the whole batch that this call is a part of.
        """
        encoded = self.bert(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds,
            output_attentions=output_attentions, output_hidden_states=output_hidden_states, return_dict=True,
            sample_ids=sample_ids, sample_starts=sample_starts, **kwargs,
        )  # fmt: skip
        scores = self.cls(encoded.pooler_output)
        loss = None
        if labels is not None:
            labels = labels.view(scores.shape[:-1])
            loss = mean_of_sum(summed_cross_entropy(scores, labels), counted(labels), num_items_in_batch)
        output = NextSentencePredictorOutput(
            loss=loss,  # type: ignore[arg-type]
            logits=scores,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return tuple_or_output(output, return_dict, self.config)
