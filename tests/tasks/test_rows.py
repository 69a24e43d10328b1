import numpy as np
import pytest

from megabert.tasks.base import Features
from megabert.tasks.rows import TrainingRows, by_length, padded


def made(lengths):
    return [
        Features(example=n, input_ids=np.full(length, n + 1), token_type_ids=np.ones(length, dtype=np.int64),
                 labels={"labels": np.full(length, 7), "kind": np.array(n)})
        for n, length in enumerate(lengths)
    ]  # fmt: skip


def test_padding_reaches_the_longest_row_only():
    batch = padded([one.row() for one in made([3, 10])], pad_id=99)
    assert batch["input_ids"].shape == (2, 16)
    assert batch["input_ids"][0].tolist() == [1] * 3 + [99] * 13
    assert batch["attention_mask"].sum(1).tolist() == [3, 10]
    assert batch["token_type_ids"][0].sum() == 3
    assert (batch["labels"][0] == -100).sum() == 13
    assert batch["kind"].tolist() == [0, 1]


@pytest.mark.parametrize("count", [1, 7, 8, 61])
def test_every_pass_reads_every_row_once(count):
    rows = TrainingRows(made([1 + n % 13 for n in range(count)]), batch=4, seed=3, group=3)
    for number in range(4):
        assert sorted(rows.order(number).tolist()) == list(range(count))
    again = TrainingRows(made([1 + n % 13 for n in range(count)]), batch=4, seed=3, group=3)
    index = 3 * count  # whatever was read before
    assert again[index]["kind"] == rows[index]["kind"]


def test_batches_are_of_rows_of_like_length():
    lengths = np.random.default_rng(0).integers(1, 100, size=1003)
    grouped = TrainingRows(made(lengths), batch=8, seed=1)
    plain = TrainingRows(made(lengths), batch=8, seed=1, group=0)

    def places(rows, first):
        read = [len(rows[index]["input_ids"]) for index in range(first, first + 1000)]
        return sum(8 * max(read[start : start + 8]) for start in range(0, 1000, 8)) / sum(read)

    assert places(grouped, 0) < 1.1 < 1.6 < places(plain, 0)
    # Batches go on over the end of a pass, and are grouped there too.
    assert places(grouped, 1008) < 1.1
    order = lengths[grouped.order(0)]
    assert abs(order[:500].mean() - order[500:].mean()) < 12  # not sorted as a whole


def test_a_budget_of_places():
    features = made([3, 50, 7, 8, 9, 64, 100])
    batches = by_length([one.length for one in features], 64)
    assert sorted(number for batch in batches for number in batch) == list(range(7))
    assert batches[0] == [6] and batches[1] == [5]
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(-(-features[number].length // 8) * 8 for number in batch) <= 64


def test_a_batch_that_has_enough_takes_nothing_much_shorter():
    sizes = [40, 39, 37, 30, 16, 15, 9, 8]
    assert by_length(sizes, 1000) == [list(range(8))]
    # 37 is above nine tenths of 40, 30 is not; two of 32 places and 16 are enough for no more than themselves.
    assert by_length(sizes, 1000, enough=32) == [[0, 1, 2], [3], [4, 5], [6, 7]]
    assert by_length(sizes, 80, enough=32) == [[0, 1], [2], [3], [4, 5], [6, 7]]
