"""What `from_pretrained` of this package's models opens beyond Transformers' own folders."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from torch import Tensor
from transformers import MegatronBertConfig

from megabert.formats import named
from megabert.formats.checkpoint import PRE_LAYERNORM
from megabert.formats.checkpoints import find_format, open_checkpoint
from megabert.formats.huggingface_checkpoint import theirs


class BertTokenizer(transformers.BertTokenizer):
    """Transformers' BERT tokenizer, whose `from_pretrained` also knows the names of published models, as the models of
    this package do."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *inputs: Any, **keywords: Any) -> Any:
        """Read a tokenizer by path or name.

        Raises:
            ValueError: a name whose model holds no vocabulary, or nothing was found (no empty tokenizer is given).
            OSError: as Transformers'.
        """
        source = pretrained_model_name_or_path
        if not Path(source).exists() and named.is_name(str(source)):
            place = named.resolve(str(source))
            known = place.path if place.path.is_dir() else place.path.parent
            found = place.vocabulary or next(
                (known / name for name in ("tokenizer.json", "vocab.txt") if (known / name).is_file()), None
            )
            if found is None:
                raise ValueError(f"{source} is {place.path}, which holds no vocabulary: put its vocab.txt into {known}")
            source = found.parent
        tokenizer = super().from_pretrained(source, *inputs, **keywords)
        if len(tokenizer) <= len(tokenizer.all_special_tokens):
            raise ValueError(f"{pretrained_model_name_or_path} is no path or name of a tokenizer that could be had")
        return tokenizer


def opened(source: Any, keywords: Mapping[str, Any]) -> tuple[MegatronBertConfig, dict[str, Tensor]] | None:
    """Config and weights of a checkpoint of another format than Transformers', under Transformers' names.

    Args:
        source: a path, or a name: of a published model, of the user's table, or of what lies in the cache.
        keywords: those of `from_pretrained`; weights given in them (`state_dict`, `gguf_file`) win.

    Returns:
        None: it is Transformers' business: one of its folders, a name on the hub, or nothing at all.

    Raises:
        ValueError: it is a checkpoint, but damaged, or of a post-LayerNorm BERT.
    """
    if not isinstance(source, str | os.PathLike) or keywords.get("state_dict") is not None or keywords.get("gguf_file"):
        return None
    path = Path(source).expanduser()
    if path.exists():
        if find_format(path) in (None, "huggingface"):
            return None
    elif not named.is_name(str(source)):
        return None
    checkpoint = open_checkpoint(path if path.exists() else str(source), optimizer=False)
    if checkpoint.family != PRE_LAYERNORM:
        raise ValueError(f"{source} is a post-LayerNorm BERT, no Megatron BERT: `megabert convert` makes it a folder "
                         "for transformers.BertForPreTraining")  # fmt: skip
    config, tensors, _ = theirs(checkpoint)
    config = {name: value for name, value in config.items() if name != "model_type"}
    prefix = "" if any(name.startswith("bert.") for name in tensors) else "bert."
    return MegatronBertConfig(**config), {prefix + name: tensor.load() for name, tensor in tensors.items()}
