import pytest
import torch

from megabert.training.loader import collate
from megabert.training.step import make_step

from .toy import ToyObjective, ToyRows, options, toy


def cut(rows, size):
    """16 rows as micro-batches of `size`."""
    return [collate([rows[i] for i in range(first, first + size)]) for first in range(0, 16, size)]


def gradients(size, **changes):
    step = make_step(toy(dropout=0.0), ToyObjective(), options(batch_size=size, **changes))
    losses = step.accumulate(cut(ToyRows(16), size))
    return dict(zip(step.weights.masters, step.weights.gradients(), strict=True)), losses


@pytest.mark.parametrize("size", [4, 1])
def test_gradient_does_not_depend_on_the_cut(size):
    whole, whole_losses = gradients(16)
    parts, part_losses = gradients(size)
    for name, gradient in whole.items():
        assert torch.allclose(parts[name], gradient, rtol=0, atol=1e-6), name
    for name, loss in whole_losses.items():
        assert part_losses[name].item() == pytest.approx(loss.item(), rel=1e-6)


def test_loss_is_the_mean_over_predictions_of_the_whole_batch():
    batch = cut(ToyRows(16), 16)[0]
    model, objective = toy(dropout=0.0), ToyObjective()
    inputs = {key: value for key, value in batch.items() if key not in objective.targets}
    words, _ = model(**inputs)
    expected = torch.nn.functional.cross_entropy(words.flatten(0, 1), batch["masked_labels"].flatten())
    report = make_step(model, objective, options(batch_size=4))(cut(ToyRows(16), 4), 0.0)
    assert report.losses["lm"] == pytest.approx(expected.item(), rel=1e-5)


def test_bf16_gradients_are_near_and_accumulate_in_float32():
    whole, _ = gradients(16)
    parts, _ = gradients(1, bf16=True)
    for name, gradient in whole.items():
        assert parts[name].dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(parts[name].flatten(), gradient.flatten(), dim=0) > 0.99, name


@pytest.mark.parametrize("changes", [{}, {"bf16": True}, {"fp16": True, "loss_scale": 64.0}])
@pytest.mark.parametrize("optimizer", ["adam", "lamb", "sgd"])
def test_clipping_is_on_the_unscaled_norm(changes, optimizer):
    step = make_step(toy(dropout=0.0), ToyObjective(), options(optimizer=optimizer, clip_grad=0.5, **changes))
    batches = cut(ToyRows(16), 4)
    exact, _ = gradients(4)
    norm = torch.linalg.vector_norm(torch.stack([gradient.norm() for gradient in exact.values()])).item()
    assert norm > 0.5
    before = {name: master.detach().clone() for name, master in step.weights.masters.items()}
    report = step(batches, 0.1)
    assert report.grad_norm == pytest.approx(norm, rel=0.02)
    if optimizer == "sgd":
        moved = torch.stack([(step.weights.masters[name] - old).norm() for name, old in before.items()])
        assert torch.linalg.vector_norm(moved).item() == pytest.approx(0.1 * 0.5, rel=0.02)
    elif optimizer == "adam":
        seen = step.optimizer.state[step.weights.masters["dense.weight"]]["exp_avg"]
        assert torch.allclose(seen, 0.1 * exact["dense.weight"] * 0.5 / norm, atol=2e-3)


def test_no_clipping_at_zero():
    step = make_step(toy(dropout=0.0), ToyObjective(), options(optimizer="sgd", clip_grad=0.0))
    exact, _ = gradients(4)
    before = step.weights.masters["pair.weight"].detach().clone()
    step(cut(ToyRows(16), 4), 0.1)
    moved = step.weights.masters["pair.weight"] - before
    # SGD adds the decay to the gradient.
    assert torch.allclose(moved, -0.1 * (exact["pair.weight"] + 0.01 * before), atol=1e-6)


def test_first_update_of_a_warm_up_moves_nothing():
    step = make_step(toy(), ToyObjective(), options())
    before = {name: master.detach().clone() for name, master in step.weights.masters.items()}
    report = step(cut(ToyRows(16), 16), 0.0)
    assert not report.skipped
    for name, old in before.items():
        assert torch.equal(step.weights.masters[name], old), name


def test_overflow_is_skipped_and_lowers_the_scale():
    step = make_step(toy(), ToyObjective(), options(fp16=True, hysteresis=1))
    before = {name: master.detach().clone() for name, master in step.weights.masters.items()}
    batches = cut(ToyRows(16), 16)
    report = step(batches, 0.1)
    assert report.skipped and not report.fault and report.loss_scale == 2.0**32
    assert step.scaler.scale == 2.0**31
    for name, old in before.items():
        assert torch.equal(step.weights.masters[name], old), name
    assert not step.optimizer.state, "a skipped step leaves no trace in the moments"
    reports = [step(batches, 0.01) for _ in range(40)]
    made = [report for report in reports if not report.skipped]
    assert made and made[-1].losses["lm"] < report.losses["lm"]


def test_a_broken_loss_is_a_fault_and_changes_nothing():
    step = make_step(toy(), ToyObjective(), options(fp16=True, loss_scale=8.0))
    with torch.no_grad():
        step.weights.masters["pair.bias"][0] = float("nan")
        step.weights.publish()
    before = step.weights.masters["dense.weight"].detach().clone()
    report = step(cut(ToyRows(16), 16), 0.1)
    assert report.skipped and report.fault == "sop loss is nan"
    assert torch.equal(step.weights.masters["dense.weight"], before)


def test_a_broken_gradient_without_a_scale_is_a_fault():
    model = toy()
    model.pair.weight.register_hook(lambda gradient: gradient * float("inf"))
    report = make_step(model, ToyObjective(), options())(cut(ToyRows(16), 16), 0.1)
    assert report.skipped and report.fault == "the gradient is not finite"


def test_a_batch_without_labels_of_a_term_counts_nothing():
    batch = cut(ToyRows(16), 16)[0]
    batch["next_sentence_label"] = torch.full_like(batch["next_sentence_label"], -100)
    report = make_step(toy(), ToyObjective(), options())([batch], 0.1)
    assert not report.skipped and report.losses["sop"] == 0.0


def test_learns_through_torch_compile(monkeypatch):
    real = torch.compile
    # The whole graph machinery, without minutes of C++ compilation.
    monkeypatch.setattr(torch, "compile", lambda model: real(model, backend="aot_eager"))
    step = make_step(toy(dropout=0.0), ToyObjective(), options(compile=True))
    plain = make_step(toy(dropout=0.0), ToyObjective(), options())
    batches = cut(ToyRows(16), 16)
    for _ in range(3):
        assert step(batches, 0.01).losses["lm"] == pytest.approx(plain(batches, 0.01).losses["lm"], rel=1e-4)


def test_a_model_with_nothing_to_train_is_refused():
    with pytest.raises(ValueError, match="no weights to train"):
        make_step(toy().requires_grad_(False), ToyObjective(), options())
