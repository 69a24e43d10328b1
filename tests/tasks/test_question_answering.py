import json

import numpy as np
import pytest

from megabert.tasks.question_answering import QuestionAnswering, _best
from megabert.tasks.squad_files import Paragraph, Question

CONTEXT = "Paris is the capital of a  city, and London is the city of \u00fcb."


def squad(*questions, context=CONTEXT):
    entries = [{"id": str(number), "question": "the city?", **question} for number, question in enumerate(questions)]
    return json.dumps({"data": [{"title": "t", "paragraphs": [{"context": context, "qas": entries}]}]})


def answer(text, start=None):
    return {"answers": [{"text": text, "answer_start": CONTEXT.index(text) if start is None else start}]}


def gold_outputs(features):
    """Logits that point at the labels."""
    made = []
    for one in features:
        logits = np.zeros((2, one.length + 3), dtype=np.float32)  # padding follows
        logits[0, one.labels["start_positions"]] = logits[1, one.labels["end_positions"]] = 9
        made.append(logits)
    return made


@pytest.mark.parametrize("length", [14, 20, 64])
@pytest.mark.parametrize("text", ["Paris", "London is the city", "a  city,", "\u00fcb"])
def test_answers_come_back_as_they_stand_in_the_text(tokenizer, write, length, text):
    task = QuestionAnswering(max_seq_length=length, doc_stride=2)
    examples = task.examples(write("a.json", squad(answer(text))))
    features = task.features(examples, tokenizer)
    (said,) = task.decode(gold_outputs(features), features, examples)
    assert said["text"] == text == CONTEXT[said["start"] : said["end"]]
    assert task.score([said], examples)["exact_match"] == 100
    assert all(one.length <= length for one in features)
    assert said["n_best"][0]["text"] == text
    assert sum(one["probability"] for one in said["n_best"]) == pytest.approx(1)


@pytest.mark.parametrize("text", ["cafe\u0301", "u\u0308b", "of e\u0301\u0323"])
def test_an_answer_keeps_the_accents_that_the_tokenizer_takes_away(tokenizer, write, text):
    context = f"the {text}, and the city"
    content = squad({"answers": [{"text": text, "answer_start": 4}]}, context=context)
    task = QuestionAnswering(max_seq_length=40)
    examples = task.examples(write("a.json", content))
    features = task.features(examples, tokenizer)
    (said,) = task.decode(gold_outputs(features), features, examples)
    assert (said["text"], said["start"], said["end"]) == (text, 4, 4 + len(text))
    assert task.score([said], examples)["exact_match"] == 100


def test_windows_cover_the_text_and_each_piece_is_best_once():
    cuts = [(0, 10), (4, 14), (8, 17)]
    owners = np.zeros(17, dtype=int)
    for start, stop in cuts:
        owners[start:stop] += _best(start, stop, cuts)
    assert (owners == 1).all()
    # Piece 6 has 3 behind it in the first window and 2 before it in the second; 7 has 2 and 3.
    assert _best(0, 10, cuts)[6] and not _best(4, 14, cuts)[2] and _best(4, 14, cuts)[3]


def test_a_window_without_the_answer_learns_the_first_place(tokenizer, write):
    task = QuestionAnswering(max_seq_length=14, doc_stride=4)
    features = task.features(task.examples(write("a.json", squad(answer("Paris")))), tokenizer)
    starts = [int(one.labels["start_positions"]) for one in features]
    assert starts[0] > 0 and starts[1:] == [0] * (len(features) - 1)


def test_rules_of_candidates(tokenizer, write):
    task = QuestionAnswering(max_seq_length=64, max_answer_length=3, n_best_size=4)
    examples = task.examples(write("a.json", squad(answer("Paris"))))
    (one,) = features = task.features(examples, tokenizer)
    begin = one.facts.begin
    logits = np.full((2, one.length), -9.0, dtype=np.float32)
    logits[0, begin + 3], logits[0, begin] = 5, 4  # capital, Paris
    logits[1, begin + 2], logits[1, begin + 8] = 5, 4.5  # the; far away
    (said,) = task.decode([logits], features, examples)
    # capital ... the is backwards, both to the far end are too long: Paris is the remains.
    assert said["text"] == "Paris is the"


def test_no_answer(tokenizer, write):
    task = QuestionAnswering(max_seq_length=64, no_answer=True)
    path = write("a.json", squad({"is_impossible": "true", "answers": []}, answer("Paris")))
    examples = task.examples(path)
    features = task.features(examples, tokenizer)
    predictions = task.decode(gold_outputs(features), features, examples)
    assert [said["text"] for said in predictions] == ["", "Paris"]
    assert predictions[0]["null_score_diff"] == 18 and predictions[0]["best_text"]
    assert predictions[1]["null_score_diff"] == -18
    scores = task.score(predictions, examples)
    assert scores["exact"] == scores["best_exact"] == scores["NoAns_exact"] == 100
    shifted = [{**said, "null_score_diff": said["null_score_diff"] + 20} for said in predictions]
    calibrated = task.calibrated(shifted, examples)
    assert calibrated.null_threshold == 2  # 38 and 2: the second one is answered up to here
    with pytest.raises(ValueError, match=r"qas\[0\] \(id 0\) has no answer; --version-2"):
        QuestionAnswering().learned(examples)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("[]", "an object with a list `data`"),
        ('{"data": [', r"a\.json:1: not JSON"),
        ('{"data": []}', "holds no example"),
        ('{"data": [{"paragraphs": [{"context": " "}]}]}', r"data\[0\]\.paragraphs\[0\]: a text `context` is needed"),
        (squad({}), "neither an answer nor is_impossible"),
        (squad(answer("Paris", 3)), "does not stand at character 3 .* it stands at 0: --repair-offsets"),
        (squad(answer("Rome", 3)), "it is nowhere in the context"),
        (squad({"answers": [{"text": "Paris"}]}), "answer_start must be a whole number, not None"),
        (squad(answer("Paris"), {**answer("Paris"), "id": "0"}), "the id '0' occurs twice"),
    ],
)
def test_broken_files_are_told(write, document, message):
    with pytest.raises(ValueError, match=message):
        QuestionAnswering().examples(write("a.json", document))


def test_offsets_in_bytes_are_recognised_and_repaired(write):
    context = "\u00fc\u00fc Paris and Paris"
    path = write("a.json", squad({"answers": [{"text": "Paris", "answer_start": 5}]}, context=context))
    with pytest.raises(ValueError, match="counts bytes, where characters are needed"):
        QuestionAnswering().examples(path)
    (example,) = QuestionAnswering(repair=True).examples(path)
    assert example.answers == [("Paris", 3)]


def test_an_answer_that_no_window_holds_is_told(tokenizer, write):
    task = QuestionAnswering(max_seq_length=12, doc_stride=2)
    examples = task.examples(write("a.json", squad(answer("capital of a  city, and London is the city"))))
    with pytest.raises(ValueError, match=r"\(id 0\): its answer is \d+ tokens long and no window of \d+ tokens"):
        task.features(examples, tokenizer)
    with pytest.raises(ValueError, match="--doc-stride 100 leaves out text"):
        QuestionAnswering(max_seq_length=20, doc_stride=100).features(examples, tokenizer)
    for empty in ("", "\u200b"):
        with pytest.raises(ValueError, match=r"--text: the text .* holds nothing to answer with"):
            task.features(task.asked([("the city?", empty)], "--text"), tokenizer)


def test_lines_and_typed_questions(tokenizer, write):
    task = QuestionAnswering(max_seq_length=64)
    lines = write("a.jsonl", json.dumps({"question": "city?", "context": CONTEXT}) + "\n")
    (example,) = task.examples(lines, labelled=False)
    assert not example.answered and not task.features([example], tokenizer)[0].labels
    (typed,) = task.asked([("city?", CONTEXT)], "--text")
    assert typed.context == CONTEXT
    with pytest.raises(ValueError, match="this model reads two texts"):
        task.asked([("city?",)], "--text")


@pytest.mark.parametrize("answered", [(), (0,), (0, 1, 2)])
def test_the_threshold_that_is_kept_is_as_good_as_the_best(answered):
    """Also where it is best to answer nothing and all scores are below 0."""
    context = Paragraph("Ada saw the city of Paris.")
    examples = [Question(id=str(n), place="f", question="where?", paragraph=context, answered=True,
                         answers=[("Paris", 20)] if n in answered else []) for n in range(3)]  # fmt: skip
    said = [{"id": str(n), "best_text": "Paris", "null_score_diff": -2.0 + n / 2} for n in range(3)]
    task = QuestionAnswering(no_answer=True).calibrated(said, examples)
    texts = {one["id"]: "" if one["null_score_diff"] > task.null_threshold else "Paris" for one in said}
    right = sum((texts[str(n)] == "Paris") == (n in answered) for n in range(3))
    assert right == 3


def test_answers_are_marked_for_people():
    task = QuestionAnswering(no_answer=True)
    context = Paragraph("Ada saw the city of Paris.")
    right, none = [("Paris", 20), ("the city of Paris", 8)], []
    examples = [
        Question(id=str(n), place="f", question="where?", paragraph=context, answers=answers, answered=True)
        for n, answers in enumerate((right, right, none))
    ]
    said = [
        {"text": "the city", "start": 8, "end": 16, "probability": 0.9},
        {"text": "Paris", "start": 20, "end": 25, "probability": 0.8},
        {"text": "", "start": 0, "end": 0, "probability": 0.7},
    ]
    half, whole, empty = task.cases(said, examples)
    assert half.right is False and half.off == pytest.approx(0.5) and half.gold == "Paris | the city of Paris"
    assert [(mark.start, mark.end, mark.side) for mark in half.passages[1].marks] == [
        (8, 16, "said"), (8, 25, "gold"), (20, 25, "gold"),
    ]  # fmt: skip
    assert whole.right is True and whole.off == 0 and list(whole.beliefs) == [(0.8, True)]
    assert empty.right is True and (empty.gold, empty.said) == ("no answer", "no answer")


TABLE = 'id,question,context,answer,answer_start\n1,the city?,"London, or Paris",Paris,11\n'


def test_tables(write):
    (one,) = QuestionAnswering().examples(write("a.csv", TABLE))
    assert (one.id, one.context, one.answers) == ("1", "London, or Paris", [("Paris", 11)])
    rows = "question\tcontext\tanswer\nthe?\tof Paris\tParis\nwhich?\tof Paris\t\n"
    first, none = QuestionAnswering(no_answer=True).examples(write("a.tsv", rows))
    assert first.answers == [("Paris", 3)] and none.answers == [] and none.answered
    cell = json.dumps([{"text": "a", "answer_start": 0}, {"text": "b", "answer_start": 2}])
    (several,) = QuestionAnswering().examples(write("b.tsv", f"question\tcontext\tanswers\nq\ta b\t{cell}\n"))
    assert several.answers == [("a", 0), ("b", 2)]
    (asked,) = QuestionAnswering().examples(write("c.tsv", "the?\tof Paris\n"), labelled=False)
    assert (asked.question, asked.context, asked.answered) == ("the?", "of Paris", False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TABLE.replace(",11", ",9"), r"a\.csv:2 .*does not stand at character 9"),
        (TABLE.replace(",11", ",x"), r"a\.csv:2: answer_start must be a whole number"),
        ("question,context,answer\nq,a b a,a\n", r"a\.csv:2: the answer 'a' stands 2 times in the context"),
        ("question,context,answer\nq,a b a,c\n", r"a\.csv:2 .*it is nowhere in the context"),
        ("question,context\nq,a b a\n", r"a\.csv:2 .*neither an answer nor is_impossible"),
        ("question,passage\nq,a b a\n", r"a\.csv:1: .*must name the columns context and question"),
        ("question,context,answers\nq,a,[x]\n", r"a\.csv:2: answers is not JSON"),
    ],
)
def test_broken_tables_are_told(write, text, message):
    with pytest.raises(ValueError, match=message):
        QuestionAnswering().examples(write("a.csv", text))


def test_lists_of_answers_that_do_not_fit_are_told(write):
    for answers, message in (
        ({"text": ["a", "b"], "answer_start": [0]}, "as many numbers"),
        ("a", "a list of objects"),
    ):
        entry = {"question": "q", "context": "a b", "answers": answers}
        with pytest.raises(ValueError, match=rf"a\.jsonl:1 \(id 1\): .*{message}"):
            QuestionAnswering().examples(write("a.jsonl", json.dumps(entry)))
