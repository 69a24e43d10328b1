"""Captured passes, with a double of the capture: it does the work again, and writes the result where it was."""

import pytest
import torch

from megabert.training import cuda_graphs
from megabert.training.cuda_graphs import GraphedForward, check_cuda_graphs
from megabert.training.options import AcceleratorOptions
from megabert.training.step import make_step

from .test_step import cut
from .toy import ToyObjective, ToyRows, options, toy


class Again:
    """A recorder that keeps the memory of results, as graphs do."""

    def __init__(self, device=None):
        self.recorded = 0

    def prepared(self, work):
        work()

    def record(self, work):
        kept = [None if one is None else one.clone() for one in work()]
        self.recorded += 1

        @torch.enable_grad()
        def replay():
            for old, new in zip(kept, work(), strict=True):
                if old is not None:
                    old.copy_(new)

        return kept, replay


@pytest.fixture
def recorders(monkeypatch):
    made = []
    monkeypatch.setattr(cuda_graphs, "CudaRecorder", lambda device: made.append(Again()) or made[-1])
    return made


@pytest.mark.parametrize("precision", [{}, {"bf16": True, "fp32_layernorm": True}], ids=["fp32", "bf16"])
@pytest.mark.parametrize("size", [16, 4])
def test_a_captured_step_is_the_step(recorders, precision, size):
    plain, captured = (
        make_step(toy(dropout=0.0), ToyObjective(), options(**precision), cuda_graphs=graphs)
        for graphs in (False, True)
    )
    for number in range(3):
        batches = cut(ToyRows(16, seed=number), size)
        one, other = plain(batches, 0.05), captured(batches, 0.05)
        assert other.losses == pytest.approx(one.losses, rel=1e-6)
        assert other.grad_norm == pytest.approx(one.grad_norm, rel=1e-6)
    assert [recorder.recorded for recorder in recorders] == [2]
    for name, master in plain.weights.masters.items():
        torch.testing.assert_close(captured.weights.masters[name], master)


def test_two_weights_never_have_one_gradient():
    """Sums give both sides the same tensor; an optimizer that divides it in place would divide it twice."""

    class Sum(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))

        def forward(self, inputs):
            return (self.one + self.other) * inputs

    class AsItIs(Again):
        def record(self, work):
            return work(), lambda: None

    model = Sum()
    GraphedForward(model, model, torch.device("cpu"), recorder=AsItIs())(inputs=torch.ones(3)).sum().backward()
    assert model.one.grad.data_ptr() != model.other.grad.data_ptr()


def test_what_comes_before_a_capture_asks_for_no_number_either():
    from megabert.models.masks import _can_ask

    model, asked = torch.nn.Linear(2, 2), []

    def forward(inputs):
        asked.append(_can_ask(inputs))
        return model(inputs)

    graphed = GraphedForward(model, forward, torch.device("cpu"), recorder=Again())
    graphed._capture({"inputs": torch.ones(1, 2)})
    assert asked == [False, False] and _can_ask(torch.ones(1))


def test_a_batch_of_another_shape_is_refused(recorders):
    step = make_step(toy(), ToyObjective(), options(), cuda_graphs=True)
    step(cut(ToyRows(16), 8), 0.01)
    with pytest.raises(ValueError, match=r"of a batch is .*\[4, .*was .*\[8, .* one shape"):
        step(cut(ToyRows(16), 4), 0.01)


def test_evaluation_is_not_captured(recorders):
    step = make_step(toy(), ToyObjective(), options(), cuda_graphs=True)
    batch = cut(ToyRows(16), 4)[0]
    step.engine.modules[0].eval()
    assert step.engine.evaluate(batch, ToyObjective().sums)
    assert recorders[0].recorded == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": torch.device("cpu")}, "on cpu"),
        ({"processes": 2}, "one process"),
        ({"packed": False}, "add --pack"),
        ({"recomputed": True}, "recomputation"),
    ],
)
def test_refusals(changes, message):
    given = {"device": torch.device("cuda"), "processes": 1, "packed": True, "recomputed": False}
    check_cuda_graphs(AcceleratorOptions(cuda_graphs=True), **given)
    with pytest.raises(ValueError, match=message):
        check_cuda_graphs(AcceleratorOptions(cuda_graphs=True), **{**given, **changes})
    check_cuda_graphs(AcceleratorOptions(), **{**given, **changes})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("size", [16, 4])
def test_a_gpu_captures_the_step(size):
    here = torch.device("cuda")
    plain, captured = (
        make_step(toy(dropout=0.0), ToyObjective(), options(bf16=True), device=here, cuda_graphs=graphs)
        for graphs in (False, True)
    )
    for number in range(20):
        batches = cut(ToyRows(16, seed=number), size)
        one, other = plain(batches, 0.01), captured(batches, 0.01)
        assert other.losses == pytest.approx(one.losses, rel=2e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_replays_draw_other_numbers_and_the_capture_draws_none():
    here = torch.device("cuda")
    drop = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Dropout(0.5)).cuda()
    graphed = GraphedForward(drop, drop, here)
    given = torch.ones(8, 64, device=here)
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        drawn.append([graphed(input=given).detach().clone() for _ in range(2)])
    assert not torch.equal(drawn[0][0] == 0, drawn[0][1] == 0)
    for one, other in zip(*drawn, strict=True):
        assert torch.equal(one == 0, other == 0)
