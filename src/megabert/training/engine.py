"""What runs the micro-batches of a step, and what brings ranks together; here for one process.

An engine leaves gradients in the model's parameters. An exchange makes them those of the whole batch. Other rooms
have engines and exchanges for many processes with the same methods; a step does not know which it has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from megabert.training.objective import Batch
from megabert.training.precision import Weights
from megabert.training.split import float32_pieces

Share = Callable[[Any, Batch], dict[str, Tensor]]
"""(outputs, batch) -> one number for each term."""


class Engine(Protocol):
    """Forward and backward through the parts of the model that this process holds.

    Attributes:
        modules: these parts (several when a pipeline is interleaved); parameter names are those of the whole model.
    """

    modules: list[nn.Module]

    def forward_backward(
        self, micro_batches: Sequence[Batch], share: Share, scale: float, collect: Callable[[bool], None]
    ) -> dict[str, Tensor]:
        """Leave the gradient of `scale` times the sum of all shares.

        Args:
            share: each term's part of the mean loss: of outputs and batch, both on the model's device.
            collect: called with whether it is the first time in this step, after each backward pass.

        Returns:
            Each term's shares, added up over the micro-batches; detached. A process that computes no loss returns
            zeros under the same names.
        """
        ...

    def evaluate(self, batch: Batch, read: Share) -> dict[str, Tensor]:
        """`read` of the outputs for a batch, without gradients; the caller has set the evaluation mode.

        A process that computes no loss returns nothing.
        """
        ...


class LocalEngine:
    """The whole model on this process.

    Args:
        targets: batch keys that are labels.
        forward: what is called in place of the model, e.g. the compiled model.
        arm: called before each micro-batch with whether it is the last one of the step.
    """

    def __init__(
        self,
        model: nn.Module,
        targets: frozenset[str],
        device: torch.device,
        *,
        forward: Callable[..., Any] | None = None,
        arm: Callable[[bool], None] | None = None,
    ):
        self.modules = [model]
        self.targets = targets
        self.device = device
        self.forward = model if forward is None else forward
        self.arm = arm

    def _here(self, batch: Batch) -> Batch:
        return {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}

    def _outputs(self, batch: Batch, forward: Callable[..., Any]) -> Any:
        return forward(**{key: value for key, value in batch.items() if key not in self.targets})

    def forward_backward(
        self, micro_batches: Sequence[Batch], share: Share, scale: float, collect: Callable[[bool], None]
    ) -> dict[str, Tensor]:
        """As `Engine.forward_backward`."""
        sums: dict[str, Tensor] = {}
        for index, batch in enumerate(micro_batches):
            if self.arm is not None:
                self.arm(index == len(micro_batches) - 1)
            here = self._here(batch)
            shares = share(self._outputs(here, self.forward), here)
            loss = torch.stack(list(shares.values())).sum()
            (loss * scale if scale != 1.0 else loss).backward()
            collect(index == 0)
            for name, value in shares.items():
                sums[name] = sums[name] + value.detach() if name in sums else value.detach()
        return sums

    @torch.no_grad()
    def evaluate(self, batch: Batch, read: Share) -> dict[str, Tensor]:
        """As `Engine.evaluate`. The model runs as it is: other shapes than those of training are not compiled."""
        here = self._here(batch)
        return read(self._outputs(here, self.modules[0]), here)


class Exchange(Protocol):
    """What happens between processes in a step. All of them call each method, in the same order.

    In a step: `totals`, then for each micro-batch `arm` (by engines that can: before its forward pass) and `collect`
    (after its backward pass), then `complete`, `numbers`, and at the end `clear`.
    """

    def totals(self, counts: Mapping[str, int]) -> Mapping[str, int | Tensor]:
        """Predictions of each term in the whole batch, at least 1, from those of this process's part of it."""
        ...

    def arm(self, last: bool) -> None:
        """A micro-batch follows; `last` of the step or not."""
        ...

    def collect(self, first: bool) -> None:
        """A backward pass is done: bring its gradients to where they are added up in float32."""
        ...

    def complete(self) -> None:
        """All backward passes are done: let the masters' gradients be those of the whole batch."""
        ...

    def numbers(self, losses: Mapping[str, Tensor]) -> tuple[dict[str, float], float]:
        """Mean losses of the whole batch, and the global L2 norm of its gradient: equal numbers on every process.

        Not finite on any process means not finite on all. This is the one place of a step where the host waits.
        """
        ...

    def total(self, numbers: Mapping[str, Tensor]) -> float:
        """The sum of one number of each weight (by name: of the part here), every part of every weight counted once."""
        ...

    def lengths(self, parameters: Sequence[Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
        """The L2 norm of each whole tensor, whose part here lies as the master of `parameters` at its place does."""
        ...

    def clear(self) -> None:
        """Forget all gradients."""
        ...


class Alone:
    """The exchange of a single process: there is nobody to exchange with."""

    def __init__(self, weights: Weights):
        self.weights = weights

    def totals(self, counts: Mapping[str, int]) -> dict[str, int]:
        """As `Exchange.totals`."""
        return {name: max(count, 1) for name, count in counts.items()}

    def arm(self, last: bool) -> None:
        """Nothing to prepare."""

    def collect(self, first: bool) -> None:
        """As `Exchange.collect`."""
        self.weights.collect(first=first)

    def complete(self) -> None:
        """Nothing to add up."""

    def numbers(self, losses: Mapping[str, Tensor]) -> tuple[dict[str, float], float]:
        """As `Exchange.numbers`."""
        gradients = self.weights.gradients()
        norm = torch.zeros(())
        if gradients:
            pieces = [piece for gradient in gradients for piece in float32_pieces(gradient)]
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(pieces, dtype=torch.float32)))
        # One transfer for all numbers: on a GPU this is the only place where the host waits.
        numbers = torch.stack([*(value.float() for value in losses.values()), norm.float()]).tolist()
        return dict(zip(losses, numbers[:-1], strict=True)), numbers[-1]

    def total(self, numbers: Mapping[str, Tensor]) -> float:
        """As `Exchange.total`."""
        return float(torch.stack([number.double() for number in numbers.values()]).sum()) if numbers else 0.0

    def lengths(self, parameters: Sequence[Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
        """As `Exchange.lengths`."""
        return list(torch._foreach_norm(list(tensors)))

    def clear(self) -> None:
        """As `Exchange.clear`."""
        # The masters' gradients come after the activations have gone: on a CPU both have the same memory in turn.
        self.weights.clear(keep=any(master.device.type != "cpu" for master in self.weights.masters.values()))
