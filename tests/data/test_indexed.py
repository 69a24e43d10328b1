import json
import pickle

import numpy as np
import pytest

from megabert.data.indexed import IndexedData, find_prefix, token_dtype, verify
from megabert.data.indexed_writer import IndexedWriter

BIN = bytes.fromhex("050006000700080009000a00")
IDX = bytes.fromhex(
    "4d4d4944494458000001000000000000000803000000000000000300000000000000030000000100000002000000000000000000000006000000"
    "00000000080000000000000000000000000000000200000000000000" "0300000000000000"
)  # fmt: skip


def write(prefix, documents=(((5, 6, 7), (8,)), ((9, 10),)), vocabulary_size=100):
    with IndexedWriter(prefix, vocabulary_size, fingerprint="abc") as writer:
        for document in documents:
            writer.add_document(document)
    return prefix


def test_bytes_are_megatrons(tmp_path):
    write(tmp_path / "x")
    assert (tmp_path / "x.bin").read_bytes() == BIN
    assert (tmp_path / "x.idx").read_bytes() == IDX
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.bin", "x.idx", "x.json"]


def test_files_without_side_file_are_read(tmp_path):
    (tmp_path / "m.bin").write_bytes(BIN)
    (tmp_path / "m.idx").write_bytes(IDX)
    data = IndexedData(tmp_path / "m")
    assert data.facts == {} and data.num_documents == 2 and len(data) == 3 and data.num_tokens == 6
    assert data.tokens(0, 2).tolist() == [5, 6, 7, 8]
    assert data.tokens(2, 3).tolist() == [9, 10]
    assert data.tokens(1, 1).tolist() == []
    assert data.documents.tolist() == [0, 2, 3]
    assert data.largest_id() == 10


def test_repeated_document_boundaries_are_empty_documents(tmp_path):
    (tmp_path / "m.bin").write_bytes(BIN)
    header = IDX[:26] + (4).to_bytes(8, "little") + IDX[34:70]
    (tmp_path / "m.idx").write_bytes(header + np.array([0, 2, 2, 3], "<i8").tobytes())
    assert IndexedData(tmp_path / "m").num_documents == 3


def test_any_spelling_of_the_name(tmp_path):
    prefix = write(tmp_path / "wiki.v2_text_sentence")
    for name in ("wiki.v2_text_sentence", "wiki.v2_text_sentence.bin", "wiki.v2_text_sentence.idx", "wiki.v2"):
        assert find_prefix(tmp_path / name) == prefix
    assert find_prefix(tmp_path / "wiki") is find_prefix(".") is find_prefix("/") is None
    with pytest.raises(ValueError, match="no indexed data"):
        IndexedData(tmp_path / "wiki")


def test_large_vocabularies_use_int32(tmp_path):
    assert token_dtype(65499) == np.uint16 and token_dtype(65500) == np.int32
    data = IndexedData(write(tmp_path / "x", [[[70000, 1]]], vocabulary_size=80000))
    assert data.dtype == np.int32 and data.tokens(0, 1).tolist() == [70000, 1]


def test_empty_sentences_and_documents_are_dropped(tmp_path):
    data = IndexedData(write(tmp_path / "x", [[[], [1]], [], [[]], [[2], []]]))
    assert data.documents.tolist() == [0, 1, 2] and data.tokens(0, 2).tolist() == [1, 2]


def test_no_document_is_an_error_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="no document"):
        write(tmp_path / "x", [])
    assert list(tmp_path.iterdir()) == []


def test_an_error_while_writing_keeps_the_old_files(tmp_path):
    write(tmp_path / "x")
    with pytest.raises(RuntimeError), IndexedWriter(tmp_path / "x", 100) as writer:
        writer.add_document([[1]])
        raise RuntimeError
    assert (tmp_path / "x.bin").read_bytes() == BIN and not (tmp_path / "x.partial").exists()


def test_every_flipped_byte_is_found(tmp_path):
    write(tmp_path / "x")
    for suffix in (".bin", ".idx"):
        path = tmp_path / f"x{suffix}"
        good = path.read_bytes()
        for place in range(len(good)):
            path.write_bytes(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
            with pytest.raises(ValueError, match=f"x{suffix}"):
                verify(tmp_path / "x")
        path.write_bytes(good)
    assert verify(tmp_path / "x")["checksums"]


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_truncated_files_are_found_without_checksums(tmp_path, suffix):
    (tmp_path / "m.bin").write_bytes(BIN)
    (tmp_path / "m.idx").write_bytes(IDX)
    path = tmp_path / f"m{suffix}"
    for length in range(len(path.read_bytes())):
        path.write_bytes((BIN if suffix == ".bin" else IDX)[:length])
        with pytest.raises(ValueError, match=f"m{suffix}: (damaged|not an index)"):
            IndexedData(tmp_path / "m")


def test_wrong_headers_say_what_is_wrong(tmp_path):
    (tmp_path / "m.bin").write_bytes(BIN)
    for content, message in (
        (b"PK\x03\x04" + IDX[4:], "not an index"),
        (b"TNTIDX\x00\x00" + IDX[8:], "version 256"),
        (IDX[:9] + b"\x02" + IDX[10:], "version 2"),
        (IDX[:17] + b"\x07" + IDX[18:], "dtype code 7"),
        (IDX[:18] + b"\xff" * 8 + IDX[26:], "needs"),  # a length that must not be allocated
    ):
        (tmp_path / "m.idx").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            IndexedData(tmp_path / "m")


def test_missing_tokens_and_damaged_side_file(tmp_path):
    write(tmp_path / "x")
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ValueError, match=r"x\.json: damaged"):
        IndexedData(tmp_path / "x")
    (tmp_path / "x.bin").unlink()
    with pytest.raises(ValueError, match=r"x\.bin, is missing"):
        IndexedData(tmp_path / "x")


def test_side_file_says_what_is_there(tmp_path):
    write(tmp_path / "x")
    facts = json.loads((tmp_path / "x.json").read_text())
    assert facts["tokenizer"] == "abc" and facts["largest_id"] == 10
    assert (facts["documents"], facts["sentences"], facts["tokens"]) == (2, 3, 6)


def test_ids_below_zero_are_refused(tmp_path):
    data = IndexedData(write(tmp_path / "x", [[[70000, -5]]], vocabulary_size=80000))
    (tmp_path / "x.json").unlink()
    with pytest.raises(ValueError, match="ids below 0"):
        IndexedData(data.prefix).largest_id()


def test_pickled_data_maps_the_files_again(tmp_path):
    data = pickle.loads(pickle.dumps(IndexedData(write(tmp_path / "x"))))
    assert data.tokens(0, 3).tolist() == [5, 6, 7, 8, 9, 10]


def test_a_stopped_writer_is_taken_up_byte_for_byte(tmp_path, monkeypatch):
    monkeypatch.setattr("megabert.data.indexed_writer.CHECKSUM_BLOCK", 64)
    monkeypatch.setattr("megabert.data.indexed.CHECKSUM_BLOCK", 64)
    documents = [[list(range(n, n + 1 + n % 5)), [n] * (n % 3)] for n in range(60)]
    with IndexedWriter(tmp_path / "whole", 100) as writer:
        for document in documents:
            writer.add_document(document)

    with pytest.raises(KeyboardInterrupt), IndexedWriter(tmp_path / "cut", 100, settings={"a": 1}) as writer:
        for number, document in enumerate(documents[:40]):
            if number == 23:
                writer.checkpoint({"next": 23})
            writer.add_document(document)
        raise KeyboardInterrupt
    assert not (tmp_path / "cut.idx").exists()
    with IndexedWriter(tmp_path / "cut", 100, settings={"a": 1}) as writer:
        assert writer.resumed
        for document in documents[writer.progress["next"] :]:
            writer.add_document(document)
    for suffix in (".bin", ".idx", ".json"):
        assert (tmp_path / f"cut{suffix}").read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()
    verify(tmp_path / "cut")

    other = IndexedWriter(tmp_path / "cut", 100, settings={"a": 2})
    assert not other.resumed
    other.abandon()


def test_a_writer_killed_between_its_renames_is_completed(tmp_path):
    writer = IndexedWriter(tmp_path / "x", 100, settings={})
    writer.add_document([[1, 2]])
    writer._close()
    writer._write_index()
    writer._write_facts({})
    writer.progress = {"next": 1}
    writer._write_journal(complete=True)
    (writer.folder / "tokens").rename(tmp_path / "x.bin")
    writer._lock.close()
    again = IndexedWriter(tmp_path / "x", 100, settings={})
    again.finish()
    assert IndexedData(tmp_path / "x").tokens(0, 1).tolist() == [1, 2] and not writer.folder.exists()


def test_random_damage_without_checksums_is_an_error_or_harmless(tmp_path):
    (tmp_path / "m.bin").write_bytes(BIN)
    generator = np.random.default_rng(0)
    for _ in range(500):
        content = bytearray(IDX)
        for place in generator.integers(0, len(IDX), generator.integers(1, 4)):
            content[place] = generator.integers(0, 256)
        (tmp_path / "m.idx").write_bytes(
            content[: generator.integers(0, len(IDX) + 1)] if generator.random() < 0.2 else content
        )
        try:
            data = IndexedData(tmp_path / "m")
        except ValueError as error:
            assert "m.idx" in str(error) or "m.bin" in str(error)
        else:
            for number in range(data.num_documents):
                first, last = (int(n) for n in data.documents[number : number + 2])
                assert len(data.tokens(first, last)) == data.sizes[first:last].sum()
