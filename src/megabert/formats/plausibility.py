"""Does a fused query-key-value look as its stamp says? Some files of 2020 carry the wrong one.

A key's bias adds the same to all scores of a query, so it gets no gradient but noise: in a trained model the biases of
keys are far smaller than those of queries. Taken in a wrong order, the three parts are mixtures and equally large.
"""

from __future__ import annotations

from typing import Any

from megabert.formats.checkpoint import Checkpoint
from megabert.formats.table import ORDERS, Order, fuse, unfuse

_CLEAR = 0.5  # a key bias below half of its query's tells the parts apart
_BETTER = 0.5  # and another order must be twice as clear as the stamped one


def contrast(checkpoint: Checkpoint, taken: Order, supposed: Order, ranks: int = 1) -> float | None:
    """The mean size of key biases divided by that of query biases, if the rows were in order `supposed`.

    Args:
        taken: the order that the checkpoint was read with.
        ranks: tensor ranks of the file.

    Returns:
        None: there are no biases, or they are all zero (a model that was not trained).
    """
    query_size, key_size = 0.0, 0.0
    heads = checkpoint.config["num_attention_heads"] // ranks
    for layer in range(checkpoint.config["num_hidden_layers"]):
        names = [f"bert.encoder.layer.{layer}.attention.self.{part}.bias" for part in ("query", "key", "value")]
        if any(name not in checkpoint.tensors for name in names):
            return None
        held = [checkpoint.tensors[name] for name in names]
        rows = held[0].shape[0] // ranks
        for rank in range(ranks):
            mine = [_slice(tensor, rank * rows, rows) for tensor in held]
            query, key, _ = unfuse(fuse(mine, heads, taken), heads, supposed)
            query_size += float(query.load().float().abs().mean())
            key_size += float(key.load().float().abs().mean())
    return key_size / query_size if query_size else None


def _slice(tensor: Any, begin: int, length: int) -> Any:
    return tensor.derived((length,), lambda loaded: loaded.narrow(0, begin, length))


def doubt(checkpoint: Checkpoint, taken: Order, ranks: int = 1) -> str | None:
    """A warning when another order than `taken` fits the biases far better; None when all is well, or nothing tells."""
    orders: tuple[Order, ...] = ("v0", "v1", "v2")
    found = {order: contrast(checkpoint, taken, order, ranks) for order in orders}
    mine = found[taken]
    if mine is None:
        return None
    best = min(orders, key=lambda order: found[order] or float("inf"))
    value = found[best] or 0.0
    if best != taken and value < _CLEAR and value < _BETTER * mine:
        return (
            f"the order of the query-key-value rows is doubtful: key biases are {mine:.2g} of query biases as "
            f"{ORDERS[taken]}, but {value:.2g} as {ORDERS[best]}; try --assume-qkv-layout {best}"
        )
    return None
