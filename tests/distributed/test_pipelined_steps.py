"""Whole steps over pipelines: half precision with masters, overflows, dropout, and flags that do not fit."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from megabert.parallel.mesh import Layout
from megabert.training.assembly import check_rounds

from .jobs import succeed, world
from .small import micro_batches, options, parallel_step, plain_step

PP2 = Layout(world=2, pipeline=2)
INTERLEAVED = Layout(world=2, pipeline=2, virtual=2)
HALVES = (
    {"bf16": True},
    {"fp16": True, "initial_loss_scale": 2.0**10},
    {"bf16": True, "fp32_layernorm": True, "fp32_embedding": True},
)


def everyones(value):
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def check_half_precision():
    """Weights in half precision: the masters start equal, and learn what one process's learn."""
    for layout in (PP2, INTERLEAVED):
        for precision in HALVES:
            plain = plain_step(**precision)
            step, _, _ = parallel_step(layout, **precision)
            copies = step.exchange.tie.copies
            kinds = {name: weight.dtype for module in step.engine.modules for name, weight in module.named_parameters()}
            theirs = {name: weight.dtype for name, weight in plain.weights.model.named_parameters()}
            for name, master in step.weights.masters.items():
                assert torch.equal(master, plain.weights.masters[copies.get(name, name)]), name
                assert master.dtype == torch.float32 and kinds[name] == theirs[copies.get(name, name)], name
            for update in range(4):
                one, many = plain(micro_batches(update), 1e-3), step(micro_batches(update, layout), 1e-3)
                where = f"{layout}, {precision}, update {update}"
                assert many.losses == pytest.approx(one.losses, rel=2e-3), where
                assert many.grad_norm == pytest.approx(one.grad_norm, rel=2e-2), where
            for name, master in step.weights.masters.items():
                wanted = plain.weights.masters[copies.get(name, name)]
                # Biases start at zero and Adam makes whole steps of rounding, so only matrices are compared.
                assert master.ndim == 1 or (master - wanted).norm() < 1e-2 * wanted.norm(), name


def check_copies_stay_one_weight():
    """After updates both ends of the tie hold the same bits, in the masters and in the model."""
    for layout, precision in ((PP2, {}), (INTERLEAVED, {"bf16": True})):
        step, _, _ = parallel_step(layout, dropout=0.1, **precision)
        for update in range(3):
            step(micro_batches(update, layout), 1e-2)
        (name,) = step.exchange.tie.names
        computed = {n: weight for module in step.engine.modules for n, weight in module.named_parameters()}
        first, last = everyones((step.weights.masters[name].detach(), computed[name].detach()))
        assert torch.equal(first[0], last[0]) and torch.equal(first[1], last[1])


def check_planted_overflow():
    """One gradient of one stage overflows: no stage updates, every scale falls, and the next step learns again."""
    for culprit in (0, 1):
        step, _, _ = parallel_step(PP2, fp16=True, initial_loss_scale=2.0**10, hysteresis=1)
        before = {name: master.detach().clone() for name, master in step.weights.masters.items()}
        if dist.get_rank() == culprit:
            bias = dict(step.engine.modules[0].named_parameters())[f"bert.encoder.layer.{2 * culprit}.ln.bias"]
            hook = bias.register_hook(lambda gradient: torch.full_like(gradient, float("inf")))
        report = step(micro_batches(0, PP2), 1e-3)
        assert report.skipped and not report.fault and step.scaler.scale == 2.0**9
        assert all(torch.equal(master, before[name]) for name, master in step.weights.masters.items())
        if dist.get_rank() == culprit:
            hook.remove()
        report = step(micro_batches(1, PP2), 1e-3)
        assert not report.skipped and report.loss_scale == 2.0**9
        assert any(not torch.equal(master, before[name]) for name, master in step.weights.masters.items())


def check_dropout():
    """The stages draw other masks, a run repeats its losses, and they are near those of one process."""
    draws = []
    losses = []
    for _ in range(2):
        step, _, _ = parallel_step(PP2, dropout=0.1)
        draws.append(everyones(torch.get_rng_state().tolist()))
        losses.append([step(micro_batches(update, PP2), 1e-3).losses for update in range(6)])
    assert losses[0] == losses[1] and draws[0] == draws[1]
    assert draws[0][0] != draws[0][1]
    plain = plain_step(dropout=0.1)
    torch.manual_seed(1234)
    wanted = [plain(micro_batches(update), 1e-3).losses for update in range(6)]
    for mine, one in zip(losses[0], wanted, strict=True):
        assert mine == pytest.approx(one, rel=0.1) and mine != one


def pipelined():
    with world():
        check_half_precision()
        check_copies_stay_one_weight()
        check_planted_overflow()
        check_dropout()


def test_pipelined_steps():
    succeed(pipelined, 2, seconds=240)


def test_batches_that_do_not_interleave():
    check_rounds(options(global_batch_size=8), INTERLEAVED)
    check_rounds(options(global_batch_size=10), PP2)
    with pytest.raises(ValueError, match="5 micro-batches in a step do not fit interleaved stages on 2"):
        check_rounds(options(global_batch_size=10), INTERLEAVED)
