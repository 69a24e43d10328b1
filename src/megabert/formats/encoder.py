"""A checkpoint of any format as the beginning of a fine-tuning: its config, its weights and its vocabulary."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from megabert.formats import config_file, sizes
from megabert.formats.checkpoint import PRE_LAYERNORM, LazyTensor
from megabert.formats.checkpoints import open_checkpoint
from megabert.formats.huggingface_checkpoint import theirs
from megabert.formats.open import model_folder
from megabert.tokenization import word_piece
from megabert.tokenization.word_piece import WordPiece

_SHOWN_NAMES = 3
# 128 entries for each of 8 tensor-parallel ranks: more rows than this beyond a vocabulary are seldom padding.
_MOST_PADDING = 1024


@dataclass(frozen=True)
class Encoder:
    """What a fine-tuning begins with.

    Attributes:
        source: what the user named.
        config: fields of `MegatronBertConfig`.
        tensors: under Transformers' names, `bert.` before those of the encoder.
        tokenizer: what lies beside the weights; None: nothing.
        notes: what is odd, to be said aloud.
    """

    source: str
    config: dict[str, Any]
    tensors: Mapping[str, LazyTensor]
    tokenizer: WordPiece | None
    notes: tuple[str, ...]


def open_encoder(source: str, heads: int | None = None, file: Path | None = None) -> Encoder:
    """Open a checkpoint by path or name; of a run folder the finished `model/` where there is one.

    Args:
        heads: attention heads, for files that do not say how many there are.
        file: a JSON file with sizes of the encoder, which win where the weights allow it.

    Raises:
        ValueError: there is none, it is damaged, or it is of a post-LayerNorm BERT.
        OSError: it cannot be read, or fetched.
    """
    path = Path(source).expanduser()
    if (path / "model" / "config.json").is_file():
        path = model_folder(path)
    changes, said = config_file.read(file) if file is not None else ({}, [])
    if heads is not None and changes.setdefault("num_attention_heads", heads) != heads:
        raise ValueError(f"{heads} attention heads were asked for, but {file} says {changes['num_attention_heads']}")
    checkpoint = open_checkpoint(
        path if path.exists() else source, heads=changes.get("num_attention_heads"), optimizer=False
    )
    if changes:
        checkpoint = dataclasses.replace(checkpoint, config={**checkpoint.config, **changes})
        sizes.check_named(str(file), checkpoint.config, checkpoint.tensors, checkpoint.family)
    if checkpoint.family != PRE_LAYERNORM:
        raise ValueError(f"{source} is a post-LayerNorm BERT, no Megatron BERT; it cannot be fine-tuned here")
    config, tensors, notes = theirs(checkpoint)
    config = {name: value for name, value in config.items() if name not in ("model_type", "dtype", "torch_dtype")}
    tensors = {name if _has_place(name) else f"bert.{name}": tensor for name, tensor in tensors.items()}
    return Encoder(source, config, tensors, _tokenizer(checkpoint.vocabulary), (*checkpoint.notes, *notes, *said))


def _has_place(name: str) -> bool:
    return name.startswith(("bert.", "cls.", "classifier.", "qa_outputs.", "intent_classifier.", "slot_classifier."))


def _tokenizer(vocabulary: Mapping[str, bytes]) -> WordPiece | None:
    if not {"vocab.txt", "tokenizer.json"} & set(vocabulary):
        return None
    with tempfile.TemporaryDirectory() as folder:
        for name, data in vocabulary.items():
            (Path(folder) / Path(name).name).write_bytes(data)
        return word_piece.load(Path(folder))


@torch.no_grad()
def fill(model: nn.Module, encoder: Encoder, *, head: tuple[str, ...], keep_head: bool) -> tuple[list[str], list[str]]:
    """Copy the weights of an encoder into a model, in the model's type.

    Args:
        head: beginnings of the names of weights that may start afresh.
        keep_head: take the head of the checkpoint, if it has one of the same shape.

    Returns:
        Names of the weights that start afresh, and of those of the checkpoint that have no place in the model.

    Raises:
        ValueError: weights of the encoder are missing or of another shape.
    """
    fresh: list[str] = []
    wrong: list[str] = []
    expected = model.state_dict()
    for name, target in expected.items():
        source = encoder.tensors.get(name)
        free = name.startswith(head)
        # The pooler below a head goes with the encoder.
        if source is not None and free and not keep_head and not name.startswith("bert."):
            source = None
        if source is not None and tuple(source.shape) == tuple(target.shape):
            target.copy_(source.load().to(target.dtype))
        elif free:
            fresh.append(name)
        else:
            what = "is missing" if source is None else f"is {list(source.shape)}, not {list(target.shape)}"
            wrong.append(f"{name} {what}")
    if wrong:
        more = len(wrong) - _SHOWN_NAMES
        rest = f", and {more} more" if more > 0 else ""
        raise ValueError(f"{encoder.source}: the weights do not fit: {', '.join(wrong[:_SHOWN_NAMES])}{rest}")
    return fresh, [name for name in encoder.tensors if name not in expected]


def check_vocabulary(encoder: Encoder, tokenizer: WordPiece) -> list[str]:
    """Compare a tokenizer with the model that it is to feed.

    Returns:
        Warnings, where it seems to be another one than the model was trained with.

    Raises:
        ValueError: it has more entries than the model, or differs from the one that lies beside the weights.
    """
    rows, entries = int(encoder.config["vocab_size"]), tokenizer.vocabulary_size
    own = encoder.tokenizer
    if own is not None and own.fingerprint() != tokenizer.fingerprint():
        casing = "" if own.lower_case == tokenizer.lower_case else (
            f": the weights are {_casing(own)}, the vocabulary is {_casing(tokenizer)}"
        )  # fmt: skip
        raise ValueError(
            f"{encoder.source} holds another tokenizer than the one that was named{casing}; leave out --tokenizer (and "
            "--cased) to take its own"
        )
    if entries > rows:
        raise ValueError(
            f"the tokenizer has {entries:,} entries, but {encoder.source} only {rows:,}: it is not the tokenizer that "
            "the model was trained with"
        )
    warnings = []
    if rows - entries > _MOST_PADDING:
        warnings.append(
            f"{encoder.source} has {rows:,} entries and the tokenizer {entries:,}: so many are seldom padding, and the "
            "vocabulary may be another one (cased weights with an uncased vocabulary, or the other way round)"
        )
    told = encoder.source.lower().replace("_", "-")
    said = False if "uncased" in told else True if "cased" in told else None
    if own is None and said is not None and said == tokenizer.lower_case:
        warnings.append(f"{encoder.source} is {'cased' if said else 'uncased'} by its name, but the tokenizer is "
                        f"{_casing(tokenizer)}")  # fmt: skip
    return warnings


def _casing(tokenizer: WordPiece) -> str:
    return "uncased" if tokenizer.lower_case else "cased"
