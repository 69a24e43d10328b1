"""The heads of fine-tuning: a class for a sequence, for one of several, for each token, and a span."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import MegatronBertConfig
from transformers.modeling_outputs import (
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

from megabert.models.bert.config import head_settings
from megabert.models.bert.encoder import MegatronBertModel, MegatronBertPreTrainedModel, tuple_or_output
from megabert.models.dropout import Dropout
from megabert.models.losses import classification_loss, counted, mean_of_sum, summed_cross_entropy


class SideBySide(nn.Linear):
    """Several matrices of as many inputs, stored one below the other: each reads its share of the input, in order."""

    def __init__(self, inputs: int, outputs: tuple[int, ...]) -> None:
        super().__init__(inputs, sum(outputs))
        self.parts = outputs

    def forward(self, input: Tensor) -> Tensor:
        """[..., parts x inputs] -> [..., all outputs]."""
        shares = input.chunk(len(self.parts), dim=-1)
        weights, biases = self.weight.split(self.parts), self.bias.split(self.parts)
        return torch.cat([nn.functional.linear(*one) for one in zip(shares, weights, biases, strict=True)], dim=-1)


class LayeredHead(nn.Module):
    """Matrices with ReLU between them, named as in NeMo's checkpoints (`mlp.layer0`, `mlp.layer2`, ...).

    Args:
        outputs: of each classifier; several have nothing in common but the input and the names of their weights.
    """

    def __init__(self, hidden_size: int, outputs: tuple[int, ...], layers: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential()
        inner = (hidden_size,) * len(outputs)
        for number in range(layers):
            widths = inner if number < layers - 1 else outputs
            # All read the same hidden states.
            first = nn.Linear(hidden_size, sum(widths))
            self.mlp.add_module(f"layer{2 * number}", SideBySide(hidden_size, widths) if number else first)
            if number < layers - 1:
                self.mlp.add_module(f"layer{2 * number + 1}", nn.ReLU())

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., hidden] -> [..., outputs]."""
        return self.mlp(hidden_states)


def _head(config: MegatronBertConfig, outputs: int) -> nn.Module:
    """The matrix of Transformers' heads, or `head_layers` of them."""
    chosen = head_settings(config)
    if chosen.layers is None:
        return nn.Linear(config.hidden_size, outputs)
    return LayeredHead(config.hidden_size, chosen.parts or (outputs,), chosen.layers)


def _dropout(config: MegatronBertConfig) -> Dropout:
    probability = head_settings(config).dropout
    return Dropout(config.hidden_dropout_prob if probability is None else probability)


def _first_only(bert: MegatronBertModel, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor | None:
    """The places that a head on the first token needs, so that the last layer spares all others.

    None where that is not known: without inputs, which the encoder refuses.
    """
    given = input_ids if input_ids is not None else inputs_embeds
    if given is None:
        return None
    # A pooler has its place already.
    return torch.zeros(given.shape[0], int(bert.pooler is None), dtype=torch.long, device=given.device)


class MegatronBertForSequenceClassification(MegatronBertPreTrainedModel):
    """Classes, several labels at once, or numbers for a whole sequence: dropout and a matrix on the pooled token, or
    with `head_layers` of the config a `LayeredHead` on the hidden state of the first one."""

    def __init__(self, config: MegatronBertConfig) -> None:
        super().__init__(config)
        self.num_labels = int(config.num_labels or 0)
        self.bert = MegatronBertModel(config, add_pooling_layer=head_settings(config).layers is None)
        self.dropout = _dropout(config)
        self.classifier = _head(config, self.num_labels)
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
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: object,
    ) -> tuple | SequenceClassifierOutput:
        """Score sequences: logits [batch, num_labels].

        Args:
            input_ids: and the next four: as `MegatronBertModel.forward`.
            labels: whole numbers [batch] (classes), floating point [batch, num_labels] (several labels at once), or,
                with one label, numbers [batch] (regression). `config.problem_type` decides where it is set.
            num_items_in_batch: label entries of the whole batch that this call is a part of.
        """
        encoded = self.bert(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds,
            output_attentions=output_attentions, output_hidden_states=output_hidden_states, return_dict=True,
            wanted_positions=_first_only(self.bert, input_ids, inputs_embeds), **kwargs,
        )  # fmt: skip
        first = encoded.last_hidden_state[:, 0] if self.bert.pooler is None else encoded.pooler_output
        logits = self.classifier(self.dropout(first))
        loss = None
        if labels is not None:
            loss = classification_loss(logits, labels, self.config.problem_type, num_items_in_batch)
        output = SequenceClassifierOutput(
            loss=loss,  # type: ignore[arg-type]
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return tuple_or_output(output, return_dict, self.config)


class MegatronBertForMultipleChoice(MegatronBertPreTrainedModel):
    """One of several sequences: dropout and one score for each pooled token."""

    def __init__(self, config: MegatronBertConfig) -> None:
        super().__init__(config)
        self.bert = MegatronBertModel(config)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, 1)
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
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: object,
    ) -> tuple | MultipleChoiceModelOutput:
        """Score choices: inputs [batch, choices, seq] (embeddings have one dimension more) -> [batch, choices].

        Args:
            labels: [batch], the right choice.
            num_items_in_batch: labels of the whole batch that this call is a part of.

        Raises:
            ValueError: neither `input_ids` nor `inputs_embeds`.
        """
        given = input_ids if input_ids is not None else inputs_embeds
        if given is None:
            raise ValueError("give either input_ids or inputs_embeds, and not both")

        def flat(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.flatten(0, 1)

        encoded = self.bert(
            flat(input_ids), flat(attention_mask), flat(token_type_ids), flat(position_ids), flat(inputs_embeds),
            output_attentions=output_attentions, output_hidden_states=output_hidden_states, return_dict=True,
            wanted_positions=_first_only(self.bert, flat(input_ids), flat(inputs_embeds)), **kwargs,
        )  # fmt: skip
        logits = self.classifier(self.dropout(encoded.pooler_output)).view(-1, given.shape[1])
        loss = None
        if labels is not None:
            loss = mean_of_sum(summed_cross_entropy(logits, labels), counted(labels), num_items_in_batch)
        output = MultipleChoiceModelOutput(
            loss=loss,  # type: ignore[arg-type]
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return tuple_or_output(output, return_dict, self.config)


class MegatronBertForTokenClassification(MegatronBertPreTrainedModel):
    """A class for each token: dropout and a matrix (or a `LayeredHead`, by `head_layers`), without a pooler."""

    def __init__(self, config: MegatronBertConfig) -> None:
        super().__init__(config)
        self.num_labels = int(config.num_labels or 0)
        self.bert = MegatronBertModel(config, add_pooling_layer=False)
        self.dropout = _dropout(config)
        self.classifier = _head(config, self.num_labels)
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
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: object,
    ) -> tuple | TokenClassifierOutput:
        """Score tokens: logits [batch, seq, num_labels].

        Args:
            labels: [batch, seq]; -100 where there is none.
            sample_ids: as `MegatronBertModel.forward`.
            num_items_in_batch: labelled tokens of the whole batch that this call is a part of.
        """
        encoded = self.bert(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds,
            output_attentions=output_attentions, output_hidden_states=output_hidden_states, return_dict=True,
            sample_ids=sample_ids, **kwargs,
        )  # fmt: skip
        logits = self.classifier(self.dropout(encoded.last_hidden_state))
        loss = None
        if labels is not None:
            loss = mean_of_sum(summed_cross_entropy(logits, labels), counted(labels), num_items_in_batch)
        output = TokenClassifierOutput(
            loss=loss,  # type: ignore[arg-type]
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return tuple_or_output(output, return_dict, self.config)


class MegatronBertForQuestionAnswering(MegatronBertPreTrainedModel):
    """Start and end of a span: a matrix with two outputs (or a `LayeredHead`, by `head_layers`), without a pooler.

    Raises:
        ValueError: a config with another number of labels than 2.
    """

    def __init__(self, config: MegatronBertConfig) -> None:
        super().__init__(config)
        if config.num_labels != 2:
            raise ValueError(
                f"question answering has 2 labels, start and end, but the config has num_labels={config.num_labels}; "
                "pass num_labels=2"
            )
        self.num_labels = config.num_labels
        self.bert = MegatronBertModel(config, add_pooling_layer=False)
        self.dropout = Dropout(head_settings(config).dropout or 0.0)
        self.qa_outputs = _head(config, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        *,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: object,
    ) -> tuple | QuestionAnsweringModelOutput:
        """Score spans: start and end logits, [batch, seq] each.

        Args:
            start_positions, end_positions: [batch]; a position past the sequence has no part in the loss, which
                is the mean of both ends' means.
            num_items_in_batch: rows of the whole batch that this call is a part of, those without a span in their
                sequence left out. Transformers' `Trainer` counts nothing here (it looks for `labels`) and takes the
                mean of the micro-batches: one large batch where all hold equally many such rows.
        """
        encoded = self.bert(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds,
            output_attentions=output_attentions, output_hidden_states=output_hidden_states, return_dict=True, **kwargs,
        )  # fmt: skip
        scores = self.qa_outputs(self.dropout(encoded.last_hidden_state))
        start_logits, end_logits = scores[..., 0].contiguous(), scores[..., 1].contiguous()
        loss = None
        if start_positions is not None and end_positions is not None:
            length = start_logits.shape[1]
            means = []
            for logits, positions in ((start_logits, start_positions), (end_logits, end_positions)):
                clamped = positions.view(-1).clamp(0, length)
                total = summed_cross_entropy(logits, clamped, length)
                means.append(mean_of_sum(total, counted(clamped, length), num_items_in_batch))
            loss = (means[0] + means[1]) / 2
        output = QuestionAnsweringModelOutput(
            loss=loss,  # type: ignore[arg-type]
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return tuple_or_output(output, return_dict, self.config)
