"""Masters in two halves: exact on every number, and updated as AdamW updates whole ones, bit for bit."""

import pytest
import torch
from torch import nn

from megabert.training import snapshot, split
from megabert.training.engine import Alone
from megabert.training.optim import make_optimizer
from megabert.training.precision import Weights
from megabert.training.split import Halves, SplitAdamW
from megabert.training.step import make_step

from .test_step import cut
from .toy import ToyObjective, ToyRows, options, toy


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(split, "FEWEST", 64)
    monkeypatch.setattr(split, "PIECE", 64)


@pytest.mark.parametrize("lower", [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
def test_every_upper_half_comes_back_with_hard_lower_ones(lower, monkeypatch):
    """Zeros of both signs, subnormals, ties, numbers that round to infinity, infinities, NaNs: all upper halves."""
    monkeypatch.setattr(split, "PIECE", 2**12)
    bits = (torch.arange(-(2**15), 2**15, dtype=torch.int32) << 16) | lower
    numbers = bits.view(torch.float32)
    weight = nn.Parameter(torch.zeros(256, 256))
    halves = Halves(weight, numbers.clone().view(256, 256))
    assert torch.equal(halves.whole().view(torch.int32).flatten(), bits)
    # The weight is a nearest one: exactly PyTorch's but at ties, and there it is as near.
    rounded, own = numbers.bfloat16(), weight.detach().flatten()
    known = ~numbers.isnan()
    if lower != 0x8000:
        assert torch.equal(own[known], rounded[known])
    finite = known & own.isfinite() & rounded.isfinite()
    distances = [(one.double() - numbers.double()).abs()[finite] for one in (own, rounded)]
    assert torch.equal(*distances)


def pair_of_weights(**changes):
    """The same model with split and with whole masters, and an optimizer of each."""
    found = []
    for divided in (True, False):
        weights = Weights(toy(seed=3), options(bf16=True), split=divided)
        found.append((weights, make_optimizer(weights, options(weight_decay=0.1, **changes))))
    assert found[0][0].halves and not found[1][0].halves
    return found


def give_gradients(weights, seed, count):
    generator = torch.Generator().manual_seed(seed)
    for number in range(count):
        for _, weight in sorted(weights.model.named_parameters()):
            weight.grad = torch.randn(weight.shape, generator=generator).to(weight.dtype)
        weights.collect(first=number == 0)


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("divisor", [None, 3.7])
def test_updates_are_those_of_whole_masters(micro_batches, divisor):
    sides = pair_of_weights()
    for seed in range(4):
        norms = []
        for weights, optimizer in sides:
            give_gradients(weights, seed, micro_batches)
            norms.append(Alone(weights).numbers({})[1])
            optimizer.grad_scale = None if divisor is None else torch.tensor(divisor)
            optimizer.step()
            weights.publish()
            weights.clear(keep=False)
        assert norms[0] == pytest.approx(norms[1], rel=1e-6)
    (split_weights, split_optimizer), (whole_weights, _) = sides
    states = [snapshot.optimizer_tensors(optimizer, weights.masters) for weights, optimizer in sides]
    assert states[0].keys() == states[1].keys() and isinstance(split_optimizer, SplitAdamW)
    for name, tensor in states[1].items():
        assert torch.equal(states[0][name], tensor), name
    found = split_weights.state()
    for name, tensor in whole_weights.state().items():
        assert torch.equal(found[name], tensor) and found[name].dtype == torch.float32, name
    for name, tensor in whole_weights.state_dict().items():
        assert torch.equal(split_weights.state_dict()[name], tensor), name


def update(side, seed):
    weights, optimizer = side
    give_gradients(weights, seed, 1)
    optimizer.step()
    weights.publish()
    weights.clear(keep=False)


def test_split_and_whole_masters_go_on_from_each_others_checkpoints(tmp_path):
    sides = pair_of_weights()
    assert not snapshot.optimizer_tensors(sides[0][1], sides[0][0].masters)
    for side in sides:
        update(side, 1)
    resumed = pair_of_weights()
    for (weights, optimizer), (fresh_weights, fresh_optimizer) in zip(sides, resumed[::-1], strict=True):
        stored = {name: tensor.clone() for name, tensor in weights.state().items()}
        assert stored.keys() == fresh_weights.outline().keys()
        fresh_weights.load(stored)
        moments = snapshot.optimizer_tensors(optimizer, weights.masters)
        snapshot.load_optimizer(fresh_optimizer, fresh_weights.masters, moments, tmp_path)
    for side in (*sides, *resumed):
        update(side, 2)
    for name, tensor in sides[1][0].state().items():
        for weights, _ in (sides[0], *resumed):
            assert torch.equal(weights.state()[name], tensor), name


def test_a_weight_that_never_had_a_gradient_has_no_state_to_store():
    weights, optimizer = pair_of_weights()[0]
    give_gradients(weights, 1, 1)
    weights.masters["dense.weight"].grad = None
    optimizer.step()
    names = snapshot.optimizer_tensors(optimizer, weights.masters)
    assert "exp_avg/word_embeddings.weight" in names and not any(name.endswith("/dense.weight") for name in names)


def test_a_step_splits_for_adam_in_bfloat16_only():
    for changes, expected in (({"bf16": True}, True), ({"fp16": True}, False), ({}, False)):
        assert bool(make_step(toy(), ToyObjective(), options(**changes)).weights.halves) == expected
    for other in ("lamb", "sgd"):
        step = make_step(toy(), ToyObjective(), options(bf16=True, optimizer=other))
        assert not step.weights.halves and not step(cut(ToyRows(16), 4), 0.1).skipped


def test_steps_with_split_masters_learn_and_report():
    """Near the float32 run, its norms of weights and gradients among what is told."""
    exact = make_step(toy(dropout=0.0), ToyObjective(), options())
    step = make_step(toy(dropout=0.0), ToyObjective(), options(bf16=True, log_num_zeros_in_grad=True))
    for _ in range(3):
        report, wanted = step(cut(ToyRows(16), 8), 1e-2), exact(cut(ToyRows(16), 8), 1e-2)
        assert report.losses == pytest.approx(wanted.losses, rel=2e-2)
        assert report.grad_norm == pytest.approx(wanted.grad_norm, rel=5e-2) and report.zeros is not None
    assert step.params_norm() == pytest.approx(exact.params_norm(), rel=1e-2)
