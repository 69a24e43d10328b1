"""`megabert plan` against real processes: the same bytes held, the same messages sent, exactly."""

from __future__ import annotations

import dataclasses
from collections import Counter

import torch.distributed as dist
from transformers import logging

from megabert.parallel.mesh import layout_of
from megabert.parallel.options import ParallelOptions
from megabert.planning.assembly import assemble
from megabert.planning.recorder import Recorder
from megabert.planning.subject import Subject
from megabert.planning.trace import holdings_of, record_step, trace
from tests.distributed.processes import run_in
from tests.distributed.small import LENGTH, PLACES, SAMPLES, VOCABULARY, micro_batches, parallel_step
from tests.planning.subjects import run_of

LAYOUTS = [
    {"tensor_model_parallel_size": 2},
    {"tensor_model_parallel_size": 4},
    {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    {"data_parallel_sharding": "optimizer"},
    {"data_parallel_sharding": "full"},
    {"tensor_model_parallel_size": 2, "sequence_parallel": True, "data_parallel_sharding": "full"},
    {"tensor_model_parallel_size": 2, "bf16": True},
    {"data_parallel_sharding": "optimizer", "bf16": True},
]


def subject_of(changes) -> Subject:
    """The run of `small.parallel_step`, whose rows are packed."""
    subject = run_of(
        4, num_layers=4, hidden_size=32, num_attention_heads=4, intermediate_size=64, max_position_embeddings=LENGTH,
        seq_length=LENGTH, vocab_size=VOCABULARY, make_vocab_size_divisible_by=1, hidden_dropout=0.0,
        attention_dropout=0.0, init_method_std=0.1, global_batch_size=8, **changes,
    )  # fmt: skip
    return dataclasses.replace(subject, places=PLACES, samples=SAMPLES)


def found_by(step, batches):
    recorder = Recorder()
    record_step(step, batches, recorder)
    return holdings_of(step), sum(recorder.collectives.values(), Counter())


def in_process(planned):
    logging.set_verbosity_error()
    rank = dist.get_rank()
    for changes, (holdings, messages) in zip(LAYOUTS, planned[rank], strict=True):
        options = ParallelOptions(**{name: value for name, value in changes.items() if name != "bf16"})
        layout = layout_of(options, 4, layers=4, heads=4, intermediate=64, sequence=LENGTH)
        step, _, _ = parallel_step(layout, **{name: value for name, value in changes.items() if name == "bf16"})
        held, sent = found_by(step, micro_batches(0, layout))
        assert held == holdings, f"{changes}, rank {rank}: {held} is held, {holdings} was planned"
        assert sent == messages, f"{changes}, rank {rank}: {sent} was sent, {messages} was planned"


def planned_for(rank):
    plans = []
    for changes in LAYOUTS:
        found = trace(subject_of(changes), rank, assemble)
        plans.append((found.holdings, Counter(found.work.all_collectives)))
    return plans


def test_real_processes_hold_and_send_what_was_planned():
    run_in(4, in_process, [planned_for(rank) for rank in range(4)])
