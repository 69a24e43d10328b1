"""Data for the tests of this folder, and the contract of a row."""

from dataclasses import dataclass, field

import numpy as np

from megabert.data.options import DataOptions


@dataclass
class Vocabulary:
    """The facts of a tokenizer that samples use; ids from 500 on continue a word."""

    vocabulary_size: int = 1000
    pad_id: int = 0
    unknown_id: int = 1
    cls_id: int = 2
    sep_id: int = 3
    mask_id: int = 4
    continuation: np.ndarray = field(default_factory=lambda: np.arange(1000) >= 500)


def natural_documents(count, seed=0, mean_sentences=12.0, mean_tokens=22.0):
    """Documents with lengths as text has them: sentences log-normal, counts geometric. Ids from 10 on."""
    generator = np.random.default_rng(seed)
    documents = []
    for _ in range(count):
        lengths = np.clip(
            generator.lognormal(np.log(mean_tokens), 0.5, generator.geometric(1 / mean_sentences)), 2, 200
        )
        documents.append([generator.integers(10, 1000, int(length)) for length in lengths])
    return documents


def options(**changes):
    return DataOptions(**{"seq_length": 64, **changes})


def check_row(row, shape, vocabulary):
    """What the contract says of every row."""
    positions, predictions, samples = shape
    assert all(array.dtype == np.int64 for array in row.values())
    assert {key: array.shape for key, array in row.items()} == {
        **dict.fromkeys(("input_ids", "token_type_ids", "position_ids", "sample_ids"), (positions,)),
        **dict.fromkeys(("masked_positions", "masked_labels"), (predictions,)),
        **dict.fromkeys(("sample_starts", "next_sentence_label"), (samples,)),
    }
    used = row["sample_ids"] > 0
    count = row["sample_ids"].max()
    assert np.all(row["input_ids"][~used] == vocabulary.pad_id)
    assert not row["token_type_ids"][~used].any() and not row["position_ids"][~used].any()
    assert np.array_equal(np.sort(row["sample_ids"][used]), row["sample_ids"][used]) and not used[used.sum() :].any()
    for number in range(1, count + 1):
        places = np.flatnonzero(row["sample_ids"] == number)
        assert places[0] == row["sample_starts"][number - 1]
        assert np.array_equal(row["position_ids"][places], np.arange(len(places)))
        ids, types = row["input_ids"][places], row["token_type_ids"][places]
        assert ids[0] == vocabulary.cls_id and ids[-1] == vocabulary.sep_id
        assert np.all(np.diff(types) >= 0) and types[0] == 0
    assert not row["sample_starts"][count:].any() and np.all(row["next_sentence_label"][count:] == -100)
    known = row["masked_labels"] != -100
    assert not known[known.sum() :].any() and not row["masked_positions"][~known].any()
    places = row["masked_positions"][known]
    assert np.all(np.diff(places) > 0) and used[places].all()
    assert np.all(row["masked_labels"][known] >= 10)  # special tokens are never predicted
    return count
