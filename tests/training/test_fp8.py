"""Products in 8 bits: which they are, what they leave alone, and that a model learns with them. Emulated here.

Where torchao is installed; pyproject.toml says why it is not by default.
"""

import importlib.util

import pytest
import torch

from megabert.models.bert import plan
from megabert.models.losses import PretrainingObjective
from megabert.training.fp8 import check_fp8, multiply_in_fp8
from megabert.training.loader import collate
from megabert.training.options import AcceleratorOptions
from megabert.training.step import make_step

from .test_with_model import PackedRows, network
from .toy import options

with_torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="needs the extra fp8 (torchao)")
SIZES = {"--hidden-size": 64}


def losses(count, *, fp8):
    model = network(dropout=0.0)
    if fp8:
        multiply_in_fp8(model, plan.LAYER, emulated=True)
    step = make_step(model, PretrainingObjective("sop"), options(bf16=True))
    rows = PackedRows()
    batches = [collate([rows[i] for i in range(first, first + 8)]) for first in (0, 8, 16, 24)]
    found = [step([batches[number % 4]], 3e-3).losses for number in range(count)]
    return [sum(one.values()) for one in found], step


@with_torchao
def test_losses_stay_close_to_bfloat16s():
    exact, _ = losses(20, fp8=False)
    rounded, _ = losses(20, fp8=True)
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.03)
    assert rounded[-1] < 0.9 * rounded[0]


@with_torchao
def test_only_layers_change_and_weights_keep_names_and_formats():
    plain, model = network(), network()
    changed = multiply_in_fp8(model, plan.LAYER, emulated=True)
    assert len(changed) == 6 * len(model.bert.encoder.layer)
    assert all(".encoder.layer." in f".{name}" for name in changed)
    steps = [make_step(one, PretrainingObjective("sop"), options(bf16=True)) for one in (plain, model)]
    before, after = (step.weights.state_dict() for step in steps)
    assert list(before) == list(after)
    for name, tensor in before.items():
        assert type(after[name]) is type(tensor) and torch.equal(tensor, after[name]), name


@with_torchao
def test_matrices_that_do_not_divide_are_named():
    model = network()
    model.bert.encoder.layer[0].intermediate.dense = torch.nn.Linear(32, 40)
    with pytest.raises(ValueError, match=r"layer\.0\.intermediate\.dense is a matrix of 32 x 40"):
        multiply_in_fp8(model, plan.LAYER, emulated=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bf16": False}, "give both"),
        ({"processes": 2}, "one process"),
        ({"sizes": {"--hidden-size": 100}}, "--hidden-size is 100"),
        ({}, "this run is on cpu"),
    ],
)
def test_refusals(changes, message):
    given = {"bf16": True, "processes": 1, "sizes": SIZES, **changes}
    with pytest.raises(ValueError, match=message):
        check_fp8(AcceleratorOptions(fp8=True), torch.device("cpu"), **given)
    check_fp8(AcceleratorOptions(), torch.device("cpu"), **given)
