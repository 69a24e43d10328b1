import numpy as np
import torch

from megabert.data.collate import collate, collate_trimmed
from megabert.data.options import DataOptions
from megabert.data.samples import SampleSet


def test_batches(make_data, vocabulary):
    data = make_data([[[10] * 6, [11] * 7], [[12] * 3, [13] * 4], [[14] * 9, [15] * 9]])
    samples = SampleSet(data, vocabulary, DataOptions(seq_length=64, short_seq_prob=0), seed=1)
    rows = list(samples)
    batch = collate(rows)
    assert batch["input_ids"].shape == (3, 64) and batch["masked_labels"].shape == (3, 10)
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())

    trimmed = collate_trimmed(rows)
    assert trimmed["input_ids"].shape == (3, 24)  # the longest has 21 tokens
    most = max(int((row["masked_labels"] != -100).sum()) for row in rows)
    assert trimmed["masked_labels"].shape == trimmed["masked_positions"].shape == (3, most)
    assert torch.equal(trimmed["input_ids"], batch["input_ids"][:, :24]) and not batch["sample_ids"][:, 24:].any()
    assert np.array_equal(trimmed["next_sentence_label"], batch["next_sentence_label"])
