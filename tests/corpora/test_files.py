import bz2
import csv
import gzip
import json
import lzma
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megabert.corpora import chunks, files, tables
from megabert.corpora.document import BadLine, Document, good_documents

TEXTS = ["First one. With two sentences.", 'Größe {["quoted\\ \\" \n line two', "力加勝北区\u2028not a line end"]


def write_loose(path, texts, **more):
    path.write_text("".join(json.dumps({"text": text, **more}) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_tight_json(tmp_path, indent, ascii_only):
    path = tmp_path / "corpus"
    objects = [{"text": text, "title": "t", "nested": {"a": [1, {"b": "]"}]}} for text in TEXTS]
    path.write_text(json.dumps(objects, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    assert list(files.read_documents(path)) == [Document(text, "t") for text in TEXTS]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_loose_json_packed(tmp_path, pack):
    path = write_loose(tmp_path / "corpus.any", TEXTS)
    path.write_bytes(pack(b"\xef\xbb\xbf" + path.read_bytes()))
    assert list(files.read_documents(path)) == [Document(text) for text in TEXTS]


def test_zstd_of_one_frame_and_many_and_cut_short(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    texts = [f"{number} of many." for number in range(20_000)]
    path = write_loose(tmp_path / "corpus.zst", texts)
    data = path.read_bytes()
    frames = [zstandard.compress(data[at : at + 100_000]) for at in range(0, len(data), 100_000)]
    for packed in (zstandard.compress(data), b"".join(frames)):
        path.write_bytes(packed)
        assert [document.text for document in files.read_documents(path)] == texts
        path.write_bytes(packed[:-5])
        with pytest.raises(ValueError, match=r"cut short|unpacked"):
            list(files.read_documents(path))


def test_bad_lines_are_named_and_do_not_stop(tmp_path):
    path = tmp_path / "corpus.jsonl"
    lines = [
        b"not json", b'{"text": "good"}', b'{"body": "x", "id": 3}', b'{"text": "\xff"}', b'{"text": " "}',
        b'{"text": 5}', b'["text"]', b'{"text": "\\ud800"}', b"[" * 100_000, b"", b'{"text": "last"}',
    ]  # fmt: skip
    path.write_bytes(b"\n".join(lines))
    items = list(files.read_documents(path))
    assert [item for item in items if isinstance(item, Document)] == [Document("good"), Document("last")]
    bad = {item.line: item.reason for item in items if isinstance(item, BadLine)}
    assert sorted(bad) == [1, 3, 4, 5, 6, 7, 8, 9]
    assert "is not JSON" in bad[1]
    assert "'text'" in bad[3] and "'body', 'id'" in bad[3]
    assert "not UTF-8" in bad[4]
    assert "empty" in bad[5]
    assert "int" in bad[6]
    assert "not an object" in bad[7]
    assert "not valid Unicode" in bad[8]


def test_damaged_element_of_tight_json_is_named_and_the_rest_read(tmp_path):
    path = tmp_path / "corpus.json"
    content = '[\n{"text": "a"},\n{"text": bad},\n{"text": "b"}, ["c"], {"text": "d"}, 3, null,\n{"body": "e"}, 4\n]\n'
    path.write_text(content)
    items = list(files.read_documents(path))
    assert [item.text for item in items if isinstance(item, Document)] == ["a", "b", "d"]
    bad = [item for item in items if isinstance(item, BadLine)]
    assert [item.line for item in bad] == [3, 4, 4, 4, 5, 5]
    starts = ['{"text": bad', '["c"]', "3, null", "null", '{"body"', "4\n"]
    assert [int(item.reason.split()[-4]) for item in bad] == [content.index(start) for start in starts]


@pytest.mark.parametrize("end", ['{"text": "b', '{"text": "b"}', '{"text": "b"},\n', ""])
def test_tight_json_cut_short_stops(tmp_path, end):
    path = tmp_path / "corpus.json"
    path.write_text('[{"text": "a"},\n' + end)
    for start in (0, 15):
        with pytest.raises(ValueError, match=r"corpus\.json is damaged or cut short"):
            list(files.raw_chunks(path, 1, start))
    path.write_text('[{"text": "a"},\n{"text": "b"}]\n')
    assert [list(files.raw_chunks(path, 1, start)) for start in (30, 31)] == [[], []] or path.stat().st_size > 31


@pytest.mark.parametrize(
    "damage", ['{"text": "a "mark" too", "n": "1}', '{"text": "no end"', '{"text": "one too many"}}']
)
def test_damaged_element_of_tight_json_hides_none_behind_it(tmp_path, damage):
    path = tmp_path / "corpus.json"
    good = [json.dumps({"text": f"number {number}"}) for number in range(20)]
    path.write_text("[" + ", ".join([*good[:5], damage, *good[5:]]) + "]")
    items = list(files.read_documents(path))
    found = {item.text for item in items if isinstance(item, Document)}
    assert len(found & {f"number {number}" for number in range(20)}) >= 19
    assert any(isinstance(item, BadLine) for item in items)


def test_tight_json_of_texts(tmp_path):
    path = tmp_path / "corpus.json"
    path.write_text(json.dumps([*TEXTS, " "]))
    *documents, bad = files.read_documents(path)
    assert documents == [Document(text) for text in TEXTS]
    assert isinstance(bad, BadLine) and "the text is empty" in bad.reason
    path.write_text('["Words in brackets"] are no array.\n\nNor is this.')
    assert [item.text[:6] for item in files.read_documents(path) if isinstance(item, Document)] == ['["Word', "Nor is"]


def test_plain_text_documents_end_at_blank_lines(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_bytes(b"\n\nOne.\r\nTwo. \n \t\nThree.\n\n\n\nFour.")
    assert [item.text for item in files.read_documents(path)] == ["One.\nTwo.", "Three.", "Four."]


def test_plain_text_without_blank_lines(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("A sentence.\nAnother.\n")
    assert [item.text for item in files.read_documents(path)] == ["A sentence.\nAnother."]
    assert [item.text for item in files.read_documents(path, text_layout="lines")] == ["A sentence.", "Another."]
    path.write_text("An article. " * 40 + "\n" + "Another one. " * 40)
    assert len(list(files.read_documents(path))) == 2
    assert len(list(files.read_documents(path, text_layout="blank-lines"))) == 1


def test_bad_line_of_plain_text_has_its_number(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_bytes(b"One.\n\n\nTwo.\n\nOf two lines,\nbad \xff\n\nFour.")
    items = list(files.read_documents(path))
    assert items[2] == BadLine(path, 7, "is not UTF-8 (byte 0xff)")
    assert items[3] == Document("Four.")


@pytest.mark.parametrize("content", [b"One two.\n" * 400_000, b"P.\n\n" + b"One two three.\n" * 300_000 + b"\n\nEnd."])
@pytest.mark.parametrize("chunk_bytes", [1, 1 << 20, 8 << 20])
def test_endless_plain_text_is_cut_the_same_whatever_the_chunks(tmp_path, content, chunk_bytes):
    path = tmp_path / "corpus.txt"
    path.write_bytes(content)
    texts = [
        item.text for chunk in files.raw_chunks(path, chunk_bytes, text_layout="blank-lines")
        for item in chunks.parse_chunk(chunk)
    ]  # fmt: skip
    assert "\n".join(texts) == "\n".join(content.decode().split("\n")).replace("\n\n\n", "\n").replace(
        "\n\n", "\n"
    ).strip("\n")
    assert max(map(len, texts)) <= (1 << 20) + 20
    assert len(texts) == {3_600_000: 4, 4_500_000 + 10: 7}.get(len(content), 7)


def test_line_too_long_for_memory_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "_MAXIMUM_RECORD_BYTES", 2 << 20)
    path = write_loose(tmp_path / "corpus", ["a", "x" * (5 << 20), "b"])
    items = list(files.read_documents(path))
    assert [item if isinstance(item, Document) else item.line for item in items] == [Document("a"), 2, Document("b")]


objects = st.lists(st.text(alphabet='ab"\\{}[], \n\u00e9', min_size=1).filter(str.strip), min_size=1, max_size=8)


@settings(deadline=None)
@given(
    texts=objects, kind=st.sampled_from(["loose", "tight", "tight-indented", "text"]), chunk_bytes=st.integers(1, 60)
)
def test_chunks_may_be_resumed_anywhere(tmp_path_factory, texts, kind, chunk_bytes):
    path = tmp_path_factory.mktemp("corpus") / "corpus"
    if kind == "text":
        path.write_bytes("\n\n".join("x" + text.replace("\n", "") for text in texts).encode())
    elif kind == "loose":
        write_loose(path, texts)
    else:
        path.write_text(json.dumps([{"text": text} for text in texts], indent=2 if kind == "tight-indented" else None))
    options = {"text_layout": "blank-lines", "loose_json": {"text": None, "loose": True}.get(kind, False)}
    with pytest.MonkeyPatch.context() as monkey:
        monkey.setattr(chunks, "_READ_BYTES", 7)  # boundaries fall everywhere
        cuts = list(files.raw_chunks(path, chunk_bytes, **options))
        read = [item for chunk in cuts for item in chunks.parse_chunk(chunk)]
        assert len(read) == len(texts) and all(isinstance(item, Document) for item in read)
        for index, chunk in enumerate(cuts):
            later = list(files.raw_chunks(path, chunk_bytes, chunk.end_offset, **options))
            documents = [item for part in later for item in chunks.parse_chunk(part)]
            assert documents == [item for part in cuts[index + 1 :] for item in chunks.parse_chunk(part)]
            assert [part.first_line for part in later[:1]] == [part.first_line for part in cuts[index + 1 :][:1]]
    if kind != "text":
        assert [item.text for item in read] == [text.strip() for text in texts]
    assert pickle.loads(pickle.dumps(cuts)) == cuts


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file"), (b"PK\x03\x04zip", "zip archive"), (b"\x28\xb5\x2f\xfd...", "zstd|unpacked"),
        (b"ab\0cd", "binary"), (gzip.compress(b"text" * 1000, mtime=0)[:-20], "cut short|unpacked"),
        (b"\xff\xfea\0", "UTF-16"),
        (b"\n<mediawiki xmlns=", "XML"),
    ],
)  # fmt: skip
def test_files_that_are_no_corpus(tmp_path, content, message):
    path = tmp_path / "corpus"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as failure:
        list(files.read_documents(path))
    assert str(path) in str(failure.value) and "\n" not in str(failure.value)


def test_patterns_stand_for_files_in_order(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "deep/er/c.jsonl", "odd[1].jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    names = [path.relative_to(tmp_path).as_posix() for path in files.matching([tmp_path / "**/[a-c].jsonl"])]
    assert names == ["a.jsonl", "b.jsonl", "deep/er/c.jsonl"]
    assert files.matching([tmp_path / "odd[1].jsonl", tmp_path / "none"]) == [
        tmp_path / "odd[1].jsonl", tmp_path / "none",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="no file matches"):
        files.matching([tmp_path / "*.csv"])


json_like = st.lists(
    st.sampled_from(
        [b"{", b"}", b"[", b"]", b'"', b"\\", b",", b":", b"\n", b" ", b'"text"', b"\xff", b"\xc3\xa9", b"a"]
    )
).map(b"".join)


@settings(deadline=None)
@given(content=st.one_of(st.binary(max_size=200), json_like), loose_json=st.sampled_from([None, True, False]))
def test_any_bytes_give_documents_bad_lines_or_one_clear_error(tmp_path_factory, content, loose_json):
    path = tmp_path_factory.mktemp("corpus") / "corpus"
    path.write_bytes(content)
    try:
        items = list(files.read_documents(path, loose_json=loose_json))
    except ValueError as error:
        assert str(path) in str(error)
        return
    for item in items:
        if isinstance(item, Document):
            assert item.text.strip() and item.text.encode("utf-8")
        else:
            assert 1 <= item.line <= content.count(b"\n") + 1


def test_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is a folder"):
        list(files.read_documents(tmp_path))


def test_corpus_without_documents_says_why(tmp_path):
    path = write_loose(tmp_path / "corpus", TEXTS)
    with pytest.raises(ValueError, match=r"line 1: has no key 'body'; its keys are 'text'"):
        list(good_documents(files.read_documents(path, text_key="body")))
    path.write_text("")
    with pytest.raises(ValueError, match="empty"):
        list(good_documents(files.read_documents(path)))


def test_good_documents_hands_bad_lines_over(tmp_path):
    path = write_loose(tmp_path / "corpus", TEXTS)
    path.write_text(path.read_text() + "oops\n")
    bad = []
    assert len(list(good_documents(files.read_documents(path), bad.append))) == 3
    assert [item.line for item in bad] == [4]


@pytest.mark.parametrize("chunk_bytes", [1, 60, 1 << 20])
def test_csv_rows_may_hold_line_breaks(tmp_path, chunk_bytes, monkeypatch):
    monkeypatch.setattr(chunks, "_READ_BYTES", 40)
    path = tmp_path / "table.csv"
    path.write_bytes(
        b'\xef\xbb\xbfid,text,label\r\n1,"First, with ""marks"".\nSecond line.",0\r\n2,Plain \xc3\xbc.,1\r\n'
        b'3,\xff bad,1\r\n4,"",0\r\n\r\n5\r\n6,"Last one\n\n\nends.",1'
    )
    cuts = list(files.raw_chunks(path, chunk_bytes))
    items = [item for cut in cuts for item in chunks.parse_chunk(cut)]
    assert [item.text for item in items if isinstance(item, Document)] == [
        'First, with "marks".\nSecond line.', "Plain ü.", "Last one\n\n\nends.",
    ]  # fmt: skip
    bad = [(item.line, item.reason.split(":")[0]) for item in items if isinstance(item, BadLine)]
    assert bad == [(5, "the text is not valid Unicode"), (6, "the text is empty"), (8, bad[2][1])]
    assert "has no column 'text'" in bad[2][1]
    after = [item for cut in files.raw_chunks(path, 1, cuts[0].end_offset) for item in chunks.parse_chunk(cut)]
    first = len(chunks.parse_chunk(cuts[0]))
    assert after == items[first:]


def test_tsv_has_no_quotation_and_csv_other_signs(tmp_path):
    path = tmp_path / "table.tsv.gz"
    path.write_bytes(gzip.compress(b'index\tsentence\n0\tSay "yes\n1\t"No" now\n'))
    assert [item.text for item in files.read_documents(path, text_key="sentence")] == ['Say "yes', '"No" now']
    path = tmp_path / "table.csv"
    path.write_text("a;text\n1;One, two.\n")
    assert list(files.read_documents(path)) == [Document("One, two.")]
    (item,) = files.read_documents(path, text_key="body")
    assert str(item) == f"{path}: line 2: has no column 'body'; its columns are 'a', 'text'"


def test_the_sign_between_cells_may_be_told(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text('a,b|text\n1|One, two.\n2|"Three | four.\nFive."\n3|"Six" seven\n4|Eight\n')
    items = list(files.read_documents(path, delimiter=tables.checked_delimiter("|")))
    assert [item.text for item in items if isinstance(item, Document)] == ["One, two.", "Three | four.\nFive.", "Eight"]
    assert [item.line for item in items if not isinstance(item, Document)] == [5]
    assert tables.checked_delimiter(r"\t") == "\t" and tables.checked_delimiter(None) == ""
    later = files.raw_chunks(path, 1, next(files.raw_chunks(path, 1, delimiter="|")).end_offset, delimiter="|")
    assert not list(later)
    path.with_suffix(".tsv").write_text("a\ttext\n1\tOne | two\n")
    assert [item.text for item in files.read_documents(path.with_suffix(".tsv"), delimiter="|")] == ["One | two"]
    path.rename(path.with_suffix(".psv"))
    with pytest.raises(ValueError, match=r"\.psv would be read as plain text: give a table a name in \.csv"):
        list(files.read_documents(path.with_suffix(".psv"), delimiter="|"))
    for sign in ("", "::", '"', "\n", "é"):
        with pytest.raises(ValueError, match=r"--delim: .* one ASCII character"):
            tables.checked_delimiter(sign)


def test_joined_files_of_which_each_begins_with_a_mark(tmp_path):
    path = tmp_path / "joined.jsonl"
    path.write_text("".join(f'\ufeff{{"text": "{word}."}}\n' for word in ("One", "Two")), encoding="utf-8")
    assert [item.text for item in files.read_documents(path) if isinstance(item, Document)] == ["One.", "Two."]


def test_a_table_with_two_columns_of_the_texts_name_is_refused(tmp_path):
    path = tmp_path / "twice.csv"
    path.write_text("text,text\nOne.,Two.\n")
    with pytest.raises(ValueError, match=r"twice\.csv: the first line names the column text 2 times"):
        list(files.read_documents(path))


cells = st.text(alphabet='ab",\n\r é', min_size=1).filter(str.strip)


@settings(deadline=None)
@given(texts=st.lists(cells, min_size=1, max_size=8), broken=st.integers(0, 8), chunk_bytes=st.integers(1, 60))
def test_csv_as_it_is_written_and_with_a_broken_row(tmp_path_factory, texts, broken, chunk_bytes):
    path = tmp_path_factory.mktemp("corpus") / "table.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(["id", "text"])
        for number, text in enumerate(texts):
            if number == broken:
                file.write('9,"a mark that nothing ends\n')
            writer.writerow([number, text])
    with pytest.MonkeyPatch.context() as monkey:
        monkey.setattr(chunks, "_READ_BYTES", 11)
        cuts = list(files.raw_chunks(path, chunk_bytes))
        read = [item for chunk in cuts for item in chunks.parse_chunk(chunk)]
        for index, chunk in enumerate(cuts):
            later = [item for cut in files.raw_chunks(path, 1, chunk.end_offset) for item in chunks.parse_chunk(cut)]
            assert later == [item for part in cuts[index + 1 :] for item in chunks.parse_chunk(part)]
    assert [item.text for item in read if isinstance(item, Document)] == [text.strip() for text in texts]
    assert len(read) - len(texts) == (broken < len(texts))


@pytest.mark.parametrize("last", ["9,plain\n", '9,"quoted"\n'])
def test_csv_mark_too_many_costs_its_row_only(tmp_path, last, monkeypatch):
    monkeypatch.setattr(chunks, "_MAXIMUM_RECORD_BYTES", 2 << 20)
    path = tmp_path / "table.csv"
    path.write_text('id,text\n1,first\n2,"broken\n' + f"3,{'word ' * 20}\n" * 22_000 + '4,a,b\n5,"b" c\n' + last)
    items = list(files.read_documents(path))
    bad = [(item.line, item.reason.split(",")[0]) for item in items if isinstance(item, BadLine)]
    broken = "a cell begins with a quotation mark"
    assert bad == [(3, broken), (22_004, "has 3 cells"), (22_005, broken)]
    assert len(items) == 22_005


def test_csv_cell_of_any_length(tmp_path):
    path = tmp_path / "table.csv"
    text = "A long text, in many words.\n" * 100_000
    path.write_text(f'id,text\n1,"{text}"\n2,short\n')
    assert [item.text for item in files.read_documents(path)] == [text.strip(), "short"]
    assert csv.field_size_limit() == 131_072


def test_csv_whose_marks_are_nonsense_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_MOST_LOOKED_AT_AGAIN", 1 << 20)
    path = tmp_path / "table.csv"
    path.write_text("x,text\n" + 'a",x,"b\n' * 20_000)
    with pytest.raises(ValueError, match=r"table\.csv: near line \d+: the quotation marks"):
        list(files.read_documents(path))


@settings(deadline=None, max_examples=60)
@given(
    parts=st.lists(
        st.sampled_from(
            ['{"text": "a"}', '", {"text": "b"}', '"text"', '"', ",", "\n", "{", "}", "[", "]", '""', ',"']
        ),
        max_size=30,
    ),
    name=st.sampled_from(["a.json", "a.csv"]),
    chunk_bytes=st.integers(1, 30),
)
def test_damage_reads_the_same_however_it_is_cut_and_resumed(tmp_path_factory, parts, name, chunk_bytes):
    path = tmp_path_factory.mktemp("corpus") / name
    path.write_text("".join(["[" if name == "a.json" else "id,text\n", *parts, "]"]))
    options = {"loose_json": False if name == "a.json" else None}
    whole = list(files.read_documents(path, **options))
    with pytest.MonkeyPatch.context() as monkey:
        monkey.setattr(chunks, "_READ_BYTES", 9)
        cuts = [(cut, chunks.parse_chunk(cut)) for cut in files.raw_chunks(path, chunk_bytes, **options)]
        for index, (cut, _) in enumerate(cuts):
            later = files.raw_chunks(path, chunk_bytes, cut.end_offset, **options)
            rest = [item for _, items in cuts[index + 1 :] for item in items]
            assert [item for other in later for item in chunks.parse_chunk(other)] == rest
    assert [item for _, items in cuts for item in items] == whole
