import pytest
import torch
from torch import nn

from megabert.training.precision import Weights, half_of

from .toy import ToyRows, options, toy


def run(model):
    row = {key: torch.from_numpy(value)[None] for key, value in ToyRows(1)[0].items()}
    return model(**{key: row[key] for key in ("input_ids", "token_type_ids", "sample_ids", "masked_positions")})


def test_float32_has_no_copies():
    model = toy()
    before = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    weights = Weights(model, options())
    assert {name: master.data_ptr() for name, master in weights.masters.items()} == before


def test_half_weights_are_rounded_masters_and_ties_stay():
    model = toy()
    exact = model.dense.weight.detach().clone()
    weights = Weights(model, options(bf16=True))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.decoder.weight is model.word_embeddings.weight
    assert torch.equal(weights.masters["dense.weight"], exact)
    with torch.no_grad():
        weights.masters["dense.weight"].add_(1.0)
    weights.publish()
    assert torch.equal(model.dense.weight, (exact + 1.0).bfloat16())


@pytest.mark.parametrize("half", ["bf16", "fp16"])
@pytest.mark.parametrize(
    ("flags", "whole"),
    [
        ({"fp32_layernorm": True}, {"norm.weight", "norm.bias"}),
        ({"fp32_tokentypes": True}, {"token_type_embeddings.weight"}),
        # The vocabulary head is tied to the table, so that its bias goes with it.
        ({"fp32_embedding": True}, {"word_embeddings.weight", "token_type_embeddings.weight", "decoder.bias"}),
    ],
)
def test_flags_keep_their_weights_in_float32_and_the_model_runs(half, flags, whole):
    model = toy()
    expected = [output.detach() for output in run(model.eval())]
    weights = Weights(model, options(**{half: True}, **flags))
    assert {name for name, parameter in model.named_parameters() if parameter.dtype == torch.float32} == whole
    for name in whole:
        assert weights.masters[name] is dict(model.named_parameters())[name]
    outputs = run(model)
    sum(output.float().sum() for output in outputs).backward()
    for output, near in zip(outputs, expected, strict=True):
        assert torch.allclose(output.float(), near, atol=0.15)


def test_the_sum_of_embeddings_is_rounded_once():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.places = nn.Embedding(5, 4), nn.Embedding(5, 4)

        def forward(self, ids):
            return self.words(ids) + self.places(ids)

    model = nn.Sequential(Sum(), nn.Linear(4, 4))
    ids = torch.tensor([1, 2])
    exact = model[0](ids)
    Weights(model, options(bf16=True, fp32_embedding=True))
    assert torch.equal(model[0](ids), exact.bfloat16())
    assert model(ids).dtype == torch.bfloat16


def test_gradients_are_added_up_in_float32():
    model = nn.Linear(1, 1, bias=False)
    weights = Weights(model, options(bf16=True))
    for index, gradient in enumerate((256.0, 1.0, 1.0)):
        model.weight.grad = torch.full((1, 1), gradient, dtype=torch.bfloat16)
        weights.collect(first=index == 0)
        assert model.weight.grad is None
    # In bfloat16, 256 + 1 is 256.
    assert weights.gradients()[0].item() == 258.0


def test_a_weight_without_gradient_does_not_keep_the_last_one():
    model = nn.ModuleList([nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)])
    weights = Weights(model, options(bf16=True))
    for used in ((0, 1), (0,)):
        for index in used:
            model[index].weight.grad = torch.ones(1, 1, dtype=torch.bfloat16)
        weights.collect(first=True)
    assert len(weights.gradients()) == 1


def test_frozen_weights_are_stored_but_not_trained():
    model = toy()
    model.pair.weight.requires_grad_(False)
    weights = Weights(model, options(bf16=True))
    assert "pair.weight" not in weights.masters and "pair.weight" in weights.state()
    assert model.pair.weight.dtype == torch.bfloat16


def test_state_round_trip():
    first, second = Weights(toy(seed=1), options(bf16=True)), Weights(toy(seed=2), options(bf16=True))
    second.load({name: tensor.clone() for name, tensor in first.state().items()})
    for name, tensor in first.state().items():
        assert torch.equal(second.state()[name], tensor) and tensor.dtype == torch.float32
    assert torch.equal(second.model.dense.weight, first.model.dense.weight)


def test_the_state_dict_is_exact_and_has_the_tied_names():
    model = toy(seed=1)
    exact = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = Weights(model, options(bf16=True)).state_dict()
    assert set(found) == set(exact) and "decoder.weight" in found
    for name, tensor in exact.items():
        assert torch.equal(found[name], tensor), name
    toy(seed=2).load_state_dict(found)


def test_both_half_formats_are_refused():
    with pytest.raises(ValueError, match="exclude each other"):
        half_of(options(fp16=True, bf16=True))
