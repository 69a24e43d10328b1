"""Samples with masks go out as TFRecords, come back in as rows, and are checked on the way."""

import gzip

import numpy as np
import pytest
from made_data import check_row, natural_documents, options

from megabert.corpora import tfrecord
from megabert.data import baseline, stored_writer
from megabert.data.blend import make_sets
from megabert.data.samples import SampleSet, Vocabulary
from megabert.data.sources import index, resolve
from megabert.data.stored_reading import kind_of, shape_of
from megabert.tokenization.word_piece import from_tokens

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LENGTH, PLACES = 64, 20


@pytest.fixture(scope="session")
def tokenizer():
    return from_tokens([*SPECIAL, *(f"w{number}" for number in range(495)), *(f"##w{number}" for number in range(500))],
                       lower_case=True)  # fmt: skip


def writing(**changes):
    return stored_writer.Writing(**{"seed": 7, "passes": 1, "per_file": 10_000, "packed": False, **changes})


@pytest.fixture
def written(make_data, tokenizer, tmp_path):
    """A TFRecord file and the set of samples that it was made of."""
    data = make_data(natural_documents(20))

    def write(name="samples", **changes):
        wanted = options(pair_task="nsp", max_preds_per_seq=PLACES)
        parts = stored_writer.write(data, Vocabulary.of(tokenizer), wanted, writing(**changes), tmp_path / name)
        return [part.path for part in parts], SampleSet(data, tokenizer, wanted, seed=7)

    return write


def rows_of(paths, tokenizer, tmp_path, said=None, **changes):
    chosen = options(**{"use_tfrecords": True, **changes})
    named = resolve([str(path) for path in paths], "train_data", chosen, tmp_path / "cache")
    say = said.append if said is not None else lambda line: None
    sources = index(named, tokenizer, chosen, cache=tmp_path / "cache", workers=1, say=say)
    return make_sets(chosen, tokenizer, seed=3, train=sources), sources


def assert_equal_rows(one, two):
    assert one.keys() == two.keys()
    for key in one:
        assert np.array_equal(one[key], two[key]), key


@pytest.mark.parametrize("packed", [False, True])
def test_rows_are_the_samples_that_were_written(written, tokenizer, tmp_path, packed):
    paths, samples = written(per_file=30, packed=packed, passes=2)
    assert len(paths) == -(-2 * len(samples) // 30) and all(kind_of(path) == "tfrecord" for path in paths)
    said = []
    sets, sources = rows_of(paths, tokenizer, tmp_path, said)
    assert len(sets.train) == 2 * len(samples) and sets.valid is None and "--valid-data" in sets.notes[0]
    for number in range(2 * len(samples)):
        assert_equal_rows(sets.train[number], samples[number])
        check_row(sets.train[number], (LENGTH, PLACES, 1), samples.vocabulary)
    # A later pass has each sample once, elsewhere.
    later = [sets.train[len(sets.train) + number]["input_ids"] for number in range(len(sets.train))]
    assert sorted(map(bytes, later)) == sorted(bytes(row["input_ids"]) for row in sets.train)
    assert not np.array_equal(later[0], sets.train[0]["input_ids"])
    said.clear()
    again, _ = rows_of(paths, tokenizer, tmp_path, said)
    assert "read before" in said[0] and len(again.train) == len(sets.train)
    common = baseline.commonest_token(sources, sets.train)
    assert 0 <= baseline.unigram_accuracy(common, sets.train, 10) <= 1


def test_without_the_pair_task_there_is_no_label(written, tokenizer, tmp_path):
    paths, _ = written()
    sets, _ = rows_of(paths, tokenizer, tmp_path, pair_task="none")
    assert sets.train[0]["next_sentence_label"].tolist() == [-100]


def test_equal_samples_are_equal_files_and_kept(written):
    paths, _ = written(per_file=30, packed=True)
    first = [path.read_bytes() for path in paths]
    state = paths[0].stat().st_mtime_ns
    paths[1].unlink()
    written(per_file=30, packed=True)
    assert [path.read_bytes() for path in paths] == first and paths[0].stat().st_mtime_ns == state
    written(per_file=30, packed=True, seed=8)
    assert paths[0].read_bytes() != first[0]


def records(path):
    with path.open("rb") as file:
        return [tfrecord.parse_example(record.payload) for record in tfrecord.frames(file, path)]


def test_the_fields_are_those_of_the_original(written):
    (path,), samples = written()
    example, row = records(path)[0], samples[0]
    length, hidden = int(row["sample_ids"].sum()), int((row["masked_labels"] != -100).sum())
    assert {key: (value.dtype.kind, len(value)) for key, value in example.items()} == {
        **dict.fromkeys(("input_ids", "input_mask", "segment_ids"), ("i", LENGTH)),
        **dict.fromkeys(("masked_lm_positions", "masked_lm_ids"), ("i", PLACES)),
        "masked_lm_weights": ("f", PLACES), "next_sentence_labels": ("i", 1),
    }  # fmt: skip
    assert example["input_mask"].sum() == length and not example["input_ids"][length:].any()
    assert example["masked_lm_weights"].tolist() == [1.0] * hidden + [0.0] * (PLACES - hidden)


def rewrite(path, change, which=(0,)):
    """Write a file again, with `change` made to some of its samples."""
    found = records(path)
    for number in which:
        change(found[number])
    path.write_bytes(b"".join(tfrecord.frame(tfrecord.make_example(example)) for example in found))


def set_value(key, place, value):
    def change(example):
        example[key] = example[key].copy()
        example[key][place] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_value("input_ids", 3, 5000), "holds the id 5000, but the vocabulary has 1000 entries"),
        (set_value("input_ids", 0, 7), r"begins with the id 7 .* but \[CLS\] is 2"),
        (set_value("input_mask", 1, 0), "input_mask is not ones and then zeros"),
        (set_value("segment_ids", 0, 1), "segment_ids are not zeros and then ones"),
        (set_value("masked_lm_positions", 0, 0), "masked_lm_positions are not different places"),
        (set_value("next_sentence_labels", 0, 2), "next_sentence_labels is 2"),
        (lambda example: example.pop("masked_lm_ids"), "has no masked_lm_ids; it holds input_ids"),
        (lambda example: example.update(input_ids=example["input_ids"][:-1]), "input_ids has 63 values, and 64 in"),
    ],
)
def test_a_wrong_sample_is_listed_or_stops_the_run(written, tokenizer, tmp_path, change, message):
    (path,), samples = written()
    rewrite(path, change, which=(2,))
    with pytest.raises(ValueError, match=rf"record 3: {message}.*the first of 1 bad lines"):
        rows_of([path], tokenizer, tmp_path, max_bad_fraction=0)
    sets, _ = rows_of([path], tokenizer, tmp_path, max_bad_fraction=0.1)
    assert len(sets.train) == len(samples) - 1
    assert_equal_rows(sets.train[2], samples[3])
    (report,) = (tmp_path / "cache").glob("*.skipped.txt")
    assert report.read_text().startswith(f"{path}: record 3: ")


def test_damage_is_found(written, tokenizer, tmp_path):
    (path,), samples = written()
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)
    sets, _ = rows_of([path], tokenizer, tmp_path, max_bad_fraction=0.1)
    assert len(sets.train) == len(samples) - 1
    path.write_bytes(content[:-2])
    with pytest.raises(ValueError, match="is cut short"):
        rows_of([path], tokenizer, tmp_path, max_bad_fraction=0.1)
    path.write_bytes(gzip.compress(bytes(content))[:-20])
    with pytest.raises(ValueError, match="damaged or cut short"):
        rows_of([path], tokenizer, tmp_path, max_bad_fraction=0.1)


def test_flags_that_do_not_fit_are_refused(written, tokenizer, tmp_path):
    (path,), _ = written()
    for changes, message in (
        ({"seq_length": 128}, "say --seq-length 64"),
        ({"max_preds_per_seq": 8}, "leave it out, or say 20"),
        ({"pack": True}, "--pack fills rows"),
        ({"use_tfrecords": False}, "add --use-tfrecords"),
    ):
        with pytest.raises(ValueError, match=message):
            rows_of([path], tokenizer, tmp_path, **changes)
    text = tmp_path / "a.jsonl"
    text.write_text('{"text": "w1"}')
    with pytest.raises(ValueError, match="holds no stored samples"):
        rows_of([text], tokenizer, tmp_path)
    with pytest.raises(ValueError, match="is indexed data; --use-tfrecords is for files"):
        rows_of([tmp_path / "data"], tokenizer, tmp_path)


@pytest.fixture
def hdf5(tmp_path):
    h5py = pytest.importorskip("h5py", reason="HDF5 is read by an extra")

    def make(examples, name="a.hdf5", **more):
        path = tmp_path / name
        with h5py.File(path, "w") as file:
            for key in ("input_ids", "input_mask", "segment_ids", "masked_lm_positions", "masked_lm_ids"):
                kind = "i1" if key in ("input_mask", "segment_ids") else "i4"
                file.create_dataset(key, data=np.stack([example[key] for example in examples]), dtype=kind,
                                    compression="gzip")  # fmt: skip
            labels = [example["next_sentence_labels"][0] for example in examples]
            file.create_dataset("next_sentence_labels", data=labels, dtype="i1")
            for key, value in more.items():
                del file[key]
                file[key] = value
        return path

    return make


def test_hdf5_gives_the_rows_of_the_same_samples(written, tokenizer, tmp_path, hdf5):
    (path,), samples = written()
    other = hdf5(records(path))
    assert kind_of(other) == "hdf5" and shape_of(other) == (LENGTH, PLACES)
    sets, _ = rows_of([other], tokenizer, tmp_path)
    assert len(sets.train) == len(samples)
    for number in range(len(samples)):
        assert_equal_rows(sets.train[number], samples[number])


def test_hdf5_that_points_elsewhere_or_does_not_fit_is_refused(written, tokenizer, tmp_path, hdf5):
    import h5py

    (path,), _ = written()
    examples = records(path)
    outside = hdf5(examples, "b.hdf5", input_ids=h5py.ExternalLink(str(hdf5(examples)), "input_ids"))
    with pytest.raises(ValueError, match="has no array 'input_ids' of its own"):
        rows_of([outside], tokenizer, tmp_path)
    short = hdf5(examples, "c.hdf5", segment_ids=np.zeros((3, LENGTH), np.int8))
    with pytest.raises(ValueError, match="'segment_ids' has the shape"):
        rows_of([short], tokenizer, tmp_path)
    (tmp_path / "d.hdf5").write_bytes(outside.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be read as HDF5"):
        rows_of([tmp_path / "d.hdf5"], tokenizer, tmp_path)
