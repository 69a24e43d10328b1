import gzip
import json
import os
import subprocess
import sys
import time

import pytest

from megabert.corpora.files import raw_chunks
from megabert.data import encoding, preprocess
from megabert.data.encoding import Reading
from megabert.data.indexed import IndexedData, verify
from megabert.data.preprocess import tokenize
from megabert.tokenization.word_piece import from_tokens

WORDS = ["the", "sea", "was", "calm", "ship", "##s", "a", "man", "came", "near", "."]
SENTENCES = ["The sea was calm.", "A man came near.", "Ships came.", "The man was calm."]


pytestmark = pytest.mark.usefixtures("small_chunks")


@pytest.fixture
def tokenizer():
    return from_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS], lower_case=True)


def write_lines(path, count, bad=()):
    with path.open("w") as file:
        for number in range(count):
            text = " ".join(SENTENCES[(number + step) % 4] for step in range(1 + number % 5))
            file.write("no json\n" if number in bad else json.dumps({"text": text, "title": str(number)}) + "\n")
    return path


def files_of(folder):
    return sorted(path.name for path in folder.iterdir())


def test_text_becomes_indexed_data(tmp_path, tokenizer):
    source = tmp_path / "a.jsonl"
    source.write_text(
        json.dumps({"text": "The sea was calm. Ships came.\nA man came near."}) + "\n" + json.dumps({"text": "Man."})
    )
    result = tokenize([source], tokenizer, tmp_path / "out")
    assert (result.documents, result.sentences, result.tokens, result.skipped) == (2, 4, 16, 0)
    data = IndexedData(tmp_path / "out")
    assert data.documents.tolist() == [0, 3, 4]
    wanted = tokenizer.encode_batch(["the sea was calm.", "ships came.", "a man came near.", "man."])
    assert [data.tokens(n, n + 1).tolist() for n in range(4)] == wanted
    assert data.facts["tokenizer"] == tokenizer.fingerprint()
    assert files_of(tmp_path) == ["a.jsonl", "out.bin", "out.idx", "out.json"]


def test_without_splitting_a_document_is_a_sequence(tmp_path, tokenizer):
    source = tmp_path / "a.txt"
    source.write_text("The sea was calm. Ships came.\n\nA man.\n")
    tokenize([source], tokenizer, tmp_path / "out", reading=Reading(split_sentences=False))
    assert IndexedData(tmp_path / "out").documents.tolist() == [0, 1, 2]
    source.write_text("The sea was calm. Ships came.\nA man.\n\nA ship.")
    tokenize([source], tokenizer, tmp_path / "out", reading=Reading(presplit=True))
    assert IndexedData(tmp_path / "out").documents.tolist() == [0, 2, 3]


def same_files(one, two):
    return all(
        one.with_name(one.name + end).read_bytes() == two.with_name(two.name + end).read_bytes()
        for end in (".bin", ".idx", ".json")
    )


def test_a_pool_writes_the_same_bytes(tmp_path, tokenizer, monkeypatch):
    inputs = [write_lines(tmp_path / "a.jsonl", 300, bad=(7, 8)), tmp_path / "b.txt.gz"]
    inputs[1].write_bytes(gzip.compress(b"The sea.\n\nA man came. Ships.\n" * 200))
    reading = Reading(max_bad_fraction=0.5)
    one = tokenize(inputs, tokenizer, tmp_path / "one", reading=reading)
    two = tokenize(inputs, tokenizer, tmp_path / "two", reading=reading, workers=2)
    assert one[:4] == two[:4] and one.skipped == 2
    assert same_files(tmp_path / "one", tmp_path / "two")
    report = (tmp_path / "two.skipped.txt").read_text()
    assert report == (tmp_path / "one.skipped.txt").read_text()
    assert [line.split(": ")[:2] for line in report.splitlines()] == [
        [str(inputs[0]), "line 8"],
        [str(inputs[0]), "line 9"],
    ]


@pytest.mark.parametrize("stop", [1, 4, 9])
def test_an_interrupted_call_is_taken_up(tmp_path, tokenizer, monkeypatch, stop):
    inputs = [write_lines(tmp_path / "a.jsonl", 200, bad=(3, 190)), write_lines(tmp_path / "b.jsonl", 200, bad=(5,))]
    reading = Reading(max_bad_fraction=0.5)
    tokenize(inputs, tokenizer, tmp_path / "whole", reading=reading)

    encode = encoding.Encoder.__call__
    calls = []

    def stopped(self, numbered):
        calls.append(numbered[1].end_offset)
        if len(calls) > stop:
            raise KeyboardInterrupt
        return encode(self, numbered)

    monkeypatch.setattr(encoding.Encoder, "__call__", stopped)
    with pytest.raises(KeyboardInterrupt):
        tokenize(inputs, tokenizer, tmp_path / "cut", reading=reading)
    assert not (tmp_path / "cut.idx").exists() and (tmp_path / "cut.partial").is_dir()
    # What a killed process wrote after its last checkpoint must not count.
    with (tmp_path / "cut.partial" / "tokens").open("ab") as file:
        file.write(b"\1\2\3")
    with (tmp_path / "cut.partial" / "skipped.txt").open("ab") as file:
        file.write(b"rest of a li")
    done = len(calls)
    calls.clear()
    stop = 10**6
    result = tokenize(inputs, tokenizer, tmp_path / "cut", reading=reading)
    total = sum(1 for path in inputs for _ in raw_chunks(path, 2000))
    assert len(calls) == total - done + 1 and result.skipped == 3
    assert same_files(tmp_path / "whole", tmp_path / "cut")
    assert (tmp_path / "cut.skipped.txt").read_text() == (tmp_path / "whole.skipped.txt").read_text()
    verify(tmp_path / "cut")


def test_changed_text_is_not_taken_up(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(preprocess, "_SECONDS_BETWEEN_CHECKPOINTS", 0)
    source = write_lines(tmp_path / "a.jsonl", 200)
    monkeypatch.setattr(preprocess._Skipped, "too_many", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    monkeypatch.setattr(preprocess, "_LINES_BEFORE_STOPPING", 150)
    with pytest.raises(OSError, match="no space"):
        tokenize([source], tokenizer, tmp_path / "out")
    assert (tmp_path / "out.partial" / "journal.json").exists()
    monkeypatch.undo()
    time.sleep(0.01)
    source.write_text(json.dumps({"text": "A man."}))
    assert tokenize([source], tokenizer, tmp_path / "out").documents == 1


def test_what_cannot_be_read_is_said_and_leaves_nothing(tmp_path, tokenizer):
    empty, key, text = tmp_path / "empty.txt", tmp_path / "key.jsonl", tmp_path / "half.jsonl"
    empty.write_text("\n")
    key.write_text('{"body": "The sea."}\n' * 3)
    write_lines(text, 100, bad=(41, 60))
    before = files_of(tmp_path)
    for inputs, message in (
        ([tmp_path / "none.txt"], "there is no file .*none.txt"),
        ([tmp_path], "is a folder"),
        ([empty], "empty.txt: no document found: empty"),
        ([key], r"no document found; the first of 3 lines .*key.jsonl: line 1: has no key 'text'; its keys are 'body'"),
        (
            [text],
            r"half.jsonl: line 42: is not .*first of 2 bad lines among 100: more than --max-bad-fraction 0.01",
        ),
    ):
        for workers in (1, 2):
            if workers == 1 or inputs == [text]:
                with pytest.raises(ValueError, match=message):
                    tokenize(inputs, tokenizer, tmp_path / "out", workers=workers)
        assert files_of(tmp_path) == before


def test_documents_without_tokens_are_reported(tmp_path, tokenizer):
    source = tmp_path / "a.jsonl"
    source.write_text('{"text": "\\u200d"}\n{"text": "The sea."}\n')
    result = tokenize([source], tokenizer, tmp_path / "out", reading=Reading(max_bad_fraction=0.5))
    assert (result.documents, result.skipped) == (1, 1)
    assert "a document without any token" in (tmp_path / "out.skipped.txt").read_text()


def test_progress(tmp_path, tokenizer, monkeypatch):
    seen = []
    tokenize(
        [write_lines(tmp_path / "a.jsonl", 200)],
        tokenizer,
        tmp_path / "out",
        on_progress=seen.append,
        seconds_between_reports=0,
    )
    assert len(seen) > 3 and seen[0].documents < seen[-1].documents == 200
    assert seen[0].remaining_seconds > 0 and "MB/s" in str(seen[0]) and "left" in str(seen[0])


def test_two_writers_of_one_data_set(tmp_path, tokenizer):
    from megabert.data.indexed_writer import IndexedWriter

    source = write_lines(tmp_path / "a.jsonl", 5)
    with IndexedWriter(tmp_path / "out", 16) as writer:
        with pytest.raises(ValueError, match="another process is writing"):
            tokenize([source], tokenizer, tmp_path / "out")
        writer.add_document([[1, 2]])
    assert IndexedData(tmp_path / "out").num_tokens == 2


CHILD = """
import os, resource, signal, sys
from pathlib import Path
from megabert.data import encoding, preprocess
from megabert.tokenization import opening
import megabert.corpora.chunks
megabert.corpora.chunks._READ_BYTES = 1000
preprocess.CHUNK_BYTES = 2000
preprocess._SECONDS_BETWEEN_CHECKPOINTS = 0
folder, action = Path(sys.argv[1]), sys.argv[2]
count = 0
def stopped(self, chunk, encode=encoding.Encoder.__call__):
    global count
    count += 1
    if count == 4:
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, 1))
    return encode(self, chunk)
encoding.Encoder.__call__ = stopped
try:
    preprocess.tokenize([folder / "a.jsonl"], opening.load(folder / "tokenizer"), folder / "out")
except OSError as error:
    print(error)
    sys.exit(7)
"""


@pytest.mark.parametrize(("action", "status"), [("kill", -9), ("full", 7)])
def test_a_killed_process_or_a_full_disk_leaves_nothing_half_written(tmp_path, tokenizer, action, status):
    source = write_lines(tmp_path / "a.jsonl", 300)
    tokenizer.save(tmp_path / "tokenizer")
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path), action], check=False, capture_output=True, text=True
    )
    assert child.returncode == status, child.stderr
    assert files_of(tmp_path) == ["a.jsonl", "out.partial", "tokenizer"]
    seen = []
    tokenize([source], tokenizer, tmp_path / "out", on_progress=seen.append, seconds_between_reports=0)
    assert seen[0].documents > 60  # it went on from the journal
    tokenize([source], tokenizer, tmp_path / "whole")
    assert same_files(tmp_path / "out", tmp_path / "whole")


class Fatal:
    """A tokenizer that ends its process, as the system does when memory runs out."""

    vocabulary_size = 16

    def fingerprint(self):
        return "fatal"

    def encode_flat(self, texts):
        os._exit(9)


def test_a_pool_that_dies_is_one_clear_error(tmp_path):
    source = write_lines(tmp_path / "a.jsonl", 50)
    with pytest.raises(ChildProcessError, match=r"ended from outside.*--workers"):
        tokenize([source], Fatal(), tmp_path / "out", workers=2)
    assert files_of(tmp_path) == ["a.jsonl"]
