import gzip

import pytest

from megabert.tasks import readers

HEADERS = [frozenset({"text"})]
SHAPES = {2: ("text", "label")}


def cells(path):
    return [dict(record.cells) for record in readers.table(path, HEADERS, SHAPES)]


def test_tabs_are_never_quoted(write):
    path = write("a.tsv", '"quite" good\t1\n\nhe said "no\t0\n')
    assert cells(path) == [{"text": '"quite" good', "label": "1"}, {"text": 'he said "no', "label": "0"}]


def test_csv_is_quoted_and_lines_are_counted_through_quoted_ones(write):
    path = write("a.csv", 'text,label\n"one, two\nthree",1\nfour\n')
    with pytest.raises(ValueError, match=r"a\.csv:4: 1 columns, but the lines before have 2"):
        cells(path)
    path = write("b.csv", 'text,label\n"one, ""two""",1\n')
    assert cells(path) == [{"text": 'one, "two"', "label": "1"}]


def test_byte_order_mark_windows_lines_and_gzip(write, tmp_path):
    path = write("a.tsv", "\ufeffText\tLabel\r\nx\t1\r\n")
    assert cells(path) == [{"text": "x", "label": "1"}]
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(b"x\t1\n"))
    assert cells(tmp_path / "a.tsv.gz") == [{"text": "x", "label": "1"}]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"text": "x"}\n{"text": \n', r"a\.jsonl:2: not JSON"),
        (
            "a.jsonl",
            '{"text": "x"}\n{"text": "so \\ud800 y"}\n',
            r"a\.jsonl:2: half a character, \\ud800, stands behind .*so '",
        ),
        ("a.json", '[{"text": "\\ud83d"}]', r"a\.json: half a character"),
        ("a.jsonl", "[1]\n", r"a\.jsonl:1: a JSON object is needed"),
        ("a.tsv", "a\tb\tc\td\n", r"a\.tsv:1: 4 columns without a header"),
        ("a.tsv", "a\t1\nb\n", r"a\.tsv:2: 1 columns, but the lines before have 2"),
    ],
)
def test_broken_lines_are_named(write, name, text, message):
    with pytest.raises(ValueError, match=message):
        cells(write(name, text))


def test_both_halves_of_a_character_are_one(write):
    assert cells(write("a.jsonl", '{"text": "\\ud83d\\ude00"}\n')) == [{"text": "\U0001f600"}]


def test_files_that_are_none(write, tmp_path):
    with pytest.raises(ValueError, match="there is no file"):
        cells(tmp_path / "no.tsv")
    with pytest.raises(ValueError, match="is a folder"):
        cells(tmp_path)
    with pytest.raises(ValueError, match=r"a\.tsv:2: not UTF-8"):
        cells(write("a.tsv", "x\t1\nü\t1\n", encoding="latin-1"))
    with pytest.raises(ValueError, match=r"a\.tsv:3002: not UTF-8"):
        cells(write("a.tsv", "some text\t1\n" * 3001 + "ü\t1\n", encoding="latin-1"))


def test_columns(write):
    path = write("a.conll", "-DOCSTART- -X- O\n\nEU NNP B-ORG\nrejects VBZ O\n\n\nBonn NNP B-LOC")
    first, second = readers.columns(path)
    assert (first.words, first.tags) == (["EU", "rejects"], ["B-ORG", "O"])
    assert second[:3] == (f"{path}:7", ["Bonn"], ["B-LOC"])
    with pytest.raises(ValueError, match=r"a\.tsv:2: 1 columns, but the lines before have 2"):
        list(readers.columns(write("a.tsv", "EU\tB\nrejects\n")))


def test_text_and_labels(write):
    texts, labels = write("text_dev.txt", "the city\nparis\n"), write("labels_dev.txt", "O O\nB\n")
    assert readers.labels_beside(texts) == labels
    assert [tagged.tags for tagged in readers.text_and_labels(texts, labels)] == [["O", "O"], ["B"]]
    with pytest.raises(ValueError, match=r"text_dev\.txt:1: 2 words, but 1 labels in .*labels_bad\.txt:1"):
        list(readers.text_and_labels(texts, write("labels_bad.txt", "O\nB\n")))
    with pytest.raises(ValueError, match=r"has 1 lines, but .* has more"):
        list(readers.text_and_labels(texts, write("labels_short.txt", "O O\n")))
    with pytest.raises(ValueError, match="has more lines than the 2"):
        list(readers.text_and_labels(texts, write("labels_long.txt", "O O\nB\nB\n")))
