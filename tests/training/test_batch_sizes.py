import pytest

from megabert.training.batch_sizes import BatchSizes, rows_in_run, sizes_of, steps_of, with_updates

from .toy import options


def ramped(**changes):
    values = {"rampup_batch_size": (4, 4, 30), "global_batch_size": 16, "train_samples": 200, "train_iters": None}
    return options(**{**values, **changes})


def sequence(sizes: BatchSizes, updates: int) -> list[int]:
    samples, seen = 0, []
    for _ in range(updates):
        seen.append(sizes.at(samples))
        samples += seen[-1]
    return seen


def test_the_sequence_by_hand():
    # (16 - 4) / 4 = 3 increments, one for each 10 samples. Read before the updates: 0, 4, 8 | 12, 20 -> exactly at a
    # border the next size holds | 32 is over 30.
    assert sequence(sizes_of(ramped()), 8) == [4, 4, 4, 8, 12, 16, 16, 16]


def test_the_border_itself_still_belongs_to_the_ramp_and_has_its_last_size():
    sizes = BatchSizes(first=2, increment=2, ramp=8, last=6)
    assert [sizes.at(samples) for samples in (0, 3, 4, 7, 8, 9)] == [2, 2, 4, 4, 6, 6]


def test_increments_that_do_not_divide_the_samples():
    # 7 / 3 = 2.33 samples for each: 0 1 2 | 3 4 | 5 6 | 7
    sizes = BatchSizes(first=1, increment=1, ramp=7, last=4)
    assert [sizes.at(samples) for samples in range(9)] == [1, 1, 1, 2, 2, 3, 3, 4, 4]


def test_updates_of_the_run():
    # 4 + 4 + 4 + 8 + 12 = 32 samples in 5 updates, then (200 - 32) // 16 = 10 of 16, and 8 samples are left out.
    assert steps_of(ramped()) == 15
    assert rows_in_run(ramped()) == 192
    assert sizes_of(ramped()).after(12, 3) == 12 + 8 + 12 + 16
    assert sizes_of(ramped()).after(64, 3) == 64 + 48
    assert sizes_of(ramped()).after(20, 0) == 20


def test_without_a_ramp_all_updates_are_alike():
    assert sequence(sizes_of(options(global_batch_size=8)), 3) == [8, 8, 8]
    assert steps_of(options(train_samples=99, global_batch_size=8)) == 12
    assert rows_in_run(options(train_iters=7, global_batch_size=8)) == 56
    assert sequence(sizes_of(ramped(rampup_batch_size=(16, 4, 30))), 2) == [16, 16]


def test_epochs_are_passes():
    # 3 passes over 25 rows are 75 rows: 10 updates of 8, the last of which begins a fourth pass.
    resolved = with_updates(options(train_iters=None, epochs=3, global_batch_size=8), 25)
    assert steps_of(resolved) == 10 and resolved.epochs is None
    assert steps_of(with_updates(options(train_iters=None, epochs=2, batch_size=5), 25)) == 10


def test_epochs_with_iterations_are_those_of_2019():
    assert steps_of(with_updates(options(train_iters=7, epochs=3), 1000)) == 21


def test_the_default_length():
    assert steps_of(options(train_iters=None)) == 1_000_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_samples": None, "train_iters": 10}, "goes with --train-samples"),
        ({"rampup_batch_size": (4, 4)}, "three numbers"),
        ({"rampup_batch_size": (4, 0, 30)}, "above 0"),
        ({"rampup_batch_size": (4, 5, 30)}, "--global-batch-size 16 is not met"),
        ({"rampup_batch_size": (32, 4, 30)}, "--global-batch-size 16 is not met"),
        ({"rampup_batch_size": (4, 2, 30)}, "6 rows is not a multiple of --batch-size 4"),
        ({"train_samples": 31}, "31 is less than the 32"),
        ({"epochs": 2}, "keep one of them"),
    ],
)
def test_refuses_what_does_not_go_together(changes, message):
    with pytest.raises(ValueError, match=message):
        steps_of(ramped(**changes))
