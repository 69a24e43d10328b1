"""Transformers' Auto classes giving this package's models: all nine, or none."""

from __future__ import annotations

import transformers
from transformers import PreTrainedModel

from megabert.models.bert.encoder import MegatronBertModel
from megabert.models.bert.language import MegatronBertForCausalLM, MegatronBertForMaskedLM
from megabert.models.bert.pretraining import MegatronBertForNextSentencePrediction, MegatronBertForPreTraining
from megabert.models.bert.tasks import (
    MegatronBertForMultipleChoice,
    MegatronBertForQuestionAnswering,
    MegatronBertForSequenceClassification,
    MegatronBertForTokenClassification,
)

CLASSES = {
    "AutoModel": MegatronBertModel,
    "AutoModelForPreTraining": MegatronBertForPreTraining,
    "AutoModelForMaskedLM": MegatronBertForMaskedLM,
    "AutoModelForCausalLM": MegatronBertForCausalLM,
    "AutoModelForNextSentencePrediction": MegatronBertForNextSentencePrediction,
    "AutoModelForSequenceClassification": MegatronBertForSequenceClassification,
    "AutoModelForMultipleChoice": MegatronBertForMultipleChoice,
    "AutoModelForTokenClassification": MegatronBertForTokenClassification,
    "AutoModelForQuestionAnswering": MegatronBertForQuestionAnswering,
}


def class_of(name: str) -> type[PreTrainedModel]:
    """The model class of this package that is called so.

    Raises:
        ValueError: there is none.
    """
    known = {kind.__name__: kind for kind in CLASSES.values()}
    if name not in known:
        raise ValueError(f"there is no model class {name!r}; there are {', '.join(known)}")
    return known[name]


def register_auto_classes() -> None:
    """Make `AutoModel...` (and so `pipeline`) give this package's classes for every `megatron-bert` checkpoint.

    It holds for the whole process. `transformers.MegatronBert...` used by name stay Transformers' own; the config class
    and the tokenizer are theirs in both cases. Calling it again changes nothing.
    """
    for name, model in CLASSES.items():
        getattr(transformers, name).register(transformers.MegatronBertConfig, model, exist_ok=True)
