import bz2
import gzip
import json

import pytest

from megabert import cli
from megabert.corpora import wikipedia
from megabert.corpora.wikipedia_output import REPORT

SITE = """<siteinfo><sitename>W</sitename><base>https://xx.example.org/wiki/Start</base><namespaces>
<namespace key="-1">Spezial</namespace><namespace key="0" /><namespace key="1">Diskussion</namespace>
<namespace key="6">Abbild</namespace><namespace key="10">Vorlage</namespace></namespaces></siteinfo>"""


def page(number, text, title=None, namespace=0, extra=""):
    title = title or f"Title {number}"
    space = "" if namespace is None else f"<ns>{namespace}</ns>"
    return (
        f"  <page>\n <title>{title}</title>{space}<id>{number}</id>{extra}<revision><id>{1000 + number}</id>"
        f"<model>wikitext</model><text>{text}</text></revision>\n  </page>\n"
    )


def dump(pages, site=SITE):
    return f'<mediawiki xml:lang="xx">\n{site}\n{"".join(pages)}</mediawiki>\n'.encode()


MANY = [page(number, f"Page '''{number}''' says ü [[a|{number * 'word '}]].") for number in range(1, 301)]
TEXTS = [f"Page {number} says ü {('word ' * number).strip()}." for number in range(1, 301)]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Pages lie on the borders of pieces, and in more than two."""
    monkeypatch.setattr(wikipedia, "_PIECE_BYTES", 300)
    monkeypatch.setattr(wikipedia, "_LEAST_PIECE_BYTES", 100)


def records(folder):
    return [json.loads(line) for path in sorted(folder.glob("part-*.jsonl")) for line in path.open(encoding="utf-8")]


@pytest.mark.parametrize("kind", ["plain", "bz2", "multistream", "gz", "utf-16"])
def test_every_packing_gives_the_articles(tmp_path, kind):
    data = dump(MANY)
    packed = {
        "plain": lambda: data,
        "bz2": lambda: bz2.compress(data, 1),
        "multistream": lambda: b"".join(bz2.compress(data[at : at + 5000]) for at in range(0, len(data), 5000)),
        "gz": lambda: gzip.compress(data),
        "utf-16": lambda: b"\xff\xfe" + data.decode().encode("utf-16-le"),
    }[kind]()
    path = tmp_path / "dump.xml"
    path.write_bytes(packed)
    result = wikipedia.extract(path, tmp_path / "out", workers=1)
    found = records(tmp_path / "out")
    assert [record["text"].replace(" .", ".") for record in found] == TEXTS
    assert found[6] == {
        "id": "7", "revid": "1007", "url": "https://xx.example.org/wiki?curid=7", "title": "Title 7",
        "text": "Page 7 says ü word word word word word word word.",
    }  # fmt: skip
    assert (result.counts.articles, result.counts.skipped) == (300, 0)


def test_only_articles(tmp_path):
    pages = [
        page(1, "An article."),
        page(2, "Talk.", "Diskussion:A", 1),
        page(3, "#REDIRECT [[A]]", extra='<redirect title="A" />'),
        page(4, "#WEITERLEITUNG [[Title 1]]", namespace=None),
        page(5, "A template.", "vorlage:B", None),
        page(6, "Old, but an article.", "Star: the film", None),
        page(7, "{{only|a template}}"),
        page(8, "return {}").replace("wikitext", "Scribunto"),
        page(9, "[[Abbild:x.y|of [[this]] wiki]]Seen. &lt;ref&gt;note&lt;/ref&gt;&amp;nbsp;A &amp;lt; B"),
    ]
    (tmp_path / "d.xml").write_bytes(dump(pages))
    result = wikipedia.extract(tmp_path / "d.xml", tmp_path / "out", workers=1)
    assert [record["text"] for record in records(tmp_path / "out")] == [
        "An article.", "Old, but an article.", "Seen. A < B",
    ]  # fmt: skip
    assert (result.counts.articles, result.counts.empty, result.counts.skipped) == (5, 1, 1)
    assert "Title 8: holds Scribunto" in (tmp_path / "out" / REPORT).read_text()


def test_pages_that_cannot_be_read_are_counted_and_stop_nothing(tmp_path, monkeypatch):
    pages = [page(1, "One."), page(2, "Tw\x01o."), page(3, "<b>Three"), page(4, "Four ''x''."), page(5, "Five.")]

    def defeated(self, wikitext):
        if "Four" in wikitext:
            raise RecursionError("too deep")
        return wikitext

    monkeypatch.setattr(wikipedia.Reader, "text", defeated)
    (tmp_path / "d.xml").write_bytes(dump(pages) + b"<page><title>cut")
    result = wikipedia.extract(tmp_path / "d.xml", tmp_path / "out", workers=1)
    assert [record["text"] for record in records(tmp_path / "out")] == ["One.", "Four x.", "Five."]
    assert (result.counts.skipped, result.counts.coarse) == (3, 1)
    report = (tmp_path / "out" / REPORT).read_text()
    assert "Title 2: is not well-formed XML" in report
    assert "Title 4: read coarsely, the parser failed: RecursionError" in report
    assert "the file ends inside its last page" in report


def test_an_entity_bomb_is_no_page(tmp_path):
    bomb = b'<!DOCTYPE m [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>'
    (tmp_path / "d.xml").write_bytes(bomb + dump([page(1, "&b;&b;"), page(2, "Good.")]))
    result = wikipedia.extract(tmp_path / "d.xml", tmp_path / "out", workers=1)
    assert [record["text"] for record in records(tmp_path / "out")] == ["Good."]
    assert result.counts.skipped == 1


def test_a_folder_of_parts_in_the_order_of_their_numbers(tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    for number in (1, 2, 10):
        name = f"w-pages-articles{number}.xml-p{number}p{number}.bz2"
        (folder / name).write_bytes(bz2.compress(dump([page(number, f"Part {number}.")])))
    (folder / "w-pages-articles-multistream-index.txt.bz2").write_bytes(bz2.compress(b"0:1:A"))
    wikipedia.extract(folder, tmp_path / "out", workers=1)
    assert [record["text"] for record in records(tmp_path / "out")] == ["Part 1.", "Part 2.", "Part 10."]


class Stop(Exception):
    pass


@pytest.mark.parametrize("pack", [bytes, lambda data: bz2.compress(data, 1), gzip.compress])
def test_interrupted_work_goes_on_to_the_same_bytes(tmp_path, monkeypatch, pack):
    monkeypatch.setattr(wikipedia, "_SECONDS_BETWEEN_CHECKPOINTS", 0)
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / "a1.xml").write_bytes(pack(dump(MANY[:150])))
    (folder / "a2.xml").write_bytes(pack(dump(MANY[150:])))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    wikipedia.extract(folder, whole, workers=1, file_bytes=50_000)
    for stops in range(1, 400):
        calls = 0

        def stop(_progress, last=3 * stops):
            nonlocal calls
            calls += 1
            if calls >= min(last, 40):
                raise Stop

        try:
            wikipedia.extract(folder, broken, workers=1, file_bytes=50_000, on_progress=stop, seconds_between_reports=0)
            break
        except Stop:
            with next(broken.glob("*.part")).open("ab") as file:
                file.write(b"written after the last checkpoint")
    assert stops > 2 or pack is gzip.compress
    assert [path.name for path in sorted(broken.iterdir())] == [path.name for path in sorted(whole.iterdir())]
    for path in whole.glob("part-*"):
        assert (broken / path.name).read_bytes() == path.read_bytes()
    assert len(list(whole.glob("part-*"))) > 1
    assert wikipedia.extract(folder, broken, workers=1).dump_bytes == 0  # all is there


def test_two_processes_write_the_same(tmp_path):
    (tmp_path / "d.xml.bz2").write_bytes(bz2.compress(dump(MANY)))
    for workers in (1, 2):
        wikipedia.extract(tmp_path / "d.xml.bz2", tmp_path / str(workers), workers=workers)
    one, two = ((tmp_path / name / "part-00000.jsonl").read_bytes() for name in "12")
    assert one == two


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match="there is no dump"):
        wikipedia.extract(tmp_path / "none.xml", tmp_path / "out")
    (tmp_path / "text.xml").write_text("no dump at all. " * 100)
    with pytest.raises(ValueError, match=r"text\.xml: it is no MediaWiki XML dump"):
        wikipedia.extract(tmp_path / "text.xml", tmp_path / "out", workers=1)
    for name in "ab":
        (tmp_path / f"{name}.xml").write_bytes(dump(MANY[:3]))
    wikipedia.extract(tmp_path / "a.xml", tmp_path / "a", workers=1)
    with pytest.raises(ValueError, match="holds the text of another dump"):
        wikipedia.extract(tmp_path / "b.xml", tmp_path / "a", workers=1)
    (tmp_path / "a" / "extract.json").unlink()
    with pytest.raises(ValueError, match="name an empty folder"):
        wikipedia.extract(tmp_path / "a.xml", tmp_path / "a", workers=1)


def damaged(kind):
    data = dump(MANY)
    packed = bz2.compress(data, 1)
    return {
        "cut.bz2": packed[:-200],
        "short.bz2": packed[:90],
        "middle.bz2": packed[: len(packed) // 2] + b"?" * 50 + packed[len(packed) // 2 :],
        "false.bz2": b"BZh9" + bytes(range(256)),
        "cut.gz": gzip.compress(data)[:-3000],
        "middle.gz": gzip.compress(data)[:3000] + b"?" * 5000,
        "archive.7z": b"7z\xbc\xaf\x27\x1c" + bytes(900),
        "garbage": bytes(range(256)) * 20,
    }[kind]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("cut.bz2", "damaged or cut short"),
        ("short.bz2", "damaged or cut short"),
        ("middle.bz2", "damaged or cut short"),
        ("false.bz2", "damaged or cut short"),
        ("cut.gz", "damaged or cut short"),
        ("middle.gz", "damaged or cut short"),
        ("archive.7z", "is a 7-Zip archive; a dump is XML"),
        ("garbage", "it is no MediaWiki XML dump"),
    ],
)
def test_a_damaged_file_is_one_line_and_leaves_nothing(tmp_path, kind, message, capsys):
    (tmp_path / kind).write_bytes(damaged(kind))
    given = ["extract", str(tmp_path / kind), "--output", str(tmp_path / "out"), "--workers", "1"]
    assert cli.main([*given, "--log-interval", "0"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert kind in line
    assert message in line
    assert not (tmp_path / "out").exists()


def test_a_run_killed_at_once_is_taken_up(tmp_path, monkeypatch):
    (tmp_path / "d.xml").write_bytes(dump(MANY))

    def killed(*_):
        raise SystemExit

    monkeypatch.setattr(wikipedia._Joiner, "add", killed)
    with pytest.raises(SystemExit):
        wikipedia.extract(tmp_path / "d.xml", tmp_path / "out", workers=1)
    monkeypatch.undo()
    wikipedia.extract(tmp_path / "d.xml", tmp_path / "out", workers=1)
    assert len(records(tmp_path / "out")) == 300
    assert not (tmp_path / "out" / REPORT).exists()


def test_a_dump_without_its_end_is_reported(tmp_path, capsys):
    (tmp_path / "d.xml").write_bytes(dump(MANY).removesuffix(b"</mediawiki>\n"))
    for _ in range(2):  # the second finds it done
        assert cli.main(["extract", str(tmp_path / "d.xml"), "--output", str(tmp_path / "out"), "--workers", "1"]) == 0
        said = capsys.readouterr().out
        assert "warning: 1 of the dump's files has no end" in said and "could not be read" not in said
    assert len(records(tmp_path / "out")) == 300
    assert "d.xml: </mediawiki> is missing at its end" in (tmp_path / "out" / REPORT).read_text()


def test_pages_too_long_for_the_memory_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(wikipedia, "_LONGEST_RAW_PAGE", 20_000)
    (tmp_path / "d.xml").write_bytes(dump([page(1, "One."), page(2, "word " * 20_000), page(3, "Three.")]))
    result = wikipedia.extract(tmp_path / "d.xml", tmp_path / "out", workers=1)
    assert [record["text"] for record in records(tmp_path / "out")] == ["One.", "Three."]
    assert result.counts.skipped == 1
    assert "is longer than" in (tmp_path / "out" / REPORT).read_text()
