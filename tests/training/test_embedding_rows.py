"""Rows of an embedding that are in use, trained alone: the same as AdamW on the whole table."""

import dataclasses

import pytest
import torch
from torch import nn
from transformers import MegatronBertConfig

from megabert import MegatronBertForSequenceClassification
from megabert.models.losses import counted, summed_cross_entropy
from megabert.training import snapshot
from megabert.training.embedding_rows import LookedUp, RowWeights
from megabert.training.precision import Weights
from megabert.training.step import make_step

from .toy import options, toy

VOCABULARY, NAME = 40, "bert.embeddings.word_embeddings.weight"
IN_USE = torch.tensor([0, 3, 5, 6, 20, 39])


class Labels:
    """The class of a row."""

    targets = frozenset({"labels"})

    def counts(self, batch):
        return {"label": counted(batch["labels"])}

    def sums(self, outputs, batch):
        return {"label": summed_cross_entropy(outputs.logits, batch["labels"])}


def network():
    torch.manual_seed(0)
    return MegatronBertForSequenceClassification(
        MegatronBertConfig(
            vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=8, initializer_range=0.2,
        )
    )  # fmt: skip


def batch(number):
    generator = torch.Generator().manual_seed(number)
    ids = IN_USE[torch.randint(len(IN_USE), (4, 8), generator=generator)]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(4) % 2}


def run(step, numbers):
    """Updates with these numbers, under a rate that changes; what was told of each."""
    torch.manual_seed(100 + numbers[0])
    return [step([batch(number), batch(-number)], 1e-2 * (number % 4), 0.1 + 0.01 * number) for number in numbers]


def by_rows(model, **changes):
    embedding = model.get_input_embeddings()
    step = make_step(model, Labels(), options(**changes), looked_up=LookedUp(embedding, IN_USE))
    assert type(step.weights) is RowWeights
    return step


def whole(model, **changes):
    return make_step(model, Labels(), options(**changes))


def stored(step):
    """What a checkpoint holds, as copies."""
    tensors = step.weights.whole(snapshot.optimizer_tensors(step.optimizer, step.weights.masters))
    return [{key: value.clone() for key, value in part.items()} for part in (step.weights.state(), tensors)]


def restored(step, state):
    weights, tensors = state
    step.weights.load(weights)
    snapshot.load_optimizer(step.optimizer, step.weights.masters, step.weights.parts(tensors), "here")
    return step


def assert_same(found, expected, tolerance=0.0):
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in theirs.items():
            torch.testing.assert_close(mine[key], value, rtol=tolerance, atol=tolerance, msg=key)


PRECISIONS = [{}, {"bf16": True, "fp32_embedding": True}]


@pytest.mark.parametrize("precision", PRECISIONS, ids=["fp32", "bf16"])
def test_bitwise_the_whole_table_s_adamw(precision):
    steps = by_rows(network(), clip_grad=0.0, **precision), whole(network(), clip_grad=0.0, **precision)
    for step in steps:
        run(step, range(1, 9))
    assert_same(*map(stored, steps))
    table = steps[0].weights.state()[NAME]
    before = network().state_dict()[NAME]
    assert not torch.equal(table[1], before[1]), "unused rows decay"
    assert steps[0].weights.masters[NAME].shape == (len(IN_USE), 16)


def test_clipping_is_by_the_same_norm():
    steps = by_rows(network(), clip_grad=0.5), whole(network(), clip_grad=0.5)
    reports = [run(step, range(1, 7)) for step in steps]
    for mine, theirs in zip(*reports, strict=True):
        assert mine.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-6) and mine.losses == pytest.approx(
            theirs.losses, rel=1e-5
        )
    # Scores do not depend on a bias of the keys: its gradient is rounding, which AdamW makes as large as any.
    states = [[{k: v for k, v in part.items() if "key.bias" not in k} for part in stored(step)] for step in steps]
    assert_same(*states, tolerance=1e-5)


@pytest.mark.parametrize("precision", PRECISIONS, ids=["fp32", "bf16"])
def test_resumed_in_the_middle_bitwise(precision):
    through, first = by_rows(network(), **precision), by_rows(network(), **precision)
    for step in (through, first):
        run(step, range(1, 5))
    second = restored(by_rows(network(), **precision), stored(first))
    for step in (through, second):
        run(step, range(5, 9))
    assert_same(stored(second), stored(through))


def test_a_state_with_more_rows_in_use_is_gone_on_from():
    plain = whole(network(), clip_grad=0.0)
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(VOCABULARY, (4, 8), generator=generator)
    plain([{**batch(0), "input_ids": ids}], 1e-2)
    mine = restored(by_rows(network(), clip_grad=0.0), stored(plain))
    used = set(ids.flatten().tolist()) | set(IN_USE.tolist())
    assert set(mine.weights.rows.numbers.tolist()) == used
    for step in (plain, mine):
        run(step, range(1, 5))
    assert_same(stored(mine), stored(plain))


def test_answers_and_the_model_s_own_state_are_of_the_whole_table():
    model = network()
    step, other = by_rows(model, clip_grad=0.0), whole(network(), clip_grad=0.0)
    ids = torch.arange(VOCABULARY).view(5, 8)
    for numbers in (range(1, 4), range(4, 6)):
        run(step, numbers)
        run(other, numbers)
        expected = other.engine.modules[0]
        with torch.no_grad():
            torch.testing.assert_close(model.eval()(ids).logits, expected.eval()(ids).logits, rtol=0, atol=0)
        model.train(), expected.train()
    run(step, range(6, 8))
    run(other, range(6, 8))
    assert_same([model.state_dict(), step.weights.state_dict()], [other.weights.state_dict()] * 2)


def test_a_row_that_was_said_not_to_be_looked_up_is_missed():
    step = by_rows(network())
    with pytest.raises(IndexError):
        step([{**batch(0), "input_ids": torch.full((4, 8), 7)}], 1e-2)


def test_another_model_s_state_is_refused():
    step = by_rows(network())
    with pytest.raises(ValueError, match="does not fit this model"):
        state = {f"exp_avg/{NAME}": torch.zeros(VOCABULARY + 1, 16)}
        snapshot.load_optimizer(step.optimizer, step.weights.masters, step.weights.parts(state), "here")


def test_elsewhere_the_whole_table_is_trained():
    def kind(model, embedding, **changes):
        chosen = dataclasses.replace(options(), **changes)
        return type(make_step(model, Labels(), chosen, looked_up=LookedUp(embedding, IN_USE[:3])).weights)

    for changes in ({"optimizer": "lamb"}, {"optimizer": "sgd"}, {"bf16": True}, {"log_params_norm": True}):
        model = network()
        assert kind(model, model.get_input_embeddings(), **changes) is Weights
    tied, frozen = toy(), network()
    assert kind(tied, tied.word_embeddings) is Weights
    frozen.get_input_embeddings().weight.requires_grad_(False)
    assert kind(frozen, frozen.get_input_embeddings()) is Weights
    assert isinstance(frozen.get_input_embeddings(), nn.Embedding)
