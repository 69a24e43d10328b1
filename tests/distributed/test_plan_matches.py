"""`megabert plan` against real processes: the same bytes held, the same messages sent, exactly."""

from __future__ import annotations

import dataclasses
from collections import Counter

import torch.distributed as dist

from megabert.planning.assembly import assemble
from megabert.planning.options import RunOptions
from megabert.planning.recorder import Recorder
from megabert.planning.subject import Subject
from megabert.planning.trace import holdings_of, record_step, trace

from .jobs import succeed, world
from .small import LAYERS, LENGTH, PLACES, SAMPLES, VOCABULARY, micro_batches, parallel_step

LAYOUTS = [
    {"tensor_model_parallel_size": 2},
    {"tensor_model_parallel_size": 4},
    {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    {"data_parallel_sharding": "optimizer"},
    {"data_parallel_sharding": "full"},
    {"tensor_model_parallel_size": 2, "sequence_parallel": True, "data_parallel_sharding": "full"},
    {"tensor_model_parallel_size": 2, "bf16": True},
    {"data_parallel_sharding": "optimizer", "bf16": True},
    {"pipeline_model_parallel_size": 2},
    {"pipeline_model_parallel_size": 2, "num_layers_per_virtual_pipeline_stage": 1},
    {"pipeline_model_parallel_size": 2, "tensor_model_parallel_size": 2, "sequence_parallel": True, "bf16": True},
]


def subject_of(changes) -> Subject:
    """The run of `small.parallel_step`, whose rows are packed."""
    options = RunOptions(
        num_layers=LAYERS, hidden_size=32, num_attention_heads=4, intermediate_size=64, max_position_embeddings=LENGTH,
        seq_length=LENGTH, vocab_size=VOCABULARY, make_vocab_size_divisible_by=1, hidden_dropout=0.0,
        attention_dropout=0.0, batch_size=2, global_batch_size=8, **changes,
    )  # fmt: skip
    return dataclasses.replace(Subject.of(options, 4), places=PLACES, samples=SAMPLES)


def found_by(step, batches):
    recorder = Recorder()
    record_step(step, batches, recorder)
    return holdings_of(step), sum(recorder.collectives.values(), Counter())


def in_world(planned):
    with world(60):
        compare(planned)


def compare(planned):
    rank = dist.get_rank()
    for number, changes in enumerate(LAYOUTS):
        layout = subject_of(changes).layout
        step, _, _ = parallel_step(layout, bf16="bf16" in changes)
        held, sent = found_by(step, micro_batches(0, layout))
        if rank not in planned:
            continue
        holdings, messages = planned[rank][number]
        assert held == holdings, f"{changes}, rank {rank}: {held} is held, {holdings} was planned"
        assert sent == messages, f"{changes}, rank {rank}: {sent} was sent, {messages} was planned"


def planned_for(rank):
    plans = []
    for changes in LAYOUTS:
        found = trace(subject_of(changes), rank, assemble)
        plans.append((found.holdings, Counter(found.work.all_collectives)))
    return plans


def test_real_processes_hold_and_send_what_was_planned():
    # The first and the last process differ in every place that a layout has.
    succeed(in_world, 4, {rank: planned_for(rank) for rank in (0, 3)}, seconds=120)
