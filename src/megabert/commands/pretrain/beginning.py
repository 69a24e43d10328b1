"""A checkpoint of any format as the beginning of a pretraining: its weights, in the parts that a process has."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from megabert import MegatronBertForPreTraining
    from megabert.commands.pretrain.command import Config
    from megabert.formats.checkpoint import LazyTensor
    from megabert.formats.encoder import Encoder
    from megabert.parallel.weights import Given
    from megabert.tokenization.base import Tokenizer

_FLAGS = {
    "num_hidden_layers": "--num-layers", "hidden_size": "--hidden-size", "num_attention_heads": "--num-attention-heads",
    "intermediate_size": "--intermediate-size", "max_position_embeddings": "--max-position-embeddings",
    "hidden_act": "--gelu", "type_vocab_size": "two sentence types",
}  # fmt: skip
_USUAL = "megatron-bert-345m-uncased"
_BY_WORD = ("bert.embeddings.word_embeddings.weight", "cls.predictions.bias", "cls.predictions.decoder.weight",
            "cls.predictions.decoder.bias")  # fmt: skip


def with_pretrained(config: Config) -> Config:
    """The same, with what `--pretrained-bert` stands for: the model of the tokenizer's name is where the run begins.

    Raises:
        ValueError: there is another beginning too, or no name, or no Megatron BERT of that name.
    """
    from megabert.formats import named

    if not config.pretrained_bert:
        return config
    flag, name = "--tokenizer-model-type", config.tokenizer_model_type
    if name is None:
        flag, name = "--tokenizer", config.tokenizer
    if config.load is not None:
        raise ValueError("--pretrained-bert and --load name two beginnings; keep one of them")
    if name is None:
        raise ValueError(f"--pretrained-bert: which one? {flag} {_USUAL} names a model, or gives the folder of one")
    places = [Path(name).expanduser(), *([config.cache_dir / name] if config.cache_dir else [])]
    place = next((place for place in places if place.is_dir()), None)
    if place is None and not named.stands_for(name):
        raise ValueError(
            f"--pretrained-bert: no Megatron BERT is called {name}. Google's weights of that name, with which "
            "the flag began in 2019, are of a network with its LayerNorms elsewhere and mean another function here; "
            f"{flag} {_USUAL} has the vocabulary of bert-large-uncased"
        )
    return dataclasses.replace(config, load=place or Path(name), finetune=True, pretrained_bert=False)


def foreign(config: Config) -> str | None:
    """What `--load` names, where it is a checkpoint of another program; None where it is none, or of a run of ours.

    Raises:
        ValueError: it is, and its weights alone were not asked for.
    """
    from megabert.formats import named
    from megabert.formats.open import look

    if config.load is None:
        return None
    path = config.load.expanduser()
    if not (look(path).kind in ("foreign", "model") if path.exists() else named.stands_for(str(config.load))):
        return None
    if not config.finetune:
        raise ValueError(
            f"--load: {config.load} is no run of this package, so there is nothing to go on from but its weights: "
            "add --finetune to begin with them at step 0"
        )
    return str(config.load)


def weights_of(
    source: str, config: Config, model: MegatronBertForPreTraining, tokenizer: Tokenizer
) -> tuple[Given, list[str]]:
    """The weights of a checkpoint for this model, and lines that tell what was found.

    Args:
        model: on the meta device, or anywhere: only names and shapes are looked at.

    Raises:
        ValueError: it is of another size, misses weights of the encoder, or has another vocabulary.
        OSError: it cannot be read.
    """
    from megabert.formats.encoder import check_vocabulary, open_encoder

    encoder = open_encoder(source, heads=config.num_attention_heads)
    _check_sizes(encoder, model.config)
    warnings = check_vocabulary(encoder, tokenizer)
    given: dict[str, Callable[[Tensor], None]] = {}
    fresh: list[str] = []
    tied: dict[Tensor, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        tied.setdefault(parameter, []).append(name)
    for target, names in tied.items():
        name = next((name for name in names if name in encoder.tensors), None)
        if name is None and names[0].startswith(("cls.", "bert.pooler.")):
            fresh.append(names[0])
            continue
        if name is None:
            raise ValueError(f"--load: {source} has no {names[0]}; it is no whole encoder")
        tensor = encoder.tensors[name]
        there, here = tuple(tensor.shape), tuple(target.shape)
        # Rows beyond the vocabulary are padding, and each program pads in its own way.
        if there != here and not (name in _BY_WORD and there[1:] == here[1:]):
            raise ValueError(f"--load: {source}: {name} is {list(there)}, where this model needs {list(here)}")
        given |= dict.fromkeys(names, partial(_copy_rows, tensor))
    lines = [f"starting from the weights of {source}", *encoder.notes, *warnings]
    if fresh:
        lines.append(f"fresh, with random weights: {', '.join(fresh)}")
    return given, lines


def _check_sizes(encoder: Encoder, config: Any) -> None:
    for field, flag in _FLAGS.items():
        there, here = encoder.config.get(field), getattr(config, field)
        if there is not None and there != here:
            raise ValueError(
                f"--load: {encoder.source} has {field} {there}, but this run {here}: give the checkpoint's ({flag})"
            )


def _copy_rows(source: LazyTensor, target: Tensor) -> None:
    loaded = source.load()
    rows = min(len(loaded), len(target))
    target[:rows].copy_(loaded[:rows])
