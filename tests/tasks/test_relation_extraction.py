import json

import pytest

from megabert.tasks.relation_extraction import RelationExtraction


def line(text, label="X", **more):
    return json.dumps({"text": text, "label": label, **more}) + "\n"


def entity(whole, word, **more):
    return {"start": whole.index(word), "end": whole.index(word) + len(word), **more}


def test_marked_text_in_lines_of_json_whatever_the_name(write):
    task = RelationExtraction()
    examples = task.examples(write("train.txt", line("<< EGF >> binds [[ it ]]", "INHIBITOR") + line("@A$ b", "False")))
    assert examples[0].text == "<< EGF >> binds [[ it ]]"
    assert task.learned(examples).labels == ("False", "INHIBITOR")


def test_entities_by_offsets_become_markers_or_words(write):
    text = "Aspirin and COX bind"
    entities = [entity(text, "COX", type="gene", text="COX"), entity(text, "Aspirin", type="chemical")]
    path = write("a.jsonl", line(text, entities=entities))
    assert RelationExtraction().examples(path)[0].text == "[[ Aspirin ]] and << COX >> bind"
    (one,) = RelationExtraction(mentions="anonymous").examples(path)
    assert one.text == "@CHEMICAL$ and @GENE$ bind"
    cell = json.dumps(entities).replace('"', '""')
    (one,) = RelationExtraction().examples(write("a.csv", f'text,label,entities\n{text},X,"{cell}"\n'))
    assert one.text == "[[ Aspirin ]] and << COX >> bind"
    (one,) = RelationExtraction(mentions="anonymous").examples(write("b.jsonl", line("[[ A b ]] hits << C >>")))
    assert one.text == "@ENTITY2$ hits @ENTITY1$"


def test_the_notebooks_table(write):
    rows = "12.T1\t@CHEMICAL$ hits @GENE$\tTrue\tCPR:4\n12.T2\t@GENE$ rests\tFalse\tCPR:10\n"
    examples = RelationExtraction().examples(write("train.tsv", rows))
    assert [(one.id, one.label) for one in examples] == [("12.T1", "CPR:4"), ("12.T2", "False")]


def test_the_score_leaves_out_that_there_is_none(write):
    task = RelationExtraction()
    examples = task.examples(
        write("a.jsonl", "".join(line("<< t >>", label) for label in ("A", "B", "False", "False", "A")))
    )
    task = task.learned(examples)
    given = ["A", "False", "A", "False", "B"]
    scores = task.score([{"id": str(n), "label": label} for n, label in enumerate(given)], examples)
    assert (scores["precision"], scores["recall"]) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert scores["accuracy"] == pytest.approx(2 / 5) and task.main_score == "f1"


@pytest.mark.parametrize(
    ("text", "more", "message"),
    [
        ("ab cd", {}, "nothing in the text says which two entities"),
        ("ab cd", {"entities": [{"start": 0, "end": 2}]}, "must be a list of two"),
        ("ab cd", {"entities": [{"start": 0, "end": 4}, {"start": 3, "end": 5}]}, "overlap"),
        ("ab cd", {"entities": [{"start": 0, "end": 2}, {"start": 3, "end": 9}]}, "characters of a text of 5"),
        ("ab cd", {"entities": [{"start": 0, "end": 2}, {"start": 3, "end": 5, "text": "xy"}]}, "does not stand at 3"),
        ("\u00fc cd", {"entities": [{"start": 0, "end": 1}, {"start": 3, "end": 4, "text": "c"}]}, "count bytes"),
    ],
)
def test_broken_entities_are_told(write, text, more, message):
    with pytest.raises(ValueError, match=rf"a\.jsonl:1: .*{message}"):
        RelationExtraction().examples(write("a.jsonl", line(text, **more)))
