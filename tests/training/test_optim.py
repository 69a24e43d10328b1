import math

import torch

from megabert.training.optim import Lamb, make_optimizer, parameter_groups, undecayed
from megabert.training.precision import Weights

from .toy import options, toy


def test_biases_and_layer_norm_do_not_decay_and_embeddings_do():
    model = toy()
    assert undecayed(model) == {"norm.weight", "norm.bias", "dense.bias", "pair.bias", "decoder.bias"}
    decayed, others = parameter_groups(Weights(model, options()), 0.05)
    assert set(decayed["names"]) == {
        "word_embeddings.weight", "token_type_embeddings.weight", "dense.weight", "pair.weight",
    }  # fmt: skip
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.05, 0.0)
    assert len(decayed["params"]) + len(others["params"]) == len(list(model.parameters()))


def test_norm_layers_are_known_by_their_class_name():
    class FusedLayerNorm(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = torch.nn.Parameter(torch.ones(3))

    assert undecayed(torch.nn.Sequential(FusedLayerNorm())) == {"0.gain"}


def test_lamb_by_hand():
    weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    bias = torch.nn.Parameter(torch.tensor([2.0]))
    lamb = Lamb(
        [{"params": [weight], "weight_decay": 0.1}, {"params": [bias], "weight_decay": 0.0}],
        lr=0.01, betas=(0.9, 0.999), eps=1e-6,
    )  # fmt: skip
    expected, mean, square = [3.0, 4.0], [0.0, 0.0], [0.0, 0.0]
    for step, gradient in enumerate(([0.5, -1.0], [0.25, 2.0]), start=1):
        weight.grad, bias.grad = torch.tensor(gradient), torch.tensor([4.0])
        lamb.step()
        update = []
        for i in range(2):
            mean[i] = 0.9 * mean[i] + 0.1 * gradient[i]
            square[i] = 0.999 * square[i] + 0.001 * gradient[i] ** 2
            unbiased = mean[i] / (1 - 0.9**step), square[i] / (1 - 0.999**step)
            update.append(unbiased[0] / (math.sqrt(unbiased[1]) + 1e-6) + 0.1 * expected[i])
        ratio = math.hypot(*expected) / math.hypot(*update)
        expected = [value - 0.01 * ratio * change for value, change in zip(expected, update, strict=True)]
    assert torch.allclose(weight, torch.tensor(expected), atol=1e-6)
    # Without decay the step is Adam's: a constant gradient moves by lr each time.
    assert torch.allclose(bias, torch.tensor([2.0 - 2 * 0.01]), atol=1e-6)


def test_lamb_leaves_zero_weights_a_way_out():
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.ones(2)
    Lamb([weight], lr=0.5, weight_decay=0.1).step()
    assert torch.allclose(weight, torch.full((2,), -0.5), atol=1e-5)


def test_adam_by_hand():
    model = toy()
    weights = Weights(model, options())
    optimizer = make_optimizer(weights, options(lr=0.1, weight_decay=0.5, adam_eps=1e-3))
    before = model.pair.weight.detach().clone()
    model.pair.weight.grad = torch.full_like(before, 2.0)
    optimizer.step()
    expected = before * (1 - 0.1 * 0.5) - 0.1 * 2.0 / (2.0 + 1e-3)
    assert torch.allclose(model.pair.weight, expected, atol=1e-6)


def test_each_optimizer_is_made():
    for name, kind in (("adam", torch.optim.AdamW), ("lamb", Lamb), ("sgd", torch.optim.SGD)):
        assert isinstance(make_optimizer(Weights(toy(), options()), options(optimizer=name)), kind)
