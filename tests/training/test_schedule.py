import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megabert.training.schedule import Schedule, WeightDecay, make_schedule, make_weight_decay

from .toy import options


def schedule(**changes) -> Schedule:
    values = {"highest": 1.0, "lowest": 0.1, "initial": 0.0, "warmup": 100, "decay": 1100, "style": "linear"}
    return Schedule(**{**values, **changes})


def test_warm_up_starts_at_zero_and_reaches_the_highest_rate():
    rates = [schedule()(samples) for samples in (0, 25, 100)]
    assert rates == [0.0, 0.25, 1.0]
    assert schedule(initial=0.2)(0) == 0.2
    assert schedule(initial=0.2)(50) == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("style", "samples", "expected"),
    [
        ("linear", 350, 0.1 + 0.9 * 0.75),
        ("linear", 1100, 0.1),
        ("linear", 5000, 0.1),
        ("cosine", 600, 0.1 + 0.9 * 0.5),
        ("cosine", 350, 0.1 + 0.9 * 0.5 * (math.sqrt(0.5) + 1)),
        ("cosine", 1101, 0.1),
        ("constant", 1_000_000, 1.0),
        ("inverse-square-root", 400, 0.5),
        ("inverse-square-root", 1101, 0.1),
        ("square-root", 850, 0.1 + 0.9 * 0.5),
        ("square", 600, 0.1 + 0.9 * 0.25),
        ("exponential", 1100, 0.5 ** (1000 / 1100)),
        ("exponential", 9000, 0.5 ** (1000 / 1100)),
    ],
)
def test_values_by_hand(style, samples, expected):
    assert schedule(style=style)(samples) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("style", "expected"),
    [("linear", 0.75), ("cosine", 0.5 * (math.sqrt(0.5) + 1)), ("exponential", 2 * 0.5**0.25 - 1), ("minus_sqrt", 0.5)],
)
def test_wsd_stays_then_falls_in_its_last_part(style, expected):
    wsd = schedule(style="WSD", wsd_style=style, wsd_decay=400)
    assert wsd(500) == 1.0 and wsd(700) == 1.0
    assert wsd(800) == pytest.approx(0.1 + 0.9 * expected, rel=1e-12)
    assert wsd(1100) == pytest.approx(0.1)


@given(
    style=st.sampled_from(["linear", "cosine", "constant", "exponential", "inverse-square-root", "WSD"]),
    wsd_style=st.sampled_from(["linear", "cosine", "exponential", "minus_sqrt"]),
    warmup=st.integers(0, 500),
    after=st.integers(1, 2000),
    samples=st.integers(0, 4000),
)
def test_a_rate_is_between_its_ends_and_falls_after_the_warm_up(style, wsd_style, warmup, after, samples):
    made = schedule(style=style, wsd_style=wsd_style, warmup=warmup, decay=warmup + after, wsd_decay=max(1, after // 3))
    rate, later = made(samples), made(samples + 1)
    assert 0.0 <= rate <= 1.0 + 1e-12
    if samples < warmup:
        assert later > rate
    else:
        assert rate >= 0.1 - 1e-12 and later <= rate + 1e-12


def test_lengths_in_iterations_become_samples():
    made = make_schedule(options(batch_size=4, global_batch_size=8, train_iters=1000, warmup=0.05, lr=2e-4))
    assert (made.decay, made.warmup) == (8000, 400)
    assert make_schedule(options(train_iters=1000, lr_warmup_iters=7)).warmup == 28
    assert make_schedule(options(train_iters=1000, lr_decay_iters=900, warmup=0.01)).warmup == 36


def test_lengths_in_samples():
    made = make_schedule(options(train_samples=10_000, lr_decay_samples=9_000, lr_warmup_samples=90))
    assert (made.decay, made.warmup) == (9000, 90)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_samples": 400, "lr_decay_iters": 10}, "--lr-decay-iters goes with --train-iters"),
        ({"lr_warmup_samples": 10}, "--lr-warmup-samples goes with --train-samples"),
        ({"lr_warmup_iters": 30}, "not shorter than the decay"),
        ({"min_lr": 1.0}, "--min-lr"),
        ({"lr_warmup_init": 1.0}, "--lr-warmup-init"),
        ({"lr_decay_style": "WSD", "lr_wsd_decay_iters": 29}, "--lr-wsd-decay-iters"),
        ({"global_batch_size": 6}, "--global-batch-size: 6 is not a multiple"),
        ({"train_samples": 3}, "--train-samples: 3 is less"),
        ({"use_checkpoint_lr_scheduler": True, "override_lr_scheduler": True}, "exclude each other"),
    ],
)
def test_refuses_what_does_not_go_together(changes, message):
    with pytest.raises(ValueError, match=message):
        make_schedule(options(**changes))


@pytest.mark.parametrize(
    ("style", "samples", "expected"),
    [
        ("linear", 0, 0.02),
        ("linear", 250, 0.02 + 0.08 * 0.25),
        ("linear", 1000, 0.1),
        ("linear", 1001, 0.1),
        ("cosine", 0, 0.02),
        ("cosine", 250, 0.02 + 0.08 * 0.5 * (1 - math.sqrt(0.5))),
        ("cosine", 500, 0.06),
        ("cosine", 1000, 0.1),
        ("cosine", 9999, 0.1),
    ],
)
def test_weight_decay_by_hand(style, samples, expected):
    assert WeightDecay(0.02, 0.1, 1000, style)(samples) == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_weight_decay_grows_over_the_whole_run_in_samples():
    made = make_weight_decay(
        options(
            weight_decay_incr_style="linear", start_weight_decay=0.0, end_weight_decay=0.2, train_iters=50,
            global_batch_size=8, lr_decay_iters=20,
        )
    )  # fmt: skip
    assert made.length == 400 and made(100) == pytest.approx(0.05)
    assert make_weight_decay(options(weight_decay=0.3))(10**9) == 0.3
    ramped = options(
        weight_decay_incr_style="cosine", start_weight_decay=0.0, end_weight_decay=0.2, train_iters=None,
        train_samples=999, rampup_batch_size=(4, 4, 30), global_batch_size=16,
    )  # fmt: skip
    assert make_weight_decay(ramped).length == make_schedule(ramped).decay == 999


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start_weight_decay": 0.1}, "--start-weight-decay goes with"),
        ({"weight_decay_incr_style": "linear", "end_weight_decay": 0.1}, "needs --start-weight-decay"),
        ({"weight_decay_incr_style": "cosine", "start_weight_decay": 0.1}, "needs --end-weight-decay"),
        (
            {"weight_decay_incr_style": "cosine", "start_weight_decay": 0.1, "end_weight_decay": 0.01},
            "is below --start-weight-decay",
        ),
    ],
)
def test_weight_decay_that_does_not_go_together(changes, message):
    with pytest.raises(ValueError, match=message):
        make_weight_decay(options(**changes))
