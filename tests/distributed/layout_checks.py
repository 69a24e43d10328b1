"""What is checked in the processes of a tensor- or data-parallel run."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor.debug import CommDebugMode

from megabert.models import attention, cpu_attention, dropout
from megabert.models.auto import CLASSES
from megabert.models.bert import plan
from megabert.models.bert.recompute import Recomputation, set_recomputation
from megabert.models.losses import right_guesses, summed_cross_entropy
from megabert.parallel import regions, saved, vocabulary, weights
from megabert.parallel.apply import apply
from megabert.parallel.mesh import make_mesh
from megabert.parallel.placement import chunk
from megabert.parallel.saved import in_parts

from .jobs import world
from .small import CPU, LAYERS, LENGTH, VOCABULARY, bare, micro_batches, parallel_step, plain_step, whole


def in_world(checks):
    with world():
        for check, *arguments in checks:
            globals()[check](*arguments)


def everyones(value):
    """The value of each rank, on all."""
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def half_precision(layout, changes):
    """Near the single process's steps, with float32 masters, and equal reports on all ranks."""
    plain = plain_step(**changes)
    step, applied, mesh = parallel_step(layout, **changes)
    exact = {name for name, weight in plain.weights.model.named_parameters() if weight.dtype == torch.float32}
    computed = {id(master): weight for weight, master in step.weights.pairs()}
    whole_here = {name for name, master in step.weights.masters.items() if computed[id(master)] is master}
    assert exact == whole_here, (layout, changes)
    for update in range(4):
        expected = plain(micro_batches(update), 1e-3)
        report = step(micro_batches(update, layout), 1e-3)
        assert not report.skipped and len(set(map(str, everyones(report)))) == 1
        assert report.losses == pytest.approx(expected.losses, rel=2e-2), (layout, changes)
        assert report.grad_norm == pytest.approx(expected.grad_norm, rel=5e-2), (layout, changes)
    for name, master in step.weights.masters.items():
        assert master.dtype == torch.float32
        there = plain.weights.masters[name]
        assert (whole(applied, mesh, layout, name, master) - there).abs().max() < 1e-2, (layout, changes, name)


def break_gradient(module, given, result):
    result.register_hook(lambda gradient: gradient * torch.inf)


def overflow_on_one_rank(layout, changes):
    """An infinite gradient on the last rank skips the step on all of them, and lowers every scale."""
    step, _, _ = parallel_step(layout, fp16=True, initial_loss_scale=1024.0, hysteresis=1, **changes)
    layer = step.engine.modules[0].bert.encoder.layer[1]
    before = {name: master.detach().clone() for name, master in step.weights.masters.items()}
    handle = None
    if dist.get_rank() == dist.get_world_size() - 1:
        handle = layer.intermediate.dense.register_forward_hook(break_gradient)
    reports = everyones(step(micro_batches(0, layout), 1e-3))
    assert all(report.skipped and report.loss_scale == 1024.0 and not report.fault for report in reports), reports
    assert everyones(step.scaler.scale) == [512.0] * dist.get_world_size()
    for name, master in step.weights.masters.items():
        assert torch.equal(master, before[name]), name
    if handle is not None:
        handle.remove()
    after = step(micro_batches(1, layout), 1e-3)
    assert not after.skipped
    assert any(not torch.equal(master, before[name]) for name, master in step.weights.masters.items())


def same_updates(layout, changes):
    """Five updates leave the weights of the single process: optimizers that look at whole tensors too."""
    plain = plain_step(**changes)
    step, applied, mesh = parallel_step(layout, **changes)
    for update in range(5):
        plain(micro_batches(update), 1e-2)
        step(micro_batches(update, layout), 1e-2)
    for name, master in plain.weights.masters.items():
        mine = whole(applied, mesh, layout, name, step.weights.masters[name])
        # A key's bias has a true gradient of zero: its updates are rounding, blown up.
        assert torch.allclose(mine, master, rtol=1e-4, atol=1e-5) or name.endswith("key.bias"), (layout, changes, name)


def any_micro_batch(layout):
    """How a data rank's rows are cut changes nothing."""
    wide, _, _ = parallel_step(layout)
    narrow, _, _ = parallel_step(layout)
    expected = wide(micro_batches(0, layout, size=2), 1e-3)
    report = narrow(micro_batches(0, layout, size=1), 1e-3)
    assert report.losses == pytest.approx(expected.losses, rel=1e-6)
    assert report.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)


class Masks:
    """Records the masks that are drawn, with where."""

    def __init__(self, monkeypatch):
        self.drawn = []
        for module, where in ((dropout, "hidden"), (cpu_attention, "heads")):
            draw = module.draw_kept
            monkeypatch.setattr(module, "draw_kept", self.recording(draw, where))

    def recording(self, draw, where):
        def run(shape, threshold):
            kept = draw(shape, threshold)
            self.drawn.append((where, kept.clone()))
            return kept

        return run


def masks_and_recomputation(layout):
    """Cut regions draw differently, whole ones alike; recomputation repeats them, so gradients stay bit for bit."""
    assert attention.serves(torch.zeros(1))
    with pytest.MonkeyPatch.context() as patch:
        masks = Masks(patch)
        kept, _, _ = parallel_step(layout, dropout=0.2)
        kept.accumulate(micro_batches(0, layout)[:1])
    compared = list(zip(*everyones(masks.drawn), strict=True))
    # The embedding, then for each layer: heads, after the attention, after the MLP.
    assert len(compared) == 1 + 3 * LAYERS
    for number, ranks in enumerate(compared):
        layer, place = divmod(number - 1, 3)
        is_cut = number > 0 and (place == 0 or (layout.sequence_parallel and layer < LAYERS - 1))
        assert ranks[0][0] == ("heads" if place == 0 and number else "hidden")
        assert torch.equal(ranks[0][1], ranks[1][1]) != is_cut, (layout, number)
    again, _, _ = parallel_step(
        layout, dropout=0.2, prepare=lambda model: set_recomputation(model, Recomputation("full"))
    )
    again.accumulate(micro_batches(0, layout)[:1])
    for name, master in kept.weights.masters.items():
        assert torch.equal(master.grad, again.weights.masters[name].grad), (layout, name)


def replicated_is_equal(layout):
    """With dropout, what tensor ranks hold whole is the same bit for bit, update after update."""
    step, applied, _ = parallel_step(layout, dropout=0.2)
    seen = []
    last = step.engine.modules[0].bert.encoder.ln
    last.register_forward_hook(lambda module, given, result: seen.append(result.detach().clone()))
    for update in range(3):
        step(micro_batches(update, layout), 1e-2)
    for mine in seen:
        ranks = everyones(mine)
        assert all(torch.equal(ranks[0], one) for one in ranks)
    for name, master in step.weights.masters.items():
        if applied.places[name].cut is None:
            ranks = everyones(master.detach())
            assert all(torch.equal(ranks[0], one) for one in ranks), name


def learns_with_dropout(layout):
    """The loss under dropout falls as that of one process does."""
    plain = plain_step(dropout=0.1)
    torch.manual_seed(1)
    step, _, _ = parallel_step(layout, dropout=0.1)
    one, many = [], []
    for update in range(40):
        one.append(plain(micro_batches(update % 4), 3e-3).losses["lm"])
        many.append(step(micro_batches(update % 4, layout), 3e-3).losses["lm"])
    ends = [sum(losses[-8:]) / 8 for losses in (one, many)]
    assert ends[0] < 0.7 * one[0]
    assert ends[1] == pytest.approx(ends[0], rel=0.1), ends


HEADS = {
    "AutoModel": {},
    "AutoModelForPreTraining": {"labels": "words", "next_sentence_label": "pair"},
    "AutoModelForMaskedLM": {"labels": "words"},
    "AutoModelForCausalLM": {"labels": "words"},
    "AutoModelForNextSentencePrediction": {"labels": "pair"},
    "AutoModelForSequenceClassification": {"labels": "pair"},
    "AutoModelForMultipleChoice": {"labels": "pair"},
    "AutoModelForTokenClassification": {"labels": "classes"},
    "AutoModelForQuestionAnswering": {"start_positions": "start", "end_positions": "end"},
}


def head_batch(name):
    generator = torch.Generator().manual_seed(3)
    shape = (2, 3, LENGTH) if name == "AutoModelForMultipleChoice" else (2, LENGTH)
    ids = torch.randint(5, VOCABULARY, shape, generator=generator)
    mask = (torch.arange(LENGTH) < LENGTH - 5).long().expand(shape)
    labels = {
        "words": torch.where(torch.rand(shape, generator=generator) < 0.3, ids, -100),
        "pair": torch.tensor([1, 0]),
        "classes": ids % 2,
        "start": torch.tensor([2, 7]),
        "end": torch.tensor([4, 9]),
    }
    return {"input_ids": ids, "attention_mask": mask, **{key: labels[kind] for key, kind in HEADS[name].items()}}


def heads_losses(layout):
    """Each head's own loss and all its gradients."""
    for name, kind in CLASSES.items():
        changes = {"is_decoder": name == "AutoModelForCausalLM"}
        plain = bare(model=kind, **changes)
        weights.fill(plain, plain._init_weights, seed=1, device=CPU)
        mesh = make_mesh(layout, "cpu")
        cut = bare(model=kind, **changes)
        applied = apply(cut, plan, layout, mesh, layers=LAYERS, device=CPU)
        weights.fill(
            cut, cut._init_weights, seed=1, device=CPU, places=applied.places, layout=layout, rank=dist.get_rank()
        )
        batch = head_batch(name)
        results = []
        for model in (plain.train(), cut.train()):
            outputs = model(**batch)
            loss = outputs.pooler_output.square().mean() if name == "AutoModel" else outputs.loss
            loss.backward()
            results.append(loss.item())
        assert results[1] == pytest.approx(results[0], rel=1e-5), (layout, name)
        mine = dict(cut.named_parameters())
        # Some have a true gradient of zero (all scores move alike with a key's bias): what they have is rounding.
        rounding = 1e-7 * torch.nn.utils.get_total_norm(
            [one.grad for one in plain.parameters() if one.grad is not None]
        )
        for key, parameter in plain.named_parameters():
            if parameter.grad is None:
                assert mine[key].grad is None, (layout, name, key)
                continue
            gradient = mine[key].grad
            if key in applied.summands:
                dist.all_reduce(gradient, group=mesh.get_group("tensor"))
            gradient = whole(applied, mesh, layout, key, gradient)
            assert (gradient - parameter.grad).norm() <= 1e-5 * parameter.grad.norm() + rounding, (layout, name, key)


def cut_vocabularies(layout):
    """Losses, gradients and best guesses over parts of a vocabulary: short and empty parts, equal logits."""
    group = make_mesh(layout, "cpu").get_group("tensor")
    for size in (64, 70, 5, 3):
        begin, end = chunk(size, group.size(), group.rank())
        logits = torch.randn(2, 90, size, generator=torch.Generator().manual_seed(size)).requires_grad_()
        labels = torch.arange(180).view(2, 90) % size
        labels[0, ::3] = -100
        part = logits.detach()[..., begin:end].clone().requires_grad_()
        expected, found = summed_cross_entropy(logits, labels), None
        found = vocabulary.summed_cross_entropy(part, labels, group, size)
        (2 * expected).backward()
        (2 * found).backward()
        assert found.item() == pytest.approx(expected.item(), rel=1e-6)
        assert torch.allclose(part.grad, logits.grad[..., begin:end], atol=1e-6)
        rounded = logits.detach().round()  # many equal ones
        got = vocabulary.right_guesses(rounded[..., begin:end], labels, group, size)
        assert got.item() == right_guesses(rounded, labels).item(), size
        table = torch.randn(size, 8, generator=torch.Generator().manual_seed(1))
        rows = vocabulary.embedded(labels.clamp_min(0), table[begin:end], group, vocabulary=size, padding_index=0)
        assert torch.equal(rows, table[labels.clamp_min(0)])


def messages(layout):
    """Two sums over the tensor group for each layer and direction."""
    step, _, _ = parallel_step(layout)
    batch = micro_batches(0, layout)[0]
    step.accumulate([batch])
    step.exchange.clear()
    with CommDebugMode() as seen:
        step.accumulate([batch])
    # The embedding, and of the logits: two of the loss on the way forward, one on the way back.
    assert sum(seen.get_comm_counts().values()) == 4 * LAYERS + 4, seen.get_comm_counts()


def recomputed(layout):
    """Layers computed again, in groups or their attention only, leave the same gradients."""
    expected = None
    for chosen in (None, Recomputation("full"), Recomputation("full", "uniform", 2), Recomputation("selective")):
        step, _, _ = parallel_step(layout, dropout=0.2, prepare=lambda model, it=chosen: set_recomputation(model, it))
        for update in range(2):
            step.accumulate(micro_batches(update, layout))
            found = {name: master.grad.clone() for name, master in step.weights.masters.items()}
            step.exchange.clear()
        expected = expected or found
        for name, gradient in expected.items():
            assert torch.allclose(found[name], gradient, rtol=1e-6, atol=1e-7), (layout, chosen, name)


def saved_in_parts(layout):
    """Inputs of recomputed layers that are shared: the same gradients, and one message for each of them."""
    found, shapes = [], []
    gather = saved.gathered
    for parts in (False, True):

        def prepare(model, parts=parts):
            saving = {"saving": in_parts(make_mesh(layout, "cpu").get_group("tensor"))} if parts else {}
            set_recomputation(model, Recomputation("full"), **saving)

        step, _, _ = parallel_step(layout, dropout=0.2, prepare=prepare)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(saved, "gathered", lambda part, group: shapes.append(len(part)) or gather(part, group))
            step.accumulate(micro_batches(0, layout))
        found.append({name: master.grad.clone() for name, master in step.weights.masters.items()})
    assert all(torch.equal(found[1][name], gradient) for name, gradient in found[0].items())
    assert shapes == [2 * LENGTH * 32 // layout.tensor] * LAYERS * len(micro_batches(0, layout))


def compiled(layout, changes):
    """Layers that torch captures, one by one, train as they are; without its code generator, which takes minutes."""
    plain, _, _ = parallel_step(layout, **changes)
    made = torch.nn.Module.compile
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Module, "compile", lambda module: made(module, backend="aot_eager"))
        step, _, _ = parallel_step(layout, compile=True, **changes)
    for update in range(2):
        expected = plain(micro_batches(update, layout), 1e-3)
        report = step(micro_batches(update, layout), 1e-3)
        assert report.losses == pytest.approx(expected.losses, rel=1e-4), layout
        assert report.grad_norm == pytest.approx(expected.grad_norm, rel=1e-4), layout


def one_row_is_cut_in_captured_code(layout):
    """A part of a single row lies inside it, and must not be taken for a tensor of its own."""
    group = make_mesh(layout, "cpu").get_group("tensor")
    row = torch.arange(24.0).view(1, 4, 6).requires_grad_()
    captured = torch.compile(lambda tensor: regions.cut_sequence(tensor, group).square(), backend="aot_eager")
    part = captured(row)
    assert torch.equal(part, row.detach().chunk(2, 1)[group.rank()].square())
    (gradient,) = torch.autograd.grad(part.sum(), row)
    assert torch.equal(gradient, 2 * row.detach())
