"""The rows of a word embedding that a run looks up, trained without the rest of the table.

A run of fine-tuning knows its rows of words before it begins, and few data sets have all words of a vocabulary. A row
that is never looked up has no gradient, so both its moments stay zero and AdamW does nothing to it but decay it. Here
the rows in use lie together in a parameter of their own, which is all that the gradient, its norm and the optimizer
have to do with; the decay of the others is written down, and made up for when somebody looks: the same products in the
same order, so bit for bit what AdamW on the whole table gives. States and checkpoints are those of the whole table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
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


class _Look(torch.autograd.Function):
    """The rows of `weight` at `places`; the gradient goes to whoever collects it, and none is made here."""

    @staticmethod
    def forward(ctx, weight: Tensor, places: Tensor, collect: Callable[[Tensor, Tensor], None]) -> Tensor:
        ctx.save_for_backward(places)
        ctx.collect = collect
        return functional.embedding(places, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor) -> tuple[None, None, None]:  # type: ignore[override]
        ctx.collect(ctx.saved_tensors[0], gradients[0])
        return None, None, None


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
        self._gradient: Tensor = self.weight.detach()
        self._touched: list[Tensor] = []
        self._choose(numbers.unique())
        embedding.forward = self._look_up  # type: ignore[method-assign]
        embedding.register_state_dict_pre_hook(lambda *_: self.settle())

    def _choose(self, numbers: Tensor) -> None:
        self.numbers = numbers
        self._places = torch.full((len(self.table),), -1)
        self._places[numbers] = torch.arange(len(numbers))
        padding = self.embedding.padding_idx
        place = -1 if padding is None else int(self._places[padding])
        self._padding = place
        self.take()
        self._gradient, self._touched = torch.zeros_like(self.weight), []

    def _look_up(self, input: Tensor) -> Tensor:
        if torch.is_grad_enabled() and self.embedding.training:
            return _Look.apply(self.weight, self._places[input], self._collect)  # type: ignore[return-value]
        self.settle()
        return functional.embedding(input, self.table)

    def _collect(self, places: Tensor, gradient: Tensor) -> None:
        """Add the gradient of what was looked up to the weight's, which is kept and of which few rows are not zero."""
        if self.weight.grad is None:
            for touched in self._touched:
                self._gradient.index_fill_(0, touched, 0.0)
            self._touched.clear()
            self.weight.grad = self._gradient
        touched, order = places.unique(return_inverse=True)
        rows = torch.ops.aten.embedding_dense_backward(gradient, order, len(touched), -1, False)
        self._touched.append(touched)
        if self._padding >= 0:
            rows.masked_fill_((touched == self._padding)[:, None], 0.0)
        self._gradient.index_add_(0, touched, rows)

    def gradient(self) -> Tensor | None:
        """The rows of the weight's gradient that are not zero; None where there is none."""
        if self.weight.grad is None:
            return None
        return self._gradient[self._touched[0] if len(self._touched) == 1 else torch.cat(self._touched).unique()]

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Decay the rows that are not in use with each update that this optimizer makes of those that are."""

        def updated(optimizer: torch.optim.Optimizer, *_: Any) -> None:
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

    def _stored(self) -> dict[str, Tensor]:
        return super()._stored() | {self.name: self.rows.table}

    def state(self) -> dict[str, Tensor]:
        """As `Weights.state`."""
        self.rows.settle()
        return super().state()

    def state_dict(self) -> dict[str, Tensor]:
        """As `Weights.state_dict`."""
        return super().state_dict() | {self.name: self.rows.table.detach()}

    def gradients(self) -> list[Tensor]:
        """As `Weights.gradients`; of the rows those that the last batch had."""
        others = [master.grad for master in self.masters.values() if master is not self.rows.weight]
        return [one for one in (*others, self.rows.gradient()) if one is not None]

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


def weights_of(
    model: nn.Module, options: TrainingOptions, looked_up: LookedUp | None, *, split: bool = False
) -> Weights:
    """The weights of a model in one process, with the rows in use only where that is worth something and can be.

    Args:
        split: as `Weights`'; where all rows are in use.
    """
    if looked_up is None or not _serves(model, options, looked_up):
        return Weights(model, options, split=split)
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
