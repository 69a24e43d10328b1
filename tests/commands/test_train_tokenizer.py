import json

import pytest
from transformers import AutoTokenizer

from megabert import cli

TEXT = "The tokenizer learns pieces of words. Words that are common stay whole."


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": TEXT}) + "\n" for _ in range(20)) + "not json\n")
    return path


def test_folder_is_read_by_transformers(tmp_path, corpus, capsys):
    output = tmp_path / "tokenizer"
    arguments = ["train-tokenizer", "--input", str(corpus), "--output", str(output), "--vocab-size", "140"]
    assert cli.main(arguments) == 0
    assert (output / "vocab.txt").read_text().startswith("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    assert AutoTokenizer.from_pretrained(output).tokenize("The Words") == ["the", "words"]
    text = capsys.readouterr().out
    assert "140 entries" in text and "skipped:" in text and "line 21" in text


def test_cased(tmp_path, corpus):
    output = tmp_path / "tokenizer"
    arguments = ["--input", str(corpus), "--output", str(output), "--cased", "--vocab-size", "300"]
    assert cli.main(["train-tokenizer", *arguments]) == 0
    assert AutoTokenizer.from_pretrained(output).tokenize("The") == ["The"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "CORPUS"], "--output is missing"),
        (["--input", "/no/file", "--output", "OUT"], "there is no file /no/file"),
        (["--input", "CORPUS", "--output", "CORPUS"], "is a file; a folder is needed"),
        (["--input", "CORPUS", "--output", "OUT", "--text-key", "body"], "has no key 'body'; its keys are 'text'"),
        (["--input", "CORPUS", "--output", "OUT", "--vocab-size", "20"], "--vocab-size 20 is too small"),
    ],
)
def test_mistakes_write_nothing(tmp_path, corpus, capsys, arguments, message):
    arguments = [item.replace("CORPUS", str(corpus)).replace("OUT", str(tmp_path / "out")) for item in arguments]
    assert cli.main(["train-tokenizer", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == [corpus]
