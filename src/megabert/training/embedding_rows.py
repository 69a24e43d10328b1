"""The rows of a word embedding that a run looks up, trained without the rest of the table.

A run of fine-tuning knows its rows of words before it begins, and few data sets have all words of a vocabulary. A row
that is never looked up has no gradient, so both its moments stay zero and AdamW does nothing to it but decay it. Here
the rows in use lie together in a parameter of their own, which is all that the gradient, its norm and the optimizer
have to do with; the decay of the others is written down, and made up for when somebody looks: the same products in the
same order, so bit for bit what AdamW on the whole table gives. States and checkpoints are those of the whole table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from megabert.training.options import TrainingOptions
from megabert.training.precision import Weights

_AT_ONCE = 2**17
"""Numbers that are decayed together: a processor's cache holds them over all the updates that are made up for."""


class LookedUp(NamedTuple):
    """What a run reads of an embedding.

    Attributes:
        embedding: of the model that is trained.
        numbers: int64 [rows], every row that any batch of the run looks up.
    """

    embedding: nn.Embedding
    numbers: Tensor


class RowsInUse:
    """An embedding's rows that are looked up, as a parameter; the module reads them from there while it is trained.

    Where it answers (in evaluation mode, or without gradients) it reads its whole table, brought up to date.

    Args:
        embedding: its table is float32, serves nothing else, and is not trained itself any more.
        numbers: as `LookedUp.numbers`.
    """

    def __init__(self, embedding: nn.Embedding, numbers: Tensor):
        self.embedding = embedding
        self.table = embedding.weight.requires_grad_(False)
        self.weight = nn.Parameter(self.table.new_empty(0))
        self._factors: list[float] = []
        self._behind = False
        self._choose(numbers.unique())
        embedding.forward = self._look_up  # type: ignore[method-assign]
        embedding.register_state_dict_pre_hook(lambda *_: self.settle())

    def _choose(self, numbers: Tensor) -> None:
        self.numbers = numbers
        self._places = torch.full((len(self.table),), -1)
        self._places[numbers] = torch.arange(len(numbers))
        padding = self.embedding.padding_idx
        place = -1 if padding is None else int(self._places[padding])
        self._padding = place if place >= 0 else None
        self.take()

    def _look_up(self, input: Tensor) -> Tensor:
        if torch.is_grad_enabled() and self.embedding.training:
            return functional.embedding(self._places[input], self.weight, self._padding)
        self.settle()
        return functional.embedding(input, self.table)

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Decay the rows that are not in use with each update that this optimizer makes of those that are."""

        made = 0

        def updated(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            nonlocal made
            if int(optimizer.state[self.weight]["step"]) == made:
                return  # a step that calls the step of its base class tells of itself twice
            made = int(optimizer.state[self.weight]["step"])
            group = next(one for one in optimizer.param_groups if any(each is self.weight for each in one["params"]))
            factor = 1 - group["lr"] * group["weight_decay"]
            if factor != 1:
                self._factors.append(factor)
            self._behind = True

        optimizer.register_step_post_hook(updated)

    @torch.no_grad()
    def settle(self) -> None:
        """Bring the whole table up to date."""
        if not self._behind:
            return
        for part in self.table.view(-1).split(_AT_ONCE):
            for factor in self._factors:
                part.mul_(factor)
        self._factors.clear()
        self.table.index_copy_(0, self.numbers, self.weight)
        self._behind = False

    @torch.no_grad()
    def take(self) -> None:
        """Go on from the table as it is now."""
        self._factors.clear()
        self._behind = False
        self.weight.data = self.table[self.numbers]

    def add(self, numbers: Tensor) -> None:
        """Let more rows be in use."""
        self.settle()
        self._choose(torch.cat([self.numbers, numbers]).unique())

    def whole(self, part: Tensor) -> Tensor:
        """[rows in use, hidden] of something that is zero in all other rows -> [rows, hidden]."""
        return part.new_zeros(self.table.shape).index_copy_(0, self.numbers, part)


class RowWeights(Weights):
    """As `Weights`, with an embedding of which only the rows in use have a master."""

    def __init__(self, model: nn.Module, options: TrainingOptions, looked_up: LookedUp):
        super().__init__(model, options)
        table = looked_up.embedding.weight
        self.name = next(name for name, weight in model.named_parameters() if weight is table)
        self.rows = RowsInUse(looked_up.embedding, looked_up.numbers)
        self.masters[self.name] = self.rows.weight

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """As `Weights.follow`."""
        self.rows.follow(optimizer)

    def state(self) -> dict[str, Tensor]:
        """As `Weights.state`."""
        self.rows.settle()
        return super().state() | {self.name: self.rows.table.detach()}

    def state_dict(self) -> dict[str, Tensor]:
        """As `Weights.state_dict`."""
        return super().state_dict() | {self.name: self.rows.table.detach()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """As `Weights.load`."""
        super().load(tensors)
        self.rows.take()

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `Weights.whole`."""
        return {
            key: self.rows.whole(tensor) if self._of_rows(key, tensor) else tensor for key, tensor in tensors.items()
        }

    def parts(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `Weights.parts`; a row that was in use before stays so."""
        mine = [tensor for key, tensor in tensors.items() if self._of_rows(key, tensor)]
        if any(tensor.shape != self.rows.table.shape for tensor in mine):
            return dict(tensors)  # of another model: whoever takes it says so
        moved = [tensor.any(1) for tensor in mine]
        if moved:
            self.rows.add(torch.stack(moved).any(0).nonzero().squeeze(1))
        return {
            key: tensor[self.rows.numbers] if self._of_rows(key, tensor) else tensor for key, tensor in tensors.items()
        }

    def _of_rows(self, key: str, tensor: Tensor) -> bool:
        return key.partition("/")[2] == self.name and tensor.ndim > 0


def weights_of(model: nn.Module, options: TrainingOptions, looked_up: LookedUp | None) -> Weights:
    """The weights of a model in one process, with the rows in use only where that is worth something and can be."""
    if looked_up is None or not _serves(model, options, looked_up):
        return Weights(model, options)
    return RowWeights(model, options, looked_up)


def _serves(model: nn.Module, options: TrainingOptions, looked_up: LookedUp) -> bool:
    table = looked_up.embedding.weight
    users: Sequence[nn.Module] = [
        module for module in model.modules() if any(one is table for one in module.parameters(recurse=False))
    ]
    return (
        len(looked_up.numbers) < len(table)
        and table.device.type == "cpu"
        and table.requires_grad
        and users == [looked_up.embedding]
        and type(looked_up.embedding) is nn.Embedding
        and (not (options.bf16 or options.fp16) or options.fp32_embedding)
        and options.optimizer == "adam"
        and not (options.compile or options.log_params_norm or options.log_num_zeros_in_grad)
    )
