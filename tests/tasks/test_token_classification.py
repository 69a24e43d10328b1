import json

import numpy as np
import pytest

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
        ("text_y.txt", "a b\n", {}, "there is no labels_y.txt beside it"),
    ],
)
def test_broken_files_are_told(write, name, text, settings, message):
    with pytest.raises(ValueError, match=message):
        TokenClassification(**settings).examples(write(name, text))


def test_balanced_weights(write):
    examples = TokenClassification().examples(write("a.tsv", "a\tO\na\tO\na\tO\nb\tB\n"))
    task = TokenClassification().learned(examples).balanced(examples)
    assert task.class_weights == (pytest.approx(4 / 6), 2)
