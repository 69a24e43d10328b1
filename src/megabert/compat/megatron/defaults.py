"""What flags mean that a command line of Megatron-LM's `pretrain_bert.py` leaves out: it depends on its year.

Only defaults that change what is trained are here; intervals of checkpoints and reports are today's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from megabert.commands.pretrain import Config
from megabert.training.options import other_default


def _default(name: str, value: Any) -> Any:
    return other_default(Config, name, value)


@dataclass(frozen=True, kw_only=True)
class March2019(Config):
    """The first version: raw text or TFRecords, masks and pairs as Google's BERT had them."""

    text_key: str = _default("text_key", "sentence")
    split: str = _default("split", "1000,1,1")
    masking: Literal["token", "whole-word", "ngram"] = _default("masking", "token")
    pair_task: Literal["sop", "nsp", "none"] = _default("pair_task", "nsp")
    short_seq_prob: float = _default("short_seq_prob", 0.01)
    hidden_dropout: float = _default("hidden_dropout", 0.0)
    layernorm_epsilon: float = _default("layernorm_epsilon", 1e-12)


@dataclass(frozen=True, kw_only=True)
class July2019(March2019):
    """With model parallelism."""

    hidden_dropout: float = _default("hidden_dropout", 0.1)
    layernorm_epsilon: float = _default("layernorm_epsilon", 1e-5)


@dataclass(frozen=True, kw_only=True)
class Version1(Config):
    """v1.0 (2020): indexed data, n-gram masks, sentence order."""

    split: str = _default("split", "969, 30, 1")
    tokenizer_type: str = _default("tokenizer_type", "BertWordPieceLowerCase")


@dataclass(frozen=True, kw_only=True)
class Version2(Version1):
    """v2.0 to v2.6 (2021 to 2023): no warm-up unless it is asked for."""

    warmup: float = _default("warmup", 0.0)


_LATER_DATA = {"--data-path", "--train-data-path"}
_SINCE_JULY_2019 = {
    "--model-parallel-size", "--deep-init", "--make-vocab-size-divisible-by", "--checkpoint-num-layers",
    "--exit-interval", "--save-interval", "--no-save-optim", "--no-save-rng", "--no-load-optim", "--no-load-rng",
    "--finetune", "--eval-interval", "--min-lr", "--override-lr-scheduler", "--use-checkpoint-lr-scheduler",
    "--tensorboard-dir", "--adlr-autoresume",
}  # fmt: skip
_UNTIL_VERSION_1 = {"--batch-size", "--warmup", "--model-parallel-size"}


def generation_of(flags: Collection[str]) -> type[Config]:
    """The generation that a command line was written for, by flags that others did not have.

    Raises:
        ValueError: --train-data and --data-path, which no generation had together.
    """
    given = set(flags)
    later = given & _LATER_DATA
    if later and "--train-data" in given:
        raise ValueError(f"--train-data and {min(later)} name the same thing: give one of them")
    if later:
        return Version1 if given & _UNTIL_VERSION_1 else Version2
    return July2019 if given & _SINCE_JULY_2019 else March2019


def said_of(generation: type[Config], given: Collection[str]) -> str:
    """One line that says how the command line was read.

    Args:
        given: fields that it sets.
    """
    usual = {field.name: field.default for field in dataclasses.fields(Config)}
    taken = [
        f"--{field.name.replace('_', '-')} {field.default}"
        for field in dataclasses.fields(generation)
        if field.default != usual[field.name] and field.name not in given
    ]
    of = {March2019: "March 2019", July2019: "July 2019", Version1: "v1.0", Version2: "v2.0 to v2.6"}[generation]
    return f"read as a command line of {of}" + (f", whose defaults are {', '.join(taken)}" if taken else "")
