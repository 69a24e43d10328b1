"""Embedding, cross entropy and best guesses where each process holds a part of the vocabulary.

Logits are never gathered: processes exchange one or two numbers for each row. Parts are those of `placement.chunk`, so
a vocabulary that does not divide needs no padding: the last parts are shorter.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from megabert.parallel.placement import chunk
from megabert.parallel.regions import leave

IGNORED = -100
ROWS_AT_ONCE = 64


def embedded(
    ids: Tensor, table: Tensor, group: ProcessGroup, *, vocabulary: int, padding_index: int | None = None
) -> Tensor:
    """Rows of the whole table at `ids` [...]: [..., hidden], on every process.

    Args:
        table: this process's rows, [part of vocabulary, hidden].
        vocabulary: entries of the whole table.
        padding_index: the entry that gets no gradient.
    """
    begin, end = chunk(vocabulary, group.size(), group.rank())
    elsewhere = (ids < begin) | (ids >= end)
    if end == begin:
        rows = table.new_zeros(*ids.shape, table.shape[1]) + table.sum() * 0.0
    else:
        padding = None if padding_index is None or not begin <= padding_index < end else padding_index - begin
        rows = nn.functional.embedding((ids - begin).masked_fill(elsewhere, 0), table, padding_idx=padding)
        rows = rows.masked_fill(elsewhere.unsqueeze(-1), 0.0)
    return leave(rows, group)


class SummedCrossEntropy(torch.autograd.Function):
    """Sum over rows of -log softmax(logits)[label], each process having a part of the columns; float32 arithmetic.

    Kept for the way back are the logits as they came and one number a row.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, labels: Tensor, group: ProcessGroup, begin: int) -> Tensor:  # noqa: D102
        count = logits.shape[0]
        highest = torch.full((count,), -torch.inf, dtype=torch.float32, device=logits.device)
        if logits.shape[1]:
            highest = logits.amax(dim=1).float()
        dist.all_reduce(highest, dist.ReduceOp.MAX, group=group)
        local = labels - begin
        mine = (local >= 0) & (local < logits.shape[1])
        # The sums of exponentials, and the label's logit, which one process has.
        numbers = torch.zeros(2, count, dtype=torch.float32, device=logits.device)
        for part in _parts(logits):
            rows = logits[part].float()
            numbers[0, part] = torch.sub(rows, highest[part, None]).exp_().sum(dim=1)
            picked = rows.gather(1, local[part].clamp(0, logits.shape[1] - 1)[:, None]).squeeze(1)
            numbers[1, part] = torch.where(mine[part], picked, 0.0)
        dist.all_reduce(numbers, group=group)
        normalisers = numbers[0].log() + highest
        ctx.save_for_backward(logits, local, mine, normalisers, labels != IGNORED)
        return torch.where(labels != IGNORED, normalisers - numbers[1], 0.0).sum()

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, None, None, None]:  # noqa: D102
        logits, local, mine, normalisers, kept = ctx.saved_tensors
        scale = torch.where(kept, gradients[0].float(), 0.0)
        result = torch.empty_like(logits)
        for part in _parts(logits):
            rows = torch.sub(logits[part], normalisers[part, None]).exp_()  # float32, and never the logits themselves
            places = local[part].clamp(0, logits.shape[1] - 1)[:, None]
            rows.scatter_add_(1, places, -mine[part, None].float())
            result[part] = rows.mul_(scale[part, None])
        return result, None, None, None


def _parts(logits: Tensor) -> list[slice]:
    """Rows in pieces that a processor's cache holds; none where this process has no column."""
    if not logits.shape[1]:
        return []
    step = ROWS_AT_ONCE if logits.device.type == "cpu" else max(logits.shape[0], 1)
    return [slice(start, start + step) for start in range(0, logits.shape[0], step)]


def summed_cross_entropy(logits: Tensor, labels: Tensor, group: ProcessGroup, vocabulary: int) -> Tensor:
    """Sum of the cross entropy over the labels that are not -100; float32 scalar, equal on all processes.

    Args:
        logits: this process's columns, [..., part of vocabulary].
        labels: [...] in [0, vocabulary), or -100.
        vocabulary: columns of all processes.

    Raises:
        ValueError: shapes that do not fit.
    """
    begin, end = chunk(vocabulary, group.size(), group.rank())
    if logits.shape[:-1] != labels.shape or logits.shape[-1] != end - begin:
        raise ValueError(
            f"labels of shape {list(labels.shape)} do not fit logits of shape {list(logits.shape)}, which are the part "
            f"[{begin}, {end}) of a vocabulary of {vocabulary}"
        )
    rows = logits.reshape(labels.numel(), logits.shape[-1])
    return SummedCrossEntropy.apply(rows, labels.reshape(-1).long(), group, begin)  # type: ignore[return-value]


@torch.no_grad()
def right_guesses(logits: Tensor, labels: Tensor, group: ProcessGroup, vocabulary: int) -> Tensor:
    """How many labels have the highest logit of the whole vocabulary (the first of equal ones); float32 scalar.

    Arguments as `summed_cross_entropy`.
    """
    begin, end = chunk(vocabulary, group.size(), group.rank())
    if end > begin:
        highest, places = logits.float().max(dim=-1)
        places = places + begin
    else:
        highest = torch.full(labels.shape, -torch.inf, device=labels.device)
        places = torch.full(labels.shape, vocabulary, device=labels.device)
    best = highest.clone()
    dist.all_reduce(best, dist.ReduceOp.MAX, group=group)
    places = torch.where(highest == best, places, vocabulary)
    dist.all_reduce(places, dist.ReduceOp.MIN, group=group)
    return (places == labels).sum().float()
