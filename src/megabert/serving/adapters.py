"""LoRA: small matrices beside those of the layers, trained in their place, by Hugging Face's PEFT.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models".
"""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn
from transformers import PreTrainedModel

from megabert.formats.target import new_folder
from megabert.models.bert.config import head_settings
from megabert.serving.options import TuningOptions

if TYPE_CHECKING:
    from peft import PeftModel


def adapted(model: PreTrainedModel, options: TuningOptions, base: str) -> PeftModel:
    """Put small matrices into a model, in place: they and the head are what is left to train.

    Args:
        base: what the model was before, for whoever reads the adapter.

    Returns:
        PEFT's view of the model, which saves the adapter and merges it.

    Raises:
        ValueError: PEFT is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise ValueError("--lora-rank needs PEFT: pip install 'megabert[lora]'") from None
    assert options.lora_rank is not None
    names = "|".join(options.lora_modules)
    config = LoraConfig(
        r=options.lora_rank,
        lora_alpha=options.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=options.lora_dropout,
        # In layers only: the pooler, which has a matrix of that name too, is trained whole.
        target_modules=rf".*encoder\.layer\.\d+\.(?:.+\.)?(?:{names})",
        modules_to_save=_heads(model),
    )
    model.name_or_path = base
    with warnings.catch_warnings():
        # PEFT asks Transformers by a name that this deprecates: nothing that a user could change.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        return get_peft_model(model, config)  # type: ignore[return-value]


def _heads(model: PreTrainedModel) -> list[str]:
    """The modules above the layers: those with weights outside the encoder, and its pooler."""
    base = model.base_model
    heads = [name for name, child in model.named_children() if child is not base and [*child.parameters()]]
    return [*heads, *(["pooler"] if isinstance(getattr(base, "pooler", None), nn.Module) else [])]


def write_adapter(model: PeftModel, folder: Path) -> None:
    """Write the small matrices and the head as a folder that `PeftModel.from_pretrained(base, folder)` reads."""
    if (folder / "adapter_config.json").is_file():
        shutil.rmtree(folder)  # of this run, as it was scored before
    with new_folder(folder) as place:
        model.save_pretrained(str(place))
        config = model.get_base_model().config
        _name_class(place / "adapter_config.json", head_settings(config).layers)  # type: ignore[arg-type]


def _name_class(file: Path, layers: int | None) -> None:
    """Say for PEFT's auto classes where the model's class is: they import no other package than those they know, and
    Transformers has the class too, but for heads of several matrices."""
    told = json.loads(file.read_text(encoding="utf-8"))
    told["auto_mapping"]["parent_library"] = "transformers" if layers is None else "megabert"
    file.write_text(json.dumps(told, indent=2, sort_keys=True) + "\n", encoding="utf-8")
