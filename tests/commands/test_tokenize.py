import errno
import json
import os

import pytest

from megabert import cli
from megabert.data.indexed import IndexedData


@pytest.fixture
def vocabulary(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "sea", "calm", "."]) + "\n")
    return path


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "The sea. The calm."}\n{"text": "Sea."}\n')
    return path


def run(*arguments):
    return cli.main(["tokenize", *map(str, arguments)])


def test_both_spellings(tmp_path, vocabulary, text, capsys):
    assert run("--input", text, "--tokenizer", vocabulary, "--output", tmp_path / "new" / "wiki", "--workers", 1) == 0
    assert "2 documents, 3 sentences, 8 tokens" in capsys.readouterr().out
    old = [
        "--input", text, "--vocab-file", vocabulary, "--output-prefix", tmp_path / "old", "--json-keys", "text",
        "--split-sentences", "--tokenizer-type", "BertWordPieceLowerCase", "--dataset-impl", "mmap", "--workers", "1",
        "--log-interval", "1000",
    ]  # fmt: skip
    assert run(*old) == 0
    assert (tmp_path / "old_text_sentence.idx").read_bytes() == (tmp_path / "new" / "wiki.idx").read_bytes()
    assert IndexedData(tmp_path / "old").num_documents == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--input", "nowhere.txt"], "there is no file nowhere.txt"),
        (["--tokenizer", "nowhere"], "nowhere"),
        (["--text-key", "body"], "has no key 'body'; its keys are 'text'"),
        (["--dataset-impl", "lazy"], "only mmap"),
        (["--output-prefix", "x"], "give one of them"),
    ],
)
def test_mistakes_are_one_line(tmp_path, vocabulary, text, capsys, change, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    base = ["--input", text, "--tokenizer", vocabulary, "--output", tmp_path / "out", "--workers", "1"]
    assert run(*base, *change) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "vocab.txt"]


def test_what_is_no_file_or_no_folder_is_said(tmp_path, vocabulary, text, capsys):
    os.mkfifo(tmp_path / "pipe")
    for given, output, message in (
        (text, tmp_path, "is a folder; name the prefix"),
        (text, f"{text}/x", "is a file, where a folder is needed"),
        (tmp_path / "pipe", tmp_path / "x", "is no file but a pipe"),
    ):
        assert run("--input", given, "--tokenizer", vocabulary, "--output", output, "--workers", 1) == 2
        assert message in capsys.readouterr().err


def test_a_full_disk_says_what_to_do(capsys):
    assert cli.fail("megabert tokenize", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))) == 2
    assert "No space left on device; make room, or write elsewhere" in capsys.readouterr().err


def test_what_is_missing_is_named(tmp_path, vocabulary, text, capsys):
    for arguments, flag in (
        (["--tokenizer", vocabulary, "--output", tmp_path / "x"], "--input"),
        (["--input", text, "--output", tmp_path / "x"], "--tokenizer"),
        (["--input", text, "--tokenizer", vocabulary], "--output"),
    ):
        assert run(*arguments) == 2
        assert f"{flag} is missing" in capsys.readouterr().err


def test_skipped_lines_are_counted_and_listed(tmp_path, vocabulary, capsys):
    text = tmp_path / "a.jsonl"
    text.write_text('{"text": "The sea."}\nbroken\n')
    assert run("--input", text, "--tokenizer", vocabulary, "--output", tmp_path / "x", "--max-bad-fraction", 0.5) == 0
    assert "1 lines were skipped" in capsys.readouterr().out
    assert (tmp_path / "x.skipped.txt").read_text().startswith(f"{text}: line 2: is not ")
    assert json.loads((tmp_path / "x.json").read_text())["documents"] == 1


def test_a_language_without_rules_is_said(tmp_path, vocabulary, text, capsys):
    arguments = ("--input", text, "--tokenizer", vocabulary, "--output", tmp_path / "x", "--workers", 1)
    assert run(*arguments, "--lang", "xx") == 0
    assert "--lang xx: there are no rules" in capsys.readouterr().err
    assert run(*arguments, "--lang", "english") == 2
    assert run(*arguments, "--lang", "de") == 0
    assert "rules" not in capsys.readouterr().err


def test_a_prefix_whose_files_would_replace_the_text_is_refused(tmp_path, vocabulary, text, capsys):
    before = text.read_text()
    named = text.rename(tmp_path / "wiki.json")
    assert run("--input", named, "--tokenizer", vocabulary, "--output", tmp_path / "wiki", "--workers", 1) == 2
    assert "would replace the input" in capsys.readouterr().err and named.read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["vocab.txt", "wiki.json"]
