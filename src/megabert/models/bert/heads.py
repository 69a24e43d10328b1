"""The modules above the encoder: the masked-word head, the sentence-pair head, and which rows get vocabulary logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import MegatronBertConfig
from transformers.activations import ACT2FN

from megabert.models.bert.config import settings
from megabert.models.bert.layers import LayerNorm
from megabert.models.cpu_linear import Linear
from megabert.models.losses import IGNORED, summed_cross_entropy

TIED = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
"""Parameter -> the one it is, when embeddings are tied."""

UNREAD = [r"cls\.predictions\.bias", r"megabert_only\..*"]
"""What Transformers writes for untied embeddings and nobody reads; and the mark of what it cannot express."""


class MegatronBertPredictionHeadTransform(nn.Module):
    """A matrix, an activation, a LayerNorm."""

    def __init__(self, config: MegatronBertConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size)
        self.transform_act_fn = ACT2FN[settings(config).head_act or config.hidden_act]
        self.LayerNorm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., hidden] -> [..., hidden]."""
        return self.LayerNorm(self.transform_act_fn(self.dense(hidden_states)))


class VocabularyLoss(nn.Module):
    """The summed cross entropy of vocabulary logits, as a module: a place where another way to compute it can go."""

    def __init__(self, vocabulary_size: int) -> None:
        super().__init__()
        self.vocabulary_size = vocabulary_size

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """[..., vocab], [...] -> float32 scalar; -100 where there is no label."""
        return summed_cross_entropy(logits, labels)


class MegatronBertLMPredictionHead(nn.Module):
    """Transform, then a score for each entry of the vocabulary.

    Tied, the matrix is the word embedding and its bias is `bias`. Untied, the matrix has both for itself and there is
    no `bias`: Transformers keeps one that nothing reads, a parameter without gradient.
    """

    def __init__(self, config: MegatronBertConfig) -> None:
        super().__init__()
        self.transform = MegatronBertPredictionHeadTransform(config)
        self.decoder = Linear(config.hidden_size, config.vocab_size, bias=True)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size)) if config.tie_word_embeddings else None
        self.loss = VocabularyLoss(config.vocab_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., hidden] -> [..., vocab], in the dtype of the hidden states whatever that of the embedding."""
        hidden = self.transform(hidden_states)
        weight, bias = self.decoder.weight, self.decoder.bias
        if weight.dtype == hidden.dtype or torch.is_autocast_enabled(hidden.device.type):
            return self.decoder(hidden)
        return nn.functional.linear(hidden, weight.to(hidden.dtype), bias.to(hidden.dtype))

    def replace_decoder(self, decoder: nn.Linear) -> None:
        """Take another matrix (of another vocabulary size)."""
        self.decoder = decoder
        if self.bias is not None:
            self.bias = decoder.bias


class MegatronBertOnlyMLMHead(nn.Module):
    """The masked-word head where there is no other."""

    def __init__(self, config: MegatronBertConfig) -> None:
        super().__init__()
        self.predictions = MegatronBertLMPredictionHead(config)

    def forward(self, sequence_output: Tensor) -> Tensor:
        """[..., hidden] -> [..., vocab]."""
        return self.predictions(sequence_output)


class MegatronBertOnlyNSPHead(nn.Module):
    """The sentence-pair head where there is no other."""

    def __init__(self, config: MegatronBertConfig) -> None:
        super().__init__()
        self.seq_relationship = nn.Linear(config.hidden_size, 2)

    def forward(self, pooled_output: Tensor) -> Tensor:
        """[..., hidden] -> [..., 2]."""
        return self.seq_relationship(pooled_output)


class MegatronBertPreTrainingHeads(nn.Module):
    """The masked-word head and, when asked for, the sentence-pair head."""

    def __init__(self, config: MegatronBertConfig, add_binary_head: bool = True) -> None:
        super().__init__()
        self.predictions = MegatronBertLMPredictionHead(config)
        self.seq_relationship = nn.Linear(config.hidden_size, 2) if add_binary_head else None

    def forward(self, sequence_output: Tensor, pooled_output: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """[..., hidden], [batch, ..., hidden] -> [..., vocab], [batch, ..., 2] (None without that head)."""
        scores = self.predictions(sequence_output)
        return scores, None if self.seq_relationship is None else self.seq_relationship(pooled_output)


def rows_to_score(
    hidden: Tensor,
    labels: Tensor | None,
    masked_positions: Tensor | None,
    *,
    only_labelled: bool,
) -> tuple[Tensor, Tensor | None]:
    """The hidden states that need vocabulary logits, and their labels.

    Args:
        hidden: [batch, seq, hidden]; with `masked_positions` [batch, places, hidden], those of these places.
        labels: [batch, seq]; with `masked_positions` [batch, places]. -100 where there is none.
        masked_positions: [batch, places]: logits there only.
        only_labelled: without `masked_positions`: the places that have a label only.

    Returns:
        [batch, places, hidden], [labelled, hidden] or [batch, seq, hidden], and labels of the same leading shape.

    Raises:
        ValueError: labels of another shape.
    """
    if masked_positions is not None:
        if labels is not None and labels.shape != masked_positions.shape:
            raise ValueError(
                f"labels of shape {list(labels.shape)} do not fit masked_positions of shape "
                f"{list(masked_positions.shape)}: each place has one label"
            )
        return hidden, labels
    if labels is None or not only_labelled:
        return hidden, labels
    if labels.shape != hidden.shape[:2]:
        raise ValueError(f"labels of shape {list(labels.shape)} do not fit sequences {list(hidden.shape[:2])}")
    flat = labels.flatten()
    chosen = (flat != IGNORED).nonzero().squeeze(1)
    return hidden.flatten(0, 1).index_select(0, chosen), flat.index_select(0, chosen)
