import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from megabert.tasks import catalogue
from megabert.tasks.intent_slot import IntentSlot

TEXTS = "the city is paris\nis the capital of london the city 1 2 1 2 1\n"
SLOTS = "O O O B-place\nO O O O B-place O O B-n I-n I-n I-n I-n\n"
INTENTS = "ask\nask#tell\n"


def three(write, folder, texts=TEXTS, slots=SLOTS, intents=INTENTS):
    for name, text in (("seq.in", texts), ("seq.out", slots), ("label", intents)):
        path = write(f"{folder}/{name}", text)
    return path.parent


def gold_outputs(task, features):
    middle, made = len(task.intents), []
    for one in features:
        logits = np.zeros((one.length + 3, len(task.labels)), dtype=np.float32)
        logits[0, max(int(one.labels["intent_labels"][0]), 0)] = 9
        logits[np.arange(one.length), middle + np.maximum(one.labels["slot_labels"], 0)] = 9
        made.append(logits)
    return made


@pytest.mark.parametrize("length", [64, 8])
def test_outputs_at_the_labels_are_perfect_in_one_row_or_many(tokenizer, write, length):
    task = IntentSlot(max_seq_length=length, stride=2)
    examples = task.examples(three(write, "train"))
    task = task.learned(examples)
    assert task.intents == ("ask", "ask#tell") and task.slots == ("O", "B-n", "B-place", "I-n")
    features = task.features(examples, tokenizer)
    # Only the first window of a text learns its intent.
    assert [int(one.labels["intent_labels"][0]) for one in features] == ([0, 1] if length == 64 else [0, 1, -100, -100])
    assert all((one.labels["intent_labels"][1:] == -100).all() for one in features)
    predictions = task.decode(gold_outputs(task, features), features, examples)
    scores = task.score(predictions, examples)
    assert scores["intent_accuracy"] == scores["slot_f1"] == scores["joint_accuracy"] == 1
    assert "examples_with_labels_never_learned" not in scores
    (place,) = predictions[0]["entities"]
    assert place["text"] == "paris" == predictions[0]["text"][place["start"] : place["end"]]
    assert sum(predictions[1]["probabilities"].values()) == pytest.approx(1)
    case = task.cases(predictions, examples)[0]
    assert case.right and case.said == "ask" and len(case.passages[0].marks) == 2


def test_labels_that_were_never_learned_are_wrong_and_told(tokenizer, write):
    task = IntentSlot()
    task = task.learned(task.examples(three(write, "train")))
    examples = task.examples(
        three(write, "test", "is paris the city\n1 2\n", "O B-place O B-new\nB-n I-n\n", "other\nask\n")
    )
    features = task.features(examples, tokenizer)
    assert int(features[0].labels["intent_labels"][0]) == -100
    assert features[0].labels["slot_labels"].tolist() == [-100, 0, 2, 0, -100, -100]
    predictions = task.decode(gold_outputs(task, features), features, examples)
    scores = task.score(predictions, examples)
    assert scores["intent_accuracy"] == 0.5 and scores["examples_with_labels_never_learned"] == 1
    assert scores["slot_recall"] == pytest.approx(2 / 3) and scores["joint_accuracy"] == 0.5
    details = task.details(predictions, examples)
    assert details["never_learned"] == {"intent:other": 1, "slot:B-new": 1}
    assert details["per_class"]["intent:other"]["support"] == 1
    assert [sum(row) for row in details["confusion"]] == [1, 0, 1]


def test_one_matrix_is_two_classifiers(write):
    task = IntentSlot().learned(IntentSlot().examples(three(write, "train")))
    torch.manual_seed(0)
    logits = torch.randn(2, 3, len(task.labels))
    batch = {"intent_labels": torch.tensor([[1, -100, -100], [0, -100, -100]]),
             "slot_labels": torch.tensor([[-100, 3, 0], [-100, 1, -100]])}  # fmt: skip
    sums, counts = task.objective.sums(SimpleNamespace(logits=logits), batch), task.objective.counts(batch)
    entropy = torch.nn.functional.cross_entropy
    assert float(sums["intent"] / counts["intent"]) == pytest.approx(
        0.6 * float(entropy(logits[:, 0, :2], torch.tensor([1, 0])))
    )
    assert float(sums["slot"] / counts["slot"]) == pytest.approx(
        0.4 * float(entropy(logits[:, :, 2:].flatten(0, 1), batch["slot_labels"].flatten()))
    )
    restored = catalogue.restore(json.loads(json.dumps(catalogue.kept(task))), "x")
    assert restored == task


def test_all_layouts_give_the_same_examples(write):
    expected = IntentSlot().examples(three(write, "train"))
    write("dict.intents.csv", "ask\nask#tell\n")
    write("dict.slots.csv", "O\nB-place\nB-n\nI-n\n")
    rows = list(zip(TEXTS.splitlines(), SLOTS.splitlines(), INTENTS.splitlines(), strict=True))
    numbers = {"O": "0", "B-place": "1", "B-n": "2", "I-n": "3"}
    write("x_slots.tsv", "".join(" ".join(numbers[tag] for tag in slots.split()) + "\n" for _, slots, _ in rows))
    lines = [{"words": text.split(), "slots": slots.split(), "intent": intent} for text, slots, intent in rows]
    paths = [
        write("x.tsv", "sentence\tlabel\n" + "".join(f"{text}\t{n}\n" for n, (text, _, _) in enumerate(rows))),
        write("y.jsonl", "".join(json.dumps(line) + "\n" for line in lines)),
        write("y.csv", "text,slots,intent\n" + "".join(f"{','.join(row)}\n" for row in rows)),
    ]
    for path in paths:
        found = IntentSlot().examples(path)
        assert [(one.words, one.tags, one.intent) for one in found] == [
            (one.words, one.tags, one.intent) for one in expected
        ]


def test_texts_to_be_answered(write):
    (typed,) = IntentSlot().asked([("At 5 o'clock, please.",)], "x")
    assert typed.words == ["At", "5", "o'clock", ",", "please", "."]
    assert [typed.text[start:stop] for start, stop in typed.offsets] == typed.words
    (line,) = IntentSlot().examples(write("a.txt", "is it\n"), labelled=False)
    assert line.intent is None and not line.tags


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"slots": "O O O\n" + SLOTS.splitlines()[1] + "\n"}, r"seq\.in:1: 4 words, but 3 slots"),
        ({"intents": "ask\n"}, "seq.in, seq.out and label have 2, 2, 1 lines"),
        ({"intents": "ask\n\n"}, r"label:2: there is no intent"),
        ({"intents": "ask\nask\n"}, "all training examples have the intent 'ask'"),
    ],
)
def test_broken_folders_are_told(write, parts, message):
    with pytest.raises(ValueError, match=message):
        IntentSlot().learned(IntentSlot().examples(three(write, "train", **parts)))


def test_other_broken_files_are_told(write):
    for name, text in (("dict.intents.csv", "ask\n"), ("dict.slots.csv", "O\nB-n\n"), ("x_slots.tsv", "0\n1\n"),
                       ("z_slots.tsv", "0 2\n")):  # fmt: skip
        write(name, text)
    cases = [
        ("x.tsv", "sentence\tlabel\nis\t0\n", r"x_slots\.tsv:2: there is no line for it"),
        ("x.tsv", "is\t3\nis\t0\n", r"x\.tsv:1: intent '3' is no number from 0 to 0"),
        ("z.tsv", "is it\t0\n", r"z_slots\.tsv:1: slot '2' is no number from 0 to 1"),
        ("a.txt", "is it\n", "a .txt holds no intents"),
        ("a.jsonl", '{"text": "is it", "intent": "ask"}', r"a\.jsonl:1: there is no slots"),
    ]
    for name, text, message in cases:
        with pytest.raises(ValueError, match=message):
            IntentSlot().examples(write(name, text))
    given = IntentSlot(labels=("intent:ask", "intent:x", "slot:O", "slot:B-n"))
    with pytest.raises(ValueError, match=r"seq\.in:1: label 'slot:B-place' is not one of the 4 labels"):
        given.learned(given.examples(three(write, "train", intents="ask\nx\n")))


def test_accents_and_marks_inside_words():
    (one,) = IntentSlot().asked([("two o'clock in a cafe\u0301, a.m.",)], "--text")
    assert one.words == ["two", "o'clock", "in", "a", "cafe\u0301", ",", "a.m", "."]
