"""Every layout learns the same numbers as one process."""

from __future__ import annotations

import functools

import pytest
import torch

from megabert.parallel.mesh import Layout

from .jobs import succeed, world
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


def in_world(check, *arguments):
    with world():
        check(*arguments)


def observed(step, keep):
    """The gradients that each later step finds, by name, as `keep(name, gradient)`."""
    found = {}
    numbers = step.exchange.numbers

    def looking(losses):
        found.update({name: keep(name, master.grad) for name, master in step.weights.masters.items()})
        return numbers(losses)

    step.exchange.numbers = looking
    return found


def same_as_one_process(names, steps, changes):
    for name in names:
        layout = LAYOUTS[name]
        plain = plain_step(**changes)
        step, applied, mesh = parallel_step(layout, **changes)
        assert set(step.weights.masters) == set(plain.weights.masters), name
        for key, master in step.weights.masters.items():
            assert torch.equal(whole(applied, mesh, layout, key, master), plain.weights.masters[key]), (name, key)
        expected = observed(plain, lambda key, gradient: gradient.clone())
        found = observed(step, functools.partial(whole, applied, mesh, layout))
        for update in range(steps):
            where = f"{name}, update {update}"
            one = plain(micro_batches(update), 1e-3)
            many = step(micro_batches(update, layout), 1e-3)
            assert many.losses == pytest.approx(one.losses, rel=1e-5), where
            assert many.grad_norm == pytest.approx(one.grad_norm, rel=1e-5), where
            for key, gradient in expected.items():
                difference = ((found[key] - gradient).norm() / gradient.norm()).item()
                # A key's bias moves all scores of a query alike: its true gradient is zero, what is there is rounding.
                assert difference < 1e-5 or key.endswith("key.bias"), f"{where}: gradient of {key} off by {difference}"


def test_two_processes():
    names = ["tp2", "tp2+sp", "dp2", "optimizer2", "full2"]
    succeed(in_world, 2, same_as_one_process, names, 20, {}, seconds=240)


def test_four_processes():
    succeed(in_world, 4, same_as_one_process, ["tp4", "tp2 x dp2", "tp2+sp x full2"], 20, {}, seconds=240)
