import dataclasses
from collections import Counter

import pytest

from megabert.planning.assembly import assemble
from megabert.planning.hardware import HARDWARE
from megabert.planning.plan import make_plan
from megabert.planning.rehearsal import rehearsal
from megabert.planning.search import search
from megabert.planning.trace import batch_of, record_step, short_trace, trace

from .subjects import run_of

H100 = HARDWARE["h100"]
LARGE = {"num_layers": 24, "hidden_size": 1024, "num_attention_heads": 16, "max_position_embeddings": 512,
         "seq_length": 512, "vocab_size": 30522, "batch_size": 4}  # fmt: skip


def test_the_345m_model_has_its_published_parameters_and_work():
    plan = make_plan(run_of(**LARGE, bf16=True), H100, assemble)
    (found,) = plan.traces.values()
    assert found.holdings.parameters == 336_297_858  # Megatron's count for a vocabulary of 30,592
    assert found.holdings.weights == 2 * 336_297_858
    assert found.holdings.masters == found.holdings.gradients == 4 * 336_297_858
    assert found.holdings.optimizer == 8 * 336_297_858
    # 12 L h^2 multiply-adds a token and 2 L h s of attention; a head on 80 places a row; backward twice as much.
    tokens, matrices = 4 * 512, 12 * 24 * 1024**2
    network = 2 * matrices + 4 * 24 * 1024 * 512
    head = 80 / 512 * 2 * (1024**2 + 1024 * 30592)
    assert plan.flops == pytest.approx(3 * tokens * (network + head), rel=0.06)
    assert 0.2 < plan.rate / H100.matrix < 0.7


@pytest.mark.parametrize(
    "changes",
    [
        {"world": 8, "tensor_model_parallel_size": 2, "num_layers": 7, "bf16": True, "global_batch_size": 40},
        {"world": 4, "data_parallel_sharding": "full", "num_layers": 7, "recompute_granularity": "full"},
    ],
)
def test_shallow_models_lie_on_the_line_of_the_deep_one(changes):
    subject = run_of(**changes)
    deep, line = trace(subject, 0, assemble), short_trace(subject, 0, assemble)
    assert line.holdings.parameters == deep.holdings.parameters
    assert line.holdings.optimizer == deep.holdings.optimizer
    counts = {kind: sum(n for each, n in deep.work.all_collectives.items() if each.kind == kind)
              for kind in ("all-reduce", "all-gather", "reduce-scatter")}  # fmt: skip
    for kind, count in counts.items():
        found = sum(n for each, n in line.work.all_collectives.items() if each.kind == kind)
        assert found == pytest.approx(count, abs=2), kind  # gradient buckets are filled over the borders of layers
    assert line.work.flops == deep.work.flops
    assert line.passing == pytest.approx(deep.passing, rel=0.1)


def test_tensor_parallel_messages_follow_the_formula():
    """Two all-reduces a layer and direction (the paper's f and g), the embedding's, the head's, the loss's two."""
    layers, rows, length, width = 4, 2, 32, 64
    subject = run_of(2, tensor_model_parallel_size=2, num_layers=layers)
    found = trace(subject, 0, assemble).work.collectives
    assert sum(found.values()) == 4 * layers + 1 + 1 + 2
    whole, wanted, masked = rows * length * width * 4, rows * 11 * width * 4, rows * 10 * width * 4
    # In the last layer only 10 masked places and the first one go on behind the attention's keys and values.
    sizes = (4 * (layers - 1) + 1 + 1) * whole + 3 * wanted + masked + (1 + 2) * rows * 10 * 4
    assert sum(each.size * count for each, count in found.items()) == sizes


def test_more_micro_batches_add_the_same_each():
    def messages(count):
        subject = run_of(4, tensor_model_parallel_size=2, global_batch_size=4 * count)
        return trace(subject, 0, assemble).work.collectives

    three, seven = messages(3), messages(7)
    per_micro_batch = {each: (seven[each] - three[each]) / 4 for each in three}
    assert sum(per_micro_batch.values()) == 4 * 4 + 4
    assert all(each.ranks == (0, 1) for each, count in per_micro_batch.items() if count)


@pytest.mark.parametrize("pieces", [None, 1])
def test_more_micro_batches_in_a_pipeline_add_the_same_each(pieces):
    subject = run_of(
        2, pipeline_model_parallel_size=2, num_layers_per_virtual_pipeline_stage=pieces, global_batch_size=12
    )
    found = trace(subject, 1, assemble)
    with rehearsal(1, subject.layout) as (recorder, mesh):
        step = assemble(subject, mesh)
        record_step(step, [batch_of(subject) for _ in range(6)], recorder)
    messages = sum(recorder.collectives.values(), Counter())
    assert messages == found.work.all_collectives
    flops = sum(each.flops * count for counts in recorder.operations.values() for each, count in counts.items())
    assert flops == found.work.flops


def test_what_recomputed_layers_keep_can_be_shared():
    """Each layer more costs half of its input then."""

    def layer(**changes):
        common = {"tensor_model_parallel_size": 2, "recompute_granularity": "full", "batch_size": 64, **changes}
        few, many = (trace(run_of(2, num_layers=layers, **common), 0, assemble).passing for layers in (2, 6))
        return (many - few) / 4

    whole = 64 * 32 * 64 * 4
    assert layer() == pytest.approx(whole, rel=0.05)
    assert layer(distribute_saved_activations=True) == pytest.approx(whole / 2, rel=0.05)


def test_recomputation_and_sharding_spare_memory():
    subject = run_of(4, hidden_size=128, seq_length=128, max_position_embeddings=128, bf16=True, batch_size=8)
    plan = make_plan(subject, H100, assemble)
    assert plan.activations["full"] < plan.activations["none"] / 2
    sharded = trace(subject.with_options(data_parallel_sharding="optimizer"), 0, assemble)
    (whole,) = plan.traces.values()
    # All dimensions are multiples of 4 but the pair head's 2 rows, which two of the ranks hold.
    assert sharded.holdings.optimizer == pytest.approx(whole.holdings.optimizer / 4, rel=0.01)
    assert sharded.holdings.weights < whole.holdings.weights


def test_a_plan_says_whether_it_fits():
    subject = run_of()
    assert make_plan(subject, H100, assemble, quick=True).fits
    tiny = dataclasses.replace(H100, memory=2**20)
    assert not make_plan(subject, tiny, assemble, quick=True).fits
    assert search(subject, tiny, assemble) == []


def test_a_search_lists_the_fastest_first():
    plans = search(run_of(4, num_layers=2), H100, assemble)
    seconds = [plan.times.step / plan.subject.rows for plan in plans]
    assert seconds == sorted(seconds)
    assert len({plan.subject.rows for plan in plans}) > 1, "steps of unlike sizes are to be compared"
    assert {plan.subject.layout.tensor for plan in plans} == {1, 2, 4}
    assert {plan.subject.layout.pipeline for plan in plans} == {1, 2}
    assert all(plan.subject.layout.world == 4 for plan in plans)


def test_a_search_shares_the_weights_where_nothing_less_fits():
    subject = run_of(2, hidden_size=256)
    peaks = [
        make_plan(subject.with_options(data_parallel_sharding=sharding), H100, assemble, quick=True).peak
        for sharding in ("none", "optimizer", "full")
    ]
    assert peaks == sorted(peaks, reverse=True) and len(set(peaks)) == 3
    small = dataclasses.replace(H100, gpus=1, memory=(peaks[1] + peaks[2]) // 2)
    plans = search(subject, small, assemble)
    assert all(plan.peak <= small.memory for plan in plans)
    assert [plan.subject.layout.sharding for plan in plans if plan.subject.layout.pipeline == 1] == ["full"]


def test_a_batch_that_cannot_be_cut_names_the_nearest():
    with pytest.raises(ValueError, match=r"--global-batch-size 10 is not a multiple of 8 .* the nearest is 8"):
        run_of(4, global_batch_size=10)
