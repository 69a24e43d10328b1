import json

import pytest
from made_data import options

from megabert.data.indexed import IndexedData
from megabert.data.indexed_writer import IndexedWriter
from megabert.data.sources import digest, index, resolve, texts_of
from megabert.tokenization.word_piece import from_tokens


@pytest.fixture
def tokenizer():
    return from_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "sea", "calm", "."], lower_case=True)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "sea.jsonl"
    path.write_text('{"text": "The sea. The calm."}\n' * 3)
    return path


def index_all(values, tokenizer, tmp_path, said=None, **changes):
    chosen = options(**changes)
    named = resolve([str(value) for value in values], "train_data", chosen, tmp_path / "cache")
    say = said.append if said is not None else (lambda line: None)
    return index(named, tokenizer, chosen, cache=tmp_path / "cache", workers=1, say=say)


def test_text_is_tokenized_once(tmp_path, tokenizer, text):
    said = []
    (first,) = index_all([text], tokenizer, tmp_path, said)
    assert IndexedData(first.path).num_documents == 3 and "tokenizing" in said[0]
    said.clear()
    assert index_all([text], tokenizer, tmp_path, said) == [first]
    assert len(said) == 1 and "read before" in said[0]
    text.write_text('{"text": "The sea."}\n')
    (changed,) = index_all([text], tokenizer, tmp_path)
    assert changed.path != first.path and IndexedData(changed.path).num_documents == 1


def test_files_without_weights_are_one_data_set(tmp_path, tokenizer, text):
    other = tmp_path / "other.txt"
    other.write_text("The calm sea. The sea.\n\nCalm.\n")
    (source,) = index_all([text, other], tokenizer, tmp_path)
    assert IndexedData(source.path).num_documents == 5
    sources = index_all(["0.9", text, "0.1", other], tokenizer, tmp_path)
    assert [source.weight for source in sources] == [0.9, 0.1]
    assert [IndexedData(source.path).num_documents for source in sources] == [3, 2]
    assert digest(sources) != digest([source])


def test_text_and_prefixes_are_mixed_by_tokens(tmp_path, tokenizer, text):
    prefix = tmp_path / "made_text_sentence"
    with IndexedWriter(prefix, tokenizer.vocabulary_size, fingerprint=tokenizer.fingerprint()) as writer:
        writer.add_document([[5, 6], [7] * 6])
    sources = index_all([text, tmp_path / "made"], tokenizer, tmp_path)
    assert [source.weight for source in sources] == [18, 8]


def test_names(tmp_path, tokenizer, text):
    (source,) = index_all(["harbour"], tokenizer, tmp_path, corpora={"harbour": (str(text),)})
    assert IndexedData(source.path).num_documents == 3
    with pytest.raises(
        ValueError, match=r"--train-data: harbor: there is no such text file.*table \[corpora\] \(harbour\)"
    ):
        index_all(["harbor"], tokenizer, tmp_path, corpora={"harbour": (str(text),)})


def test_the_text_key_counts(tmp_path, tokenizer):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "The sea.", "abstract": "Calm. Calm. Calm."}))
    numbers = [
        len(IndexedData(index_all([path], tokenizer, tmp_path, text_key=key)[0].path)) for key in ("text", "abstract")
    ]
    assert numbers == [1, 3]


def test_data_of_another_tokenizer_is_refused(tmp_path, tokenizer):
    with IndexedWriter(tmp_path / "x", 9, fingerprint="0123456789abcdef") as writer:
        writer.add_document([[5]])
    with pytest.raises(ValueError, match=r"tokenized with another tokenizer.*0123456789ab"):
        index_all([tmp_path / "x"], tokenizer, tmp_path)


def test_texts_for_a_vocabulary(tmp_path, text):
    named = resolve([str(text)], "train_data", options(), tmp_path)
    assert list(texts_of(named, options())) == ["The sea. The calm."] * 3
    with IndexedWriter(tmp_path / "x", 9) as writer:
        writer.add_document([[5]])
    with pytest.raises(ValueError, match="--tokenizer is missing"):
        list(texts_of(resolve([str(tmp_path / "x")], "train_data", options(), tmp_path), options()))
