"""NeMo 1's scripts and Python names for fine-tuning a Megatron BERT, on `megabert finetune`, `evaluate` and `predict`.

  python -m megabert.compat.nemo question_answering_squad model.train_ds.file=T model.validation_ds.file=V ...

In Python only the import line changes: `from megabert.compat.nemo import Trainer, NLPDDPPlugin, QAModel`, or
`import megabert.compat.nemo as pl` for `pl.Trainer`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megabert.compat.nemo.conversation import (
        IntentSlotClassificationModel,
        PunctuationCapitalizationModel,
        ZeroShotIntentModel,
    )
    from megabert.compat.nemo.models import GLUEModel, QAModel, TextClassificationModel, TokenClassificationModel
    from megabert.compat.nemo.settings import Settings, load_config
    from megabert.compat.nemo.trainer import NLPDDPPlugin, NLPDDPStrategy, Trainer, exp_manager

__all__ = [
    "GLUEModel",
    "IntentSlotClassificationModel",
    "NLPDDPPlugin",
    "NLPDDPStrategy",
    "PunctuationCapitalizationModel",
    "QAModel",
    "Settings",
    "TextClassificationModel",
    "TokenClassificationModel",
    "Trainer",
    "ZeroShotIntentModel",
    "exp_manager",
    "load_config",
]
_PLACES = {"Settings": "settings", "load_config": "settings", "GLUEModel": "models", "QAModel": "models",
           "TextClassificationModel": "models", "TokenClassificationModel": "models",
           "IntentSlotClassificationModel": "conversation",
           "PunctuationCapitalizationModel": "conversation", "ZeroShotIntentModel": "conversation"}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES.get(name, 'trainer')}"), name)
