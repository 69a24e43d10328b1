"""Pages of many kinds with the text that a reader sees, written and checked by hand."""

import pytest
from wikipedia_residue import RESIDUE

from megabert.corpora.wikipedia_lines import without_markup
from megabert.corpora.wikipedia_text import Reader

PAGES = {
    "an apostrophe beside bold and italic": (
        "L<nowiki>'</nowiki>'''Avies''', sigla dell<nowiki>'</nowiki>''Azienda'' e d<nowiki>'</nowiki>altro.",
        "L'Avies, sigla dell'Azienda e d'altro.",
    ),
    "words in templates of one language": (
        "'''Latveja''' ({{Vol-lv|Latvija}}<nowiki/>s ''Republika''), {{link-de|边境总督|Markgraf}}.",
        "Latveja (Latvijas Republika), 边境总督.",
    ),
    "dates and centuries": (
        "Built in {{start date|1990|5|4}}, {{start date|1990|5|4|df=y}} or {{date|19|janvier|1920}}, "
        "{{as of|2020|5|lc=y}}; le {{XIXe siècle}}, le {{s|XIX|e}}, no {{séc|XIII}}, à {{heure|4|30}}.",
        "Built in May 4, 1990, 4 May 1990 or 19 janvier 1920, as of May 2020; le XIXe siècle, le XIXe siècle, no "
        "século XIII, à 4 h 30.",
    ),
    "measures and money": (
        "It is {{convert|5|to|6|km2}}, {{cvt|5+1/2|mi|km}}, {{unité|20|km/h}}, {{M|1|c|m}}, {{val|5.5|u=km}}, "
        "{{frac|1|2}}, {{US$|5 million}}, {{euro|0.27}}, {{M|1000}}, {{convert|100|m|ft|0}}, "
        "a {{convert|9|lb|kg|adj=on}} bag, {{convert|2|-|3|in}}.",
        "It is 5 to 6 km², 5+1/2 miles, 20 km/h, 1 cm, 5.5 km, 1/2, US$5 million, 0.27 €, 1000, 100 m, a 9 lb bag, "
        "2–3 inches.",
    ),
    "words of a dictionary": (
        "From {{inh|en|enm|clokke}}, {{der|en|dum|clocke||bell}}, {{der|en|la|clocca|cloccā}}, "
        "{{m|ine-pro|*klek-||laugh}} (compare {{x}}, {{x}}), {{cog|de|Glocke}}{{bor|en|fr|-}}.",
        "From clokke, clocke, cloccā, *klek- (compare), Glocke.",
    ),
    "a heading never closed": ("Lead.\n== Events\nText.", "Lead.\nEvents\nText."),
    "words of other languages": (
        "See {{lang-fr|La mer}}, {{langx|de|[[Meer]]}}, {{lang|fr|texte={{nowrap|La mer}}}}, {{nihongo|Sea|海|umi}}, "
        "{{m|la|mare}}{{audio|en-us-sea.ogg|Audio}}{{s|archeologia|subacquea}}.",
        "See La mer, Meer, La mer, Sea, mare.",
    ),
    "lead with infobox": (
        "{{Infobox settlement\n| name = Oak\n| image = [[File:Oak.jpg|200px]]\n| area = {{convert|5|km2}}\n}}\n"
        "'''Oak''' is a ''small'' [[town]] in [[Elm County|the county of Elm]].",
        "Oak is a small town in the county of Elm.",
    ),
    "nested templates": ("A {{one|{{two|x}}|{{three|{{four}}}}}}ship sails.", "A ship sails."),
    "headings and empty sections": (
        "Lead.\n== History ==\nOld.\n=== Wars ===\n{{empty}}\n== References ==\n{{reflist}}\n== See also ==\n* [[B]]",
        "Lead.\nHistory\nOld.\nSee also\nB",
    ),
    "a heading kept for the section below it": ("== A ==\n=== B ===\nText.\n== C ==\n=== D ===", "A\nB\nText."),
    "references": (
        'Snow<ref>{{cite book|title=S}}</ref> falls<ref name="a">b [http://x.org c]</ref><ref name=a/>.',
        "Snow falls.",
    ),
    "file in another language's words": (
        "[[Datei:Haus.png|mini|links|Ein [[Haus]] am ''See'']]Das [[Haus]] steht.\n[[Immagine:A.gif|thumb|b]]\n"
        "[[Слика:Кућа.jpg|мини|Кућа]] Кућа.",
        "Das Haus steht.\nКућа.",
    ),
    "file with an unknown word": ("[[Xyzzy:Foto.jpeg|thumb|text with [[link|a link]]]]Seen.", "Seen."),
    "link to a file": ("See [[:File:A.jpg|this picture]] and [[Media:A.ogg|hear]].", "See this picture and."),
    "gallery": ("Before.\n<gallery mode=packed>\nA.jpg|One\nFile:B.jpg|[[Two]]\n</gallery>\nAfter.", "Before.\nAfter."),
    "table": (
        'Before.\n{| class="wikitable"\n|-\n! Year !! Name\n|-\n| 1900 || [[A]]\n|\n{| \n| inner\n|}\n|}\nAfter.',
        "Before.\nAfter.",
    ),
    "table never closed": ("Before.\n{| class=x\n! a\n| b || c\n|-\n| d\n\nAfter.", "Before.\nAfter."),
    "table in html": ("Before.\n<table><tr><td>cell</td></tr></table>\nAfter.", "Before.\nAfter."),
    "lists": (
        "Fruit:\n* Apple\n** ''Red'' one\n# Pear\n; Term : meaning\n: indented",
        "Fruit:\nApple\nRed one\nPear\nTerm: meaning\nindented",
    ),
    "categories and languages": (
        "Text.\n[[Category:Trees|Oak]]\n[[Kategorie:Baum]]\n[[de:Eiche]]\n[[zh-min-nan:Oak]]\n[[simple:Oak]]",
        "Text.",
    ),
    "links to pages of other kinds": (
        "See [[:Category:Trees]], [[:de:Eiche|the German page]], [[wikt:oak|oak]] and [[Oak#Wood|its wood]].",
        "See Category:Trees, the German page, oak and its wood.",
    ),
    "endings of links": ("Two [[bus]]es, [[tree]]s and [[Paris (Texas)|]].", "Two buses, trees and Paris."),
    "outside links": (
        "Visit [https://a.org the site], [http://b.org] or https://c.org/d?e=f now. [mailto:x@y.z Write].",
        "Visit the site, or https://c.org/d?e=f now. Write.",
    ),
    "bold and italics": ("'''''Both''''' '''b''' ''i'' and ''open", "Both b i and open"),
    "apostrophe before bold": ("Nell'''Odissea'' di Omero.", "Nell'Odissea di Omero."),
    "apostrophe before italics": ("L'''Orlando'' è un poema dell''''epoca'''.", "L'Orlando è un poema dell'epoca."),
    "comments": ("One<!-- hidden\n{{x}} [[ --> two.\n<!-- never closed", "One two."),
    "entities": ("5&nbsp;km &ndash; caf&eacute; &#8364; &#x3B1; A&amp;B", "5 km – café € α A&B"),
    "html": (
        '<div class="x">A <span style="color:red">red</span> <b>word</b><br/>next <sub>2</sub></div> <u>u</u>',
        "A red word\nnext 2\nu",
    ),
    "hidden html": ('Seen<span style="display: none">unseen</span> text.', "Seen text."),
    "stray tags": ("A </div>word <small>left <br> open </ref>.", "A word left\nopen."),
    "math": ("Then <math>\\frac{{a}}{b} [[x]]</math> holds, and <chem>H2O</chem> too.", "Then holds, and too."),
    "source code": (
        'Print:\n<syntaxhighlight lang="c">\nint a[[1]] = {{0}};\n</syntaxhighlight>\nDone.',
        "Print:\nDone.",
    ),
    "nowiki": ("Write <nowiki>a * b</nowiki> and ''it''.", "Write a * b and it."),
    "poem": ("<poem>\nRoses are red,\nviolets blue.\n</poem>", "Roses are red,\nviolets blue."),
    "magic words": ("__NOTOC__{{DEFAULTSORT:Oak}}Text.__KEIN_INHALTSVERZEICHNIS__\n__ОГЛ__ {{PAGENAME}}", "Text."),
    "text in templates": (
        "The {{lang|fr|maison}}, {{nowrap|10 km}} from {{convert|5|km|mi}} and {{convert|2|to|3|C}}{{snd}}"
        "{{circa|1900}}, {{as of|2020|3}}, {{lang-en|[[house|houses]]}}.",
        "The maison, 10 km from 5 km and 2 to 3 °C – c. 1900, As of March 2020, houses.",
    ),
    "brackets round nothing": (
        "Oak ({{pron-xx|eik}}; {{IPA|oːk}}) is ({{x}}, a tree) old ( ) and [ ] tall ({{y}}or).",
        "Oak is (a tree) old and tall.",
    ),
    "language variants": ("-{zh-hans:计算机; zh-hant:電腦}-很快，-{T|zh-cn:标题}-好（）。", "计算机很快，好。"),
    "right to left": ("'''شجرة''' هي [[نبات|نبتة]].\n[[ملف:شجرة.jpg|تصغير|شجرة]]\n[[تصنيف:أشجار]]", "شجرة هي نبتة."),
    "template never closed": (
        "Good text.\n{{Infobox\n| name = Oak\n| height = 3\n\nMore text.",
        "Good text.\nMore text.",
    ),
    "link never closed": ("An [[oak tree stands. A [[pine|tall pine too.", "An oak tree stands. A tall pine too."),
    "brackets that close nothing": ("It ends]] here}} |} now.", "It ends here now."),
    "lines of signs": ("----\nText.\n* ...\n•\n:::\n—", "Text."),
    "indented lines are text": ("Text.\n !Kung is a language.\n|stray cell", "Text.\n!Kung is a language."),
    "redirect arrow and emphasis in a link": ("[[A|'''A''' ''b'']] and [[C|{{nowrap|c d}}]].", "A b and c d."),
}


@pytest.fixture(scope="module")
def reader():
    return Reader(("Datei",), ("Kategorie",))


@pytest.mark.parametrize("kind", PAGES)
def test_pages_of_many_kinds(reader, kind):
    wikitext, text = PAGES[kind]
    assert reader.text(wikitext) == text


@pytest.mark.parametrize("kind", PAGES)
def test_patterns_alone_leave_no_markup_either(kind):
    text = without_markup(PAGES[kind][0])
    assert not [line for line in text.split("\n") if RESIDUE.search(line)]


def test_the_parser_alone_gives_the_same(reader):
    regular = ("lead with infobox", "nested templates", "references", "table", "lists", "html", "text in templates")
    for kind in regular:
        assert reader.text_of_the_rest(PAGES[kind][0]) == PAGES[kind][1]
