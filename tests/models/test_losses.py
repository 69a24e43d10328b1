import types

import pytest
import torch

from megabert.models.losses import PretrainingObjective, mean_of_sum, summed_cross_entropy


@pytest.mark.parametrize("rows", [0, 1, 63, 64, 65, 200])
def test_sum_and_gradient_are_those_of_torch(rows):
    torch.manual_seed(rows)
    logits = (torch.randn(rows, 37) * 5).requires_grad_()
    labels = torch.randint(0, 37, (rows,))
    labels[::3] = -100
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    given = summed_cross_entropy(logits, labels)
    torch.testing.assert_close(given, expected)
    (wanted,) = torch.autograd.grad(expected * 0.7, logits)
    (gradient,) = torch.autograd.grad(given * 0.7, logits)
    torch.testing.assert_close(gradient, wanted)


def test_the_gradient_has_a_gradient():
    logits = torch.randn(70, 9, requires_grad=True)
    labels = torch.randint(0, 9, (70,))
    labels[::4] = -100
    found = []
    for total in (
        summed_cross_entropy(logits, labels),
        torch.nn.functional.cross_entropy(logits, labels, reduction="sum"),
    ):
        (slope,) = torch.autograd.grad(total * 0.3, logits, create_graph=True)
        found.append((slope, *torch.autograd.grad(slope.pow(3).sum(), logits)))
    for own, other in zip(*found, strict=True):
        torch.testing.assert_close(own, other)


def test_half_logits_are_summed_in_float32():
    logits = torch.randn(300, 50).to(torch.bfloat16)
    labels = torch.randint(0, 50, (300,))
    given = summed_cross_entropy(logits, labels)
    assert given.dtype == torch.float32
    torch.testing.assert_close(given, torch.nn.functional.cross_entropy(logits.float(), labels, reduction="sum"))


def test_another_ignored_label_and_shapes_that_do_not_fit():
    logits = torch.randn(2, 3, 5)
    labels = torch.tensor([[0, 4, 5], [5, 5, 1]])
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=5, reduction="sum"
    )
    torch.testing.assert_close(summed_cross_entropy(logits, labels, 5), expected)
    with pytest.raises(ValueError, match=r"\[2, 2\] do not fit"):
        summed_cross_entropy(logits, labels[:, :2])


@pytest.mark.parametrize("wrong", [-1, -101, 5])
@pytest.mark.parametrize("ignored", [-100, 7])
def test_a_label_that_is_no_class_is_refused(wrong, ignored):
    labels = torch.tensor([0, 4, ignored, wrong])
    with pytest.raises(IndexError, match=rf"the label {wrong} is none of 5 classes, \[0, 5\), and not {ignored}"):
        summed_cross_entropy(torch.randn(4, 5), labels, ignored)
    assert summed_cross_entropy(torch.zeros(4, 5), labels.masked_fill(labels == wrong, 1), ignored) > 0


def test_mean_of_nothing_is_nothing():
    assert mean_of_sum(torch.tensor(0.0), 0) == 0
    assert mean_of_sum(torch.tensor(6.0), torch.tensor(2)) == 3
    assert mean_of_sum(torch.tensor(6.0), 2, 12) == 0.5


def make_batch():
    batch = {
        "masked_labels": torch.tensor([[1, 2, -100], [0, -100, -100]]),
        "next_sentence_label": torch.tensor([[1], [-100]]),
    }
    words = torch.zeros(2, 3, 4)
    words[0, 0, 1] = 9.0  # right
    words[0, 1, 3] = 9.0  # wrong
    words[1, 0, 0] = 9.0  # right
    pairs = torch.tensor([[[0.0, 3.0]], [[9.0, 0.0]]])
    return batch, types.SimpleNamespace(prediction_logits=words, seq_relationship_logits=pairs)


@pytest.mark.parametrize("task", ["sop", "nsp", "none"])
def test_objective_counts_sums_and_hits(task):
    objective = PretrainingObjective(task)
    batch, outputs = make_batch()
    assert objective.targets == {"masked_labels", "next_sentence_label"}
    counts, sums, hits = objective.counts(batch), objective.sums(outputs, batch), objective.hits(outputs, batch)
    assert counts["lm"] == 3 and hits["lm"] == 2
    norm = torch.tensor(9.0).exp()
    expected = 3 * torch.log(norm + 3) - 18
    torch.testing.assert_close(sums["lm"], expected, rtol=1e-5, atol=1e-4)
    names = {"lm"} if task == "none" else {"lm", task}
    assert set(counts) == set(sums) == set(hits) == names
    if task != "none":
        assert counts[task] == 1 and hits[task] == 1
        torch.testing.assert_close(sums[task], torch.log1p(torch.tensor(-3.0).exp()))


def test_gradient_does_not_depend_on_the_cut():
    torch.manual_seed(0)
    objective = PretrainingObjective("sop")
    words = torch.randn(8, 5, 11, requires_grad=True)
    pairs = torch.randn(8, 1, 2, requires_grad=True)
    batch = {
        "masked_labels": torch.randint(0, 11, (8, 5)).masked_fill(torch.rand(8, 5) < 0.4, -100),
        "next_sentence_label": torch.randint(0, 2, (8, 1)),
    }
    totals = objective.counts(batch)
    results = []
    for cut in (8, 2, 1):
        words.grad = pairs.grad = None
        for start in range(0, 8, cut):
            part = {key: value[start : start + cut] for key, value in batch.items()}
            outputs = types.SimpleNamespace(
                prediction_logits=words[start : start + cut], seq_relationship_logits=pairs[start : start + cut]
            )
            sums = objective.sums(outputs, part)
            sum(sums[name] / totals[name] for name in sums).backward()
        results.append((words.grad.clone(), pairs.grad.clone()))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-7)
