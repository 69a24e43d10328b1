"""Results that a way back does not keep but makes again, because that costs a hundredth of the products around them.

Whoever makes such a result marks it (`remade`). A product that would keep its input for the way back (`cpu_linear`)
keeps what that was made of instead, which others keep anyway.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from megabert.models.dropout import serves

NARROWEST = 768
"""Width of a network from which on this is done: products grow with its square, what lies between them does not."""


class Recipe:
    """How a result is made again, for all that read it.

    Args:
        make: gives the result of what it was made of, always the same.
    """

    def __init__(self, make: Callable[..., Tensor]):
        self.make = make
        self.readers = 0
        self._made: Tensor | None = None

    def again(self, *sources: Tensor) -> Tensor:
        """The result: made for the first of its readers, forgotten with the last one."""
        made = self.make(*sources) if self._made is None else self._made
        self.readers -= 1
        self._made = made if self.readers > 0 else None
        return made


def remade(result: Tensor, width: int, make: Callable[..., Tensor], *sources: Tensor | None) -> Tensor:
    """Mark `result` as what `make` gives of the sources; returns it, without a mark where that is not worth it.

    Args:
        width: of the network.
    """
    if width >= NARROWEST and torch.is_grad_enabled() and result.requires_grad and serves(result):
        # What is kept for the way back holds the recipe, and must not hold the sources by it.
        result.recipe = Recipe(make), sources, result._version  # type: ignore[attr-defined]
    return result


def kept_for(tensor: Tensor) -> tuple[Recipe | None, tuple[Tensor | None, ...]]:
    """For a reader of `tensor`: what it keeps for its way back, and the recipe to make it of that; None: it is that."""
    recipe, sources, version = getattr(tensor, "recipe", (None, (tensor,), 0))
    if recipe is None or version != tensor._version:
        return None, (tensor,)
    recipe.readers += 1
    return recipe, sources
