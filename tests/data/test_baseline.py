from made_data import options

from megabert.data.baseline import commonest_token, unigram_accuracy
from megabert.data.blend import Source
from megabert.data.samples import SampleSet


def test_the_commonest_token_by_weight(make_data, vocabulary):
    first = Source(1, str(make_data([[[10] * 90 + [11] * 10]], "first").prefix))
    second = Source(1, str(make_data([[[11] * 7 + [12] * 3]], "second").prefix))
    assert commonest_token([first], []) == 10
    assert commonest_token([first, second], []) == 10  # 0.9 against 0.1 + 0.7
    assert commonest_token([first, second._replace(weight=5)], []) == 11


def test_what_guessing_gets_right(make_data, vocabulary):
    data = make_data([[[10] * 8, [10] * 8]] * 3 + [[[11] * 8, [11] * 8]])
    rows = SampleSet(data, vocabulary, options(short_seq_prob=0), seed=1)
    assert unigram_accuracy(10, rows, 100) == 0.75
    assert unigram_accuracy(99, rows, 100) == 0
