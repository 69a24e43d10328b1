"""Results made again on the way back: the gradients are those of results that were kept, and less is kept."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from megabert.models import remade as room
from megabert.models.bert.config import make_config
from megabert.models.bert.layers import LayerNorm, MegatronBertLayer
from megabert.models.cpu_linear import Linear, has_product
from megabert.models.options import ModelOptions
from megabert.models.remade import remade

pytestmark = pytest.mark.skipif(not has_product(torch.float32), reason="needs oneDNN's product, which reads the marks")


def layer():
    torch.manual_seed(0)
    sizes = ModelOptions(num_layers=1, hidden_size=32, num_attention_heads=2, max_position_embeddings=16)
    return MegatronBertLayer(make_config(sizes, 50), 0).train()


def gradients(module, hidden, parameters=None):
    torch.manual_seed(1)
    output = module(hidden)[0]
    weights = module.parameters() if parameters is None else parameters
    return output, torch.autograd.grad(output, [hidden, *weights], torch.ones_like(output))


def kept_bytes(module, hidden):
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = module(hidden)[0]
    assert output.requires_grad
    return sum(storages.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_the_same_and_less_is_kept(monkeypatch, dtype):
    if not has_product(dtype):
        pytest.skip("this processor has no bfloat16 product")
    module = layer().to(dtype)
    hidden = torch.randn(2, 16, 32).to(dtype).requires_grad_()
    expected, wanted = gradients(module, hidden)
    whole = kept_bytes(module, hidden)
    monkeypatch.setattr(room, "NARROWEST", 1)
    found, given = gradients(module, hidden)
    assert torch.equal(found, expected)
    for one, other in zip(given, wanted, strict=True):
        assert torch.equal(one, other)
    # Two normed inputs of the width, and one activation of four times that.
    assert whole - kept_bytes(module, hidden) == 6 * hidden.numel() * hidden.element_size()


def chain(monkeypatch):
    monkeypatch.setattr(room, "NARROWEST", 1)
    torch.manual_seed(2)
    return LayerNorm(8), [Linear(8, 5), Linear(8, 3)], torch.randn(16, 8, requires_grad=True)


def test_one_making_serves_all_readers_also_twice(monkeypatch):
    norm, readers, tensor = chain(monkeypatch)
    made = []
    monkeypatch.setattr(LayerNorm, "_again", lambda self, *sources: made.append(1) or nn.functional.layer_norm(
        sources[0], (8,), *sources[1:], self.eps
    ))  # fmt: skip
    normed = norm(tensor)
    total = sum(reader(normed).square().sum() for reader in readers)
    total.backward(retain_graph=True)
    assert len(made) == 1
    first = tensor.grad.clone()
    total.backward()
    torch.testing.assert_close(tensor.grad, 2 * first)


def test_the_gradient_has_a_gradient(monkeypatch):
    norm, (reader, _), tensor = chain(monkeypatch)

    def second(width):
        monkeypatch.setattr(room, "NARROWEST", width)
        (first,) = torch.autograd.grad(reader(norm(tensor)).pow(3).sum(), reader.weight, create_graph=True)
        return torch.autograd.grad(first.square().sum(), (tensor, reader.weight))

    for one, other in zip(second(1), second(10**6), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_layers_that_are_computed_again_make_their_results_again_too(monkeypatch):
    monkeypatch.setattr(room, "NARROWEST", 1)
    module, hidden = layer(), torch.randn(2, 16, 32, requires_grad=True)
    _, wanted = gradients(module, hidden)
    _, given = gradients(lambda inputs: checkpoint(module, inputs, use_reentrant=False), hidden, module.parameters())
    for one, other in zip(given, wanted, strict=True):
        assert torch.equal(one, other)


def test_a_result_that_was_changed_is_kept(monkeypatch):
    norm, (reader, _), tensor = chain(monkeypatch)
    normed = norm(tensor)
    normed.mul_(2.0)
    reader(normed).sum().backward()
    expected = (2 * norm(tensor)).detach().sum(0).expand(5, 8)
    torch.testing.assert_close(reader.weight.grad, expected)


def test_no_mark_without_a_way_back_or_in_a_narrow_network(monkeypatch):
    norm, _, tensor = chain(monkeypatch)
    with torch.no_grad():
        assert not hasattr(norm(tensor), "recipe")
    assert hasattr(norm(tensor), "recipe")
    assert not hasattr(remade(norm(tensor) * 1, 0, torch.sin, tensor), "recipe")
