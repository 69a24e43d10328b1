"""Pipeline parallelism: the stages of a model on ranks that pass hidden states on and gradients back.

The order of forward and backward passes, and the passing itself, are `torch.distributed.pipelining`'s: 1F1B, or
interleaved 1F1B when a rank has several stages. Micro-batches come ready cut (a step's share of each term is divided by
the totals of the whole step, so nothing is averaged here), and every stage reads its own inputs from them: only hidden
states travel. How a model is cut and run in parts is told by its plan (`Cut`); no model is known here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B

from megabert.parallel.stages import Batch, Cut, Place

Share = Callable[[Any, Batch], dict[str, Tensor]]


class _Stage(PipelineStage):
    """A stage that tells when a backward pass begins and when its gradients are in the weights.

    Args:
        before_backward: called with whether this is the step's last micro-batch here.
        in_flight: micro-batches that are between forward and backward here at most. Torch has buffers for all of a
            step, where those of finished ones can be used again.
    """

    def __init__(
        self,
        *args: Any,
        before_backward: Callable[[bool], None],
        after_backward: Callable[[], None],
        micro_batches: int,
        in_flight: int,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.before_backward = before_backward
        self.after_backward = after_backward
        self.micro_batches = micro_batches
        self.in_flight = in_flight
        self.backwards = 0

    def backward_one_chunk(self, *args: Any, **kwargs: Any) -> None:
        self.backwards += 1
        self.before_backward(self.backwards % self.micro_batches == 0)
        super().backward_one_chunk(*args, **kwargs)
        self.after_backward()

    # The two methods that make the buffers are torch's own affair; without these lines there is only more memory used.
    def _prepare_forward_infra(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._prepare_forward_infra(*args, **kwargs)
        self.args_recv_info = self._reused(self.args_recv_info)
        return result

    def _prepare_backward_infra(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._prepare_backward_infra(*args, **kwargs)
        self.grad_recv_info = self._reused(self.grad_recv_info)
        return result

    def _reused(self, buffers: dict[int, Any]) -> dict[int, Any]:
        return {index: buffers[index % self.in_flight] for index in buffers}


class _Runner(nn.Module):
    """A stage as a schedule calls it: with what was received, and the number of the micro-batch."""

    def __init__(self, run: Callable[[Tensor | None, int], Tensor]):
        super().__init__()
        self.run = run

    def forward(self, *received: Tensor, index: Tensor) -> Tensor:
        return self.run(received[0] if received else None, int(index))


@dataclass
class _Work:
    """What the stages need to know of the step they are in."""

    batches: list[dict[str, Tensor]]
    share: Share
    scale: float
    collect: Callable[[bool], None]
    sums: dict[str, Tensor] = field(default_factory=dict)
    backwards: int = 0


class PipelineEngine:
    """Forward and backward passes of a step over the stages of a pipeline; one object on each rank.

    Args:
        places: this rank's stages.
        modules: the model of each of them, cut.
        cut: how stages run.
        targets: batch keys that are labels; the others are what the model is called with.
        terms: names of what `share` gives for a micro-batch: the terms of the loss.
        group: the ranks of the pipeline, in the order of their stages.
        device: where batches are moved to.
        sequence_shards: hidden states between stages hold one of so many parts of the sequence.
        arm: called before each backward pass with its module, and whether it is the step's last one there.
    """

    def __init__(
        self,
        places: Sequence[Place],
        modules: Sequence[nn.Module],
        cut: Cut,
        targets: frozenset[str],
        terms: Callable[[Batch], Iterable[str]],
        group: dist.ProcessGroup,
        device: torch.device,
        sequence_shards: int = 1,
        arm: Callable[[nn.Module, bool], None] | None = None,
    ):
        self.places = list(places)
        self.modules = list(modules)
        self.cut = cut
        self.targets = targets
        self.terms = terms
        self.group = group
        self.device = device
        self.sequence_shards = sequence_shards
        self.arm = arm
        self._work: _Work | None = None
        self._schedule: tuple[tuple[Any, ...], Any] = ((), None)
        self._sending: tuple[dist.Work, Tensor] | None = None

    def forward_backward(
        self, micro_batches: Sequence[Batch], share: Share, scale: float, collect: Callable[[bool], None]
    ) -> dict[str, Tensor]:
        """Leave the gradients of all micro-batches in this rank's weights.

        Args:
            micro_batches: of one shape; the same on all ranks of the pipeline.
            share: (outputs, micro-batch) -> each term's part of the step's loss.
            scale: of the loss.
            collect: called after each backward pass, with True after the first one.

        Returns:
            Each term's summed share on the rank with the last stage; zeros elsewhere.

        Raises:
            ValueError: micro-batches of different shapes, or a number of them that cannot be interleaved.
        """
        self._work = _Work([self._moved(batch) for batch in micro_batches], share, scale, collect)
        schedule = self._schedule_for(self._work.batches)
        index = torch.arange(len(micro_batches))
        # The schedule cuts the numbers of the micro-batches, and each stage looks its micro-batch up.
        try:
            schedule.step(index=index, target=index, return_outputs=False)
        except RuntimeError as error:
            # The stage that failed says why; around it torch has put the schedule and the arguments.
            raise (error.__cause__ or error) from None
        sums, self._work = self._work.sums, None
        return sums or {name: torch.zeros((), device=self.device) for name in self.terms(micro_batches[0])}

    @torch.no_grad()
    def evaluate(self, batch: Batch, read: Callable[[Any, Batch], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Run a batch forward; what `read` says of the outputs on the rank with the last stage, elsewhere nothing.

        A rank does not wait until the next one has taken what it passes on, so batches follow each other closely.
        Whoever adds up the results over the ranks waits for all of them by that.
        """
        here = self._moved(batch)
        for place, module in zip(self.places, self.modules, strict=True):
            hidden = None
            if not place.first:
                shape, kind = self._boundary(here)
                hidden = torch.empty(shape, dtype=kind, device=self.device)
                dist.recv(hidden, self._rank_of(place.index - 1), group=self.group)
            outputs = self.cut.run(module, self._inputs(here), hidden, last=place.last)
            if place.last:
                return read(outputs, here)
            if self._sending is not None:
                self._sending[0].wait()
            passed = outputs.contiguous()
            work = dist.isend(passed, self._rank_of(place.index + 1), group=self.group)
            assert work is not None
            self._sending = (work, passed)
        return {}

    def _moved(self, batch: Batch) -> dict[str, Tensor]:
        return {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}

    def _inputs(self, batch: Batch) -> Batch:
        return {name: value for name, value in batch.items() if name not in self.targets}

    def _rank_of(self, stage: int) -> int:
        return dist.get_global_rank(self.group, stage % self.group.size())

    def _boundary(self, batch: Batch) -> tuple[torch.Size, torch.dtype]:
        """Shape and dtype of the hidden states that this rank passes on or receives."""
        (rows, length, width), kind = self.cut.boundary(self.modules[0], self._inputs(batch))
        return torch.Size((rows, length // self.sequence_shards, width)), kind

    def _schedule_for(self, batches: Sequence[Batch]) -> Any:
        """The schedule for so many micro-batches of that shape; the last one is kept."""
        boundaries = {self._boundary(batch) for batch in batches}
        if len(boundaries) > 1:
            shapes = ", ".join(sorted(str(list(shape)) for shape, _ in boundaries))
            raise ValueError(f"the micro-batches of a pipelined step must have one shape, not {shapes}")
        count, boundary = len(batches), boundaries.pop()
        key = (count, *boundary)
        if self._schedule[0] != key:
            self._schedule = (key, self._make_schedule(count, *boundary))
        return self._schedule[1]

    def _make_schedule(self, count: int, shape: torch.Size, kind: torch.dtype) -> Any:
        hidden = torch.empty(shape, dtype=kind, device="meta").requires_grad_()
        loss = torch.empty((), device="meta").requires_grad_()
        # With fewer micro-batches than stages 1F1B is all warm-up, which torch wants said by the other name.
        alternating = len(self.places) == 1 and count >= self.places[0].stages
        stages: list[Any] = [
            _Stage(
                _Runner(partial(self._run, place, module)),
                place.index,
                place.stages,
                self.device,
                # Given both, the stages need not ask each other for shapes.
                input_args=() if place.first else (hidden,),
                output_args=(loss if place.last else hidden,),
                group=self.group,
                before_backward=partial(self._before_backward, module),
                after_backward=self._after_backward,
                micro_batches=count,
                in_flight=place.stages - place.index if alternating else count,
            )
            for place, module in zip(self.places, self.modules, strict=True)
        ]
        if len(stages) > 1:
            check_interleaving(count, self.group.size())
            return ScheduleInterleaved1F1B(stages, count, loss_fn=_loss_itself, scale_grads=False)
        kind_of_schedule = Schedule1F1B if alternating else ScheduleGPipe
        return kind_of_schedule(stages[0], count, loss_fn=_loss_itself, scale_grads=False)

    def _run(self, place: Place, module: nn.Module, hidden: Tensor | None, index: int) -> Tensor:
        """A stage on a micro-batch: hidden states, or from the last stage the scaled loss."""
        work = self._work
        assert work is not None
        batch = work.batches[index]
        outputs = self.cut.run(module, self._inputs(batch), hidden, last=place.last)
        if not place.last:
            return outputs.contiguous()
        shares = work.share(outputs, batch)
        for name, value in shares.items():
            work.sums[name] = work.sums[name] + value.detach() if name in work.sums else value.detach()
        loss = torch.stack(list(shares.values())).sum()
        return loss * work.scale if work.scale != 1.0 else loss

    def _before_backward(self, module: nn.Module, last: bool) -> None:
        if self.arm is not None:
            self.arm(module, last)

    def _after_backward(self) -> None:
        work = self._work
        assert work is not None
        work.collect(work.backwards == 0)
        work.backwards += 1


def check_interleaving(micro_batches: int, ranks: int) -> None:
    """Refuse a number of micro-batches that interleaved stages cannot take in equal rounds.

    Raises:
        ValueError: it is more than the ranks and no multiple of them that gives equal rounds.
    """
    rounds = max(1, micro_batches // ranks)
    if micro_batches % rounds:
        raise ValueError(
            f"{micro_batches} micro-batches in a step do not fit interleaved stages on {ranks} pipeline ranks "
            f"(--num-layers-per-virtual-pipeline-stage): choose --global-batch-size so that a data rank has a "
            f"multiple of {ranks} micro-batches, such as {ranks * rounds}"
        )


def _loss_itself(loss: Tensor, target: Tensor) -> Tensor:
    """What the last stage gives is the loss."""
    return loss
