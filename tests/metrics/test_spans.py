import pytest

from megabert.metrics import spans


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat,\tsat!", "cat sat"),
        ("an apple a day", "apple day"),
        ("Theatre of Athens", "theatre of athens"),  # articles are whole words
        ("U.S.A.", "usa"),
        ("a-b", "ab"),  # a hyphen goes, and joins what it stood between
        ("«Ça»", "«ça»"),  # only ASCII punctuation goes
        ("the", ""),
    ],
)
def test_normalisation(text, expected):
    assert spans.normalised(text) == expected


def test_f1_counts_words_as_often_as_both_have_them():
    assert spans.overlap_f1("cat cat dog", "cat bird", empty_matches=True) == pytest.approx(2 * 1 / 5)
    assert spans.overlap_f1("cat", "dog", empty_matches=True) == 0


def test_texts_without_words_are_the_difference_between_the_versions():
    assert spans.overlap_f1("the", "a", empty_matches=True) == 1
    assert spans.overlap_f1("the", "a", empty_matches=False) == 0
    assert spans.squad1({"q": "the"}, {"q": ["a"]}) == {"exact_match": 100, "f1": 0}


def test_version_1_takes_the_best_answer():
    scores = spans.squad1({"1": "in Paris", "2": "blue"}, {"1": ["Paris", "in Paris"], "2": ["dark blue"]})
    assert scores == {"exact_match": 50, "f1": pytest.approx(100 * (1 + 2 / 3) / 2)}
    with pytest.raises(ValueError, match="'2' has no prediction"):
        spans.squad1({"1": "x"}, {"1": ["x"], "2": ["y"]})
    with pytest.raises(ValueError, match="has no answer"):
        spans.squad1({"1": "x"}, {"1": []})


def test_version_2_splits_by_answerable():
    answers = {"1": ["Paris"], "2": [], "3": []}
    scores = spans.squad2({"1": "Paris now", "2": "", "3": "x"}, answers)
    assert scores["exact"] == pytest.approx(100 / 3)
    assert scores["f1"] == pytest.approx(100 * (2 / 3 + 1) / 3)
    assert (scores["HasAns_exact"], scores["HasAns_total"]) == (0, 1)
    assert (scores["NoAns_exact"], scores["NoAns_f1"], scores["NoAns_total"]) == (50, 50, 2)
    assert "best_f1" not in scores


def test_an_answer_without_words_counts_as_none():
    assert spans.squad2({"1": ""}, {"1": ["the"]})["exact"] == 100


def test_threshold_search_by_hand():
    answers = {"1": ["x"], "2": ["y"], "3": [], "4": []}
    texts = {"1": "x", "2": "z", "3": "w", "4": ""}
    nulls = {"1": -5.0, "2": -1.0, "3": 0.5, "4": 2.0}
    # Nothing answered: 2 right. Answering 1: 3. Answering 2 as well: still 3. Answering 3: 2.
    scores = spans.squad2(texts, answers, nulls)
    assert (scores["best_exact"], scores["best_exact_thresh"]) == (75, -5.0)
    # It pays to answer nothing: the threshold stays 0, as in the official script.
    scores = spans.squad2({"1": "no", "3": "w"}, {"1": ["x"], "3": []}, {"1": 1.0, "3": -1.0})
    assert (scores["best_f1"], scores["best_f1_thresh"]) == (50, 0.0)


def test_what_nemo_logged_is_the_best_prefix():
    answers = {"1": ["x"], "2": [], "3": ["y"]}
    texts = {"1": "x", "2": "w", "3": "no"}
    # Begins with 1 right (2 is unanswerable), after question 1: 2, then 1.
    assert spans.nemo_squad(texts, answers)["exact_match"] == pytest.approx(200 / 3)
    assert spans.squad2(texts, answers)["exact"] == pytest.approx(100 / 3)
