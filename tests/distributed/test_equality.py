"""Every layout learns the same numbers as one process."""

from __future__ import annotations

import pytest
import torch

from megabert.parallel.mesh import Layout

from .processes import run_in
from .small import micro_batches, parallel_step, plain_step, whole

LAYOUTS = {
    "tp2": Layout(world=2, tensor=2),
    "tp2+sp": Layout(world=2, tensor=2, sequence_parallel=True),
    "dp2": Layout(world=2, data=2),
    "optimizer2": Layout(world=2, data=2, sharding="optimizer"),
    "full2": Layout(world=2, data=2, sharding="full"),
    "tp4": Layout(world=4, tensor=4),
    "tp2 x dp2": Layout(world=4, tensor=2, data=2),
    "tp2+sp x full2": Layout(world=4, tensor=2, data=2, sequence_parallel=True, sharding="full"),
}


def same_as_one_process(names, steps=20, **changes):
    for name in names:
        layout = LAYOUTS[name]
        plain = plain_step(**changes)
        step, applied, mesh = parallel_step(layout, **changes)
        assert set(step.weights.masters) == set(plain.weights.masters), name
        for key, master in step.weights.masters.items():
            assert torch.equal(whole(applied, mesh, layout, key, master), plain.weights.masters[key]), (name, key)
        for update in range(steps):
            compare_step(name, update, plain, step, applied, mesh, layout)


def compare_step(name, update, plain, step, applied, mesh, layout):
    where = f"{name}, update {update}"
    expected, expected_norm = plain.exchange.numbers(plain.accumulate(micro_batches(update)))
    losses, norm = step.exchange.numbers(step.accumulate(micro_batches(update, layout)))
    assert losses == pytest.approx(expected, rel=1e-5), where
    assert norm == pytest.approx(expected_norm, rel=1e-5), where
    for key, master in plain.weights.masters.items():
        mine = step.weights.masters[key].grad
        assert mine is not None, f"{where}: {key} has no gradient"
        gradient = whole(applied, mesh, layout, key, mine)
        difference = (gradient - master.grad).norm() / master.grad.norm()
        # A key's bias moves all scores of a query alike: its true gradient is zero, what is there is rounding.
        if not key.endswith("key.bias"):
            assert difference < 1e-5, f"{where}: gradient of {key} off by {difference}"
    plain.exchange.clear()
    step.exchange.clear()
    expected_report = plain(micro_batches(update), 1e-3)
    report = step(micro_batches(update, layout), 1e-3)
    assert report.losses == pytest.approx(expected_report.losses, rel=1e-5), where
    assert report.grad_norm == pytest.approx(expected_report.grad_norm, rel=1e-5), where


def test_two_processes():
    run_in(2, same_as_one_process, ["tp2", "tp2+sp", "dp2", "optimizer2", "full2"])


def test_four_processes():
    run_in(4, same_as_one_process, ["tp4", "tp2 x dp2", "tp2+sp x full2"])
