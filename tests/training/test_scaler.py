import pytest

from megabert.training.scaler import DynamicScale, FixedScale, make_scaler

from .toy import options


def test_dynamic_scale_follows_megatron():
    scaler = DynamicScale(initial=16.0, minimum=2.0, window=3, hysteresis=2)
    scales = []
    #      bad: first chance; good ones do not give it back; bad: halved; bad: halved again, no chance left
    for overflow in (True, False, False, True, True, True, True):
        scaler.update(overflow)
        scales.append(scaler.scale)
    assert scales == [16, 16, 16, 8, 4, 2, 2]
    for _ in range(3):
        scaler.update(False)
    assert scaler.scale == 4
    scaler.update(True)
    assert scaler.scale == 4, "a doubling gives the chances back"


def test_a_bad_step_starts_the_window_again():
    scaler = DynamicScale(initial=8.0, minimum=1.0, window=3, hysteresis=5)
    for overflow in (False, False, True, False, False):
        scaler.update(overflow)
    assert scaler.scale == 8
    scaler.update(False)
    assert scaler.scale == 16


def test_state_goes_on_exactly():
    first = DynamicScale(initial=16.0, minimum=1.0, window=3, hysteresis=2)
    first.update(True)
    first.update(False)
    second = DynamicScale(initial=99.0, minimum=1.0, window=3, hysteresis=2)
    second.load(first.state())
    for overflow in (False, False, True, True, True):
        first.update(overflow)
        second.update(overflow)
        assert second.scale == first.scale and second.state() == first.state()


def test_an_overflow_is_a_fault_only_where_the_scale_cannot_mend_it():
    scaler = DynamicScale(initial=2.0, minimum=1.0, window=3, hysteresis=1)
    assert scaler.catches_overflow
    scaler.update(True)
    assert not scaler.catches_overflow
    assert FixedScale(8.0).catches_overflow and not FixedScale().catches_overflow


def test_options_choose():
    assert make_scaler(options()).scale == 1.0
    assert make_scaler(options(bf16=True)).scale == 1.0
    assert make_scaler(options(bf16=True, loss_scale=8.0)).scale == 8.0
    assert make_scaler(options(fp16=True)).scale == 2.0**32
    fixed = make_scaler(options(fp16=True, loss_scale=128.0))
    fixed.update(True)
    assert fixed.scale == 128.0
    with pytest.raises(ValueError, match="--initial-loss-scale"):
        make_scaler(options(fp16=True, initial_loss_scale=1.0, min_loss_scale=2.0))
