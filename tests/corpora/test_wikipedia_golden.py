"""Articles of real dumps whose extracts were read beside their wikitext by a person, kind after kind.

The dumps are no part of the project. They are looked for in the folder `wikidump` of the one that MEGABERT_DATA names,
else of `shared/data` beside the project. An extract that changes is to be read again before its line is changed:

  python tests/corpora/test_wikipedia_golden.py DUMP PAGE-ID        prints the text and its line
"""

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

import pytest

from megabert.corpora import wikipedia

DATA = os.environ.get("MEGABERT_DATA") or Path(__file__).absolute().parents[2].parent / "shared" / "data"
DUMPS = Path(DATA) / "wikidump"
# Dump (begin of its name), page, what is peculiar to it, lines, begin of the first line, end of the last one, SHA-256.
PAGES = [
    (
        "enwiki-2013",
        25013,
        "references, superscripts, links to other wikis",
        19,
        "Pi Day is an annual celebrat",
        "i Day: How to Celebrate 3.14",
        "8e20d8c54ca2a68e",
    ),
    ("enwiki-2013", 25017, "disambiguation", 11, "Positivism, a philosophy whi", "Postpositivism", "75658fa9fcd88d5e"),
    (
        "enwiki-2013",
        25034,
        "table, program, nowiki",
        10,
        "PackBits is a fast, simple l",
        "scribing the PackBits format",
        "709093670c0c605e",
    ),
    (
        "enwiki-2013",
        25048,
        "disambiguation, link after a heading",
        9,
        "Panjabi may refer to:",
        "Punjabi",
        "49d759eb046eee17",
    ),
    (
        "enwiki-2013",
        25054,
        "formulas in italics, citations in a list",
        11,
        "In abstract algebra, power a",
        "8813-5. Chap.V, pp. 128–148.",
        "d52d8b47cbf5955c",
    ),
    (
        "itwiki",
        281,
        "infoboxes, nowiki, table, flags",
        12,
        "L'Avies è una compagnia aere",
        "Sito ufficiale della Avies",
        "1be2416158f7ccad",
    ),
    (
        "itwiki",
        282,
        "disambiguation, apostrophes beside bold",
        4,
        "ANAS, sigla dell'Azienda Naz",
        "Anas, un genere di anatre.",
        "3949eb5582e6d7ad",
    ),
    ("itwiki", 610, "sections of a disambiguation", 6, "Sigle", "ggeri - birrificio norvegese", "03676db2f03a4e47"),
    ("itwiki", 657, "biography by template, quotation", 10, "Biografia", "Informatica", "66e49497b3ea2e72"),
    (
        "itwiki",
        1209,
        "lines broken in a paragraph, TeX",
        8,
        "CRAN è l'acronimo di Compreh",
        "Informatica",
        "8bfc00b55be550b5",
    ),
    ("itwiki", 1299, "taxobox with lists", 9, "I Conchiferi (Conchifera, Ge", "Helcionelloida†", "dad03ddd43f1a573"),
    (
        "itwiki",
        1313,
        "bold and italic links",
        5,
        "Caronte è una figura della r",
        "gruppo progressive The Trip.",
        "6dc92667b78ab648",
    ),
    ("itwiki", 1420, "mathematics", 11, "Il coefficiente di variazion", "Deviazione standard", "9841ef25c644a0ea"),
    (
        "ltgwiki",
        175,
        "nested lists with files between",
        61,
        "Kaču saime (Felidae, kaķu dz",
        "Škira: Uncia uncia",
        "fb18d310a857edef",
    ),
    (
        "ltgwiki",
        234,
        "table as infobox, templates of languages",
        11,
        "Latveja, oficialai Latvejas ",
        "Latvija.lv",
        "7439acf67752169a",
    ),
    (
        "ltgwiki",
        267,
        "infobox, gallery, names in Cyrillic",
        11,
        "Ludza — mīsts reitu Latgolā,",
        "mais Ludzys apleiciņa uorsts",
        "e194892cb2b1541a",
    ),
    (
        "ltgwiki",
        1437,
        "gallery, table of flags, IPA",
        8,
        "Konsepsjons (Concepción, IPA",
        "ædia Britannica — Concepción",
        "e771427139e38a81",
    ),
    (
        "ltgwiki",
        2889,
        "poem in an HTML table inside a table",
        4,
        "Europys himnys (vuocīšu: Eur",
        "himnys spieļuojums iz polota",
        "66ab5a2517c4e19f",
    ),
    (
        "ltgwiki",
        3141,
        "timeline, wide table, gallery",
        18,
        "Lobez (puoļu: Łobez) — mīsts",
        "Łobez - You Tube",
        "da0b4db43f2c1be9",
    ),
    (
        "enwiki-latest",
        642,
        "prose, magic words",
        6,
        "Generally, an answer is a re",
        "a theme proposed by another.",
        "3e7febeef9831230",
    ),
    (
        "enwiki-latest",
        661,
        "disambiguation with sections",
        19,
        "In philosophy and logic, an ",
        "scussion of the disagreement",
        "facdff181c1c3470",
    ),
    (
        "enwiki-latest",
        675,
        "numbered list, indents, mathematics",
        30,
        "Affirming the consequent, so",
        "Necessity and sufficiency",
        "27c22d00fdd8c6c9",
    ),
    (
        "enwiki-latest",
        694,
        "formatted link texts",
        3,
        "Asia Minor is an alternative",
        "n jazz trumpeter Dizzy Reece",
        "b10503f41a94410c",
    ),
    ("enwiki-latest", 696, "long list", 25, "Aa is the name of a large nu", "AA (disambiguation)", "9c018d98f3dcf203"),
    (
        "enwiki-latest",
        708,
        "statistics in lists, transclusion of a portal",
        45,
        "Transport in Angola comprise",
        "the CIA World Factbook 2003.",
        "38c9e9cd4fec6a2a",
    ),
    (
        "enwiki-latest",
        742,
        "journal, links at the end of words",
        5,
        "Algorithms is a peer-reviewe",
        " with similar subject matter",
        "4780356fd6eeb130",
    ),
    (
        "enwiki-table",
        316,
        "tables and nothing else below the lead",
        5,
        "The Academy Award for Best P",
        "Award for Best Art Direction",
        "ca6680e9390bf243",
    ),
    (
        "en-wiki",
        921675,
        "band members, Hangul",
        26,
        "N.EX.T (Hangul: 넥스트; abbrevi",
        "Shin Hae-chul",
        "d8f17a685d2c3e4f",
    ),
    (
        "en-wiki",
        17340400,
        "squad of templates",
        1,
        "Dahlak is an Eritrean footba",
        "otball club based in Asmara.",
        "8f9cf1d3bc3468fc",
    ),
    (
        "en-wiki",
        19528743,
        "dagger, five apostrophes",
        1,
        "†Borysthenia goldfussiana is",
        "alvatidae, the valve snails.",
        "f0eeaf8bd9d38f05",
    ),
    (
        "en-wiki",
        24755840,
        "link in italics with an address",
        3,
        "Ingoldiomyces is a genus of ",
        "oldiomyces at Index Fungorum",
        "dfba39d28a360b16",
    ),
    (
        "en-wiki",
        26692250,
        "titles in quotes and italics",
        17,
        "Food is a substance that can",
        "Foods (journal)",
        "6abd755c0e048a92",
    ),
    ("ar-wiki", 57, "Bavarian, quotations", 20, "Berlin is de Bundeshaptstod ", "Berlinlexikon", "81a4059f06602fe9"),
    ("bgwiki", 558, "Cyrillic, lists of days", 61, "Григорианският календар (пон", "Алтернативи", "55a13d894c4b5e84"),
    (
        "commons-wiki",
        468,
        "headings made by templates",
        12,
        "Charlottenburg-Wilmersdorf",
        "Treptow-Köpenick",
        "95709cc1a0230b14",
    ),
    (
        "ko-wiki",
        95091,
        "Korean",
        54,
        "베를린(Berlin)은 독일의 수도이다. 2014년",
        "네이버 캐스트: 여행 - 베를린",
        "cc506ef47ef2cdae",
    ),
    (
        "zh-wiki",
        3472,
        "Chinese, templates of languages",
        123,
        "柏林（Berlin）是德意志聯邦共和國首都，也是德国最大",
        "Berlin.de 官方网站",
        "2a56d54fcb15bda0",
    ),
]


@pytest.fixture(scope="module")
def extracts(tmp_path_factory):
    """(begin of a dump's name, page) -> text."""
    if not DUMPS.is_dir():
        pytest.skip(f"there are no dumps at {DUMPS}; MEGABERT_DATA names the folder above")
    return {
        (name, page): text
        for name in dict.fromkeys(page[0] for page in PAGES)
        for page, text in texts(name, tmp_path_factory.mktemp("wiki")).items()
    }


def texts(name, folder):
    dump = next(path for path in sorted(DUMPS.rglob("*.bz2")) if path.name.startswith(name))
    wikipedia.extract(dump, folder, workers=1)
    parts = sorted(folder.glob("part-*.jsonl"))
    records = [json.loads(line) for part in parts for line in part.read_text(encoding="utf-8").splitlines()]
    return {int(record["id"]): record["text"] for record in records}


def facts(text):
    lines = text.split("\n")
    return len(lines), lines[0][:28], lines[-1][-28:], hashlib.sha256(text.encode()).hexdigest()[:16]


def test_there_are_enough_and_each_is_of_its_own_kind():
    assert len({page[:2] for page in PAGES}) == len({page[2] for page in PAGES}) == len(PAGES) >= 30


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page[0]} {page[2]}")
def test_a_real_article_reads_as_it_was_approved(extracts, page):
    name, number, _, *approved = page
    text = extracts[name, number]
    assert list(facts(text)) == approved, text


if __name__ == "__main__":
    found = texts(sys.argv[1], Path(tempfile.mkdtemp()))[int(sys.argv[2])]
    print(f"{found}\n{facts(found)}")
