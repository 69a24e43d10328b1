import dataclasses
import hashlib

import pytest

from megabert.tokenization import chosen, named, published, word_piece
from megabert.tokenization.options import TokenizerOptions

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "##s"]


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise OSError("no network here")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    monkeypatch.delenv("MEGABERT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


def vocabulary(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(TOKENS) + "\n")
    return path


def test_nothing_named_means_training():
    assert chosen.open_tokenizer(TokenizerOptions()) is None


@pytest.mark.parametrize("field", ["tokenizer", "vocab_file"])
def test_a_path(tmp_path, field):
    path = vocabulary(tmp_path / "v.txt")
    options = TokenizerOptions(**{field: path if field == "vocab_file" else str(path)})
    assert chosen.open_tokenizer(options).tokens == TOKENS


def test_a_run_folder(tmp_path):
    vocabulary(tmp_path / "run" / "tokenizer" / "vocab.txt")
    assert named.find(str(tmp_path / "run")) == tmp_path / "run" / "tokenizer"


@pytest.mark.parametrize(
    "file",
    [
        "bert-large-uncased-vocab.txt",
        "bert-base-uncased.txt",
        "megatron-bert-uncased/vocab.txt",
        "megatron-bert-345m-uncased_vocab",
    ],
)
@pytest.mark.parametrize("by_environment", [True, False])
def test_a_name_in_a_cache_folder(tmp_path, monkeypatch, file, by_environment):
    vocabulary(tmp_path / file)
    if by_environment:
        monkeypatch.setenv("MEGABERT_CACHE", str(tmp_path))
    options = TokenizerOptions(
        tokenizer_model_type="bert-large-uncased", cache_dir=None if by_environment else tmp_path
    )
    assert chosen.open_tokenizer(options).tokens == TOKENS
    with pytest.raises(ValueError, match="bert-large-cased"):
        named.find("bert-large-cased", tmp_path)


@pytest.mark.parametrize(
    "name",
    ["megatron-cased", "megatron_bert_345m_cased", "nvidia/megatron_bert_345m_v0_1_cased",
     "biomegatron345mcased", "biomegatron-bert-345m-cased", "google-bert/bert-base-cased", "Megatron-BERT-Cased-345m"],
)  # fmt: skip
def test_a_download_of_every_name_is_kept_in_the_cache_folder_and_checked(tmp_path, monkeypatch, name):
    calls = []
    file = vocabulary(tmp_path / "snapshot" / "vocab.txt")

    def download(*arguments, cache_dir, **_):
        calls.append((*arguments, cache_dir))
        return str(file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    options = TokenizerOptions(tokenizer=name, cache_dir=tmp_path / "cache")
    with pytest.raises(ValueError, match=r"not the file that was published: 39 bytes.*delete it"):
        chosen.open_tokenizer(options)
    content = file.read_bytes()
    known = dataclasses.replace(
        published.VOCABULARIES["cased"], size=len(content), sha256=hashlib.sha256(content).hexdigest()
    )
    monkeypatch.setitem(published.VOCABULARIES, "cased", known)
    assert chosen.open_tokenizer(options).tokens == TOKENS
    assert calls == [("google-bert/bert-large-cased", "vocab.txt", tmp_path / "cache")] * 2


def test_a_published_vocabulary_under_the_name_of_another_is_refused(tmp_path, monkeypatch):
    place = vocabulary(tmp_path / "bert-base-cased-vocab.txt")
    content = place.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    for casing in ("uncased", "cased"):
        known = dataclasses.replace(published.VOCABULARIES[casing], size=len(content), sha256=digest)
        with monkeypatch.context() as patch:
            patch.setitem(published.VOCABULARIES, casing, known)
            if casing == "cased":
                assert named.find("bert-base-cased", tmp_path) == place
                continue
            with pytest.raises(ValueError, match=r"is the vocabulary of bert-large-uncased, not of bert-base-cased"):
                named.find("bert-base-cased", tmp_path)


@pytest.mark.parametrize("suffix", [".txt", ".model", ".vocab"])
def test_a_path_that_is_not_there_is_no_name(suffix, tmp_path):
    with pytest.raises(ValueError, match="there is no tokenizer at some/where"):
        named.find(f"some/where{suffix}", tmp_path)


def test_a_folder_of_the_hub(tmp_path, monkeypatch):
    calls = []

    def download(name, *, cache_dir, **_):
        calls.append((name, cache_dir))
        word_piece.from_tokens(TOKENS, lower_case=True).save(tmp_path / "snapshot")
        return str(tmp_path / "snapshot")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert chosen.open_tokenizer(TokenizerOptions(tokenizer="some/where")).tokens == TOKENS
    assert calls == [("some/where", None)]


def test_the_default_cache_folder_and_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    wanted = tmp_path / "home" / "megabert" / "bert-base-cased-vocab.txt"
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE forbids the network") as failure:
        named.find("bert-base-cased")
    assert f"put it at {wanted}" in str(failure.value) and "bert-large-cased/resolve/main/vocab.txt" in str(
        failure.value
    )
    vocabulary(wanted)
    assert named.find("megatron-cased") == wanted


def test_a_vocabulary_that_only_an_archive_holds(tmp_path):
    with pytest.raises(ValueError, match="megabert convert biomegatron345m_biovocab_30k_cased FOLDER"):
        named.find("biomegatron345m_biovocab_30k_cased")
    place = vocabulary(tmp_path / "biomegatron345m-biovocab-30k-cased-vocab.txt")
    assert named.find("biomegatron345m_biovocab_30k_cased", tmp_path) == place


def test_a_name_that_is_nowhere_says_where_to_put_the_file(tmp_path):
    with pytest.raises(ValueError, match=r"--tokenizer: .*no network here") as failure:
        chosen.open_tokenizer(TokenizerOptions(tokenizer="bert-base-uncased", cache_dir=tmp_path))
    assert str(tmp_path / "bert-base-uncased-vocab.txt") in str(failure.value)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("name", ["/no/vocab.txt", "vocab.txt", "./folder", "a/b/c"])
def test_a_path_that_does_not_exist_is_not_asked_of_the_hub(name):
    with pytest.raises(ValueError, match="no such file"):
        named.find(name)


@pytest.mark.parametrize(
    ("tokenizer_type", "cased", "lower"),
    [
        ("BertWordPieceTokenizer", None, True), ("BertWordPieceLowerCase", None, True),
        ("BertWordPieceCase", None, False), ("BertWordPieceTokenizer", True, False),
        ("BertWordPieceLowerCase", False, True),
    ],
)  # fmt: skip
def test_case(tmp_path, tokenizer_type, cased, lower):
    path = vocabulary(tmp_path / "v.txt")
    options = TokenizerOptions(tokenizer=str(path), tokenizer_type=tokenizer_type, cased=cased)
    assert chosen.open_tokenizer(options).lower_case is lower


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokenizer": "a", "vocab_file": "b"}, "--tokenizer and --vocab-file"),
        ({"tokenizer_type": "BertWordPieceLowerCase", "cased": True}, "--cased contradicts"),
        ({"tokenizer_type": "BertWordPieceCase", "cased": False}, "--no-cased contradicts"),
    ],
)
def test_contradictions(options, message):
    with pytest.raises(ValueError, match=message):
        chosen.open_tokenizer(TokenizerOptions(**options))
