from __future__ import annotations

import pytest

from megabert.parallel.mesh import Layout, layout_of
from megabert.parallel.options import ParallelOptions


def layout(world, sequence=128, layers=24, heads=16, intermediate=4096, **flags):
    return layout_of(
        ParallelOptions(**flags), world, layers=layers, heads=heads, intermediate=intermediate, sequence=sequence
    )


def test_megatrons_rank_order():
    # Specification of 16 GPUs with tensor 2 and pipeline 4: tensor {0,1}, data {0,2}, pipeline {0,4,8,12}.
    found = layout(16, tensor_model_parallel_size=2, pipeline_model_parallel_size=4)
    assert (found.data, found.virtual) == (2, 1)
    assert [found.place(rank) for rank in (0, 1, 2, 4, 15)] == [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (3, 1, 1)]


def test_pieces_of_a_stage():
    flags = {"pipeline_model_parallel_size": 4, "num_layers_per_virtual_pipeline_stage": 2}
    assert layout(4, **flags).virtual == 3


def test_one_process_needs_nothing():
    assert layout(1) == Layout() and Layout().alone


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"tensor_model_parallel_size": 3}, ["--num-attention-heads 16", "nearest size that does is 2"]),
        ({"pipeline_model_parallel_size": 5}, ["--num-layers 24", "nearest size that does is 4"]),
        ({"tensor_model_parallel_size": 16}, ["8 processes", "nearest group size that divides 8 is 8"]),
        ({"num_layers_per_virtual_pipeline_stage": 2}, ["--pipeline-model-parallel-size 2 or more"]),
        (
            {"num_layers_per_virtual_pipeline_stage": 5, "pipeline_model_parallel_size": 2},
            ["12 layers of a stage", "nearest number that does is 4"],
        ),
        (
            {"sequence": 129, "tensor_model_parallel_size": 2, "sequence_parallel": True},
            ["sequence of 129", "multiple of 2"],
        ),
        (
            {"use_distributed_optimizer": True, "data_parallel_sharding": "full"},
            ["--use-distributed-optimizer", "full"],
        ),
    ],
)
def test_impossible_layouts_are_refused_with_the_nearest(flags, named):
    with pytest.raises(ValueError) as error:
        layout(8, **flags)
    for part in named:
        assert part in str(error.value)


def test_one_process_is_told_how_to_start_more():
    with pytest.raises(ValueError, match="torchrun --nproc-per-node 4"):
        layout(1, tensor_model_parallel_size=2, pipeline_model_parallel_size=2)


def test_megatrons_name_of_a_sharded_optimizer():
    assert layout(2, use_distributed_optimizer=True).sharding == "optimizer"
