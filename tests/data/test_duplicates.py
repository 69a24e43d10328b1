import json
import random
import sys

import numpy as np
import pytest

from megabert import cli
from megabert.data import duplicates, encoding, fingerprints, preprocess
from megabert.data.encoding import Reading
from megabert.data.indexed import IndexedData
from megabert.data.preprocess import tokenize
from megabert.tokenization.word_piece import from_tokens

WORDS = [f"w{number}" for number in range(400)]


pytestmark = pytest.mark.usefixtures("small_chunks")


@pytest.fixture
def tokenizer():
    return from_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *WORDS], lower_case=True)


def made(seed, count):
    """(documents; for each the number of the one that it repeats, or None; whether it does so word by word)."""
    chance = random.Random(seed)
    documents, sources, same = [], [], []
    for number in range(count):
        sources.append(None)
        same.append(False)
        kind = chance.random()
        if number > 5 and kind < 0.4:
            original = chance.randrange(number)
            while sources[original] is not None:
                original = sources[original]
            words = documents[original].split()
            if kind < 0.2:
                same[-1] = True
            else:  # two words of a hundred or more: under 20 of the runs of five
                for place in chance.sample(range(len(words)), 2):
                    words[place] = "other"
            sources[-1] = original
            documents.append(("  " if number % 2 else "\n").join(words))
        else:
            documents.append(" ".join(chance.choices(WORDS, k=chance.randrange(150, 220))))
    return documents, sources, same


def write(path, documents):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return path


def report(prefix):
    return [line.split() for line in prefix.with_name(prefix.name + ".duplicates.txt").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["exact", "minhash"])
@pytest.mark.parametrize("on_disk", [False, True])
def test_the_first_of_equal_documents_is_kept(tmp_path, tokenizer, monkeypatch, kind, on_disk):
    if on_disk:
        for name, value in (("_NEWEST", 8), ("_JOINED", 3), ("_AT_ONCE", 50)):
            monkeypatch.setattr(duplicates, name, value)
    documents, sources, same = made(1, 120)
    if kind == "exact":
        sources = [source if word_by_word else None for source, word_by_word in zip(sources, same, strict=True)]
    one, two = write(tmp_path / "a.jsonl", documents[:70]), write(tmp_path / "b.jsonl", documents[70:])
    result = tokenize([one, two], tokenizer, tmp_path / "out", reading=Reading(dedup=kind))
    kept = [text for text, source in zip(documents, sources, strict=True) if source is None]
    tokenize([write(tmp_path / "kept.jsonl", kept)], tokenizer, tmp_path / "kept")
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"out{suffix}").read_bytes() == (tmp_path / f"kept{suffix}").read_bytes()
    assert result.documents == len(kept) and result.duplicates == len(documents) - len(kept) > 20

    def place(number):
        return f"{one}:{number + 1}" if number < 70 else f"{two}:{number - 69}"

    told = [(line[0], line[2]) for line in report(tmp_path / "out")]
    assert told == [(place(number), place(source)) for number, source in enumerate(sources) if source is not None]
    facts = IndexedData(tmp_path / "out").facts
    assert facts["duplicate_documents_removed"] == result.duplicates
    assert facts["duplicate_tokens_removed"] + result.tokens == sum(len(text.split()) for text in documents)
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.bin", "out.duplicates.txt", "out.idx",
                                                                   "out.json"]  # fmt: skip


def test_an_interrupted_search_goes_on_where_it_was(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(duplicates, "_NEWEST", 30)
    monkeypatch.setattr(preprocess, "_SECONDS_BETWEEN_CHECKPOINTS", 0)
    source = write(tmp_path / "a.jsonl", made(2, 90)[0])
    reading = Reading(dedup="minhash")
    tokenize([source], tokenizer, tmp_path / "whole", reading=reading)
    encode, calls = encoding.Encoder.__call__, []

    def stop(self, chunk):
        calls.append(chunk)
        if len(calls) == 12:
            raise MemoryError
        return encode(self, chunk)

    monkeypatch.setattr(encoding.Encoder, "__call__", stop)
    with pytest.raises(MemoryError):
        tokenize([source], tokenizer, tmp_path / "out", reading=reading)
    partial = tmp_path / "out.partial"
    for name in ("fingerprints", "places", "duplicates.txt"):  # written behind the last checkpoint
        with (partial / name).open("ab") as file:
            file.write(b"more")
    tokenize([source], tokenizer, tmp_path / "out", reading=reading)
    for suffix in (".bin", ".idx", ".json", ".duplicates.txt"):
        assert (tmp_path / f"out{suffix}").read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()


def test_an_older_report_does_not_stay(tmp_path, tokenizer):
    source = write(tmp_path / "a.jsonl", ["w1 w2", "w1 w2"])
    tokenize([source], tokenizer, tmp_path / "out", reading=Reading(dedup="exact"))
    assert report(tmp_path / "out") == [[f"{source}:2", "repeats", f"{source}:1"]]
    tokenize([source], tokenizer, tmp_path / "out")
    assert not (tmp_path / "out.duplicates.txt").exists() and IndexedData(tmp_path / "out").num_documents == 2


def test_signatures_estimate_what_texts_have_in_common():
    signature = fingerprints.maker("minhash")
    chance = random.Random(5)
    words = chance.choices(WORDS, k=1000)

    def share(first, second):
        one, two = signature([" ".join(first), " ".join(second)])
        return float((one == two).mean())

    # So many runs of five are common, of 996 + 996 less those.
    assert share(words, words[:500]) == pytest.approx(496 / 996, abs=0.15)
    assert share(words[:800], words[200:]) == pytest.approx(596 / 996, abs=0.15)
    assert share(words, chance.choices(WORDS, k=1000)) < 0.05
    # Letters that no space parts count as words; case, marks and white space do not count.
    one, two, three = signature(["力加勝北区 力加勝北", "力加勝北区力加勝北", "区北勝加力 北勝加力"])
    assert (one == two).all() and not (one == three).any()
    assert (signature(["The sea. was calm"]) == signature(["the SEA was\ncalm!"])).all()
    assert len(np.unique(signature(["", "!", "..."]), axis=0)) == 3


@pytest.mark.parametrize("similarity", [0.3, 0.5, 0.8, 0.95, 1])
def test_bands_find_what_is_alike(similarity):
    bands, length = duplicates.bands_for(128, similarity)
    assert bands * length <= 128
    assert 1 - (1 - similarity**length) ** bands >= 0.99


def test_a_missing_library_is_said_before_the_work_begins(tmp_path, tokenizer, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "datasketch", None)
    tokenizer.save(tmp_path / "tok")
    source = write(tmp_path / "a.jsonl", ["w1 w2"])
    arguments = ["tokenize", "--input", source, "--output", tmp_path / "out", "--tokenizer", tmp_path / "tok"]
    assert cli.main([*map(str, arguments), "--dedup", "minhash"]) == 2
    assert "pip install 'megabert[dedup]'" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))
    assert cli.main([*map(str, arguments), "--dedup", "exact"]) == 0
