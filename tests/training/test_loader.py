import multiprocessing
import os

import numpy as np
import pytest
import torch

from megabert.training.batch_sizes import BatchSizes
from megabert.training.loader import Batches, collate, evaluation_batches

from .toy import ToyRows

CPU = torch.device("cpu")


class Numbered:
    """Row i holds i, and the process that made it."""

    def __len__(self):
        return 100

    def __getitem__(self, index):
        if index == 66:
            raise ValueError("data.bin: row 66 is damaged")
        return {"index": np.array(index), "process": np.array(os.getpid())}


def batches(rows=None, **changes):
    values = {"micro_batch": 2, "sizes": BatchSizes(6, 1, 0, 6), "start": 0, "stop": 30, "workers": 0, "device": CPU}
    return Batches(rows or Numbered(), **{**values, **changes})


def indices(reader):
    return [[batch["index"].tolist() for batch in update] for update in reader]


def flat(reader):
    return [[row for batch in update for row in batch] for update in indices(reader)]


def test_an_update_is_the_next_rows_cut_into_micro_batches():
    assert indices(batches(stop=12)) == [[[0, 1], [2, 3], [4, 5]], [[6, 7], [8, 9], [10, 11]]]


def test_order_does_not_depend_on_workers_and_starts_anywhere():
    alone = indices(batches())
    reader = batches(workers=2)
    shared = list(reader)
    reader.close()
    assert [[batch["index"].tolist() for batch in update] for update in shared] == alone
    assert os.getpid() not in {int(process) for update in shared for batch in update for process in batch["process"]}
    assert indices(batches(start=12)) == alone[2:]
    assert not multiprocessing.active_children()


def test_updates_grow_while_the_batch_is_ramped_up():
    growing = BatchSizes(first=2, increment=2, ramp=8, last=6)
    seen = flat(batches(stop=20, sizes=growing))
    # per step of the ramp 4 rows: 2 rows at 0 and 2, 4 rows at 4, then (8 rows, not more than 8, were read) 6
    assert seen == [[0, 1], [2, 3], [4, 5, 6, 7], [8, 9, 10, 11, 12, 13], [14, 15, 16, 17, 18, 19]]
    assert seen[3:] == flat(batches(start=8, stop=20, sizes=growing))


def test_training_asks_for_rows_beyond_one_pass():
    assert indices(batches(start=96, stop=108)) == [
        [[96, 97], [98, 99], [100, 101]],
        [[102, 103], [104, 105], [106, 107]],
    ]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_row_arrives_as_it_was_made(workers):
    reader = batches(start=60, stop=90, workers=workers)
    with pytest.raises(ValueError, match=r"^data.bin: row 66 is damaged$"):
        list(reader)
    reader.close()


def test_a_worker_that_dies_is_one_line():
    class Deadly(Numbered):
        def __getitem__(self, index):
            os._exit(1)

    reader = batches(Deadly(), workers=1)
    with pytest.raises(OSError, match=r"ended unexpectedly.*--num-workers"):
        next(reader)
    reader.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_reading_draws_no_random_numbers(workers):
    before = torch.get_rng_state()
    reader = batches(workers=workers)
    list(reader)
    reader.close()
    assert torch.equal(torch.get_rng_state(), before)


def test_waiting_is_measured():
    reader = batches()
    assert reader.waited == 0.0
    next(reader)
    assert reader.waited > 0.0


def test_evaluation_reads_each_row_once():
    seen = [
        batch["index"].tolist() for batch in evaluation_batches(Numbered(), batch=4, limit=10, workers=0, device=CPU)
    ]
    assert seen == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    few = list(evaluation_batches(ToyRows(3), batch=2, limit=1000, workers=0, device=CPU))
    assert [batch["input_ids"].shape[0] for batch in few] == [2, 1]


def test_collate_adds_the_batch_dimension():
    batch = collate([ToyRows(9)[i] for i in range(3)])
    assert batch["input_ids"].dtype == torch.int64
    assert np.array_equal(batch["masked_labels"][2].numpy(), ToyRows(9)[2]["masked_labels"])
