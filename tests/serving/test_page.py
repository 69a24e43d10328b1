"""The page of an evaluation: what stands in it, and that no text of an example is more than text."""

import base64
import hashlib
import html.parser
import json
import re

import numpy as np
import pytest

from megabert.metrics.names import MEANINGS
from megabert.serving.page import browser, sections, write_report
from megabert.serving.page.charts import Series, lines, ticks
from megabert.serving.page.elements import Safe, tag
from megabert.tasks import catalogue
from megabert.tasks.cases import Case, Mark, Passage
from megabert.tasks.multiple_choice import ChoiceExample
from megabert.tasks.sequence_classification import TextExample
from megabert.tasks.squad_files import Paragraph, Question
from megabert.tasks.token_classification import WordsExample

HOSTILE = "</script><script>alert(1)</script> <img src=x onerror=alert(2)> \"'& \x00\ud800 \u202e end"
VOID = {"meta", "input", "br"}


class Reader(html.parser.HTMLParser):
    """Elements with their texts; every element must be closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.names, self.texts, self.attributes = [], [], {}, []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.names.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        for name in self.open:
            self.texts[name] = self.texts.get(name, "") + data


def evaluated(name):
    """A task, its predictions and its examples, a few of them wrong and all of them with hostile texts."""
    common = {"place": "file:1"}
    if name in ("sequence-classification", "regression"):
        task = catalogue.make(name, {})
        examples = [
            TextExample(id=str(n), text=f"{HOSTILE} {'w ' * (n % 20)}", label=str(n % 3), **common) for n in range(60)
        ]
        task = task.learned(examples)
        outputs = [np.eye(3)[n % 3 if n % 5 else 0] * 2 if name != "regression" else np.array([n % 3 + 0.5])
                   for n in range(60)]  # fmt: skip
        return task, task.decode(outputs, [], examples), examples
    if name == "ner":
        text = f"Ada {HOSTILE}"
        examples = [WordsExample(id="1", text=text, words=["Ada", HOSTILE], tags=["B-PER", "B-<b>"],
                                 offsets=[(0, 3), (4, len(text))], **common)]  # fmt: skip
        task = catalogue.make(name, {}).learned(examples * 2 + [
            WordsExample(id="2", text="a", words=["a"], tags=["O"], offsets=[(0, 1)], **common)])  # fmt: skip
        said = {"id": "1", "text": text, "words": examples[0].words, "labels": ["B-PER", "O"],
                "probabilities": [0.9, 0.6], "entities": [], "gold": examples[0].tags}  # fmt: skip
        return task, [said], examples
    if name == "squad2":
        context = Paragraph(f"{HOSTILE} Paris " + "far away " * 500 + "London")
        at = context.text.index("Paris")
        examples = [Question(id="1", question=HOSTILE, paragraph=context, answers=[("Paris", at)], answered=True,
                             **common)]  # fmt: skip
        end = len(context.text)
        said = {"id": "1", "question": HOSTILE, "text": "London", "start": end - 6, "n_best": [],
                "end": end, "probability": 0.8, "best_text": "London", "null_score_diff": -1.0}  # fmt: skip
        return catalogue.make(name, {}), [said], examples
    examples = [ChoiceExample(id="1", context=HOSTILE, choices=[HOSTILE, "b"], right=0, **common)]
    task = catalogue.make("swag", {})
    return task, task.decode([np.array([0.0, 1.0])], [], examples), examples


def written(folder, name, **more):
    task, predictions, examples = evaluated(name)
    path = folder / "report.html"
    write_report(path, task, predictions, examples, task.score(predictions, examples),
                 task.details(predictions, examples), facts={"file": HOSTILE}, **more)  # fmt: skip
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["sequence-classification", "regression", "ner", "squad2", "swag"])
def test_texts_stay_texts_and_nothing_is_loaded(tmp_path, name):
    text = written(tmp_path, name)
    page = Reader(text)
    assert page.names.count("script") == 1 and "img" not in page.names and "b" not in page.texts.get("bdi", "")[:0]
    assert "alert(1)" in page.texts["dd"] and "alert" not in page.texts["script"]
    assert not any(attribute in ("src", "href", "onerror") for _, attribute, _ in page.attributes)
    assert not re.search(r"https?://|url\(|@import", text)
    assert "\x00" not in text
    # Only the page's own script may run: the policy names its digest.
    (policy,) = [value for _, name, value in page.attributes if name == "content" and "script-src" in value]
    digest = base64.b64encode(hashlib.sha256(page.texts["script"].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and policy.startswith("default-src 'none'")
    assert written(tmp_path, name) == text


def test_what_stands_in_it(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    records = [{"step": n, "lr": 1e-3, "label_loss": 1 / (n + 1)} for n in range(1000)]
    records += [{"step": 500, "valid_label_loss": 0.5, "valid_accuracy": 0.6}, {"step": 999, "valid_label_loss": None}]
    metrics.write_text("".join(json.dumps(record) + "\n" for record in records) + '{"cut')
    text = written(tmp_path, "sequence-classification", metrics=metrics, best=500)
    assert "loss in nats" in text and "squared error" not in text
    page = Reader(text)
    headings = ["Scores", "Training", "Classes", "Confusion", "Calibration", "Length", "Examples"]
    assert all(heading in page.texts["h2"] for heading in headings)
    right = sum(n % 3 == (n % 3 if n % 5 else 0) for n in range(60))
    assert f"{right} of 60" in page.texts["header"]
    assert all(meaning in page.texts["details"] for meaning in (MEANINGS["accuracy"], MEANINGS["matthews"]))
    # Tables say what their rows and columns are, pictures what they show.
    assert {value for name, key, value in page.attributes if name == "th" and key == "scope"} == {"row", "col"}
    pictures = [value for name, key, value in page.attributes if (name, key) == ("svg", "aria-label")]
    assert len(pictures) == 3 and all(pictures)
    (curve,) = [value for name, key, value in page.attributes if (name, key) == ("polyline", "points")]
    assert len(curve.split()) <= 400
    assert page.names.count("article") == 60


def test_entities_and_answers_are_marked(tmp_path):
    page = Reader(written(tmp_path, "ner"))
    kinds = [value for name, key, value in page.attributes if name == "mark" and key == "class"]
    assert kinds[4:] == ["hit", "missed"] and "<b> missed" in page.texts["small"]
    page = Reader(written(tmp_path, "squad2"))
    # A long text is shown where the answer was said, not whole.
    assert "London" in page.texts["dd"] and len(page.texts["dd"]) < 4000
    assert "should be Paris" in page.texts["article"]


def test_overlapping_marks_share_their_text():
    marks = [Mark(0, 5, "A", "gold"), Mark(3, 8, "B", "said")]
    parts = list(browser.marked(Passage(name="text", text="abcdefghij", marks=marks)))
    assert parts == [
        '<mark class="missed">abc</mark>', '<mark class="other">de<small>A → B</small></mark>',
        '<mark class="extra">fgh<small>B said</small></mark>', "ij",
    ]  # fmt: skip


def test_a_large_set_makes_no_large_page():
    def cases(count, size):
        passages = [Passage(name="text", text="x" * size)]
        return [
            Case(id=str(n), passages=passages, gold="a", said="b" if n % 3 else "a", right=not n % 3,
                 off=float(n % 3 > 0), confidence=(n % 97) / 97)
            for n in range(count)
        ]  # fmt: skip

    made = browser.browser(cases(3000, 5000), "predictions.jsonl")
    assert len(made) < 1.2 * browser.MOST_BYTES
    assert made.count("<article") == browser.MOST_CASES and "400 of 3,000 examples" in made
    assert made.index('data-sure="0.98') < made.index('data-sure="0.93')
    # There are more mistakes than places; some right ones are there all the same, those least sure.
    assert made.count('data-verdict="right"') == browser.MOST_RIGHT and 'data-sure="0.0' in made
    many = [Case(id="1", passages=[Passage(name=str(n), text="<" * 1200) for n in range(50)], gold=None, said=None,
                 right=None)] * 100  # fmt: skip
    assert len(browser.browser(many, "p")) < 1.2 * browser.MOST_BYTES


def test_groups_of_like_length():
    groups = sections.by_length([3] * 25 + [9] * 25 + list(range(20, 70)))
    assert sorted(at for group in groups for at in group) == list(range(100))
    assert groups[0] == list(range(25)) and groups[1] == list(range(25, 50)) and len(groups) <= sections.BUCKETS
    assert len(sections.by_length([1] * 9 + [2] * 9)) == 1
    assert all(len(group) >= sections.LEAST_IN_BUCKET for group in groups)


def test_many_classes_are_bounded():
    labels = [f"label {n}" for n in range(300)]
    counts = [[int(row == column or column == 299 - row) for column in range(300)] for row in range(300)]
    rows = {name: {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 1} for name in labels}
    made = "".join(sections.tables({"labels": labels, "confusion": counts, "slots": {"per_class": rows}}))
    assert f"of {len(labels)} classes" in made and "Classes: slots" in made
    assert len(Reader(made).texts["th"]) < 6000 and made.count("diagonal") == sections.MOST_CONFUSED


@pytest.mark.parametrize("points", [[(1, 0.5)], [(1, 0.5), (1, 0.5)], [(0, -3.0), (5, 1e9)], [(10, 0.0), (20, 0.0)]])
def test_curves_of_few_points(points):
    picture = lines("loss", [Series("a", points, "one"), Series("b", [], "two")], ("x", "y"), best=7)
    assert "nan" not in picture.lower() and "inf" not in picture.replace("figure", "")
    Reader(picture)


def test_ticks_cover_what_is_drawn():
    assert ticks(0.12, 0.91) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(-3, 1204)[0] <= -3 and ticks(-3, 1204)[-1] >= 1204 and len(ticks(-3, 1204)) <= 7


def test_elements():
    assert tag("p", "<", Safe("<b>"), None, [1, "&"], class_='a"b', hidden=True, id=None) == (
        '<p class="a&quot;b" hidden>&lt;<b>1&amp;</p>'
    )


@pytest.mark.parametrize("name", ["sequence-classification", "regression", "ner", "squad2", "swag", "chemprot"])
def test_every_score_is_explained(name):
    task, predictions, examples = evaluated(name if name != "chemprot" else "sequence-classification")
    if name == "chemprot":
        task = catalogue.make(name, {"labels": task.labels})
    scores = task.score(predictions, examples)
    assert set(scores) <= set(MEANINGS) and task.main_score in scores
