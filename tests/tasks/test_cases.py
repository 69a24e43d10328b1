"""Predictions beside what is right, as the report shows them."""

from megabert.metrics.entities import Span
from megabert.tasks import cases
from megabert.tasks.cases import Mark


def test_a_label_and_a_number():
    said = {"id": "7", "text": "a", "text_pair": "b", "label": "x", "probability": 0.75, "gold": "y"}
    case = cases.of_label(said)
    assert [(one.name, one.text) for one in case.passages] == [("text", "a"), ("text pair", "b")]
    assert (case.gold, case.said, case.right, case.off) == ("y", "x", False, 1.0)
    assert list(case.beliefs) == [(0.75, False)]
    del said["gold"]
    assert cases.of_label(said).right is None and not cases.of_label(said).beliefs
    case = cases.of_number({"id": "1", "text": "a", "number": 3.5, "gold": "5"})
    assert case.numbers == (5.0, 3.5) and case.off == 1.5 and case.right is None


def test_entities_are_marked_in_the_text():
    said = {"id": "1", "text": "Ada saw Paris", "labels": ["B-PER", "O", "B-PER"], "probabilities": [0.9, 0.8, 0.6],
            "gold": ["B-PER", "O", "B-LOC"]}  # fmt: skip
    gold, given = [Span(0, 1, "PER"), Span(2, 3, "LOC")], [Span(0, 1, "PER"), Span(2, 3, "PER")]
    case = cases.of_tags(said, [(0, 3), (4, 7), (8, 13)], gold, given)
    assert case.right is False and case.off == 2 and case.confidence == 0.6
    assert list(case.beliefs) == [(0.9, True), (0.8, True), (0.6, False)]
    assert list(case.passages[0].marks) == [
        Mark(0, 3, "PER", "gold"), Mark(8, 13, "LOC", "gold"), Mark(0, 3, "PER", "said"), Mark(8, 13, "PER", "said"),
    ]  # fmt: skip
    assert cases.of_tags(said, [(0, 3), (4, 7), (8, 13)], None, given).right is None


def test_choices_are_marked():
    said = {"id": "1", "context": "c", "choices": ["ab", "c", "d"], "choice": 1, "probability": 0.4, "gold": 0}
    case = cases.of_choice(said)
    assert [list(one.marks) for one in case.passages] == [[], [Mark(0, 2, "", "gold")], [Mark(0, 1, "", "said")], []]
    assert case.right is False and (case.gold, case.said) == ("choice 0", "choice 1")
