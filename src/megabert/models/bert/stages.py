"""How the network is cut into stages that run one after the other, whatever head it has.

A stage is the model itself less what other stages hold: it has some of the layers; the first one has the embeddings,
the last one the LayerNorm behind the layers, pooler and head. So weights keep the names that they have in the whole
model. Between two stages flow the hidden states; all else (masks, positions, labels) every stage reads from the batch.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from megabert.models.bert.encoder import MegatronBertPreTrainedModel
from megabert.models.bert.heads import TIED

ENCODER_INPUTS = (
    "attention_mask", "token_type_ids", "position_ids", "sample_ids", "encoder_hidden_states", "encoder_attention_mask",
)  # fmt: skip
"""What a stage without a head reads from a batch besides `input_ids`."""


class HiddenStatesGiven(nn.Module):
    """Stands where the embeddings are in stages after the first: the hidden states come in `inputs_embeds`."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values_length: int = 0,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """`inputs_embeds` [batch, seq, hidden] as they are; the other arguments are those of the embeddings."""
        assert inputs_embeds is not None
        return inputs_embeds


class KeptLayers(nn.ModuleList):
    """Some layers: named by their numbers in the whole model, indexed by their places here."""

    def __getitem__(self, index: Any) -> Any:
        return list(self)[index]


def keep(model: MegatronBertPreTrainedModel, layers: range, *, first: bool, last: bool) -> None:
    """Remove from `model`, in place, what does not belong to the stage with these layers.

    Args:
        layers: the numbers of its layers in the whole model, at least one.
        first: with the embeddings.
        last: with the last LayerNorm, the pooler and the head.
    """
    base: Any = model.base_model
    kept = KeptLayers()
    for index in layers:
        kept.add_module(str(index), base.encoder.layer[index])
    base.encoder.layer = kept
    if not first:
        base.embeddings = HiddenStatesGiven()
    if last:
        return
    base.encoder.ln = nn.Identity()
    base.pooler = None
    # What is hung on the model's own call (weights gathered before it) acts on stages without a head as well.
    model.forward = partial(_encode, model)
    for name, child in list(model.named_children()):
        if base is not model and child is not base:
            delattr(model, name)


def _encode(model: MegatronBertPreTrainedModel, **inputs: Any) -> Tensor:
    """What a stage without a head does when it is called: the encoder part of the model, as it was kept."""
    base: Any = model.base_model
    forward = partial(type(model).forward, model) if base is model else base
    return forward(**inputs, use_cache=False, return_dict=True).last_hidden_state


def run(model: MegatronBertPreTrainedModel, inputs: dict[str, Tensor], hidden: Tensor | None, *, last: bool) -> Any:
    """Run a stage that `keep` made.

    Args:
        inputs: keyword arguments of the whole model, among them `input_ids` [batch, seq] or [batch, choices, seq].
        hidden: [rows, seq, hidden] from the stage before; None for the first.
        last: the stage has the head.

    Returns:
        [rows, seq, hidden]; of the last stage the whole model's output.
    """
    whole: dict[str, Any] = dict(inputs)
    if hidden is not None:
        whole["inputs_embeds"] = hidden.unflatten(0, whole.pop("input_ids").shape[:-1])
    if last:
        return model(**whole)
    names = ("inputs_embeds" if hidden is not None else "input_ids", *ENCODER_INPUTS)
    choices = inputs["input_ids"].dim() - 2
    rows = {name: whole[name].flatten(0, choices) if choices else whole[name] for name in names if name in whole}
    return model(**rows)


def boundary(model: MegatronBertPreTrainedModel, inputs: dict[str, Tensor]) -> tuple[torch.Size, torch.dtype]:
    """Shape [rows, seq, hidden] and dtype of the hidden states between two stages for a batch."""
    *rows, length = inputs["input_ids"].shape
    base: Any = model.base_model
    return torch.Size((torch.Size(rows).numel(), length, int(model.config.hidden_size))), base.encoder.dtype


def tied(model: MegatronBertPreTrainedModel) -> dict[str, str]:
    """Weights of the last stage that are one with a weight of the first: name there -> name in the first.

    Asked of the whole model, before it is cut.
    """
    return {
        copy: name
        for copy, name in TIED.items()
        if ".embeddings." in name and model.config.tie_word_embeddings and model.get_output_embeddings() is not None
    }
