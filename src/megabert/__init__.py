"""megabert: from raw text to a model that answers, for Megatron BERT encoders.

The model classes of Transformers under the same names: `from megabert import MegatronBertForMaskedLM`. They are read
on first use, so `import megabert` does not import torch. Using one also registers all nine with Transformers' Auto
classes, so that `AutoModelForMaskedLM.from_pretrained` and `pipeline` give the same network as the name does, and lets
`from_pretrained` open checkpoints of every format (`open_checkpoint` is the same without a model).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import MegatronBertConfig

    from megabert.formats.checkpoint import Checkpoint
    from megabert.formats.checkpoints import open_checkpoint, save_checkpoint
    from megabert.formats.pretrained import BertTokenizer
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
    "BertTokenizer",
    "Checkpoint",
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
    "open_checkpoint",
    "register_auto_classes",
    "save_checkpoint",
]
_FORMATS = {
    "BertTokenizer": "pretrained",
    "Checkpoint": "checkpoint",
    "open_checkpoint": "checkpoints",
    "save_checkpoint": "checkpoints",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _FORMATS:
        return getattr(importlib.import_module(f"megabert.formats.{_FORMATS[name]}"), name)
    auto = importlib.import_module("megabert.models.auto")
    if name == "register_auto_classes":
        return auto.register_auto_classes
    auto.register_auto_classes()
    # Here models and formats meet: neither room knows the other.
    encoder = importlib.import_module("megabert.models.bert.encoder")
    encoder.MegatronBertPreTrainedModel.open_elsewhere = staticmethod(_opened)
    if name == "MegatronBertConfig":
        return importlib.import_module("transformers").MegatronBertConfig
    return getattr(auto, name)


def _opened(source: Any, keywords: Any) -> Any:
    return importlib.import_module("megabert.formats.pretrained").opened(source, keywords)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
