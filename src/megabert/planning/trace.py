"""One rank of a run, built and run once: what it holds, what it computes, what it sends.

The model, the weights, the optimizer and the step are those of `pretrain`; only the machine is a rehearsal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from megabert.planning.cost import Work
from megabert.planning.recorder import Recorder
from megabert.planning.rehearsal import rehearsal
from megabert.planning.subject import Subject
from megabert.training.step import TrainingStep


@dataclass(frozen=True, kw_only=True)
class Holdings:
    """Bytes that a rank holds from step to step.

    Attributes:
        parameters: how many numbers the rank's weights are.
        weights: as the model computes with them.
        masters: float32 copies beside half weights; 0 in float32.
        gradients: float32 gradients of the masters.
        optimizer: the optimizer's state.
    """

    parameters: int
    weights: int
    masters: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.masters + self.gradients + self.optimizer


@dataclass(frozen=True, kw_only=True)
class Trace:
    """A rank's step.

    Attributes:
        holdings: what stays.
        passing: most bytes of activations, half gradients and buffers at one time.
        work: operations and collectives of a whole step.
    """

    holdings: Holdings
    passing: int
    work: Work


def batch_of(subject: Subject) -> dict[str, Tensor]:
    """A micro-batch of zeros, in the shapes that the run's rows have (docs/architecture.md, "Row")."""
    options = subject.options
    rows, length = options.batch_size, options.seq_length
    sizes = dict.fromkeys(("input_ids", "token_type_ids", "position_ids", "sample_ids"), length)
    sizes |= dict.fromkeys(("masked_positions", "masked_labels"), subject.places)
    sizes |= dict.fromkeys(("sample_starts", "next_sentence_label"), subject.samples)
    return {name: torch.zeros(rows, size, dtype=torch.int64) for name, size in sizes.items()}


def holdings_of(step: TrainingStep) -> Holdings:
    """What a step holds after it was made once; on a rehearsal or for real."""
    weights = [tensor for module in step.weights.modules for tensor in module.parameters()]
    masters = list(step.weights.masters.values())
    state = [value for values in step.optimizer.state.values() for value in values.values() if _counts(value)]
    gradients = [master.grad for master in masters if master.grad is not None]
    held = _bytes(map(_local, weights))
    return Holdings(
        parameters=sum(master.numel() for master in masters),
        weights=held,
        masters=_bytes([*map(_local, weights), *masters]) - held,
        gradients=_bytes(gradients) or 4 * sum(master.numel() for master in masters),
        optimizer=_bytes(state),
    )


def _counts(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0  # the number of steps is not worth a line


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # type: ignore[operator]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum({id(tensor.untyped_storage()): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def record_step(step: TrainingStep, batches: list[dict[str, Tensor]], recorder: Recorder) -> int:
    """Make one update under the recorder, its phases being `micro-batch 0`, `micro-batch 1`, ..., `update`.

    Returns:
        The most bytes that passing storages had at one time.
    """
    exchange: Any = step.exchange
    collect, complete = exchange.collect, exchange.complete
    done = 0

    def collected(first: bool) -> None:
        nonlocal done
        collect(first)
        done += 1
        if done < len(batches):
            recorder.phase = f"micro-batch {done}"

    def completed() -> None:
        recorder.phase = "update"
        complete()

    exchange.collect, exchange.complete = collected, completed
    try:
        with recorder:
            recorder.phase = "micro-batch 0"
            step(batches, step.optimizer.param_groups[0]["lr"])
    finally:
        del exchange.collect, exchange.complete
    return recorder.close()


Assemble = Callable[[Subject, DeviceMesh], TrainingStep]
"""Make the step of the rank that this process is."""


def trace(subject: Subject, rank: int, assemble: Assemble) -> Trace:
    """Build and run `rank` of the subject's layout on tensors without memory, as deep as the model is.

    Raises:
        ValueError: the layout or the batch is impossible; or this process already is one of a group.
    """
    count = subject.micro_batches
    layout = subject.layout
    if layout.pipeline == 1:
        # The first micro-batch counts and gathers, the last one reduces; those between are alike.
        operations, collectives, holdings, passing = _run(subject, rank, assemble, min(count, 3))
        repeated = max(count - 3, 0)
        return Trace(holdings=holdings, passing=passing, work=_work(operations, collectives, "micro-batch 1", repeated))
    # In a pipeline micro-batches overlap: one (or a round of interleaved ones) more shows what one more costs.
    few = min(count, layout.pipeline * (2 if layout.virtual > 1 else 1))
    operations, collectives, holdings, passing = _run(subject, rank, assemble, few)
    work = _work(operations, collectives, "", 0)
    if count > few:
        more = layout.pipeline if layout.virtual > 1 else 1
        operations, collectives, _, _ = _run(subject, rank, assemble, few + more)
        longer = _work(operations, collectives, "", 0)
        work = work.toward(longer, (count - few) / more)
    return Trace(holdings=holdings, passing=passing, work=work)


def short_trace(subject: Subject, rank: int, assemble: Assemble) -> Trace:
    """`trace` from two shallow models: layers are alike, so all numbers lie on straight lines over their count."""
    pieces = subject.layout.pipeline * subject.layout.virtual
    each = subject.options.num_layers // pieces
    if each <= 4 or subject.options.recompute_num_layers > 1:
        return trace(subject, rank, assemble)
    step = subject.options.num_layers_per_virtual_pipeline_stage
    shallow, deeper = (
        trace(
            subject.with_options(
                num_layers=depth * pieces, num_layers_per_virtual_pipeline_stage=None if step is None else depth
            ),
            rank,
            assemble,
        )
        for depth in (3, 4)
    )
    times = each - 3

    def line(one: int, other: int) -> int:
        return one + times * (other - one)

    names = [field.name for field in fields(Holdings)]
    return Trace(
        holdings=Holdings(
            **{name: line(getattr(shallow.holdings, name), getattr(deeper.holdings, name)) for name in names}
        ),
        passing=line(shallow.passing, deeper.passing),
        work=shallow.work.toward(deeper.work, times),
    )


Counts = dict[str, Counter]


def _run(subject: Subject, rank: int, assemble: Assemble, count: int) -> tuple[Counts, Counts, Holdings, int]:
    with rehearsal(rank, subject.layout) as (recorder, mesh):
        step = assemble(subject, mesh)
        batches = [batch_of(subject) for _ in range(count)]
        passing = record_step(step, batches, recorder)
        return recorder.operations, recorder.collectives, holdings_of(step), passing


def _work(operations: Counts, collectives: Counts, repeated: str, times: int) -> Work:
    """The whole step, in which the phase `repeated` comes `times` times more than it was seen."""
    passes = [name for name in operations if name.startswith("micro-batch")]

    def total(counts: Counts) -> Counter:
        result: Counter = Counter()
        for name in passes:
            for item, number in counts.get(name, {}).items():
                result[item] += number * (1 + times * (name == repeated))
        return result

    return Work(
        operations=total(operations),
        collectives=total(collectives),
        update_operations=operations.get("update", Counter()),
        update_collectives=collectives.get("update", Counter()),
        last=operations[passes[-1]],
    )
