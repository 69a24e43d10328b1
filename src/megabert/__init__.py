"""megabert: from raw text to a model that answers, for Megatron BERT encoders.

The model classes of Transformers under the same names: `from megabert import MegatronBertForMaskedLM`. They are read
on first use, so `import megabert` does not import torch. Using one also registers all nine with Transformers' Auto
classes, so that `AutoModelForMaskedLM.from_pretrained` and `pipeline` give the same network as the name does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import MegatronBertConfig

    from megabert.models.auto import register_auto_classes
    from megabert.models.bert.encoder import MegatronBertModel
    from megabert.models.bert.language import MegatronBertForCausalLM, MegatronBertForMaskedLM
    from megabert.models.bert.pretraining import MegatronBertForNextSentencePrediction, MegatronBertForPreTraining
    from megabert.models.bert.tasks import (
        MegatronBertForMultipleChoice,
        MegatronBertForQuestionAnswering,
        MegatronBertForSequenceClassification,
        MegatronBertForTokenClassification,
    )

__version__ = "0.1.0"
__all__ = [
    "MegatronBertConfig",
    "MegatronBertForCausalLM",
    "MegatronBertForMaskedLM",
    "MegatronBertForMultipleChoice",
    "MegatronBertForNextSentencePrediction",
    "MegatronBertForPreTraining",
    "MegatronBertForQuestionAnswering",
    "MegatronBertForSequenceClassification",
    "MegatronBertForTokenClassification",
    "MegatronBertModel",
    "register_auto_classes",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    auto = importlib.import_module("megabert.models.auto")
    if name == "register_auto_classes":
        return auto.register_auto_classes
    auto.register_auto_classes()
    if name == "MegatronBertConfig":
        return importlib.import_module("transformers").MegatronBertConfig
    return getattr(auto, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
