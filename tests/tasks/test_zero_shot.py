import json

import numpy as np
import pytest

from megabert.tasks import catalogue, zero_shot
from megabert.tasks.options import ZeroShotOptions
from megabert.tasks.sequence_classification import SequenceClassification

NLI = catalogue.make("mnli", {})


def asked(task=NLI, **options):
    return zero_shot.of(task, ZeroShotOptions(**options))


def outputs_for(task, features, entailed):
    """Logits of (contradiction, entailment, neutral): `entailed` says which pairs of example and label follow."""
    made = []
    for one in features:
        row = np.array([0.0, 1.0, 5.0], dtype=np.float32)
        row[1 if (one.example, one.facts) in entailed else 0] += 3
        made.append(row)
    return made


def test_one_of_several_labels(tokenizer, write):
    task = asked(labels=("city,capital",), hypothesis="the {}.")
    assert (task.labels, task.entailment, task.contradiction) == (("city", "capital"), 1, 0)
    examples = task.examples(write("a.tsv", "paris is\tcapital\nlondon\tcity\n"))
    features = task.features(examples, tokenizer)
    assert [(one.example, one.facts) for one in features] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert tokenizer.decode(features[1].input_ids) == "[CLS] paris is [SEP] the capital. [SEP]"
    assert features[1].token_type_ids.tolist() == [0] * 4 + [1] * 4
    predictions = task.decode(outputs_for(task, features, {(0, 1), (1, 1)}), features, examples)
    assert [said["label"] for said in predictions] == ["capital", "capital"]
    # Softmax of the entailment logits 4 and 1 over the labels.
    assert predictions[0]["probability"] == pytest.approx(1 / (1 + np.exp(-3)))
    assert task.score(predictions, examples)["accuracy"] == 0.5
    assert task.details(predictions, examples)["confusion"] == [[0, 1], [0, 1]]
    assert [case.right for case in task.cases(predictions, examples)] == [True, False]


def test_any_number_of_labels(tokenizer, write):
    task = asked(labels=("city", "capital", "1"), multi_label=True)
    lines = [{"text": "paris", "labels": ["city", "capital"]}, {"text": "a", "labels": []},
             {"text": "b", "label": "1|city"}]  # fmt: skip
    examples = task.examples(write("a.jsonl", "".join(json.dumps(line) + "\n" for line in lines)))
    features = task.features(examples, tokenizer)
    predictions = task.decode(outputs_for(task, features, {(0, 0), (0, 1), (1, 2), (2, 0)}), features, examples)
    assert [said["labels"] for said in predictions] == [["city", "capital"], ["1"], ["city"]]
    assert [said["gold_labels"] for said in predictions] == [["city", "capital"], [], ["1", "city"]]
    # Entailment against contradiction alone: logits 4 and 0.
    assert predictions[0]["probabilities"]["city"] == pytest.approx(1 / (1 + np.exp(-4)))
    scores = task.score(predictions, examples)
    assert (scores["precision"], scores["recall"]) == (0.75, 0.75) and scores["exact_match"] == pytest.approx(1 / 3)
    assert task.details(predictions, examples)["per_class"]["1"]["f1"] == 0
    assert [case.off for case in task.cases(predictions, examples)] == [0, 1, 1]


def test_the_text_is_cut_and_never_the_hypothesis(tokenizer):
    task = zero_shot.ZeroShot(labels=("city", "paris"), max_seq_length=10, hypothesis="is {}", entailment=0)
    (one, _) = task.features(task.asked([("a b c d e f g h",)], "x"), tokenizer)
    assert one.cut and tokenizer.decode(one.input_ids) == "[CLS] a b c d e [SEP] is city [SEP]"
    small = zero_shot.ZeroShot(labels=("city", "a b c d e f"), max_seq_length=9, hypothesis="{}", entailment=0)
    with pytest.raises(ValueError, match="the longest hypothesis has 6 tokens"):
        small.features(small.asked([("a",)], "x"), tokenizer)


def test_models_with_other_classes():
    rte = catalogue.make("rte", {})
    assert asked(rte, labels=("a", "b")).contradiction == -1
    numbered = SequenceClassification(labels=("0", "1", "2"), pair=True)
    task = asked(numbered, labels=("a", "b"), entailment_label="0", contradiction_label="2")
    assert (task.entailment, task.contradiction) == (0, 2)
    with pytest.raises(ValueError, match="no class 'entailment', only 0, 1, 2; --entailment-label says"):
        asked(numbered, labels=("a", "b"))
    for wrong in ("squad", "ner", "cola", "sts-b"):
        with pytest.raises(ValueError, match="asks a model of natural language inference"):
            asked(catalogue.make(wrong, {}), labels=("a", "b"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hypothesis": "it is {}"}, "need --labels"),
        ({"labels": ("a,a",)}, "two different labels or more are needed"),
        ({"labels": ("a",)}, "two different labels or more"),
        ({"labels": ("a", "b"), "hypothesis": "it is"}, "write {} once"),
        ({"labels": ("a", "b"), "hypothesis": "{} {}"}, "write {} once"),
    ],
)
def test_senseless_questions_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        asked(**options)


def test_a_label_outside_the_set_and_a_second_text_are_told(write):
    with pytest.raises(ValueError, match=r"a\.tsv:2: label 'x' is not one of the 2 labels"):
        asked(labels=("a", "b")).examples(write("a.tsv", "t\ta\nt\tx\n"))
    with pytest.raises(ValueError, match=r"a\.tsv:1: with --labels a text is classified, but here are two"):
        asked(labels=("a", "b")).examples(write("a.tsv", "t\tu\ta\n"))
    assert asked() is NLI
    with pytest.raises(ValueError, match="zero-shot classification is not taught"):
        catalogue.make("zero-shot", {}).learned([])
