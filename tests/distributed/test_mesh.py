from __future__ import annotations

import pytest

from megabert.parallel.mesh import Layout, Sizes, layout_of, remarks
from megabert.parallel.options import ParallelOptions


def layout(world, sequence=128, layers=24, heads=16, hidden=1024, **flags):
    sizes = Sizes(layers=layers, heads=heads, hidden=hidden, intermediate=4 * hidden, sequence=sequence)
    return layout_of(ParallelOptions(**flags), world, sizes)


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
        (
            {"tensor_model_parallel_size": 3},
            ["--num-attention-heads 16;", "of 8 processes is --tensor-model-parallel-size 2 --pipe"],
        ),
        ({"pipeline_model_parallel_size": 5}, ["--num-layers 24 (25 could", "--pipeline-model-parallel-size 4"]),
        (
            {"tensor_model_parallel_size": 16},
            ["8 processes cannot", "number of processes is 16", "--tensor-model-parallel-size 8 --pipe"],
        ),
        # What divides the heads must divide the processes too, and the other way round.
        (
            {"world": 3, "tensor_model_parallel_size": 3},
            ["of 3 processes is --tensor-model-parallel-size 1 --pipeline-model-parallel-size 1"],
        ),
        ({"world": 10, "pipeline_model_parallel_size": 5}, ["of 10 processes", "--pipeline-model-parallel-size 2"]),
        ({"world": 6, "tensor_model_parallel_size": 4}, ["of 6 processes is --tensor-model-parallel-size 2 --pipe"]),
        (
            {"world": 2, "hidden": 66, "heads": 3, "tensor_model_parallel_size": 2},
            ["(--num-attention-heads 2 could", "of 2 processes is --tensor-model-parallel-size 1"],
        ),
        (
            {"world": 12, "hidden": 64, "heads": 8, "tensor_model_parallel_size": 3},
            ["--num-attention-heads 8;", "--tensor-model-parallel-size 2 --pipeline-model-parallel-size 1"],
        ),
        ({"num_layers_per_virtual_pipeline_stage": 2}, ["--pipeline-model-parallel-size 2 or more"]),
        (
            {"num_layers_per_virtual_pipeline_stage": 5, "pipeline_model_parallel_size": 2},
            ["12 layers of a stage", "--num-layers-per-virtual-pipeline-stage 4"],
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
        layout(**{"world": 8, **flags})
    for part in named:
        assert part in str(error.value)


def test_one_process_is_told_how_to_start_more():
    with pytest.raises(ValueError, match="torchrun --nproc-per-node 4"):
        layout(1, tensor_model_parallel_size=2, pipeline_model_parallel_size=2)


def test_megatrons_name_of_a_sharded_optimizer():
    assert layout(2, use_distributed_optimizer=True).sharding == "optimizer"


def test_what_a_layout_allows_but_nobody_means_is_remarked():
    def said(world, hosts, **flags):
        return list(remarks(ParallelOptions(**flags), layout(world, **flags), hosts))

    assert said(4, "aabb", tensor_model_parallel_size=2, sequence_parallel=True) == []
    (line,) = said(4, "aabb", sequence_parallel=True)
    assert "--sequence-parallel shares nothing" in line
    (line,) = said(6, "aaabbb", tensor_model_parallel_size=2)
    assert "tensor ranks 2 to 3 lie on several machines" in line
