import json
import random

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from megabert.tokenization import byte_level, characters, chosen, opening, sentence_piece, sentence_piece_trainer
from megabert.tokenization.options import TokenizerOptions

WORDS = (
    "the quick brown fox jumps over a lazy dog while unbelievable believers (re)believe it: naïve café, twice".split()
)
KINDS = ("bpe", "unigram", "char", "word")


def corpus():
    chance = random.Random(3)
    return [" ".join(chance.choices(WORDS, k=12)) + "." for _ in range(400)]


@pytest.fixture(scope="module")
def trained():
    return {kind: sentence_piece_trainer.train(corpus(), 120, kind) for kind in KINDS}


@pytest.fixture(scope="module")
def saved(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    for kind, tokenizer in trained.items():
        tokenizer.save(folder / kind)
    return folder


@pytest.fixture(scope="module")
def peers(saved):
    return {kind: AutoTokenizer.from_pretrained(saved / kind) for kind in KINDS}


@settings(max_examples=120, deadline=None)
@given(st.text(max_size=50))
def test_auto_tokenizer_gives_the_same_ids_for_any_text(trained, peers, text):
    for kind in KINDS:
        assert peers[kind](text, add_special_tokens=False)["input_ids"] == trained[kind].encode_batch([text])[0]


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from("abefthx \t\n.,()ïéﬁ①Åß力北カ０Ⅳ\u00a0\u3000\u200b▁"), max_size=40))
@pytest.mark.parametrize("kind", ["bpe", "unigram", "char"])
def test_ids_are_those_of_googles_library(trained, kind, text):
    theirs = sentencepiece.SentencePieceProcessor(model_proto=trained[kind].own_files()["tokenizer.model"])
    assert trained[kind].encode_batch([text])[0] == theirs.encode(text)


def test_words_are_those_of_googles_library_where_they_are_known(trained):
    theirs = sentencepiece.SentencePieceProcessor(model_proto=trained["word"].own_files()["tokenizer.model"])
    for text in corpus()[:50]:
        assert trained["word"].encode_batch([text])[0] == theirs.encode(text)


def test_a_folder_comes_back_the_same_and_holds_googles_files(saved, trained):
    for kind, tokenizer in trained.items():
        assert tokenizer.special_ids == (0, 1, 2, 3, 4)
        for path in (saved / kind, saved / kind / "tokenizer.model"):
            back = opening.load(path)
            assert back.fingerprint() == tokenizer.fingerprint() and back.own_files() == tokenizer.own_files()
        lines = (saved / kind / "tokenizer.vocab").read_text().splitlines()
        assert [line.split("\t")[0] for line in lines] == tokenizer.tokens


def test_the_same_text_gives_the_same_model_and_case_is_folded(trained):
    again = sentence_piece_trainer.train(corpus(), 120, "unigram")
    assert again.own_files()["tokenizer.model"] == trained["unigram"].own_files()["tokenizer.model"]
    lowered = sentence_piece_trainer.train([text.upper() for text in corpus()], 120, "bpe", lower_case=True)
    assert lowered.lower_case and not trained["bpe"].lower_case
    assert lowered.encode_batch(["The FOX"]) == lowered.encode_batch(["the fox"])


def test_continuations_offsets_and_decoding(trained):
    text = "  the fox (unbelievable) [MASK] it."
    for kind in ("bpe", "unigram", "char"):
        tokenizer = trained[kind]
        ((ids, places),) = tokenizer.encode_with_offsets([text])
        assert ids == tokenizer.encode_batch([text])[0]
        assert "".join(text[start:end] for start, end in places) == text.replace(" ", "")
        begins = [text[start:end] for index, (start, end) in zip(ids, places, strict=True) if end > start
                  and not tokenizer.continuation[index]]  # fmt: skip
        assert sum("(" in piece for piece in begins) == 1 and "." in begins[-1] and "[MASK]" in begins
        letters = [index for index in ids if tokenizer.tokens[index].isalpha()]
        assert letters and tokenizer.continuation[letters].all()
        assert tokenizer.decode(ids).replace(" ", "") == text.replace(" ", "")


def test_the_numbering_of_2019(tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_prefix=str(tmp_path / "old"), vocab_size=100, model_type="bpe",
        minloglevel=2,
    )  # fmt: skip
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "old.model"))
    options = TokenizerOptions(tokenizer_type="SentencePieceTokenizer", tokenizer_path=tmp_path / "old")
    tokenizer = chosen.open_tokenizer(options)
    assert tokenizer is not None and tokenizer.vocabulary_size == 108
    assert (tokenizer.pad_id, tokenizer.sep_id, tokenizer.cls_id, tokenizer.mask_id) == (0, 4, 6, 7)
    text = "the quick brown cat ☃"
    assert tokenizer.encode_batch([text])[0] == [index + 8 for index in theirs.encode(text)]
    tokenizer.save(tmp_path / "folder")
    peer = AutoTokenizer.from_pretrained(tmp_path / "folder")
    assert peer(text)["input_ids"] == [6, *tokenizer.encode_batch([text])[0], 4]
    assert opening.load(tmp_path / "folder").fingerprint() == tokenizer.fingerprint()


def test_a_missing_model_is_trained_and_written(tmp_path):
    path = tmp_path / "new" / "tok.model"
    options = TokenizerOptions(tokenizer_path=path, tokenizer_model_type="unigram", vocab_size=90)
    assert chosen.open_tokenizer(options) is None
    said = []
    tokenizer = chosen.train_tokenizer(options, corpus(), say=said.append)
    assert str(path) in said[0] and "unigram" in said[0]
    assert path.with_suffix(".vocab").is_file() and tokenizer.kind == "Unigram"
    assert tokenizer.place == path
    again = chosen.open_tokenizer(options)
    assert again is not None and again.fingerprint() == tokenizer.fingerprint()
    assert opening.load(path.with_suffix(".vocab")).fingerprint() == opening.load(path).fingerprint()


@pytest.mark.parametrize(
    ("texts", "size", "message"), [(["", " \n"], 100, "no word"), (corpus(), 16, "can be trained on this text: .+")]
)
def test_what_cannot_be_trained(texts, size, message):
    with pytest.raises(ValueError, match=message) as failure:
        sentence_piece_trainer.train(texts, size, "bpe")
    assert "\n" not in str(failure.value)


def test_a_sample_comes_from_all_over_the_stream():
    read = []
    kept = sentence_piece_trainer.sample((f"{n:010}" for n in range(1000)), 2000, read.append)
    assert 100 <= len(kept) <= 200 and read[-1] == 10_000
    steps = np.diff([int(text) for text in kept])
    assert len(set(steps.tolist())) == 1 and int(kept[-1]) > 980


def test_damaged_models_are_one_clear_error(tmp_path, trained):
    whole = trained["bpe"].own_files()["tokenizer.model"]
    chance = random.Random(1)
    refused = 0
    for number in range(60):
        data = bytearray(whole[: chance.randrange(len(whole))] if number % 2 else whole)
        for _ in range(number % 5):
            if data:
                data[chance.randrange(min(len(data), 2000))] = chance.randrange(256)
        try:
            sentence_piece.from_bytes(bytes(data), "a.model").encode_batch(["the fox"])
        except ValueError as error:
            assert str(error).startswith("a.model") or "vocabulary" in str(error)
            refused += 1
    assert refused > 20
    for name, content in (("a.model", b"no model"), ("b.model", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="is no SentencePiece model"):
            opening.load(tmp_path / name)


def test_byte_level_bpe(tmp_path):
    (tmp_path / "gpt2-vocab.json").write_text(
        json.dumps({token: n for n, token in enumerate([*"abcehtoĠ!", "th", "the", "Ġthe", "Ã", "©", "<|endoftext|>"])})
    )
    (tmp_path / "gpt2-merges.txt").write_text("#version: 0.2\nt h\nth e\nĠ the\n")
    options = TokenizerOptions(
        tokenizer_type="GPT2BPETokenizer", vocab_file=tmp_path / "gpt2-vocab.json",
        merge_file=tmp_path / "gpt2-merges.txt",
    )  # fmt: skip
    tokenizer = chosen.open_tokenizer(options)
    assert tokenizer is not None and tokenizer.special_ids == (15, 14, 16, 17, 18)
    ids = tokenizer.encode_batch(["the the tot é!"])[0]
    assert [tokenizer.tokens[index] for index in ids] == ["the", "Ġthe", "Ġ", "t", "o", "t", "Ġ", "Ã", "©", "!"]
    assert tokenizer.continuation[ids].tolist() == [True, False, False, True, True, True, False, True, True, False]
    assert tokenizer.decode(ids) == "the the tot é!"
    tokenizer.save(tmp_path / "saved")
    assert AutoTokenizer.from_pretrained(tmp_path / "saved")("the the")["input_ids"] == [16, *ids[:2], 17]
    assert opening.load(tmp_path / "saved").fingerprint() == tokenizer.fingerprint()
    with pytest.raises(ValueError, match="--merge-file"):
        byte_level.load(tmp_path / "gpt2-vocab.json", tmp_path / "none.txt")


def test_characters_of_2019(tmp_path):
    tokenizer = chosen.open_tokenizer(TokenizerOptions(tokenizer_type="CharacterLevelTokenizer"))
    assert tokenizer is not None and tokenizer.vocabulary_size == 264
    assert tokenizer.encode_batch(["a é☃"])[0] == [ord("a") + 8, ord(" ") + 8, ord("é") + 8, 3]
    assert tokenizer.special_ids == (0, 3, 6, 4, 7)
    assert tokenizer.decode(tokenizer.encode_batch(["Hello, you."])[0]) == "Hello, you."
    assert tokenizer.continuation[tokenizer.encode_batch(["a b."])[0]].tolist() == [True, False, True, False]
    tokenizer.save(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)("ab")["input_ids"] == [6, 105, 106, 4]
    assert characters.make().fingerprint() == opening.load(tmp_path).fingerprint()
