import json

import torch

from megabert.training.meter import TIMING_FIELDS, Meter, count_real_tokens
from megabert.training.step import StepReport


def report(loss=2.0, norm=1.0, skipped=False):
    return StepReport({"lm": loss}, norm, 8.0, skipped, "")


def line(meter, step):
    record = meter.line(step=step, samples=4 * step, learning_rate=0.1, loss_scale=8.0, left=10)
    return {key: value for key, value in record.items() if key not in TIMING_FIELDS}


def test_means_of_the_window_without_skipped_steps():
    meter = Meter()
    meter.add(report(2.0, 1.0), tokens=10, seconds=1.0, waited=0.25)
    meter.add(report(float("nan"), float("inf"), skipped=True), tokens=10, seconds=1.0, waited=0.25)
    meter.add(report(4.0, 3.0), tokens=20, seconds=2.0, waited=0.0)
    record = meter.line(step=3, samples=12, learning_rate=0.1, loss_scale=8.0, left=10)
    assert (record["lm_loss"], record["grad_norm"]) == (3.0, 2.0)
    assert (record["tokens"], record["skipped"], record["skipped_in_window"]) == (40, 1, 1)
    assert record["tokens_per_second"] == 10.0 and record["data_wait_share"] == 0.125
    assert record["seconds"] == 4.0 and record["seconds_per_step"] == round(4 / 3, 6)
    meter.add(report(7.0), tokens=1, seconds=1.0, waited=0.0)
    later = line(meter, 4)
    assert later["lm_loss"] == 7.0 and later["skipped"] == 1 and later["skipped_in_window"] == 0


def test_a_window_of_skipped_steps_has_no_loss():
    meter = Meter()
    meter.add(report(skipped=True), tokens=1, seconds=1.0, waited=0.0)
    assert "lm_loss" not in line(meter, 1) and "grad_norm" not in line(meter, 1)


def test_a_half_filled_window_survives_json_exactly():
    first, second = Meter(), Meter()
    for meter in (first, second):
        meter.add(report(0.1), tokens=10, seconds=1.0, waited=0.0)
        meter.add(report(0.2), tokens=10, seconds=1.0, waited=0.0)
    resumed = Meter()
    resumed.load(json.loads(json.dumps(second.state())))
    for meter in (first, resumed):
        meter.add(report(0.7), tokens=10, seconds=1.0, waited=0.0)
    assert line(first, 3) == line(resumed, 3)


def test_real_tokens():
    assert count_real_tokens({"sample_ids": torch.tensor([[1, 1, 2, 0], [1, 0, 0, 0]])}) == 4
