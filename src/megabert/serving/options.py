"""What a user can choose about how a model is taught a task. Nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megabert.config import option


@dataclass(frozen=True, kw_only=True)
class TuningOptions:
    """Batches, learning rates and weights of a fine-tuning."""

    batch_tokens: int | None = option(
        None,
        "places of one forward pass, padding included, in place of --batch-size: many short rows or few long ones, in "
        "batches of one length, so that there is next to no padding",
        example="4096", minimum=8,
    )  # fmt: skip
    global_batch_tokens: int | None = option(
        None,
        "places of one update of the weights: a multiple of --batch-tokens; left out, one forward pass of each "
        "data-parallel process",
        example="16384", minimum=8,
    )  # fmt: skip
    hidden_dropout: float | None = option(
        None, "probability of dropping an element of the hidden states; left out, as the checkpoint says",
        minimum=0, maximum=0.99, example="0.1",
    )  # fmt: skip
    attention_dropout: float | None = option(
        None, "probability of dropping an attention weight; left out, as the checkpoint says",
        minimum=0, maximum=0.99, example="0.1",
    )  # fmt: skip
    layer_decay: float = option(
        1.0,
        "each layer learns at this share of the rate of the layer above it, the embeddings at that of the first layer; "
        "the head has --lr",
        above=0, maximum=1, example="0.9",
    )  # fmt: skip
    lora_rank: int | None = option(
        None,
        "train small matrices of this rank beside those of the layers, and the head, and leave all other weights as "
        "they are (LoRA, by PEFT)",
        example="8", minimum=1,
    )  # fmt: skip
    lora_alpha: float = option(
        16.0, "with --lora-rank: what the small matrices give is multiplied by this and divided by the rank", above=0
    )
    lora_dropout: float = option(
        0.0, "with --lora-rank: probability of dropping an element before the small matrices", minimum=0, maximum=0.99
    )
    lora_modules: tuple[Literal["query", "key", "value", "dense"], ...] = option(
        ("query", "value"), "with --lora-rank: the matrices of a layer that get small ones beside them"
    )
    resume: Literal["auto", "never"] = option(
        "auto",
        "auto: a --save folder that holds checkpoints of this run is gone on from; never: it is refused",
    )


def check_tuning(options: TuningOptions) -> None:
    """Refuse flags that contradict each other.

    Raises:
        ValueError: they are named.
    """
    if options.global_batch_tokens is not None and options.batch_tokens is None:
        raise ValueError("--global-batch-tokens needs --batch-tokens: the places of one forward pass")
    if options.lora_rank is None:
        default = TuningOptions()
        for name in ("lora_alpha", "lora_dropout", "lora_modules"):
            if getattr(options, name) != getattr(default, name):
                raise ValueError(f"--{name.replace('_', '-')} needs --lora-rank")
    elif not options.lora_modules:
        raise ValueError("--lora-modules: name at least one of query, key, value, dense")
    elif options.layer_decay != 1:
        raise ValueError("--layer-decay does not go with --lora-rank, whose matrices all start from nothing")
