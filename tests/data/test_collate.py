import numpy as np

from megabert.data.collate import trimmed
from megabert.data.options import DataOptions
from megabert.data.samples import SampleSet


def test_only_padding_is_cut_off(make_data, vocabulary):
    data = make_data([[[10] * 6, [11] * 7], [[12] * 3, [13] * 4], [[14] * 9, [15] * 9]])
    rows = list(SampleSet(data, vocabulary, DataOptions(seq_length=64, short_seq_prob=0), seed=1))
    batch = trimmed(rows)
    assert batch["input_ids"].shape == (3, 24)  # the longest has 21 tokens
    most = max(int((row["masked_labels"] != -100).sum()) for row in rows)
    assert batch["masked_labels"].shape == batch["masked_positions"].shape == (3, most)
    whole = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    for key, array in batch.items():
        width = array.shape[1]
        assert np.array_equal(array, whole[key][:, :width]), key
    assert not whole["sample_ids"][:, 24:].any()
    assert (whole["masked_labels"][:, most:] == -100).all()
