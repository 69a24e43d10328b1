import pytest

from megabert.metrics.calibration import expected_calibration_error, reliability


def test_bins_hold_their_upper_end():
    bins = reliability([(0.0, False), (0.1, True), (0.10001, True), (0.3, True), (0.7, False), (1.0, True)])
    assert [one.count for one in bins] == [2, 1, 1, 0, 0, 0, 1, 0, 0, 1]
    assert bins[0].confidence == pytest.approx(0.05) and bins[0].accuracy == 0.5
    assert sum(one.count for one in reliability([(n / 1000, True) for n in range(1001)])) == 1001


def test_the_error_is_the_mean_distance():
    # Of ten at 0.8 eight are right: no error. Of ten at 0.6 three are: 0.3 off.
    beliefs = [(0.8, n < 8) for n in range(10)] + [(0.6, n < 3) for n in range(10)]
    assert expected_calibration_error(reliability(beliefs)) == pytest.approx(0.15)
    assert expected_calibration_error(reliability([(1.0, True)] * 5)) == 0


@pytest.mark.parametrize("value", [-0.1, 1.01, float("nan")])
def test_a_probability_is_between_0_and_1(value):
    with pytest.raises(ValueError, match="between 0 and 1"):
        reliability([(value, True)])
    with pytest.raises(ValueError, match="no decision"):
        expected_calibration_error(reliability([]))
