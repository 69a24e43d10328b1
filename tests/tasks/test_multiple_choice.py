import json

import numpy as np
import pytest

from megabert.tasks import catalogue
from megabert.tasks.multiple_choice import MultipleChoice
from megabert.tasks.rows import padded

RACE = {
    "article": "The city\nis Paris .", "id": "high1.txt", "answers": ["B", "A"],
    "questions": ["It is _ .", "What is it?"], "options": [["a", "b"], ["c", "d"]],
}  # fmt: skip


def test_race(tokenizer, write, tmp_path):
    write("high/1.txt", json.dumps(RACE))
    write("high/2.txt", json.dumps(RACE) + "\n" + json.dumps(RACE))
    task = catalogue.make("race", {"max_seq_length": 24})
    examples = task.examples(tmp_path / "high")
    assert len(examples) == 6 and len({one.id for one in examples}) >= 4
    assert examples[0].context == "The city is Paris ."
    assert examples[0].choices == ["It is a .", "It is b ."] and examples[0].right == 1
    assert examples[1].choices == ["What is it? c", "What is it? d"] and examples[1].right == 0
    one = task.features(examples, tokenizer)[0]
    first, second = (tokenizer.decode(one.input_ids[0][one.token_type_ids[0] == kind].tolist()) for kind in (0, 1))
    assert "paris" in second and "paris" not in first  # the choice comes first, as in Megatron-LM


def test_swag(tokenizer, write):
    header = ",video-id,fold-ind,startphrase,sent1,sent2,ending0,ending1,label\n"
    rows = '0,v,7,"the city, is","the city",is,paris,london london london,1\n'
    task = MultipleChoice(max_seq_length=32)
    examples = task.examples(write("val.csv", header + rows))
    assert examples[0].choices == ["paris", "london london london"] and examples[0].right == 1
    features = task.features(examples, tokenizer)
    assert features[0].input_ids.shape[0] == 2
    assert features[0].attention_mask[0].sum() < features[0].attention_mask[1].sum() == features[0].length
    batch = padded([one.row() for one in features], pad_id=tokenizer.pad_id)
    assert batch["input_ids"].shape == (1, 2, 16) and batch["labels"].tolist() == [1]
    (said,) = task.decode([np.array([2.0, 1.0])], features, examples)
    assert said["text"] == "paris" and said["gold"] == 1
    assert task.score([said], examples) == {"accuracy": 0}


def test_lines_and_typed_texts(write):
    task = MultipleChoice()
    text = json.dumps({"context": "the city", "question": "is", "choices": ["a", "b", "c"], "label": 2})
    (one,) = task.examples(write("a.jsonl", text))
    assert one.choices == ["is a", "is b", "is c"] and one.right == 2
    assert task.asked([("c", "x", "y")], "--text")[0].choices == ["x", "y"]
    with pytest.raises(ValueError, match="two choices or more"):
        task.asked([("c", "x")], "--text")


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"context": "a", "choices": ["x", "y"], "label": 2}, "the right choice is 2, but there are 2"),
        ({"context": "a", "choices": ["x", "y"]}, "there is no label"),
        ({"context": "a", "choices": ["x"], "label": 0}, "two choices or more are needed"),
        ({"context": "a", "choices": "xy", "label": 0}, "must be a list"),
        ({"choices": ["x", "y"], "label": 0}, "a text is needed"),
        ({"context": "a", "choices": ["x", "y"], "label": "second"}, "a number from 0 on or a letter"),
        ({**RACE, "answers": ["A"]}, "needs an answer"),
        ({"context": "a", "question": "q", "choices": ["x", " "], "label": 0}, "none empty"),
        ({**RACE, "questions": [1, 2]}, "question 1 must be text"),
        ({**RACE, "options": [["a"]]}, "as many lists of options as questions"),
    ],
)
def test_broken_lines_are_told(write, cells, message):
    with pytest.raises(ValueError, match=rf"a\.jsonl:1: .*{message}"):
        MultipleChoice().examples(write("a.jsonl", json.dumps(cells)))


def test_examples_of_different_width_are_refused(write):
    lines = [{"context": "a", "choices": list("xyz"[:n]), "label": 0} for n in (2, 3)]
    with pytest.raises(ValueError, match=r"a\.jsonl:2: 3 choices, but the examples before have 2"):
        MultipleChoice().examples(write("a.jsonl", "\n".join(map(json.dumps, lines))))
