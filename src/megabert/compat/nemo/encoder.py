"""Which encoder, vocabulary and sizes NeMo's `language_model` and `tokenizer` mean."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megabert import runtime
from megabert.compat.nemo.settings import Settings

_SIZES = {"hidden_size", "num_attention_heads", "num_layers", "max_position_embeddings"}


def encoder_of(tree: Settings, read: set[str], notices: list[str], folder: Path) -> dict[str, Any]:
    """Fields of finetune's config: `model`, `config_file`, `tokenizer`, `cased`.

    Args:
        folder: of the run; sizes that were given as settings are written to a file there.

    Raises:
        ValueError: the weights are not told, or not there.
    """
    from megabert.formats import named

    read.update(f"model.language_model.{name}" for name in
                ("pretrained_model_name", "lm_checkpoint", "config_file", "config"))  # fmt: skip
    read.update(f"model.tokenizer.{name}" for name in ("tokenizer_name", "vocab_file"))
    told, tokens = Settings(tree.find("model.language_model") or {}), Settings(tree.find("model.tokenizer") or {})
    name, weights = str(told.get("pretrained_model_name")), told.get("lm_checkpoint")
    known = named.known_as(name)
    if weights is None and known is not None and not known.url:
        raise ValueError(f"model.language_model.pretrained_model_name={name} names a family without weights of its "
                         "own: give them with model.language_model.lm_checkpoint=...")  # fmt: skip
    if weights is not None and not Path(weights).expanduser().exists():
        raise ValueError(f"model.language_model.lm_checkpoint: there is no file or folder {weights}")
    found: dict[str, Any] = {"model": str(weights or name)}
    if told.get("config_file"):
        found["config_file"] = Path(told.config_file)
        if told.get("config"):
            notices.append("model.language_model.config_file wins over model.language_model.config")
    elif told.get("config"):
        found["config_file"] = _written(told["config"], folder)
    return found | _vocabulary(name, tokens, weights, notices)


def _written(config: Any, folder: Path) -> Path:
    if not isinstance(config, Mapping) or not set(config) >= {"num_attention_heads"}:
        raise ValueError(f"model.language_model.config: {', '.join(sorted(_SIZES))} are needed")
    text = json.dumps(config, indent=2) + "\n"
    # Beside the run folders: processes that were started together may still name these differently.
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = folder.parent / f"language_model_config-{hashlib.sha256(text.encode()).hexdigest()[:8]}.json"
    with runtime.atomic_write(file) as out:
        out.write(text)
    return file


def _vocabulary(name: str, tokens: Settings, weights: Any, notices: list[str]) -> dict[str, Any]:
    """The vocabulary that is named; nothing where the checkpoint holds its own."""
    tokenizer = str(tokens.get("tokenizer_name") or name)
    if _cased(tokenizer) is not None and _cased(name) is not None and _cased(tokenizer) != _cased(name):
        notices.append(f"model.tokenizer.tokenizer_name={tokenizer} with {name}: one of them is cased and the other is "
                       "not; is this meant?")  # fmt: skip
    if tokens.get("vocab_file"):
        return {"tokenizer": str(tokens.vocab_file), "cased": _cased(tokenizer)}
    if tokenizer == name and (weights is None or _holds_vocabulary(Path(weights).expanduser())):
        return {}
    return {"tokenizer": tokenizer}


def _cased(name: str) -> bool | None:
    plain = name.lower().replace("_", "-")
    return False if "uncased" in plain else True if "cased" in plain else None


def _holds_vocabulary(path: Path) -> bool:
    from megabert.formats.checkpoints import open_checkpoint

    return bool(open_checkpoint(path, optimizer=False).vocabulary)


def tensor_ranks(model: str) -> int:
    """Folders of tensor ranks that a checkpoint's folder holds; 1 for everything else."""
    path = Path(model).expanduser()
    if not path.is_dir():
        return 1
    return max(1, len({entry.name[:10] for entry in path.glob("mp_rank_[0-9][0-9]*") if entry.is_dir()}))
