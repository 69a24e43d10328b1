"""A plan: every kind of rank traced, its memory beside the device's, the step's time and how much of it is lost."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from megabert.models.bert import recompute as bert_recompute
from megabert.planning.cost import Times, Work, compute_seconds, times_of
from megabert.planning.hardware import Hardware
from megabert.planning.subject import Subject
from megabert.planning.trace import Assemble, Trace, short_trace, trace

RESERVED = int(1.5 * 2**30)
"""Bytes of a GPU that driver, libraries and their message buffers take."""


@dataclass(frozen=True)
class Plan:
    """What a run will need and how fast it will be.

    Attributes:
        traces: of one rank of each kind, by rank: the stages of a pipeline differ, all else is alike.
        times: of the slowest of them.
        ideal: seconds of a step if the devices had shared the work of one device and nothing else had taken time.
        flops: multiplications and additions of matrices that the model needs in a step, nothing computed twice.
        activations: choice of recomputation -> the most bytes of activations and buffers on any rank.
    """

    subject: Subject
    hardware: Hardware
    traces: dict[int, Trace]
    times: Times
    ideal: float
    flops: float
    activations: dict[str, int]

    @property
    def peak(self) -> int:
        """Bytes that the fullest rank needs."""
        return max(peak_of(trace) for trace in self.traces.values())

    @property
    def fits(self) -> bool:
        """The fullest rank is not too full."""
        return self.peak <= self.hardware.memory

    @property
    def efficiency(self) -> float:
        """Work of a device in a second, over that of one device that does the whole model alone."""
        return self.ideal / self.times.step

    @property
    def rate(self) -> float:
        """The model's FLOP/s on each device."""
        return self.flops / self.times.step / self.subject.layout.world

    @property
    def tokens(self) -> float:
        """Places of rows per second, all devices together."""
        return self.subject.rows * self.subject.options.seq_length / self.times.step


def peak_of(found: Trace) -> int:
    """Bytes that a rank needs on its device."""
    return found.holdings.total + found.passing + RESERVED


def kinds_of_rank(subject: Subject) -> list[int]:
    """The first rank of each stage that differs from others: first, second, last."""
    layout = subject.layout
    stages = sorted({0, min(1, layout.pipeline - 1), layout.pipeline - 1})
    return [stage * layout.data * layout.tensor for stage in stages]


def recomputations(subject: Subject) -> dict[str, Subject]:
    """Choice of recomputation -> the subject with it."""
    return {
        name: subject.with_options(
            checkpoint_activations=False, recompute_activations=False, recompute_method=None, recompute_num_layers=1,
            recompute_granularity=granularity,
            distribute_saved_activations=subject.options.distribute_saved_activations and granularity == "full",
        )
        for name, granularity in (("none", None), ("selective", "selective"), ("full", "full"))
    }  # fmt: skip


def recomputation_of(subject: Subject) -> str:
    """The choice of the subject's own options, in a few words."""
    chosen = bert_recompute.recomputation_of(subject.options, subject.options.num_layers)
    if chosen is None or chosen.granularity == "selective":
        return "none" if chosen is None else "selective"
    return "full" if chosen.num_layers == 1 else f"full, {chosen.method} {chosen.num_layers}"


def alone(subject: Subject) -> Subject:
    """The run on a single process that has enough memory: one micro-batch of it."""
    return subject.with_options(
        tensor_model_parallel_size=1, pipeline_model_parallel_size=1, num_layers_per_virtual_pipeline_stage=None,
        sequence_parallel=False, data_parallel_sharding="none", use_distributed_optimizer=False,
        global_batch_size=None, distribute_saved_activations=False,
    ).in_world(1)  # fmt: skip


def make_plan(
    subject: Subject,
    hardware: Hardware,
    assemble: Assemble,
    *,
    quick: bool = False,
    known: dict[str, Work] | None = None,
) -> Plan:
    """Trace the ranks and tell what they say.

    Args:
        quick: follow straight lines from shallow models instead of building the whole depth, and leave out the
            choices of recomputation that are not the run's, and the stages in the middle of a pipeline.
        known: work of a single device by recomputation, of earlier plans of the run in other layouts; added to.

    Raises:
        ValueError: an impossible layout or batch.
    """
    look = short_trace if quick else trace
    # A stage in the middle holds less than the first and computes less than the last.
    ranks = kinds_of_rank(subject)
    traces = {rank: look(subject, rank, assemble) for rank in ({ranks[0], ranks[-1]} if quick else ranks)}
    layout, micro_batches = subject.layout, subject.micro_batches
    overlap = subject.options.overlap_grad_reduce
    times = [times_of(found.work, layout, hardware, micro_batches, overlap=overlap) for found in traces.values()]
    ideal, flops = ideal_of(subject, hardware, assemble, {} if known is None else known)
    own = recomputation_of(subject)
    activations = {own: max(found.passing for found in traces.values())}
    for choice, other in recomputations(subject).items():
        if choice != own and not quick:
            activations[choice] = max(short_trace(other, rank, assemble).passing for rank in traces)
    return Plan(subject, hardware, traces, max(times, key=lambda each: each.step), ideal, flops, activations)


def ideal_of(subject: Subject, hardware: Hardware, assemble: Assemble, known: dict[str, Work]) -> tuple[float, float]:
    """Seconds of a step with the work of one device shared evenly, and FLOPs that the model needs in it."""
    single = alone(subject)
    work = _work_alone(single, assemble, known)
    parts = subject.layout.tensor * subject.layout.pipeline
    passes = compute_seconds(work.operations, hardware) * subject.micro_batches
    update = compute_seconds(work.update_operations, hardware)
    needed = _work_alone(recomputations(single)["none"], assemble, known)
    return (passes + update) / parts, needed.flops * subject.micro_batches * subject.layout.data


def _work_alone(single: Subject, assemble: Assemble, known: dict[str, Work]) -> Work:
    choice = recomputation_of(single)
    if choice not in known:
        known[choice] = short_trace(single, 0, assemble).work
    return known[choice]


def with_gpus(hardware: Hardware, gpus: int | None) -> Hardware:
    """The same machine with so many GPUs in a node; the network is that of the node."""
    if gpus is None:
        return hardware
    title = hardware.title.replace(f"{hardware.gpus} to a node", f"{gpus} to a node")
    return dataclasses.replace(hardware, gpus=gpus, title=title)
