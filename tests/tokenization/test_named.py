import pytest

from megabert.tokenization import chosen, named, word_piece
from megabert.tokenization.options import TokenizerOptions

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "##s"]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network here")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    monkeypatch.delenv("MEGABERT_CACHE", raising=False)


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
    "file", ["bert-large-uncased-vocab.txt", "bert-base-uncased.txt", "megatron-bert-uncased/vocab.txt"]
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


def test_a_download_is_kept_in_the_cache_folder(tmp_path, monkeypatch):
    calls = []

    def download(name, *, cache_dir, **_):
        calls.append((name, cache_dir))
        word_piece.from_tokens(TOKENS, lower_case=True).save(tmp_path / "snapshot")
        return str(tmp_path / "snapshot")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    tokenizer = chosen.open_tokenizer(TokenizerOptions(tokenizer="megatron-bert-cased", cache_dir=tmp_path))
    assert tokenizer.tokens == TOKENS
    assert calls == [("google-bert/bert-large-cased", tmp_path)]


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
