import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertTokenizer

from megabert.tokenization import trainer, word_cache, word_piece

SAMPLE = [
    "The quick (brown) fox's den; Größe naïve café ÅNGSTRÖM 力加勝 e\u0301 \u200d \u00a0 İstanbul ΑΣ ß ﬁ 3.14",
    "unbelievable believers re-appear: well-known words, and others; $5 [x] a_b ~ `q`",
]
# What a cut at spaces and marks could get wrong: marks beside letters, accents behind marks, controls inside words.
ODD = "aBé \t\n\r\x00\x0b\x0c\x1c\x1f\x85\u00a0\u2028\u3000!#[]_'~\u0301\u0338\u200b力。，ＡßİΣﬁ\ufffd\U0001f600[MASK]"


@pytest.fixture(scope="module", params=[True, False], ids=["uncased", "cased"])
def both(request, tmp_path_factory):
    ours = trainer.train(SAMPLE * 3, 300, lower_case=request.param)
    path = tmp_path_factory.mktemp("v") / "vocab.txt"
    path.write_bytes(ours.own_files()["vocab.txt"])
    return ours, BertTokenizer(vocab=str(path), do_lower_case=request.param)


def check(ours, theirs, texts):
    ids, lengths = ours.encode_flat(texts)
    expected = theirs(texts, add_special_tokens=False)["input_ids"]
    assert ids.dtype == lengths.dtype == np.int32
    assert lengths.tolist() == [len(each) for each in expected]
    assert ids.tolist() == [index for each in expected for index in each]


@settings(max_examples=250, deadline=None)
@given(st.lists(st.one_of(st.text(max_size=40), st.text(st.sampled_from(ODD), max_size=30)), min_size=1, max_size=4))
def test_ids_equal_those_of_transformers(both, texts):
    check(*both, texts)


def test_what_is_remembered_is_bounded_and_long_texts_are_cut(both, monkeypatch):
    monkeypatch.setattr(word_cache, "_MOST_PARTS", 10)
    monkeypatch.setattr(word_cache, "_MOST_CHARACTERS", 60)
    ours = pickle.loads(pickle.dumps(both[0]))
    texts = [*SAMPLE, "", "a b " * 300, "力。" * 200, "x" * 500, "x" * 99 + "y", " ".join(SAMPLE * 4)]
    for _ in range(2):
        check(ours, both[1], texts)
    assert len(ours._cache._numbers) < 60
    monkeypatch.setattr(word_cache, "_MOST_REMEMBERED", 5)
    check(ours, both[1], ["z" * 200])
    check(ours, both[1], ["w"])
    assert list(ours._cache._numbers) == ["w"]


def test_special_tokens_in_a_text_and_other_settings(both, monkeypatch):
    ours, theirs = both
    check(ours, theirs, ["a[MASK]b [SEP] c", "plain"])
    other = word_piece.from_tokens(ours.tokens, lower_case=True)
    other._backend.add_tokens(["the quick"])  # not special: found in normalized text, over a space
    assert other._cache is None
    ids, lengths = other.encode_flat(["The quick fox", ""])
    assert ids.tolist() == other.encode_batch(["The quick fox"])[0] and lengths.tolist() == [len(ids), 0]
