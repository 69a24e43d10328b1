import math

import pytest
import torch

from megabert.training.engine import LocalEngine
from megabert.training.evaluate import Evaluation, evaluate
from megabert.training.loader import evaluation_batches

from .toy import ToyObjective, ToyRows, toy

CPU = torch.device("cpu")


def engine_of(model):
    return LocalEngine(model, ToyObjective.targets, CPU)


def run(size, model=None, rows=None, **keywords):
    batches = evaluation_batches(rows or ToyRows(10), batch=size, limit=10, workers=0, device=CPU)
    return evaluate(engine_of(model or toy()), ToyObjective(), batches, **keywords)


def test_means_do_not_depend_on_the_cut():
    whole = run(10)
    for size in (1, 3):
        parts = run(size)
        assert parts.counts == whole.counts
        for name in ("lm", "sop"):
            assert parts.losses[name] == pytest.approx(whole.losses[name], rel=1e-6)
            assert parts.accuracies[name] == whole.accuracies[name]


def test_values_by_hand():
    model, rows = toy().eval(), ToyRows(4)
    right = loss = count = 0.0
    for i in range(4):
        row = {key: torch.from_numpy(value)[None] for key, value in rows[i].items()}
        labels = row.pop("masked_labels").flatten()
        row.pop("next_sentence_label")
        words = model(**row)[0].flatten(0, 1).log_softmax(-1)
        for place, label in enumerate(labels.tolist()):
            if label != -100:
                count += 1
                loss -= words[place, label].item()
                right += words[place].argmax().item() == label
    found = run(2, model, rows)
    assert found.losses["lm"] == pytest.approx(loss / count, rel=1e-5)
    assert found.accuracies["lm"] == right / count
    record = found.record()
    assert record["valid_perplexity"] == pytest.approx(math.exp(loss / count), rel=1e-5)
    assert record["valid_loss"] == pytest.approx(found.losses["lm"] + found.losses["sop"])
    assert {"valid_lm_loss", "valid_lm_accuracy", "valid_sop_loss", "valid_sop_accuracy"} <= set(record)


def test_perplexity_is_capped_as_megatrons_is():
    assert Evaluation({"lm": 30.0}, {"lm": 0.0}, {"lm": 1}).record()["valid_perplexity"] == math.exp(20)


def test_no_dropout_and_the_mode_comes_back():
    model = toy(dropout=0.9).train()
    before = torch.get_rng_state()
    assert run(5, model).losses == run(5, model).losses
    assert model.training and torch.equal(torch.get_rng_state(), before)


def test_gives_up_when_asked():
    asked = iter([False, True])
    assert run(2, stop=lambda: next(asked)) is None


def test_nothing_to_evaluate():
    assert evaluate(engine_of(toy()), ToyObjective(), []) is None
