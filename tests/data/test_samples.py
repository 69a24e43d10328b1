import pickle

import numpy as np
import pytest
from made_data import check_row, options

from megabert.data.indexed import IndexedData
from megabert.data.samples import SampleSet, reordered


def unmasked(row):
    """The row's tokens as they were in the data."""
    ids = row["input_ids"].copy()
    known = row["masked_labels"] != -100
    ids[row["masked_positions"][known]] = row["masked_labels"][known]
    return ids


@pytest.mark.parametrize("pair_task", ["sop", "nsp", "none"])
@pytest.mark.parametrize("masking", ["token", "whole-word", "ngram"])
def test_rows_keep_the_contract(data, vocabulary, pair_task, masking):
    samples = SampleSet(data, vocabulary, options(pair_task=pair_task, masking=masking), seed=1)
    labels = []
    for row in samples:
        assert check_row(row, (64, 10, 1), vocabulary) == 1
        labels.append(int(row["next_sentence_label"][0]))
        assert row["token_type_ids"].any() == (pair_task != "none")
    if pair_task == "none":
        assert set(labels) == {-100}
    else:
        assert abs(np.mean(labels) - 0.5) < 0.15


def test_a_row_is_a_function_of_seed_and_index(data, vocabulary):
    one, two = (SampleSet(data, vocabulary, options(), seed=7) for _ in range(2))
    other = SampleSet(data, vocabulary, options(), seed=8)
    copy = pickle.loads(pickle.dumps(one))
    for index in (5, 0, len(one) + 3):
        wanted = one[index]
        for again in (two[index], one[index], copy[index]):
            assert all(np.array_equal(again[key], wanted[key]) for key in wanted)
        assert not np.array_equal(other[index]["input_ids"], wanted["input_ids"])
    # A further epoch: the same sentences, masked anew.
    first, later = one[2], one[2 + len(one)]
    assert not np.array_equal(first["input_ids"], later["input_ids"])


def segments(row):
    ids, used = unmasked(row), row["sample_ids"] > 0
    second = (row["token_type_ids"] == 1) & used
    return ids[used & ~second][1:-1].tolist(), ids[second][:-1].tolist()


def find(tokens, part):
    return next((n for n in range(len(tokens) - len(part) + 1) if tokens[n : n + len(part)] == part), None)


def test_sop_swaps_consecutive_halves(make_data, vocabulary):
    counter = iter(range(10, 1000))
    data = make_data([[[next(counter) for _ in range(9)] for _ in range(20)] for _ in range(3)])
    text = data.tokens(0, len(data)).tolist()
    samples = SampleSet(data, vocabulary, options(seq_length=40), seed=3)
    seen = set()
    for row in samples:
        one, two = segments(row)
        places = find(text, one), find(text, two)
        swapped = int(row["next_sentence_label"][0])
        assert (places[0] > places[1]) == bool(swapped)
        seen.add(swapped)
    assert seen == {0, 1}


def test_nsp_takes_the_second_half_from_another_document(make_data, vocabulary):
    data = make_data([[[10 + document] * 9] * 20 for document in range(5)])
    samples = SampleSet(data, vocabulary, options(seq_length=40, pair_task="nsp"), seed=3)
    lengths = {0: [], 1: []}
    for index in range(300):
        row = samples[index]
        one, two = segments(row)
        label = int(row["next_sentence_label"][0])
        assert (set(one) != set(two)) == bool(label) and len(set(one)) == len(set(two)) == 1
        lengths[label].append(len(two))
    assert abs(np.mean(lengths[0]) - np.mean(lengths[1])) < 3  # the length does not give the answer away


def test_every_epoch_reads_all_sentences_in_its_own_order(data, vocabulary):
    samples = SampleSet(data, vocabulary, options(), seed=1)
    maps = [samples.map_of(epoch) for epoch in (0, 1, 2, 1)]
    sentences = [set(np.concatenate([np.arange(first, last) for first, last, _ in one])) for one in maps]
    assert sentences[0] == sentences[1] == sentences[2]
    assert not np.array_equal(maps[0], maps[1]) and not np.array_equal(maps[1], maps[2])
    assert np.array_equal(maps[1], maps[3])
    # Found in its epoch, whoever read what before.
    fresh = SampleSet(data, vocabulary, options(), seed=1)
    for index in (2 * len(samples) + 3, 5, 5 * len(samples) - 1, len(samples)):
        assert np.array_equal(samples[index]["input_ids"], fresh[index]["input_ids"])


def test_a_map_too_long_to_cut_again_is_read_in_another_order(data, vocabulary, monkeypatch):
    monkeypatch.setattr("megabert.data.samples.LONGEST_MAP", 10)
    samples = SampleSet(data, vocabulary, options(), seed=1)
    read = []
    monkeypatch.setattr(samples, "sample", lambda place, index: read.append(tuple(place)))
    monkeypatch.setattr("megabert.data.samples.assemble", lambda *_: {})
    count = len(samples)
    for index in range(3 * count):
        samples[index]
    epochs = [read[start : start + count] for start in (0, count, 2 * count)]
    assert epochs[0] == [tuple(row) for row in samples.map]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2]


def test_places_are_reordered_one_to_one():
    for count in (1, 2, 12, 97, 1000):
        for epoch in (1, 2):
            assert sorted(reordered(place, count, 5, epoch) for place in range(count)) == list(range(count))


def test_a_split_sees_only_its_documents(make_data, vocabulary):
    data = make_data([[[10 + document] * 5] * 6 for document in range(10)])
    samples = SampleSet(data, vocabulary, options(pair_task="nsp"), seed=1, documents=(3, 6))
    seen = {token for row in samples for token in unmasked(row).tolist()}
    assert seen == {0, 2, 3, 13, 14, 15}


def test_lengths_are_those_of_the_rows(data, vocabulary):
    for pair_task in ("sop", "none"):
        samples = SampleSet(data, vocabulary, options(pair_task=pair_task), seed=1)
        assert samples.lengths().tolist() == [int((row["sample_ids"] > 0).sum()) for row in samples]


def test_max_preds_per_seq(data, vocabulary):
    samples = SampleSet(data, vocabulary, options(max_preds_per_seq=4), seed=1)
    assert all((row["masked_labels"] != -100).sum() <= 4 for row in samples) and samples[0]["masked_labels"].shape == (
        4,
    )


def test_what_cannot_be_trained_on_is_said(make_data, vocabulary):
    data = make_data([[[10, 11]], [[12]]])
    with pytest.raises(ValueError, match=r"fewer than 2 sentences.*pair-task none"):
        SampleSet(data, vocabulary, options(), seed=1)
    assert len(SampleSet(data, vocabulary, options(pair_task="none"), seed=1)) == 2
    with pytest.raises(ValueError, match=r"validation data has no document.*split 949,50,1"):
        SampleSet(data, vocabulary, options(), seed=1, documents=(2, 2), name="validation data")
    with pytest.raises(ValueError, match="one document, but --pair-task nsp"):
        SampleSet(data, vocabulary, options(pair_task="nsp"), seed=1, documents=(0, 1))
    vocabulary.vocabulary_size = 12
    with pytest.raises(ValueError, match="holds the id 12, but the vocabulary has 12 entries"):
        SampleSet(data, vocabulary, options(pair_task="none"), seed=1)


def test_special_tokens_in_the_text_are_not_predicted(make_data, vocabulary):
    data = make_data([[[2, 3, 4, 0, 10, 11], [3, 4, 12, 13, 2, 0]]] * 4)
    samples = SampleSet(data, vocabulary, options(mask_prob=0.9, max_preds_per_seq=12), seed=1)
    for index in range(40):
        labels = samples[index]["masked_labels"]
        assert set(labels[labels != -100]) <= {10, 11, 12, 13}


def test_ids_too_many_to_scan_are_checked_sample_by_sample(tmp_path, make_data, vocabulary, monkeypatch):
    data = make_data([[[10, 11, 999], [12]]])
    (tmp_path / "data.json").unlink()
    assert IndexedData(data.prefix).largest_id() == 999
    monkeypatch.setattr("megabert.data.indexed.SCANNED_AT_OPEN", 4)
    vocabulary.vocabulary_size = 999
    vocabulary.continuation = vocabulary.continuation[:999]
    samples = SampleSet(IndexedData(data.prefix), vocabulary, options(), seed=1)
    with pytest.raises(ValueError, match="holds the id 999 in the sentences 0 to 1, but the vocabulary has 999"):
        samples[0]


def test_describe(data, vocabulary):
    facts = SampleSet(data, vocabulary, options(), seed=1).describe()
    assert facts["documents"] == 60 and facts["sentences"] == len(data) and len(facts["examples"]) == 3
    assert sum(facts["length_histogram"]["counts"]) == facts["samples"] and 0.5 < facts["fill"] <= 1
