"""Forms of input beside JSON and text, and the same report of bad places for each."""

import bz2
import gzip
import json
import pickle

import pytest
import zstandard

from megabert.corpora import chunks, files, lazy_folder
from megabert.corpora.document import Document

TEXTS = ["The sea is calm.", "Ein schöner Tag.", "海は静かだ。"]


def texts_of(path, **options):
    return [item.text for item in files.read_documents(path, **options)]


@pytest.fixture
def parquet(tmp_path):
    arrow = pytest.importorskip("pyarrow", reason="Parquet is read by an extra")
    table = pytest.importorskip("pyarrow.parquet")

    def make(texts, name="a.parquet", column="text", rows=2):
        path = tmp_path / name
        columns = {"id": list(range(len(texts))), column: texts, "title": ["t"] * len(texts)}
        table.write_table(arrow.table(columns), path, row_group_size=rows)
        return path

    return make


def test_parquet(parquet):
    path = parquet([*TEXTS, None, " "])
    assert files.detect(path) == "parquet"
    items = list(files.read_documents(path))
    assert items[:3] == [Document(text, "t") for text in TEXTS]
    assert [str(item) for item in items[3:]] == [
        f"{path}: row 4: key 'text' holds NoneType, not text", f"{path}: row 5: the text is empty",
    ]  # fmt: skip
    assert texts_of(parquet(TEXTS, "b.parquet", "body"), text_key="body") == TEXTS
    with pytest.raises(ValueError, match=r"has no column 'text'; its columns are 'id', 'body', 'title'"):
        texts_of(parquet(TEXTS, "c.parquet", "body"))


def test_parquet_goes_on_where_it_stopped(parquet):
    path = parquet([f"Number {number}." for number in range(1000)], rows=300)
    cuts = list(files.raw_chunks(path, 4000))
    assert len(cuts) > 2 and cuts[-1].end_offset == 1000
    later = list(files.raw_chunks(path, 4000, cuts[1].end_offset))
    assert [item for cut in later for item in chunks.parse_chunk(cut)] == [
        item for cut in cuts[2:] for item in chunks.parse_chunk(cut)
    ]
    assert later[0].first_line == cuts[1].end_offset + 1


def test_damaged_parquet_is_one_line(parquet, tmp_path):
    content = parquet(TEXTS).read_bytes()
    (tmp_path / "cut.parquet").write_bytes(content[:-10])
    with pytest.raises(ValueError, match=r"cut\.parquet: cannot be read as Parquet") as error:
        texts_of(tmp_path / "cut.parquet")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, zstandard.compress], ids=["gz", "bz2", "zst"])
def test_each_form_packed(pack, tmp_path, parquet):
    forms = {
        "a.jsonl": "\n".join(json.dumps({"text": text}) for text in TEXTS),
        "a.json": json.dumps([{"text": text} for text in TEXTS]),
        "a.csv": "id,text\n" + "\n".join(f'1,"{text}"' for text in TEXTS),
        "a.tsv": "id\ttext\n" + "\n".join(f"1\t{text}" for text in TEXTS),
        "a.txt": "\n\n".join(TEXTS),
    }
    for name, content in forms.items():
        path = tmp_path / f"{name}.packed"
        path.write_bytes(pack(content.encode()))
        named = path.rename(tmp_path / f"{name}.x")
        assert texts_of(named) == TEXTS, name
    packed = tmp_path / "a.parquet.x"
    packed.write_bytes(pack(parquet(TEXTS).read_bytes()))
    assert texts_of(packed) == TEXTS


def test_what_is_a_document_of_a_plain_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("One.\nTwo.\n\nThree.\n")
    assert texts_of(path) == ["One.\nTwo.", "Three."]
    assert texts_of(path, text_layout="file") == ["One.\nTwo.\nThree."]
    assert texts_of(path, text_layout="lines") == ["One.", "Two.", "Three."]


@pytest.fixture
def lazy(tmp_path):
    def make(texts, protocol=4):
        folder = tmp_path / "x.lazy"
        folder.mkdir(exist_ok=True)
        encoded = [text if isinstance(text, bytes) else text.encode() for text in texts]
        (folder / "data").write_bytes(b"".join(encoded))
        (folder / "data.len.pkl").write_bytes(pickle.dumps([len(text) for text in encoded], protocol))
        return files.matching([folder])[0]

    return make


@pytest.mark.parametrize("protocol", range(5))
def test_folders_of_the_lazy_loader_of_2019(lazy, protocol):
    texts = [*TEXTS, "Two\nlines", "x" * 70_000] + ["small"] * 2000
    path = lazy(texts, protocol)
    assert texts_of(path) == texts
    cuts = list(files.raw_chunks(path, 1000))
    assert len(cuts) > 3
    later = [item for cut in files.raw_chunks(path, 1000, cuts[2].end_offset) for item in chunks.parse_chunk(cut)]
    assert [item.text for item in later] == [item.text for cut in cuts[3:] for item in chunks.parse_chunk(cut)]


def test_bad_documents_of_a_lazy_folder_are_counted(lazy):
    path = lazy(["Good.", b"\xff\xfe", "", "Good too."])
    items = list(files.read_documents(path))
    assert [str(item) for item in items[1:3]] == [
        f"{path}: document 2: is not UTF-8 (byte 0xff)", f"{path}: document 3: the text is empty",
    ]  # fmt: skip
    assert items[0].text == "Good." and items[3].text == "Good too."


class Harmful:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code of a file was run')",))


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps([Harmful()]), pickle.dumps(["1"]), pickle.dumps([4, 1 << 80]), pickle.dumps([5]),
        b"\x80\x04\x8b\xff\xff\xff\x7f", b"", b"no",
    ],
    ids=["code", "text", "huge", "sum", "long", "empty", "noise"],
)  # fmt: skip
def test_no_pickle_is_trusted(lazy, content):
    path = lazy(["Text"])
    path.with_name(lazy_folder.LENGTHS).write_bytes(content)
    with pytest.raises(ValueError, match=r"data\.len\.pkl"):
        texts_of(path)
