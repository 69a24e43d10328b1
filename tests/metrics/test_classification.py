import pytest

from megabert.metrics import classification as c

GOLD = list("aaabbc")
GIVEN = list("aabbcc")


def test_scores_worked_out_by_hand():
    table = c.per_class(GOLD, GIVEN, "abcd")
    assert table["a"] == (1.0, pytest.approx(2 / 3), pytest.approx(0.8), 3)
    assert table["b"] == (0.5, 0.5, 0.5, 2)
    assert table["c"] == (0.5, 1.0, pytest.approx(2 / 3), 1)
    assert table["d"] == (0.0, 0.0, 0.0, 0)  # a class that nobody has or says
    seen = [table[label] for label in "abc"]
    assert c.macro(seen).f1 == pytest.approx((0.8 + 0.5 + 2 / 3) / 3)
    assert c.weighted(seen).f1 == pytest.approx((3 * 0.8 + 2 * 0.5 + 2 / 3) / 6)
    assert c.accuracy(GOLD, GIVEN) == pytest.approx(4 / 6)


def test_micro_over_all_labels_is_the_accuracy_and_over_positive_ones_is_not():
    assert c.micro(GOLD, GIVEN, "abc").f1 == pytest.approx(4 / 6)
    # Without a: 2 right (b, c), 4 said, 3 wanted.
    assert c.micro(GOLD, GIVEN, "bc") == (0.5, pytest.approx(2 / 3), pytest.approx(4 / 7), 3)


def test_confusion_has_gold_in_rows():
    assert c.confusion(GOLD, GIVEN, "abc") == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    with pytest.raises(ValueError, match="label 'c' is not among"):
        c.confusion(GOLD, GIVEN, "ab")


def test_matthews():
    # True positives 6, true negatives 3, false positives 1, false negatives 2: (18 - 2) / sqrt(7 * 8 * 4 * 5)
    gold = [1] * 6 + [0] * 3 + [0] + [1] * 2
    given = [1] * 6 + [0] * 3 + [1] + [0] * 2
    assert c.matthews(gold, given) == pytest.approx(16 / 1120**0.5)
    assert c.matthews([0, 1], [1, 0]) == -1.0
    assert c.matthews([0, 1, 1], [1, 1, 1]) == 0.0  # one answer for all
    # Three classes, by the definition over the confusion matrix: (4 * 6 - 12) / sqrt((36 - 12) * (36 - 14))
    assert c.matthews(GOLD, GIVEN) == pytest.approx((24 - 12) / (24 * 22) ** 0.5)


def test_correlations():
    assert c.pearson([1, 2, 3], [2, 4, 6]) == pytest.approx(1)
    assert c.pearson([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(0.8)
    assert c.spearman([1, 2, 3, 4], [1, 10, 100, 1000]) == pytest.approx(1)
    assert c.ranks([10, 20, 10, 5]) == [2.5, 4, 2.5, 1]
    # Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: covariance 4.5 over sqrt(4.5 * 5).
    assert c.spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)
    assert c.pearson([1, 2], [3, 3]) == 0.0


@pytest.mark.parametrize("metric", [c.accuracy, c.matthews, c.pearson, c.spearman])
def test_nothing_and_unequal_lengths_are_refused(metric):
    with pytest.raises(ValueError, match="nothing to score"):
        metric([], [])
    with pytest.raises(ValueError, match="1 predictions do not fit 2"):
        metric([1, 2], [1])
