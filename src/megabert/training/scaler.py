"""Loss scales: the number that the loss is multiplied with so that small gradients do not vanish in float16.

Source: Megatron-LM from v2 on, `optimizer/grad_scaler.py`.
"""

from __future__ import annotations

from typing import Protocol

from megabert.training.options import PrecisionOptions, check_precision


class Scaler(Protocol):
    """A loss scale that may change after each step."""

    @property
    def scale(self) -> float:
        """The factor of the loss in the next step."""
        ...

    @property
    def catches_overflow(self) -> bool:
        """Whether a gradient that is not finite may come from the scale, so that skipping the step is no fault."""
        ...

    def update(self, overflow: bool) -> None:
        """Learn whether the last step met a gradient that is not finite."""
        ...

    def state(self) -> dict[str, float]:
        """What `load` needs to go on from here."""
        ...

    def load(self, state: dict[str, float]) -> None:
        """Go on from a state given by `state`."""
        ...


class FixedScale:
    """A scale that never changes; 1 where none is needed."""

    def __init__(self, scale: float = 1.0):
        self.scale = scale

    @property
    def catches_overflow(self) -> bool:
        """A fixed scale other than 1 may overflow by itself."""
        return self.scale != 1.0

    def update(self, overflow: bool) -> None:
        """Nothing changes."""

    def state(self) -> dict[str, float]:
        """The scale, for the record."""
        return {"scale": self.scale}

    def load(self, state: dict[str, float]) -> None:
        """The scale is the option's, not the checkpoint's."""


class DynamicScale:
    """Doubles after `window` good steps in a row; halves when `hysteresis` bad ones were met.

    Every bad step uses one of the `hysteresis` chances up, also when good ones lie between; only a doubling gives
    them back, so that after the first halving each further bad step halves again.
    """

    growth = 2.0
    backoff = 0.5

    def __init__(self, initial: float, minimum: float, window: int, hysteresis: int):
        self.scale = initial
        self.minimum = minimum
        self.window = window
        self.hysteresis = hysteresis
        self._good_steps = 0
        self._chances = hysteresis

    @property
    def catches_overflow(self) -> bool:
        """Not any more at the lowest scale, where an overflow cannot be mended."""
        return self.scale > self.minimum

    def update(self, overflow: bool) -> None:
        """Learn whether the last step met a gradient that is not finite."""
        if overflow:
            self._good_steps = 0
            self._chances -= 1
            if self._chances <= 0:
                self.scale = max(self.scale * self.backoff, self.minimum)
            return
        self._good_steps += 1
        if self._good_steps == self.window:
            self._good_steps = 0
            self._chances = self.hysteresis
            self.scale *= self.growth

    def state(self) -> dict[str, float]:
        """Scale, good steps in a row, and chances left."""
        return {"scale": self.scale, "good_steps": self._good_steps, "chances": self._chances}

    def load(self, state: dict[str, float]) -> None:
        """Go on from a state given by `state`."""
        self.scale = float(state["scale"])
        self._good_steps = int(state["good_steps"])
        self._chances = int(state["chances"])


def make_scaler(options: PrecisionOptions) -> Scaler:
    """--loss-scale fixed when given; else dynamic for --fp16 and none for the other formats.

    Raises:
        ValueError: limits that are not in order.
    """
    if options.loss_scale is not None:
        return FixedScale(options.loss_scale)
    if not options.fp16:
        return FixedScale()
    check_precision(options)
    return DynamicScale(
        options.initial_loss_scale, options.min_loss_scale, options.loss_scale_window, options.hysteresis
    )


def nothing_learned(steps: int, scale: float) -> str:
    """What to say after a run in which every one of its `steps` was skipped, the last one with this loss scale."""
    said = f"warning: each of the {steps} steps was skipped, so the weights are still those of the beginning"
    if scale == 1:
        return said
    return f"{said}; the loss scale is {scale:.0f} now: train longer, or begin with a lower --initial-loss-scale"
