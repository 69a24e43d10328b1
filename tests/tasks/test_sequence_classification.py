import json

import numpy as np
import pytest

from megabert.tasks import catalogue
from megabert.tasks.base import cut_pair
from megabert.tasks.options import TaskOptions, chosen
from megabert.tasks.sequence_classification import Regression, SequenceClassification


def test_tables_and_labels(tokenizer, write):
    task = SequenceClassification()
    examples = task.examples(write("a.tsv", "Sentence\tlabel\nparis\t10\nlondon\t9\ncity\t10\n"))
    task = task.learned(examples)
    assert task.labels == ("9", "10") and not task.pair  # numbers by value
    features = task.features(examples, tokenizer)
    assert [int(one.labels["labels"]) for one in features] == [1, 0, 1]
    predictions = task.decode([np.array([0.0, 1.0])] * 3, features, examples)
    assert predictions[0]["probability"] == pytest.approx(1 / (1 + np.exp(-1)))
    assert task.score(predictions, examples)["accuracy"] == pytest.approx(2 / 3)
    assert task.details(predictions, examples)["confusion"] == [[0, 1], [0, 2]]


def test_pairs_are_cut_from_the_longer_text(tokenizer, write):
    path = write(
        "a.jsonl", "\n".join(json.dumps({"premise": "a " * 20, "hypothesis": "b b", "label": n}) for n in "xy")
    )
    task = SequenceClassification(max_seq_length=12)
    examples = task.examples(path)
    features = task.learned(examples).features(examples, tokenizer)
    assert features[0].length == 12 and features[0].cut
    assert features[0].token_type_ids.tolist() == [0] * 9 + [1] * 3
    assert cut_pair(20, 2, 9) == (7, 2) and cut_pair(10, 10, 7) == (3, 4) and cut_pair(2, 9, 6) == (2, 4)


@pytest.mark.parametrize(
    ("name", "text", "settings", "message"),
    [
        ("a.tsv", "good\tmaybe\n", {"labels": ("yes", "no")}, r"a\.tsv:1: label 'maybe' is not one of the 2 labels"),
        ("a.jsonl", '{"text": "x"}', {}, r"a\.jsonl:1: there is no label"),
        ("a.jsonl", '{"label": "x"}', {}, r"a\.jsonl:1: there is no text"),
        ("a.jsonl", '{"text": ["x"], "label": "y"}', {}, "text must be text"),
        ("a.csv", "", {}, "holds no example"),
    ],
)
def test_broken_files_are_told(write, name, text, settings, message):
    with pytest.raises(ValueError, match=message):
        SequenceClassification(**settings).examples(write(name, text))


def test_a_column_of_numbers_is_not_taken_for_classes(write):
    rows = "".join(f"text {number}\t{number / 8}\n" for number in range(60))
    task = SequenceClassification()
    examples = task.examples(write("a.tsv", rows))
    with pytest.raises(ValueError, match=r"60 different labels for 60 texts.*`regression` learns numbers"):
        task.learned(examples)
    assert len(task.learned(examples * 5).labels) == 60
    declared = SequenceClassification(labels=tuple(str(number / 8) for number in range(60)))
    assert len(declared.learned(examples).labels) == 60


def test_what_training_cannot_learn_from(write):
    task = SequenceClassification()
    with pytest.raises(ValueError, match="nothing to tell apart"):
        task.learned(task.examples(write("a.tsv", "x\t1\ny\t1\n")))
    mixed = write("a.jsonl", '{"text": "a", "label": 1}\n{"text": "a", "text_b": "b", "label": 0}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl:2: two texts, but the lines before have one|one text"):
        task.learned(task.examples(mixed))


def test_regression(tokenizer, write):
    task = Regression()
    examples = task.examples(write("a.tsv", "x\t0.5\ny\t2\nz\t5\n"))
    features = task.learned(examples).features(examples, tokenizer)
    assert [float(one.labels["labels"]) for one in features] == [0.5, 2, 5]
    predictions = task.decode([np.array([n], dtype=np.float32) for n in (1, 2, 3)], features, examples)
    scores = task.score(predictions, examples)
    assert scores["spearman"] == pytest.approx(1) and scores["mean_squared_error"] == pytest.approx((0.25 + 4) / 3)
    for label in ("nan", "high"):
        with pytest.raises(ValueError, match=r"b\.tsv:1: .* is no number"):
            task.examples(write("b.tsv", f"x\t{label}\n"))


GLUE = {
    "cola": ("gj04\t1\t\tParis is.\ngj04\t0\t*\tIs the.\n", ["1", "0"]),
    "sst-2": ("sentence\tlabel\nparis \t1\nlondon \t0\n", ["1", "0"]),
    "mrpc": ('\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t1\t2\ta\t" b\n0\t3\t4\tc\td\n', ["1", "0"]),
    "sts-b": ("index\tg\tf\ty\to\ts1\ts2\tsentence1\tsentence2\tscore\n0\tg\tf\ty\to\tn\tn\ta\tb\t5.000\n", ["5.000"]),
    "qqp": ("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\ta?\tb?\t0\n", ["0"]),
    "mnli": ("\t".join(["index", *"bcdefgh", "sentence1", "sentence2", "label1", "gold_label"]) + "\n"
             + "\t".join([*"01234567", "a", "b", "-", "neutral"]) + "\n", ["neutral"]),
    "qnli": ("index\tquestion\tsentence\tlabel\n0\ta?\tb\tnot_entailment\n", ["not_entailment"]),
    "rte": ("index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n", ["entailment"]),
    "wnli": ("index\tsentence1\tsentence2\tlabel\n0\ta\tb\t1\n", ["1"]),
}  # fmt: skip
MAIN = {"cola": "matthews", "sts-b": "pearson_and_spearman", "mrpc": "accuracy_and_f1", "qqp": "accuracy_and_f1"}


@pytest.mark.parametrize("name", GLUE)
def test_glue_rows_read_their_own_files(name, tokenizer, write):
    text, labels = GLUE[name]
    task = catalogue.make(name, {})
    examples = task.examples(write("dev.tsv", text))
    assert [example.label for example in examples] == labels
    assert (examples[0].text_pair is not None) == (name not in ("cola", "sst-2"))
    assert examples[0].text.strip() in ("Paris is.", "paris", "a", "a?")
    assert task.main_score == MAIN.get(name, "accuracy")
    assert catalogue.restore(catalogue.kept(task), "x") == task
    predictions = task.decode(
        [np.zeros(max(len(task.labels), 1))] * len(examples), task.features(examples, tokenizer), examples
    )
    assert task.main_score in task.score(predictions, examples)


def test_glue_files_that_are_not_the_tasks_own(write):
    with pytest.raises(ValueError, match=r"dev\.tsv:1: 2 columns between tabs, but mrpc's files with labels have 5"):
        catalogue.make("mrpc", {}).examples(write("dev.tsv", GLUE["sst-2"][0]))
    with pytest.raises(ValueError, match=r"dev\.tsv:2: label 'entailment' is not one of"):
        catalogue.make("wnli", {}).examples(write("dev.tsv", GLUE["rte"][0]))
    with pytest.raises(ValueError, match="4 columns between tabs, but sst-2's files with labels have 2, label among"):
        catalogue.make("sst-2", {}).examples(write("train.tsv", "gj04\t1\t\ta good film\n"))


def test_unknown_tasks_and_settings():
    with pytest.raises(ValueError, match=r"unknown task 'squat' \(did you mean squad\?\)"):
        catalogue.make("squat", {})
    with pytest.raises(ValueError, match="sequence-classification has no setting 'doc_stride'"):
        catalogue.make("sequence-classification", {"doc_stride": 3})
    with pytest.raises(ValueError, match="was fine-tuned for no task that is known here"):
        catalogue.restore({"task": "dance"}, "x")


UNLABELLED = {
    "cola": ("index\tsentence\n0\ta\n", False), "sst-2": ("index\tsentence\n0\ta\n", False),
    "mrpc": ("index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t1\t2\ta\tb\n", True),
    "qnli": ("index\tquestion\tsentence\n0\ta\tb\n", True), "rte": ("0\ta\tb\n", True),
}  # fmt: skip


@pytest.mark.parametrize("name", UNLABELLED)
def test_glue_files_without_labels_are_answered_and_not_learned(name, write):
    text, pair = UNLABELLED[name]
    task, path = catalogue.make(name, {}), write("test.tsv", text)
    (one,) = task.examples(path, labelled=False)
    assert (one.text, one.text_pair, one.label) == ("a", "b" if pair else None, None)
    with pytest.raises(ValueError, match=r"test\.tsv:1: .*`megabert predict` takes files without labels"):
        task.examples(path)


def test_a_json_file_may_be_one_list(write):
    listed = '[\n {"text": "a", "label": "x"},\n {"text": "b", "label": "y"}]'
    assert [one.label for one in SequenceClassification().examples(write("a.json", listed))] == ["x", "y"]
    with pytest.raises(ValueError, match=r"a\.json: \[1\]: there is no label"):
        SequenceClassification().examples(write("a.json", '[{"text": "a", "label": "x"}, {"text": "b"}]'))
    with pytest.raises(ValueError, match=r"a\.tsv:2: a text is empty"):
        SequenceClassification().examples(write("a.tsv", "a\tx\n \ty\n"))


def test_labels_are_named_once():
    with pytest.raises(ValueError, match="--labels names 'a' twice"):
        chosen(TaskOptions(labels=("a", "b", "a")))
    assert chosen(TaskOptions(labels=("a, b",)))["labels"] == ("a", "b") and "labels" not in chosen(TaskOptions())
    assert chosen(TaskOptions(labels=("a,b", "c")))["labels"] == ("a,b", "c")
