import pickle

import numpy as np
import pytest
from made_data import check_row, natural_documents, options

from megabert.data.packing import PackedSampleSet, _Piece, best_fit
from megabert.data.samples import SampleSet


def test_best_fit_takes_the_tightest_place():
    pieces = [_Piece(n, n + 1, 0, length) for n, length in enumerate([60, 70, 40, 30, 25, 5])]
    bins = best_fit(pieces, 100)
    assert [[piece.length for piece in one.pieces] for one in bins] == [[70, 30], [60, 40], [25, 5]]
    assert [one.room for one in bins] == [0, 0, 70]


@pytest.mark.parametrize("seq_length", [128, 512])
@pytest.mark.parametrize("pair_task", ["sop", "none"])
def test_natural_documents_fill_the_rows(make_data, vocabulary, seq_length, pair_task):
    data = make_data(natural_documents(1500))
    samples = SampleSet(data, vocabulary, options(seq_length=seq_length, pair_task=pair_task), seed=1)
    packed = PackedSampleSet(samples)
    assert packed.fill > 0.98
    # Cutting samples to gaps truncates some sentences: few.
    assert packed._first.pieces[:, 3].sum() > 0.98 * samples.lengths().sum()
    real = sum(int((row["sample_ids"] > 0).sum()) for row in packed)
    assert real == packed._first.pieces[:, 3].sum()
    assert packed.describe()["fill"] == packed.fill


@pytest.mark.parametrize("pair_task", ["sop", "nsp", "none"])
def test_rows_keep_the_contract(make_data, vocabulary, pair_task):
    data = make_data(natural_documents(200, seed=5, mean_sentences=5))
    packed = PackedSampleSet(SampleSet(data, vocabulary, options(pair_task=pair_task), seed=2))
    counts = [check_row(row, packed.shape, vocabulary) for row in packed]
    assert max(counts) == packed.shape.samples and np.mean(counts) > 1.05
    assert max(int((row["masked_labels"] != -100).sum()) for row in packed) > packed.shape.predictions - 8


def test_no_sentence_is_lost_and_few_are_repeated(make_data, vocabulary):
    data = make_data(natural_documents(300, seed=6))
    samples = SampleSet(data, vocabulary, options(seq_length=128, short_seq_prob=0), seed=1)
    packed = PackedSampleSet(samples)
    covered = np.concatenate([np.arange(first, last) for first, last, *_ in packed._first.pieces])
    wanted = np.concatenate([np.arange(first, last) for first, last, _ in samples.map])
    assert set(covered) == set(wanted) and len(covered) < 1.03 * len(wanted)
    assert np.all(packed._first.pieces[:, 1] - packed._first.pieces[:, 0] >= 2)
    # A sample stays inside its document.
    documents = np.searchsorted(data.documents, packed._first.pieces[:, 0], "right")
    assert np.array_equal(documents, np.searchsorted(data.documents, packed._first.pieces[:, 1] - 1, "right"))


def test_long_sentences_leave_no_gaps(make_data, vocabulary):
    # Two sentences nearly fill a row, so that what one document leaves no other fills: samples grow backwards.
    data = make_data(natural_documents(400, seed=7, mean_sentences=9, mean_tokens=36))
    packed = PackedSampleSet(SampleSet(data, vocabulary, options(seq_length=128), seed=1))
    assert packed.fill > 0.98
    assert all(check_row(packed[index], packed.shape, vocabulary) for index in range(100))


def test_a_row_is_a_function_of_seed_and_index(make_data, vocabulary):
    data = make_data(natural_documents(100))
    one, two = (PackedSampleSet(SampleSet(data, vocabulary, options(), seed=4)) for _ in range(2))
    copy = pickle.loads(pickle.dumps(one))
    for index in (3, len(one) - 1, len(one) + 3):
        wanted = one[index]
        for again in (two[index], copy[index]):
            assert all(np.array_equal(again[key], wanted[key]) for key in wanted)
    assert not np.array_equal(one[3]["input_ids"], one[len(one) + 3]["input_ids"])


def test_rows_of_every_epoch_have_the_shape_of_the_first(make_data, vocabulary):
    data = make_data(natural_documents(60, seed=5, mean_sentences=4, mean_tokens=8))
    packed = PackedSampleSet(SampleSet(data, vocabulary, options(), seed=2))
    counts = [check_row(packed[index], packed.shape, vocabulary) for index in range(12 * len(packed))]
    assert min(counts) >= 1
    orders = {tuple(packed[epoch * len(packed)]["input_ids"]) for epoch in range(12)}
    assert len(orders) == 12


def test_what_is_too_long_to_pack_again_is_read_in_another_order(make_data, vocabulary, monkeypatch):
    monkeypatch.setattr("megabert.data.packing.LONGEST_PACKED", 10)
    packed = PackedSampleSet(SampleSet(make_data(natural_documents(60)), vocabulary, options(), seed=2))
    rows = len(packed)
    first, second = ([packed._row(epoch * rows + place).tobytes() for place in range(rows)] for epoch in (0, 1))
    assert first != second and sorted(first) == sorted(second)


def test_a_single_short_document_is_a_row(make_data, vocabulary):
    packed = PackedSampleSet(SampleSet(make_data([[[10, 11], [12]]]), vocabulary, options(), seed=1))
    assert len(packed) == 1 and check_row(packed[0], packed.shape, vocabulary) == 1
