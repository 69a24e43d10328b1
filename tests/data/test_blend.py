from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_data import check_row, natural_documents, options

from megabert.data.blend import BlendedSet, Source, blend, make_sets, parse_sources, parse_split, split_documents


def test_shares():
    assert parse_split("949,50,1") == (0.949, 0.05, 0.001)
    assert parse_split("8/1/1") == (0.8, 0.1, 0.1)
    assert parse_split("1") == (1, 0, 0)
    assert parse_split("0.9,0.05") == pytest.approx((0.9, 0.05, 0.05))
    for wrong in ("", "a,b", "1,2,3,4", "-1,2", "0,0,0", "nan", "inf"):
        with pytest.raises(ValueError, match="--split"):
            parse_split(wrong)


def test_ranges_of_documents_are_megatrons():
    assert split_documents(1000, parse_split("949,50,1")) == [(0, 949), (949, 999), (999, 1000)]
    assert split_documents(10, parse_split("949,50,1")) == [(0, 10), (10, 10), (10, 10)]
    # 1.5 and 1.5 are rounded to 2 and 2: one too many, taken from every border.
    assert split_documents(3, (0.5, 0.5, 0)) == [(0, 1), (1, 3), (3, 3)]
    assert split_documents(7, parse_split("1,1,1")) == [(0, 3), (3, 5), (5, 7)]


@given(st.integers(0, 5000), st.tuples(*[st.integers(0, 100)] * 3).filter(any))
def test_ranges_cover_all_documents(count, shares):
    ranges = split_documents(count, [share / sum(shares) for share in shares])
    assert ranges[0][0] == 0 and ranges[-1][1] == count
    assert all(first <= last for first, last in ranges)
    assert all(before[1] == after[0] for before, after in pairwise(ranges))


def test_sources():
    assert parse_sources(["a"], "--train-data") == [(1, "a")]
    assert parse_sources(["a", "b"], "--train-data") == [(1, "a"), (1, "b")]
    assert parse_sources(["0.7", "wiki", "3e-1", "b"], "--train-data") == [(0.7, "wiki"), (0.3, "b")]
    for wrong in (["0.7", "a", "0.3"], ["0.7", "a", "b", "c"], ["0", "a", "1", "b"], ["-1", "a", "2", "b"]):
        with pytest.raises(ValueError, match="--train-data"):
            parse_sources(wrong, "--train-data")


def test_the_greedy_mix():
    chosen, places = blend([0.5, 0.25, 0.25], 8)
    assert chosen.tolist() == [0, 1, 2, 0, 0, 1, 2, 0]
    assert places.tolist() == [0, 0, 0, 1, 2, 1, 1, 3]
    chosen, _ = blend([0.7, 0.3], 10_000)
    so_far = np.cumsum(chosen == 1)
    assert np.all(abs(so_far - 0.3 * np.arange(1, 10_001)) <= 1)


def test_rows_of_several_sets(make_data, vocabulary, monkeypatch):
    first = make_data([[[10] * 9, [10] * 9]] * 300, "first")
    second = make_data([[[20] * 9, [20] * 9]] * 300, "second")
    sources = [Source(3, str(first.prefix)), Source(1, str(second.prefix))]
    monkeypatch.setattr("megabert.data.blend._BLEND_PERIOD", 1000)
    monkeypatch.setattr("megabert.data.blend._BLEND_BEGIN", 16)
    sets = make_sets(options(split="1"), vocabulary, seed=1, train=sources)
    train = sets.train
    # One pass ends when the first of the sets was read once: 300 rows of 3/4.
    assert isinstance(train, BlendedSet) and len(train) == 400 and sets.valid is sets.test is None
    whose = [20 if (row["input_ids"] == 20).sum() > (row["input_ids"] == 10).sum() else 10 for row in train]
    assert whose.count(10) == 300
    again = make_sets(options(split="1"), vocabulary, seed=1, train=sources).train
    for index in (2450, 7, 450, 0):
        assert np.array_equal(train[index]["input_ids"], again[index]["input_ids"])


def test_packed_sets_of_unlike_documents_share_a_shape(make_data, vocabulary):
    sources = [
        Source(1, str(make_data(natural_documents(80, seed=1, mean_sentences=2, mean_tokens=6), "short").prefix)),
        Source(1, str(make_data(natural_documents(80, seed=2, mean_sentences=40), "long").prefix)),
    ]
    train = make_sets(options(pack=True, split="1"), vocabulary, seed=1, train=sources).train
    shapes = {tuple(sorted((key, array.shape) for key, array in row.items())) for row in train}
    assert len(shapes) == 1
    assert all(check_row(train[index], train.shape, vocabulary) for index in range(40))


def tokens_of(rows):
    return {int(token) for row in rows for token in row["input_ids"][row["sample_ids"] > 0]} - {0, 2, 3, 4}


def test_separate_data(make_data, vocabulary):
    train = make_data([[[10 + n] * 9, [10 + n] * 9] for n in range(10)], "train")
    valid = make_data([[[500] * 9, [500] * 9]] * 3, "valid")
    sets = make_sets(
        options(split="8,1,1", max_preds_per_seq=1), vocabulary, seed=1,
        train=[Source(1, str(train.prefix))], valid=[Source(1, str(valid.prefix))],
    )  # fmt: skip
    assert len(sets.train) == 9 and len(sets.valid) == 3 and len(sets.test) == 1
    assert 500 in tokens_of(sets.valid)


def test_documents_without_a_sample_are_counted(make_data, vocabulary):
    source = [Source(1, str(make_data([[[10] * 9, [10] * 9], [[10]], [[10] * 513, [10]]] * 2).prefix))]
    for pack in (False, True):
        sets = make_sets(options(split="1", pack=pack), vocabulary, seed=1, train=source)
        assert sets.notes == (
            "4 of 6 training documents have fewer than two sentences, or a sentence of over 512 tokens: "
            "they are left out",
        )


def test_missing_shares_are_said_or_refused(make_data, vocabulary):
    source = [Source(1, str(make_data([[[10] * 9, [10] * 9]] * 5).prefix))]
    sets = make_sets(options(split="949,50,1"), vocabulary, seed=1, train=source)
    assert sets.valid is None and sets.test is None
    assert len(sets.notes) == 2 and "no validation data" in sets.notes[0] and "split 949,50,1" in sets.notes[0]
    with pytest.raises(ValueError, match="training data has no document"):
        make_sets(options(split="0,1,0"), vocabulary, seed=1, train=source)
    with pytest.raises(ValueError, match="leaves nothing for training"):
        make_sets(options(split="0,1,0"), vocabulary, seed=1, train=source, valid=source)
    with pytest.raises(ValueError, match="no indexed data"):
        make_sets(options(), vocabulary, seed=1, train=[Source(1, "nowhere")])
