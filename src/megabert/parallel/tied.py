"""One weight in two places: the word embedding of the first stage and its copy in the last stage's head.

`torch.distributed.pipelining` does nothing for it. Three things keep the copies one weight: they start equal, their
gradients are added before clipping, and the norm of the gradient counts them once.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Tie:
    """The tied weights of a pipeline, on one of its ranks.

    Both ends are cut over other axes of the mesh alike, so each rank exchanges its own part with one other rank.

    Args:
        pairs: name in the last stage -> name in the first.
        group: the ranks of the pipeline, in the order of their stages.
    """

    def __init__(self, pairs: Mapping[str, str], group: dist.ProcessGroup):
        rank, size = group.rank(), group.size()
        self.group = group
        self.first = rank == 0
        self.concerned = bool(pairs) and rank in (0, size - 1)
        self.other = dist.get_global_rank(group, size - 1 if self.first else 0)
        self.pairs = dict(pairs) if self.concerned else {}

    @property
    def names(self) -> list[str]:
        """This rank's names of the tied weights, in the same order at both ends."""
        return [self.pairs[copy] if self.first else copy for copy in sorted(self.pairs)]

    @property
    def copies(self) -> dict[str, str]:
        """This rank's weights that the first stage has too, not to be counted here -> their names there."""
        return {} if self.first else self.pairs

    @torch.no_grad()
    def start_equal(self, weights: Mapping[str, Tensor]) -> None:
        """Give the last stage the first one's values; `weights` by name. Called by both."""
        for name in self.names:
            part = weights[name].detach()
            if self.first:
                dist.send(part.contiguous(), self.other, group=self.group)
            else:
                received = torch.empty_like(part, memory_format=torch.contiguous_format)
                dist.recv(received, self.other, group=self.group)
                part.copy_(received)

    @torch.no_grad()
    def add_gradients(self, weights: Mapping[str, nn.Parameter]) -> None:
        """Put the sum of both ends' gradients at both ends, once all micro-batches are through. Called by both."""
        for name in self.names:
            weight = weights[name]
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            own = weight.grad
            sent, received = own.contiguous(), torch.empty_like(own, memory_format=torch.contiguous_format)
            works = dist.batch_isend_irecv(
                [
                    dist.P2POp(dist.isend, sent, self.other, self.group),
                    dist.P2POp(dist.irecv, received, self.other, self.group),
                ]
            )
            for work in works:
                work.wait()
            # Addition commutes, so both ends hold the same bits and stay equal through every update.
            own.add_(received)
