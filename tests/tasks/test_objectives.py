from types import SimpleNamespace

import pytest
import torch

from megabert.tasks.objectives import Classes, Ends, Number, Together, balanced


def mean(objective, outputs, batch):
    counts, sums = objective.counts(batch), objective.sums(outputs, batch)
    return {name: float(sums[name] / counts[name]) for name in counts}


def test_classes_of_tokens_and_their_weights():
    torch.manual_seed(0)
    outputs = SimpleNamespace(logits=torch.randn(2, 3, 4))
    batch = {"labels": torch.tensor([[0, -100, 3], [1, 1, -100]])}
    expected = torch.nn.functional.cross_entropy(outputs.logits.flatten(0, 1), batch["labels"].flatten())
    assert mean(Classes("tag"), outputs, batch)["tag"] == pytest.approx(float(expected))
    weights = [1.0, 2.0, 5.0, 0.5]
    summed = torch.nn.functional.cross_entropy(
        outputs.logits.flatten(0, 1), batch["labels"].flatten(), weight=torch.tensor(weights), reduction="sum"
    )
    assert mean(Classes("tag", weights=weights), outputs, batch)["tag"] == pytest.approx(float(summed) / 4)


def test_cutting_a_batch_changes_nothing():
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 5, 3), torch.randint(-1, 3, (6, 5))
    labels[labels < 0] = -100
    objective = Classes("tag", weights=[0.2, 1.0, 3.0])
    whole = objective.sums(SimpleNamespace(logits=logits), {"labels": labels})["tag"]
    parts = [
        objective.sums(SimpleNamespace(logits=logits[n : n + 2]), {"labels": labels[n : n + 2]})["tag"]
        for n in (0, 2, 4)
    ]
    assert float(sum(parts)) == pytest.approx(float(whole), rel=1e-6)


def test_ends_are_berts_mean_of_two_means():
    torch.manual_seed(0)
    outputs = SimpleNamespace(start_logits=torch.randn(3, 7), end_logits=torch.randn(3, 7))
    batch = {"start_positions": torch.tensor([0, 2, 3]), "end_positions": torch.tensor([0, 4, 3]),
             "attention_mask": torch.ones(3, 7, dtype=torch.long)}  # fmt: skip
    entropy = torch.nn.functional.cross_entropy
    expected = (
        entropy(outputs.start_logits, batch["start_positions"]) + entropy(outputs.end_logits, batch["end_positions"])
    ) / 2
    assert mean(Ends(), outputs, batch)["span"] == pytest.approx(float(expected))
    right = SimpleNamespace(start_logits=torch.eye(7)[batch["start_positions"]], end_logits=torch.eye(7)[[0, 4, 5]])
    assert int(Ends().hits(right, batch)["span"]) == 2
    # Padding, of any length and with any logits, changes nothing: a row costs the same in every batch.
    mask = torch.nn.functional.pad(batch["attention_mask"], (0, 4))
    for whole in (outputs, right):
        more = SimpleNamespace(**{name: torch.nn.functional.pad(one, (0, 4), value=9.0)
                                  for name, one in vars(whole).items()})  # fmt: skip
        longer = {**batch, "attention_mask": mask}
        assert float(Ends().sums(more, longer)["span"]) == float(Ends().sums(whole, batch)["span"])
        assert int(Ends().hits(more, longer)["span"]) == int(Ends().hits(whole, batch)["span"])


def test_numbers_and_parts_together():
    outputs = SimpleNamespace(logits=torch.tensor([[1.0], [2.0]]), other=torch.tensor([[0.0, 0.0], [0.0, 0.0]]))
    batch = {"labels": torch.tensor([1.25, 4.0]), "kind": torch.tensor([0, 1])}
    both = Together(Number(), Classes("kind", target="kind", logits="other", share=0.5))
    assert both.targets == {"labels", "kind"}
    found = mean(both, outputs, batch)
    assert found["number"] == pytest.approx((0.0625 + 4) / 2)
    assert found["kind"] == pytest.approx(0.5 * torch.log(torch.tensor(2.0)).item())
    assert int(both.hits(outputs, batch)["number"]) == 1


def test_balanced_weights_have_a_mean_of_one_over_the_examples():
    weights = balanced([6, 2, 0])
    assert weights[2] == 0 and (6 * weights[0] + 2 * weights[1]) / 8 == pytest.approx(1)
