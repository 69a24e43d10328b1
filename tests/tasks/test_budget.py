"""Batches of a number of places."""

import numpy as np
import pytest

from megabert.tasks.base import Features
from megabert.tasks.budget import BudgetedBatches, only


def features(count=101, seed=0, choices=None):
    generator = np.random.default_rng(seed)
    made = []
    for number, length in enumerate(generator.integers(3, 61, count)):
        shape = (length,) if choices is None else (choices, length)
        ids = np.full(shape, number, dtype=np.int64)
        made.append(
            Features(example=number, input_ids=ids, token_type_ids=ids * 0, labels={"labels": np.array(number)})
        )
    return made


def rows(**more):
    return BudgetedBatches(features(), **{"tokens": 256, "seed": 3, "pad_id": 0, **more})


@pytest.mark.parametrize("number", [0, 1, 7])
def test_every_feature_is_in_one_batch_of_each_pass(number):
    batches = rows()
    found = np.concatenate([batches.numbers(number * len(batches) + at) for at in range(len(batches))])
    assert sorted(found) == list(range(101))
    assert batches.features_before(number * len(batches)) == number * 101
    assert batches.features_before(number * len(batches) + 2) == number * 101 + sum(
        batches.numbers(number * len(batches) + at).size for at in range(2)
    )


def test_batches_keep_the_budget_and_hold_hardly_any_padding():
    batches = rows()
    places = tokens = 0
    for at in range(len(batches)):
        batch = batches[at]
        assert batch["input_ids"].size <= 256 and batch["input_ids"].shape == batch["attention_mask"].shape
        assert len(batch["labels"]) == len(batch["input_ids"])
        places, tokens = places + batch["input_ids"].size, tokens + int(batch["attention_mask"].sum())
    # Lengths are rounded up to a multiple of 8, and batches hardly wider than that.
    assert tokens / places > 0.8 and tokens == sum(one.length for one in features())


def test_a_batch_is_a_function_of_seed_and_number():
    first, second = rows(), rows()
    assert second.numbers(40).tolist() == first.numbers(40).tolist()
    assert [first.numbers(at).tolist() for at in range(5)] == [second.numbers(at).tolist() for at in range(5)]
    assert any(rows(seed=4).numbers(at).tolist() != first.numbers(at).tolist() for at in range(5))
    passes = [[tuple(first.numbers(number * len(first) + at)) for at in range(len(first))] for number in (0, 1)]
    assert set(passes[0]) != set(passes[1])  # other neighbours, not only another order


def test_choices_count_and_a_long_feature_is_alone():
    batches = BudgetedBatches(features(20, choices=4), tokens=64, seed=0, pad_id=9)
    for at in range(len(batches)):
        batch = only([batches[at]])
        assert batch["input_ids"].ndim == 3 and (batch["input_ids"].size <= 64 or len(batch["input_ids"]) == 1)
    assert sum(batches.numbers(at).size for at in range(len(batches))) == 20
