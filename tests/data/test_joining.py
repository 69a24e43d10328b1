import struct

import numpy as np
import pytest

from megabert import cli
from megabert.data import indexed, joining
from megabert.data.indexed import IndexedData
from megabert.data.indexed_writer import IndexedWriter


def write(prefix, documents, vocabulary=100, fingerprint="f"):
    with IndexedWriter(prefix, vocabulary, fingerprint=fingerprint) as writer:
        for document in documents:
            writer.add_document(document)
    return prefix


def read(prefix):
    data = IndexedData(prefix)
    borders = data.documents
    return [
        [data.tokens(s, s + 1).tolist() for s in range(borders[d], borders[d + 1])] for d in range(data.num_documents)
    ]


FIRST = [[[1, 2], [3]], [[4]], [[5, 6, 7]]]
SECOND = [[[8]], [[9, 10], [11]]]


def test_merged_data_is_what_one_run_would_have_written(tmp_path, monkeypatch):
    monkeypatch.setattr(joining, "_COPIED_AT_ONCE", 2)
    one, two = write(tmp_path / "a", FIRST), write(tmp_path / "b", SECOND)
    whole = write(tmp_path / "whole", FIRST + SECOND)
    joining.merge([one, two], tmp_path / "joined")
    for suffix in (".bin", ".idx", ".json"):
        assert (tmp_path / f"joined{suffix}").read_bytes() == whole.with_name(f"whole{suffix}").read_bytes()


def test_data_without_sentences_beside_data_with_them_is_told(tmp_path, capsys):
    one, two = write(tmp_path / "a", FIRST), write(tmp_path / "b", [[[8]], [[9]]])
    joining.merge([one, two], tmp_path / "joined")
    assert f"note: {two} has one sentence a document" in capsys.readouterr().out
    joining.merge([two, two], tmp_path / "same")
    assert "note" not in capsys.readouterr().out


def test_a_merge_that_stopped_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(joining, "_COPIED_AT_ONCE", 1)
    monkeypatch.setattr(joining, "_TOKENS_BETWEEN_CHECKPOINTS", 1)
    one, two = write(tmp_path / "a", FIRST), write(tmp_path / "b", SECOND)
    add, calls = IndexedWriter.add_block, []

    def stop(self, *arguments):
        calls.append(arguments)
        if len(calls) == 5:
            raise KeyboardInterrupt
        add(self, *arguments)

    monkeypatch.setattr(IndexedWriter, "add_block", stop)
    with pytest.raises(KeyboardInterrupt):
        joining.merge([one, two], tmp_path / "joined")
    assert not (tmp_path / "joined.idx").exists()
    joining.merge([one, two], tmp_path / "joined")
    assert read(tmp_path / "joined") == FIRST + SECOND and len(calls) == 6


def test_different_tokenizers_or_the_same_name_are_refused(tmp_path):
    one, two = write(tmp_path / "a", FIRST), write(tmp_path / "b", SECOND, fingerprint="g")
    with pytest.raises(ValueError, match="different tokenizers"):
        joining.merge([one, two], tmp_path / "c")
    with pytest.raises(ValueError, match="one of the data sets"):
        joining.merge([one], tmp_path / "a")


def test_types_are_widened(tmp_path):
    joining.merge([write(tmp_path / "a", FIRST), write(tmp_path / "b", [[[70_000]]], 80_000)], tmp_path / "c")
    assert read(tmp_path / "c") == [*FIRST, [[70_000]]] and IndexedData(tmp_path / "c").dtype == np.int32


def test_the_command(tmp_path, capsys):
    many = [[[number, 1], [2]] for number in range(10, 30)]
    folder = tmp_path / "parts"
    folder.mkdir()
    write(folder / "1", many[:7])
    write(folder / "2", many[7:])
    assert cli.main(["data", "merge", str(folder), "--output", str(tmp_path / "all")]) == 0
    arguments = ["data", "split", str(tmp_path / "all"), "--split", "8,1,1", "--output", str(tmp_path / "cut")]
    assert cli.main(arguments) == 0
    parts = [read(tmp_path / f"cut_{name}") for name in ("train", "valid", "test")]
    assert [len(part) for part in parts] == [16, 2, 2] and [*parts[0], *parts[1], *parts[2]] == many
    assert cli.main(["data", "verify", str(tmp_path / "all"), str(folder)]) == 0
    assert capsys.readouterr().out.count(": whole:") == 3
    content = bytearray((tmp_path / "all.bin").read_bytes())
    content[3] ^= 1
    (tmp_path / "all.bin").write_bytes(content)
    assert cli.main(["data", "verify", str(tmp_path / "all")]) == 2
    assert "all.bin: damaged" in capsys.readouterr().err
    for wrong in (["merge", str(folder)], ["split", str(folder), "--output", "x"], ["verify", str(tmp_path / "no")]):
        assert cli.main(["data", *wrong]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def legacy(prefix, documents, code=4, kind="<i4", version=1):
    sentences = [sentence for document in documents for sentence in document]
    sizes = [len(sentence) for sentence in sentences]
    places = np.cumsum([0, *sizes])
    borders = np.cumsum([0, *map(len, documents)])
    numbers = [*range(len(sizes) + 1), *places, *sizes, *borders]
    header = struct.pack(
        "<8s6Q", b"TNTIDX\0\0", version, code, np.dtype(kind).itemsize, len(sizes), len(sizes), len(borders)
    )
    prefix.with_name(prefix.name + ".idx").write_bytes(header + np.array(numbers, "<i8").tobytes())
    np.concatenate([np.array(sentence, kind) for sentence in sentences]).tofile(prefix.with_name(prefix.name + ".bin"))
    return prefix


def test_the_older_index_is_read_and_written_anew(tmp_path):
    old = legacy(tmp_path / "old", FIRST)
    assert read(old) == FIRST and indexed.verify(old)["dtype"] == "int32"
    assert read(legacy(tmp_path / "small", SECOND, 8, "<u2")) == SECOND
    joining.merge([old], tmp_path / "new")
    assert read(tmp_path / "new") == FIRST and (tmp_path / "new.idx").read_bytes()[:6] == b"MMIDID"


def test_damage_to_the_older_index_is_found(tmp_path):
    good = (legacy(tmp_path / "old", FIRST).with_name("old.idx")).read_bytes()
    for changed in (good[:30], good[:-8], good[:56] + b"\xff" * 8 + good[64:], good.replace(b"\x04", b"\x07", 1)):
        (tmp_path / "old.idx").write_bytes(changed)
        try:
            assert read(tmp_path / "old") == FIRST  # the offsets of dimensions are not used
        except ValueError as error:
            assert "old.idx" in str(error)
    legacy(tmp_path / "old", FIRST, version=2)
    with pytest.raises(ValueError, match="version 2"):
        IndexedData(tmp_path / "old")
    legacy(tmp_path / "old", FIRST, 7, "<f8")
    with pytest.raises(ValueError, match="whole numbers"):
        IndexedData(tmp_path / "old")
