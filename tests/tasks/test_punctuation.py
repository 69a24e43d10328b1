import json

import numpy as np
import pytest

from megabert.tasks.punctuation import Punctuation, restored

PLAIN = "Is the city Paris? It is, and London is not.\nThe UN is in the city.\n"


def gold_outputs(task, features):
    middle, made = sum(label.startswith("mark:") for label in task.labels), []
    for one in features:
        logits = np.zeros((one.length + 2, len(task.labels)), dtype=np.float32)
        logits[np.arange(one.length), np.maximum(one.labels["mark_labels"], 0)] = 9
        logits[np.arange(one.length), middle + np.maximum(one.labels["case_labels"], 0)] = 9
        made.append(logits)
    return made


@pytest.mark.parametrize(("length", "margin"), [(64, 16), (10, 2)])
def test_text_to_text(tokenizer, write, length, margin):
    task = Punctuation(max_seq_length=length, margin=margin)
    examples = task.examples(write("train.txt", PLAIN))
    task = task.learned(examples)
    assert task.labels == ("mark:O", "mark:,", "mark:.", "mark:?", "case:O", "case:A", "case:U")
    features = task.features(examples, tokenizer)
    assert (len(features) > 2) == (length == 10)
    predictions = task.decode(gold_outputs(task, features), features, examples)
    assert [said["restored"] for said in predictions] == PLAIN.splitlines() == [said["gold"] for said in predictions]
    scores = task.score(predictions, examples)
    assert scores["f1"] == scores["mark_macro_f1"] == scores["nemo_punct_f1"] == 1
    assert [PLAIN[start:stop].lower() for start, stop in predictions[0]["offsets"]] == predictions[0]["words"]
    assert all(case.right and case.off == 0 for case in task.cases(predictions, examples))


def test_what_is_taken_from_a_plain_text():
    text = 'He: "Wait, NASA (the agency) is at -5, $50 or 10%?" Well-known, don\'t... Bonjour ! — U.S. ,x ¿cómo;'
    example = Punctuation()._plain(text, "x:1", 1, True)
    assert restored(example.words, *zip(*example.tags, strict=True)) == (
        "He, Wait, NASA the agency is at -5, $50 or 10%? Well-known, don't. Bonjour. U.S. x cómo,"
    )
    assert [text[start:stop].lower() for start, stop in example.offsets] == example.words
    assert Punctuation(marks="!")._plain("no! yes.", "x:1", 1, True).tags == ["!O", "OO"]


def test_nemos_pairs_and_json(write):
    write("labels_x.txt", "OU ?U\n")
    (pair,) = Punctuation().examples(write("text_x.txt", "is paris\n"))
    assert (pair.words, pair.tags) == (["is", "paris"], ["OU", "?U"])
    (line,) = Punctuation().examples(write("a.jsonl", json.dumps({"text": "Is Paris?"})))
    assert (line.words, line.tags) == (pair.words, pair.tags)
    (asked,) = Punctuation().asked([("Is PARIS",)], "x")
    assert asked.words == pair.words and not asked.tags


def test_scores_by_hand(tokenizer, write):
    task = Punctuation()
    examples = task.examples(write("a.txt", "A b, c. D\n"))
    task = task.learned(examples)
    gold = {"gold_marks": ["O", ",", ".", "O"], "gold_cases": ["U", "O", "O", "U"]}
    said = {"marks": ["O", ".", ".", ","], "cases": ["U", "U", "O", "O"], **gold}
    scores = task.score([said], examples)
    assert (scores["mark_precision"], scores["mark_recall"]) == (pytest.approx(1 / 3), 0.5)
    assert scores["mark_f1"] == pytest.approx(0.4) and scores["case_f1"] == 0.5
    assert scores["f1"] == pytest.approx(0.45) and scores["mark_accuracy"] == 0.5
    # O: precision 1, recall 1/2; comma 0; full stop: precision 1/2, recall 1.
    assert scores["nemo_punct_f1"] == pytest.approx((2 / 3 + 0 + 2 / 3) / 3)
    details = task.details([said], examples)
    assert details["per_class"]["mark:."] == {"precision": 0.5, "recall": 1, "f1": pytest.approx(2 / 3), "support": 1}
    assert details["confusion"] == [[1, 1, 0], [0, 0, 1], [0, 0, 1]] and details["labels"] == ["O", ",", "."]


@pytest.mark.parametrize(
    ("name", "text", "settings", "message"),
    [
        ("text_y.txt", "a b\n", {}, "there is no labels_y.txt beside it"),
        ("text_z.txt", "a b\n", {}, r"text_z\.txt:1: label ',' must be two characters"),
        ("a.txt", "a b\n", {}, "all words of the training examples have the mark 'O'"),
        ("a.csv", 'text,more\n"A, b.",\nx\n', {}, r"a\.csv:3: 1 columns, but the lines before have 2"),
        ("a.jsonl", '{"txt": "A, b."}', {}, r"a\.jsonl:1: there is no word"),
        ("a.txt", "...\n", {}, r"a\.txt:1: there is no word"),
        ("a.txt", "A, b.\n", {"labels": ("mark:O", "mark:,", "case:O", "case:U")}, r"a\.txt:1: label 'mark:\.' is not"),
        ("a.txt", "A, b.\n", {"marks": ",x"}, "punctuation marks are needed"),
    ],
)
def test_broken_files_are_told(write, name, text, settings, message):
    write("labels_z.txt", ", OO\n")
    task = Punctuation(**settings)
    with pytest.raises(ValueError, match=message):
        task.learned(task.examples(write(name, text)))


def test_rare_marks_weigh_more(write):
    task = Punctuation()
    examples = task.examples(write("a.txt", "A b c d.\n"))
    task = task.learned(examples).balanced(examples)
    assert task.class_weights == (pytest.approx(4 / 6), 2, pytest.approx(4 / 6), 2)
    assert [part.weights.tolist() for part in task.objective.parts] == [pytest.approx([2 / 3, 2])] * 2


def test_texts_of_tables(write):
    for name, text in (("a.csv", 'id,text\n1,"A, b."\n'), ("a.tsv", "text\tid\nA, b.\t1\n")):
        (one,) = Punctuation().examples(write(name, text))
        assert (one.words, one.tags) == (["a", "b"], [",U", ".O"])
