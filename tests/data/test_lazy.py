"""Documents that stay in their files give the samples that their copy as tokens gives."""

import json
import os
import pickle

import numpy as np
import pytest
from made_data import options

from megabert.data.blend import make_sets
from megabert.data.indexed import IndexedData
from megabert.data.lazy import LazyData, open_data
from megabert.data.sources import digest, index, resolve
from megabert.tokenization.word_piece import from_tokens

WORDS = "the sea is calm and a boat sails home under stars".split()


@pytest.fixture(scope="session")
def tokenizer():
    return from_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, ".", "é"], lower_case=True)


def texts(count, seed=0):
    generator = np.random.default_rng(seed)
    return [
        " ".join(" ".join(generator.choice(WORDS, 6)).capitalize() + "." for _ in range(generator.integers(2, 9)))
        for _ in range(count)
    ]


@pytest.fixture
def corpus(tmp_path):
    """Two files, with bad lines and empty ones between the documents."""
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    lines = [json.dumps({"text": text, "é": "é"}, ensure_ascii=False) for text in texts(40)]
    lines[7:7] = ["broken", "", '{"text": " "}', '{"text": "\\u0301"}']
    first.write_text("\ufeff" + "\n".join(lines) + "\n")
    second.write_text("\n".join(json.dumps({"text": text}) for text in texts(30, 1)))
    return [first, second]


def sets_of(paths, tokenizer, tmp_path, said=None, **changes):
    chosen = options(split="8,1,1", max_bad_fraction=0.2, **changes)
    named = resolve([str(path) for path in paths], "train_data", chosen, tmp_path / "cache")
    say = said.append if said is not None else lambda line: None
    sources = index(named, tokenizer, chosen, cache=tmp_path / "cache", workers=1, say=say)
    return make_sets(chosen, tokenizer, seed=3, train=sources), sources


def assert_equal_sets(one, two):
    assert len(one) == len(two)
    for number in (*range(0, len(one), 5), 2 * len(one) + 1):
        ours, theirs = one[number], two[number]
        assert all(np.array_equal(ours[key], theirs[key]) for key in theirs)


def test_samples_are_those_of_the_copied_tokens(corpus, tokenizer, tmp_path):
    for changes in ({}, {"pair_task": "nsp"}, {"pack": True}, {"presplit_sentences": True, "pair_task": "none"}):
        eager, eager_sources = sets_of(corpus, tokenizer, tmp_path, **changes)
        lazy, (source,) = sets_of(corpus, tokenizer, tmp_path, lazy_loader=True, **changes)
        assert isinstance(open_data(source.path, tokenizer), LazyData)
        for one, two in zip(lazy[:3], eager[:3], strict=True):
            assert_equal_sets(one, two)
        assert digest([source]) != digest(eager_sources)


def test_nothing_is_copied(corpus, tokenizer, tmp_path):
    said = []
    _, (source,) = sets_of(corpus, tokenizer, tmp_path, said, lazy_loader=True)
    names = sorted(path.name.partition("_text")[2] for path in (tmp_path / "cache").iterdir())
    assert names == [".places", ".places.idx", ".places.json", ".skipped.txt"]
    data = open_data(source.path, tokenizer)
    assert (tmp_path / "cache").joinpath(os.path.basename(source.path) + ".places").stat().st_size == 24 * 70
    sets_of(corpus, tokenizer, tmp_path, said, lazy_loader=True)
    assert "read before" in said[-1]
    assert data.num_tokens == int(data.sizes.sum()) == len(data.tokens(0, len(data)))
    copy = pickle.loads(pickle.dumps(data))
    assert np.array_equal(copy.tokens(5, 50), data.tokens(5, 50))


def test_a_text_that_changed_is_refused(corpus, tokenizer, tmp_path):
    _, (source,) = sets_of(corpus, tokenizer, tmp_path, lazy_loader=True)
    data = open_data(source.path, tokenizer)
    corpus[1].write_text(corpus[1].read_text().replace("sea", "..."))
    with pytest.raises(ValueError, match=r"b\.jsonl: the document at byte \d+ has changed since"):
        data.tokens(0, len(data))
    with pytest.raises(ValueError, match=r"b\.jsonl has changed since --lazy-loader indexed it"):
        open_data(source.path, tokenizer)
    corpus[1].unlink()
    with pytest.raises(ValueError, match=r"b\.jsonl is gone"):
        open_data(source.path, tokenizer)


def test_folders_of_2019_are_read_both_ways(tokenizer, tmp_path):
    folder = tmp_path / "corpus.lazy"
    folder.mkdir()
    encoded = [text.encode() for text in [*texts(30), " ", "é é. é é."]]
    (folder / "data").write_bytes(b"".join(encoded))
    (folder / "data.len.pkl").write_bytes(pickle.dumps([len(text) for text in encoded]))
    eager, (source,) = sets_of([folder], tokenizer, tmp_path)
    lazy, _ = sets_of([folder], tokenizer, tmp_path, lazy_loader=True)
    assert IndexedData(source.path).num_documents == 31 and "corpus-" in source.path
    assert_equal_sets(lazy.train, eager.train)


def test_text_that_cannot_be_read_at_any_place_is_copied_and_that_is_said(tokenizer, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": text} for text in texts(30)]))
    said = []
    _, (source,) = sets_of([path], tokenizer, tmp_path, said, lazy_loader=True)
    assert "it is not loose JSON" in said[0] and IndexedData(source.path).num_documents == 30
