"""Stages of a pipeline: how a plan cuts a model, and which layers are whose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

Batch = dict[str, Tensor]


class Cut(Protocol):
    """How a family of models is cut into stages: part of its plan."""

    def keep(self, model: Any, layers: range, *, first: bool, last: bool) -> None:
        """Remove from the model, in place, what other stages hold."""
        ...

    def run(self, model: Any, inputs: Batch, hidden: Tensor | None, *, last: bool) -> Any:
        """Run what was kept: hidden states, or from the last stage the model's output."""
        ...

    def boundary(self, model: Any, inputs: Batch) -> tuple[torch.Size, torch.dtype]:
        """Shape [rows, seq, hidden] and dtype of what passes between stages."""
        ...

    def tied(self, model: Any) -> dict[str, str]:
        """Weights of the last stage that are one with a weight of the first: name there -> name in the first."""
        ...


@dataclass(frozen=True)
class Place:
    """A stage's place in its pipeline.

    Attributes:
        index: its number, 0 is the first stage.
        stages: how many there are.
        layers: the numbers of its layers in the whole model.
    """

    index: int
    stages: int
    layers: range

    @property
    def first(self) -> bool:
        """It has the embeddings."""
        return self.index == 0

    @property
    def last(self) -> bool:
        """It has the head."""
        return self.index == self.stages - 1


def places_of(layers: int, ranks: int, rank: int, pieces: int = 1) -> list[Place]:
    """The stages of a pipeline rank, first to last: every `ranks`-th of `ranks * pieces` stages of equal length.

    Args:
        layers: of the whole model; a multiple of the number of stages (`mesh.layout_of` refuses others).
        pieces: stages on each rank; 1 for plain 1F1B.
    """
    stages = ranks * pieces
    assert layers % stages == 0 and layers >= stages, f"{layers} layers in {stages} stages"
    length = layers // stages
    return [Place(index, stages, range(index * length, (index + 1) * length)) for index in range(rank, stages, ranks)]
