"""Float32 masters in 16 bits more: what a bfloat16 weight lacks to its master, and an AdamW that joins the two.

A bfloat16 is the upper half of a float32, so weight and rest are the master, bit for bit, in four bytes where two
copies have six. The weight is a nearest bfloat16, as ever; where two are equally near it is the one farther from zero:
PyTorch's cast takes the even one, for which 2^16 rests would not do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

PIECE = 2**18
"""Numbers that are joined at a time: what is in float32 then fits a processor's cache."""

FEWEST = 2**16
"""Numbers of the smallest weight that is split: of smaller ones all together are updated in one call."""


class Halves:
    """A bfloat16 weight, and the rest of its float32 master beside it.

    Args:
        weight: what the model computes with: a parameter, which is made bfloat16.
        numbers: float32, of the weight's shape, contiguous.
    """

    def __init__(self, weight: nn.Parameter, numbers: Tensor):
        self.weight = weight
        self.rest = torch.empty(numbers.numel(), dtype=torch.int16, device=numbers.device)
        weight.data = torch.empty(numbers.shape, dtype=torch.bfloat16, device=numbers.device)
        self.take(numbers)

    def joined(self, part: slice = slice(None)) -> Tensor:
        """The master's numbers, or a part of them in their order in memory: float32 [numbers], a copy."""
        numbers = self.weight.detach().view(-1)[part].float()
        numbers.view(torch.int32).add_(self.rest[part])
        return numbers

    def whole(self) -> Tensor:
        """The master: float32 of the weight's shape, a copy."""
        return self.joined().view(self.weight.shape)

    def split(self, numbers: Tensor, part: slice) -> None:
        """Let a part of the master be `numbers`, which are used up."""
        bits, rest = numbers.view(torch.int32), self.rest[part]
        rest.copy_(bits)  # the lower half, with a sign
        upper = bits.sub_(rest).bitwise_right_shift_(16)
        self.weight.detach().view(-1)[part].view(torch.int16).copy_(upper)

    def take(self, numbers: Tensor) -> None:
        """Let the master be `numbers`, of the weight's shape; they stay as they are."""
        flat = numbers.reshape(-1)
        for part in self.parts():
            self.split(flat[part].to(torch.float32, copy=True), part)

    def parts(self) -> list[slice]:
        """All numbers, `PIECE` at a time."""
        return [slice(start, start + PIECE) for start in range(0, self.rest.numel(), PIECE)]


def splits(numbers: Tensor) -> bool:
    """Whether a master of these float32 numbers is worth its split."""
    return numbers.device.type == "cpu" and numbers.numel() >= FEWEST and numbers.is_contiguous()


def stand_in(numbers: Tensor) -> nn.Parameter:
    """A master without memory: the optimizer knows it by its shape and its gradient, which may be bfloat16."""
    master = nn.Parameter(numbers.new_full((), torch.nan).expand(numbers.shape))
    master.grad_dtype = None  # type: ignore[attr-defined]
    return master


def float32_pieces(gradient: Tensor) -> Sequence[Tensor]:
    """A gradient whole where it is float32; else in pieces, so that what is made float32 of it is small."""
    return [gradient] if gradient.dtype == torch.float32 else gradient.reshape(-1).split(PIECE)


def evaluated(closure: Callable[[], float] | None) -> float | None:
    """The loss of what an optimizer's step is given to make gradients; None where it is given nothing."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


class SplitAdamW(torch.optim.AdamW):
    """AdamW, fused, whose split masters are joined, updated and split again piece by piece. Its numbers are AdamW's.

    The gradients of split masters are used up.

    Args:
        groups: as AdamW's, with the stand-ins of split masters.
        halves: stand-in -> its halves.
        options: AdamW's.
    """

    def __init__(self, groups: Any, halves: Mapping[nn.Parameter, Halves], **options: Any):
        super().__init__(groups, fused=True, **options)
        self.halves = halves
        for master in halves:
            # Now, while memory is in one piece: made in the first update, they would lie between what it frees.
            self.state[master] = {
                "step": torch.zeros((), device=master.device),
                "exp_avg": torch.zeros(master.shape, device=master.device),
                "exp_avg_sq": torch.zeros(master.shape, device=master.device),
            }

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make one update of all parameters that have a gradient."""
        loss = evaluated(closure)
        split = []
        for group in self.param_groups:
            for master in group["params"]:
                if master in self.halves and master.grad is not None:
                    split.append((group, master, master.grad))
                    master.grad = None
        super().step()
        while split:
            self._step_in_pieces(*split.pop())
        return loss

    def _step_in_pieces(self, group: dict[str, Any], master: nn.Parameter, gradient: Tensor) -> None:
        state, halves = self.state[master], self.halves[master]
        state["step"] += 1
        mean, square, gradient = (one.reshape(-1) for one in (state["exp_avg"], state["exp_avg_sq"], gradient))
        for part in halves.parts():
            numbers = halves.joined(part)
            torch._fused_adamw_(
                [numbers], [gradient[part].float()], [mean[part]], [square[part]], [], [state["step"]],
                lr=group["lr"], beta1=group["betas"][0], beta2=group["betas"][1], weight_decay=group["weight_decay"],
                eps=group["eps"], amsgrad=False, maximize=False, grad_scale=getattr(self, "grad_scale", None),
            )  # fmt: skip
            halves.split(numbers, part)
