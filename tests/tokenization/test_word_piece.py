import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, BertTokenizer

from megabert.tokenization import opening, trainer, word_piece

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXT = [
    "The quick brown fox jumps over the lazy dog; Größe, naïve café, ÅNGSTRÖM!",
    "力加勝北区ᴵᴺᵀᵃছজটডণত and e\u0301 with \u200d joiners, \u00a0 spaces\tand 3.14 + [MASK] foo[SEP]bar",
    "Word-pieces re-appear: unbelievable, believable, believing. İstanbul ΑΣ ß ﬁ \u0000 \ufffd x" + "y" * 120,
]


@pytest.fixture(scope="module")
def trained():
    return trainer.train(TEXT * 3, 300, lower_case=True)


@pytest.fixture(scope="module")
def trained_cased():
    return trainer.train(TEXT * 3, 320, lower_case=False)


def write_vocabulary(folder, tokens):
    path = folder / "vocab.txt"
    path.write_text("".join(token + "\n" for token in tokens), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def peers(tmp_path_factory, trained, trained_cased):
    pairs = []
    for tokenizer in (trained, trained_cased):
        path = write_vocabulary(tmp_path_factory.mktemp("vocab"), tokenizer.tokens)
        ours = opening.load(path)
        assert ours.lower_case == tokenizer.lower_case
        pairs.append((ours, BertTokenizer(vocab=str(path), do_lower_case=tokenizer.lower_case)))
    return pairs


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_ids_equal_those_of_transformers_on_any_text(peers, text):
    for ours, theirs in peers:
        assert ours.encode_batch([text])[0] == theirs(text, add_special_tokens=False)["input_ids"]


def test_ids_equal_those_of_transformers_on_the_awkward(peers):
    for ours, theirs in peers:
        assert ours.encode_batch(TEXT) == theirs(TEXT, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", ["trained", "trained_cased"])
@pytest.mark.parametrize("opener", [AutoTokenizer, BertTokenizer])
def test_saved_folder_opens_in_transformers(request, tmp_path, name, opener):
    ours = request.getfixturevalue(name)
    ours.save(tmp_path)
    theirs = opener.from_pretrained(tmp_path)
    assert theirs(TEXT, add_special_tokens=False)["input_ids"] == ours.encode_batch(TEXT)
    pair = theirs("a b", "c")
    assert pair["input_ids"][0] == ours.cls_id and pair["input_ids"].count(ours.sep_id) == 2
    assert pair["token_type_ids"][-1] == 1
    assert theirs.mask_token_id == ours.mask_id and theirs.pad_token_id == ours.pad_id
    assert len(theirs) == ours.vocabulary_size


@pytest.mark.parametrize("remove", [None, "tokenizer.json", "vocab.txt"])
def test_saved_folder_comes_back_the_same(tmp_path, trained_cased, remove):
    trained_cased.save(tmp_path)
    if remove:
        (tmp_path / remove).unlink()
    back = opening.load(tmp_path)
    assert back.fingerprint() == trained_cased.fingerprint()
    assert back.encode_batch(TEXT) == trained_cased.encode_batch(TEXT)
    assert back.lower_case is False


def test_folder_that_transformers_wrote(tmp_path, peers):
    for index, (ours, theirs) in enumerate(peers):
        theirs.save_pretrained(tmp_path / str(index))
        back = opening.load(tmp_path / str(index))
        assert back.encode_batch(TEXT) == ours.encode_batch(TEXT)
        assert back.fingerprint() == ours.fingerprint()


def test_fingerprint_tells_ids_apart(trained):
    tokens = list(trained.tokens)
    others = [
        word_piece.from_tokens(tokens, lower_case=False),
        word_piece.from_tokens([*tokens, "extra"], lower_case=True),
        word_piece.from_tokens([*tokens[:-2], tokens[-1], tokens[-2]], lower_case=True),
        word_piece.from_tokens(tokens, lower_case=True, strip_accents=False),
    ]
    digests = {other.fingerprint() for other in (trained, *others)}
    assert len(digests) == 5
    assert word_piece.from_tokens(tokens, lower_case=True, strip_accents=True).fingerprint() == trained.fingerprint()


def test_what_a_tokenizer_tells(trained):
    assert trained.special_ids == (0, 1, 2, 3, 4)
    assert trained.continuation.dtype == np.bool_ and trained.continuation.shape == (trained.vocabulary_size,)
    ids = trained.encode_batch(["unbelievably [MASK]"])[0]
    assert ids[-1] == trained.mask_id
    assert trained.continuation[ids[:-1]].tolist() == [False] + [True] * (len(ids) - 2)
    assert trained.decode(ids) == "unbelievably [MASK]"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty vocabulary"), ("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n", r"no \[MASK\]"),
        ("\n".join([*SPECIAL, "a", "b", "a"]), "entry 'a' of line 8 stands on line 6 already"),
        (b"\xff\xfe\x00", "not UTF-8"),
    ],
)  # fmt: skip
def test_vocabularies_that_are_no_good(tmp_path, content, message):
    path = tmp_path / "vocab.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as failure:
        opening.load(path)
    assert str(path) in str(failure.value)


@pytest.mark.parametrize("content", ["{", "[]", '{"model": {"type": "BPE"}}', '{"model": {"type": "WordPiece"}}'])
def test_tokenizer_files_that_are_no_good(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json") as failure:
        opening.load(tmp_path)
    assert "\n" not in str(failure.value)


def test_no_tokenizer(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        opening.load(tmp_path / "none")
    with pytest.raises(ValueError, match="holds no tokenizer"):
        opening.load(tmp_path)


def test_case_by_file_by_entries_and_by_wish(tmp_path):
    cased = write_vocabulary(tmp_path, [*SPECIAL, "The", "the"])
    assert opening.load(cased).lower_case is False
    assert opening.load(cased, lower_case=True).lower_case is True
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    assert opening.load(tmp_path).lower_case is True
    folder = tmp_path / "saved"
    opening.load(cased).save(folder)
    assert opening.load(folder, lower_case=True).encode_batch(["The"]) == [[6]]


def test_windows_line_ends_and_byte_order_mark(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*SPECIAL, "a", ""]).encode())
    assert opening.load(path).tokens == [*SPECIAL, "a"]


def test_special_tokens_of_other_names_and_of_older_files(tmp_path):
    names = {"pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"}
    write_vocabulary(tmp_path, ["a", *names.values(), "b"])
    config = {f"{role}_token": {"content": name, "__type": "AddedToken"} for role, name in names.items()}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = opening.load(tmp_path)
    assert tokenizer.special_ids == (1, 2, 3, 4, 5)
    assert tokenizer.encode_batch(["a <mask> B z"]) == [[0, 5, 6, 2]]
    tokenizer.save(tmp_path / "saved")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert theirs("a <mask>")["input_ids"] == [3, 0, 5, 4]
    assert opening.load(tmp_path / "saved").special_ids == (1, 2, 3, 4, 5)
