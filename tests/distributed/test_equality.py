"""Every layout learns the same numbers as one process."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from megabert.parallel.mesh import Layout

from .jobs import succeed, world
from .small import micro_batches, parallel_step, plain_step, whole

LAYOUTS = {
    "tp2": Layout(world=2, tensor=2),
    "tp2+sp": Layout(world=2, tensor=2, sequence_parallel=True),
    "dp2": Layout(world=2, data=2),
    "optimizer2": Layout(world=2, data=2, sharding="optimizer"),
    "full2": Layout(world=2, data=2, sharding="full"),
    "pp2": Layout(world=2, pipeline=2),
    "pp2 interleaved": Layout(world=2, pipeline=2, virtual=2),
    "tp4": Layout(world=4, tensor=4),
    "tp2 x dp2": Layout(world=4, tensor=2, data=2),
    "tp2 x pp2": Layout(world=4, tensor=2, pipeline=2),
    "tp2+sp x pp2 interleaved": Layout(world=4, tensor=2, pipeline=2, virtual=2, sequence_parallel=True),
    "pp2 x dp2": Layout(world=4, pipeline=2, data=2),
    "pp2 interleaved x optimizer2": Layout(world=4, pipeline=2, virtual=2, data=2, sharding="optimizer"),
    "pp2 x full2": Layout(world=4, pipeline=2, data=2, sharding="full"),
    "pp4": Layout(world=4, pipeline=4),
    "tp2+sp x full2": Layout(world=4, tensor=2, data=2, sequence_parallel=True, sharding="full"),
}


def in_world(check, *arguments):
    with world():
        check(*arguments)


@dataclass(frozen=True)
class Update:
    """What one process finds in an update."""

    losses: dict[str, float]
    grad_norm: float
    gradients: dict[str, Tensor]


def observed(step):
    """The gradients that each later step finds, by name."""
    found = {}
    numbers = step.exchange.numbers

    def looking(losses):
        found.update({name: master.grad.clone() for name, master in step.weights.masters.items()})
        return numbers(losses)

    step.exchange.numbers = looking
    return found


def updates_of_one_process(plain, steps):
    found, updates = observed(plain), []
    for update in range(steps):
        seen = plain(micro_batches(update), 1e-3)
        updates.append(Update(seen.losses, seen.grad_norm, dict(found)))
    return updates


def part_of(place, layout, whole_tensor):
    """The part of a whole gradient that this process holds."""
    _, data, tensor = layout.place(dist.get_rank())
    return place.within_data(place.within_tensor(whole_tensor, layout.tensor, tensor), layout.data, data)


def assert_all_are_held(mine, names):
    """Each weight is some process's, and no process has one that is not the model's."""
    everyones = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, list(mine))
    assert {key for held in everyones for key in held} == set(names)


def same_as_one_process(names, steps, changes):
    plain = plain_step(**changes)
    initial = {name: master.detach().clone() for name, master in plain.weights.masters.items()}
    expected = updates_of_one_process(plain, steps)
    for name in names:
        layout = LAYOUTS[name]
        step, applied, mesh = parallel_step(layout, **changes)
        copies = step.exchange.tie.copies if step.exchange.tie else {}
        names_there = {key: copies.get(key, key) for key in step.weights.masters}
        assert_all_are_held(names_there.values(), initial)
        for key, master in step.weights.masters.items():
            assert torch.equal(whole(applied, mesh, layout, key, master), initial[names_there[key]]), (name, key)
        found = observed(step)
        for update, one in enumerate(expected):
            where = f"{name}, update {update}"
            many = step(micro_batches(update, layout), 1e-3)
            assert many.losses == pytest.approx(one.losses, rel=1e-5), where
            assert many.grad_norm == pytest.approx(one.grad_norm, rel=1e-5), where
            for key, there in names_there.items():
                gradient = one.gradients[there]
                part = part_of(applied.places[key], layout, gradient)
                assert found[key].shape == part.shape, (name, key)
                difference = ((found[key] - part).norm() / gradient.norm()).item()
                # A key's bias moves all scores of a query alike: its true gradient is zero, what is there is rounding.
                assert difference < 1e-5 or key.endswith("key.bias"), f"{where}: gradient of {key} off by {difference}"


def with_odd_vocabulary():
    with world():
        same_as_one_process(["tp2+sp x full2"], 3, {"vocabulary": 71})


def test_a_vocabulary_that_tensor_ranks_do_not_divide_goes_with_sharded_weights():
    succeed(with_odd_vocabulary, 4, seconds=120)


def test_two_processes():
    names = ["tp2", "tp2+sp", "dp2", "optimizer2", "full2", "pp2", "pp2 interleaved"]
    succeed(in_world, 2, same_as_one_process, names, 20, {}, seconds=240)


def test_four_processes():
    names = [
        "tp4", "tp2 x dp2", "tp2+sp x full2", "tp2 x pp2", "tp2+sp x pp2 interleaved", "pp2 x dp2", "pp4",
        "pp2 interleaved x optimizer2", "pp2 x full2",
    ]  # fmt: skip
    succeed(in_world, 4, same_as_one_process, names, 20, {}, seconds=240)
