import json

import numpy as np
import pytest

from megabert.tasks import catalogue
from megabert.tasks.token_classification import TokenClassification
from megabert.tasks.words import windows

CONLL = "The\tO\nParis\tB-A\nLondon\tI-A\n\x00\tO\n.\tO\n\nxyxyxyxyxyxyxyxyxyxyxyxy\tB-B\nis\tO\n"


def gold_outputs(task, features):
    classes = np.eye(len(task.labels), dtype=np.float32) * 9
    return [np.pad(classes[np.maximum(one.labels["labels"], 0)], ((0, 5), (0, 0))) for one in features]


@pytest.mark.parametrize(("length", "stride"), [(64, 8), (8, 2), (8, 0), (8, 6)])
@pytest.mark.parametrize("pieces", ["first", "all"])
def test_no_word_is_lost(tokenizer, write, length, stride, pieces):
    task = TokenClassification(max_seq_length=length, stride=stride, label_pieces=pieces)
    examples = task.examples(write("a.tsv", CONLL * 3))
    task = task.learned(examples)
    assert task.labels == ("O", "B-A", "B-B", "I-A") and task.scheme == "iob2"
    features = task.features(examples, tokenizer)
    answered = [(one.example, word) for one in features for word, _, _ in one.facts]
    assert sorted(answered) == [(n, w) for n, example in enumerate(examples) for w in range(len(example.words))]
    assert all(one.length <= length for one in features)
    predictions = task.decode(gold_outputs(task, features), features, examples)
    assert [said["labels"] for said in predictions] == [example.tags for example in examples]
    assert task.score(predictions, examples)["f1"] == 1
    entity = predictions[0]["entities"][0]
    assert entity["text"] == "Paris London" == predictions[0]["text"][entity["start"] : entity["end"]]


def test_labels_of_pieces(tokenizer, write):
    examples = TokenClassification().examples(write("a.tsv", "ab\tX\nparis\tO\n"))
    for pieces, expected in (("first", [-100, 1, -100, 0, -100]), ("all", [-100, 1, 1, 0, -100])):
        task = TokenClassification(label_pieces=pieces).learned(examples)
        (one,) = task.features(examples, tokenizer)
        assert one.labels["labels"].tolist() == expected


def test_words_answer_where_they_have_context():
    assert windows([1] * 10, 6, 2) == [(0, 6, 0, 5), (4, 10, 5, 10)]
    assert windows([1, 6, 1], 6, 2) == [(0, 1, 0, 1), (1, 2, 1, 2), (2, 3, 2, 3)]
    assert windows([], 6, 2) == []


@pytest.mark.parametrize("seed", range(20))
def test_any_text_is_covered_once(seed):
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 8, size=generator.integers(1, 60)).tolist()
    room = int(generator.integers(7, 20))
    cuts = windows(lengths, room, int(generator.integers(0, room)))
    assert [word for _, _, first, last in cuts for word in range(first, last)] == list(range(len(lengths)))
    assert all(
        start <= first and last <= stop and sum(lengths[start:stop]) <= room for start, stop, first, last in cuts
    )


def test_other_files(tokenizer, write):
    task = TokenClassification()
    write("labels_x.txt", "O B\n")
    (nemo,) = task.examples(write("text_x.txt", "the paris\n"))
    assert (nemo.words, nemo.tags) == (["the", "paris"], ["O", "B"])
    (line,) = task.examples(write("a.jsonl", json.dumps({"tokens": ["paris"], "ner_tags": ["B"]})))
    assert line.tags == ["B"]
    (plain,) = task.examples(write("a.txt", "The city, (Paris).\n"), labelled=False)
    assert plain.words == ["The", "city", ",", "(", "Paris", ")", "."]
    assert [plain.text[start:stop] for start, stop in plain.offsets] == plain.words
    assert not task.features([plain], tokenizer)[0].labels


def conllu(*lines):
    """Words as CoNLL-U has them: number, form and part of speech among ten columns."""
    rows = ("\t".join([number, form, "_", speech, *"______"]) for number, form, speech in map(str.split, lines))
    return "".join(f"{row}\n" for row in rows)


@pytest.mark.parametrize("name", ["a.conllu", "a.tsv"])
def test_conllu_gives_words_and_parts_of_speech(write, name):
    text = "# sent_id = 1\n" + conllu("1-2 Zum _", "1 zu ADP", "2 dem DET", "3 Haus NOUN", "3.1 ist VERB", "4 . PUNCT")
    first, second = TokenClassification().examples(write(name, text + "\n# text = Ja\n" + conllu("1 Ja INTJ")))
    assert (first.words, first.tags) == (["zu", "dem", "Haus", "."], ["ADP", "DET", "NOUN", "PUNCT"])
    assert second.words == ["Ja"] and second.place.endswith(f"{name}:10")
    (asked,) = TokenClassification().examples(write(name, conllu("1 Ja _", "2 . _")), labelled=False)
    assert asked.words == ["Ja", "."] and not asked.tags


@pytest.mark.parametrize(
    ("name", "text", "settings", "message"),
    [
        ("a.tsv", "paris\tB-X\n", {"labels": ("O", "B-A")}, r"a\.tsv:1: label 'B-X' is not one of the 2 labels"),
        ("a.tsv", "paris\tcity\n", {"scheme": "iob2"}, r"a\.tsv:1: tag 'city' is neither O nor a prefix"),
        ("a.tsv", "paris\tS-A\n", {"scheme": "iob2"}, "is of IOBES"),
        ("a.tsv", "paris\n", {}, "words without labels"),
        ("a.tsv", "\n\n", {}, "holds no example"),
        ("a.jsonl", '{"words": ["a"], "labels": ["O", "O"]}', {}, r"a\.jsonl:1: 1 words, but 2 labels"),
        ("a.jsonl", '{"words": "a b", "labels": ["O"]}', {}, "words must be a list of texts"),
        ("a.csv", "Ada,B-PER\n", {}, r"a\.csv:1: the first line must name the columns"),
        ("a.csv", "word,label\nAda,B-A\nis\n", {}, r"a\.csv:3: 1 columns, but the first line has 2"),
        ("a.csv", "word,label\nAda,B-A\nis,\n", {}, r"a\.csv:3: a word and its label are needed"),
        ("a.csv", "words,labels\nAda is,B-A\n", {}, r"a\.csv:2: 2 words, but 1 labels"),
        (
            "a.jsonl",
            '{"text": "\u00fc ab", "entities": [{"start": 3, "end": 5, "text": "ab", "label": "A"}]}',
            {},
            r"a\.jsonl:1: .*count bytes",
        ),
        (
            "a.jsonl",
            '{"text": "ab", "entities": [{"start": 0, "end": 1, "label": "A"}, {"start": 1, "end": 2}]}',
            {},
            "shares a word with another",
        ),
        ("text_y.txt", "a b\n", {}, "there is no labels_y.txt beside it"),
        ("a.conllu", "1\tAda\tAda\tPROPN\n", {}, r"a\.conllu:1: CoNLL-U has ten columns"),
        ("a.tsv", conllu("1 Ada PROPN", "3 wrote VERB"), {}, r"a\.tsv:2: word 2 of the sentence is expected"),
        ("a.tsv", conllu("1 Ada PROPN", "2 wrote _"), {}, r"a\.tsv:2: the word 'wrote' has no part of speech"),
        ("a.tsv", "# id = 1\n1\tAda\tB-PER\n\n1\tAda\tB-PER\n2\twrote\tO\n", {}, r"a\.tsv:4: the first column counts"),
    ],
)
def test_broken_files_are_told(write, name, text, settings, message):
    with pytest.raises(ValueError, match=message):
        TokenClassification(**settings).examples(write(name, text))


def test_balanced_weights(write):
    examples = TokenClassification().examples(write("a.tsv", "a\tO\na\tO\na\tO\nb\tB\n"))
    task = TokenClassification().learned(examples).balanced(examples)
    assert task.class_weights == (pytest.approx(4 / 6), 2)


CSVS = [
    'words,labels\nAda wrote,B-PER O\n"in ""Paris""",O B-LOC\n',
    'Sentence #,Word,POS,Tag\nSentence: 1,Ada,NNP,B-PER\n,wrote,VB,O\nSentence: 2,in,IN,O\n,"""Paris""",NNP,B-LOC\n',
    'word,label\nAda,B-PER\nwrote,O\n\nin,O\n"""Paris""",B-LOC\n',
    'token,ner\nAda,B-PER\nwrote,O\n,\nin,O\n"""Paris""",B-LOC\n',
]


@pytest.mark.parametrize("text", CSVS, ids=["sentences", "numbered", "blank", "empty-cells"])
def test_tables(write, text):
    examples = TokenClassification().examples(write("a.csv", text))
    assert [one.words for one in examples] == [["Ada", "wrote"], ["in", '"Paris"']]
    assert [one.tags for one in examples] == [["B-PER", "O"], ["O", "B-LOC"]]
    assert examples[1].place.rpartition(":")[2] == str(text[: text.index("in")].count("\n") + 1)


def test_a_header_of_columns_is_no_word(write):
    (one,) = TokenClassification().examples(write("a.tsv", "word\ttag\nAda\tB-PER\n"))
    assert one.words == ["Ada"]


def test_entities_by_characters_become_labels(write):
    text = "Caf\u00e9 Roma, in New York-City."
    spans = [{"start": text.index(word), "end": text.index(word) + len(word), "label": label, "text": word}
             for word, label in (("Caf\u00e9 Roma", "ORG"), ("New York", "LOC"))]  # fmt: skip
    (one,) = TokenClassification().examples(write("a.jsonl", json.dumps({"text": text, "entities": spans})))
    assert one.tags == ["B-ORG", "I-ORG", "O", "O", "B-LOC", "I-LOC", "O", "O", "O"] and one.text == text
    assert text[one.offsets[5][0] : one.offsets[5][1]] == "York"


def test_the_name_of_a_scheme_among_labels_means_the_scheme(write):
    task = catalogue.make("ner", {"labels": ("iob2",)})
    task = task.learned(task.examples(write("a.tsv", "in\tO\nRome\tB-A\n")))
    assert (task.scheme, task.labels) == ("iob2", ("O", "B-A"))
    with pytest.raises(ValueError, match=r"--scheme iobes: no label .* ends an entity"):
        iobes = catalogue.make("ner", {"labels": ("IOBES",)})
        iobes.learned(iobes.examples(write("a.tsv", "in\tO\nRome\tB-A\n")))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Nai\u0308ve cafe\u0301s, Zu\u0308rich.", ["Nai\u0308ve", "cafe\u0301s", ",", "Zu\u0308rich", "."]),
        ("\u0939\u093f\u0928\u094d\u0926\u0940 co\u00adop", ["\u0939\u093f\u0928\u094d\u0926\u0940", "co\u00adop"]),
        (
            "\U0001f469\u200d\U0001f469 \U0001f44d\U0001f3fd!",
            ["\U0001f469\u200d\U0001f469", "\U0001f44d\U0001f3fd", "!"],
        ),
        ("\U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7", ["\U0001f1e9\U0001f1ea", "\U0001f1eb\U0001f1f7"]),
        ("\u0301x don't", ["\u0301", "x", "don", "'", "t"]),
    ],
)
def test_accents_and_the_like_belong_to_what_they_stand_behind(text, expected):
    (one,) = TokenClassification().asked([(text,)], "--text")
    assert one.words == expected
    assert [text[start:stop] for start, stop in one.offsets] == expected


def test_what_is_no_unicode_is_told():
    with pytest.raises(ValueError, match=r"--text: number 1: .* is no Unicode text"):
        TokenClassification().asked([("caf\udce9",)], "--text")
