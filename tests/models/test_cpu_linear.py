"""Products with a bias on a CPU: PyTorch's own are the measure."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers.activations import GELUActivation

from megabert.models import cpu_linear
from megabert.models.bert.layers import MegatronBertIntermediate
from megabert.models.cpu_linear import Linear, linear

FITS = cpu_linear.has_product(torch.float32)


@pytest.fixture
def products(monkeypatch) -> list[torch.Size]:
    """Shapes of the inputs that went into oneDNN's product."""
    seen = []
    product = cpu_linear.product

    def counted(left: Tensor, right: Tensor, bias: Tensor | None = None, activation: str = "none") -> Tensor:
        seen.append(left.shape)
        return product(left, right, bias, activation)

    monkeypatch.setattr(cpu_linear, "product", counted)
    return seen


def arguments(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = ((2, 8, 24), (40, 24), (40,))
    return tuple(torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes)  # type: ignore


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_result_and_gradients_are_those_of_pytorch(dtype, tolerance, products):
    given = arguments(dtype)
    found, wanted = linear(*given), nn.functional.linear(*given)
    assert bool(products) == cpu_linear.has_product(dtype)
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
    upper = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(4)).to(dtype)
    for own, other in zip(
        torch.autograd.grad(found, given, upper), torch.autograd.grad(wanted, given, upper), strict=True
    ):
        torch.testing.assert_close(own, other, rtol=tolerance, atol=tolerance * 4)
    with torch.no_grad():
        torch.testing.assert_close(linear(*given), wanted, rtol=tolerance, atol=tolerance)


def test_the_gradient_has_a_gradient():
    given = arguments()
    found = []
    for function in (linear, nn.functional.linear):
        (slope,) = torch.autograd.grad(function(*given).square().sum(), given[:1], create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), given))
    for own, other in zip(*found, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-2)


def test_transforms_of_functions_pass_through():
    input, weight, bias = (tensor.detach() for tensor in arguments())

    def total(weight: Tensor) -> Tensor:
        return linear(input, weight, bias).square().sum()

    def plain(weight: Tensor) -> Tensor:
        return nn.functional.linear(input, weight, bias).square().sum()

    torch.testing.assert_close(torch.func.grad(total)(weight), torch.func.grad(plain)(weight), rtol=1e-5, atol=1e-3)
    along = torch.func.jvp(total, (weight,), (weight,))[1]
    torch.testing.assert_close(along, torch.func.jvp(plain, (weight,), (weight,))[1], rtol=1e-5, atol=1e-2)
    per_row = torch.func.vmap(lambda row: linear(row, weight, bias))(input)
    torch.testing.assert_close(per_row, nn.functional.linear(input, weight, bias), rtol=1e-5, atol=1e-5)


def test_autocast_and_other_types_are_left_to_pytorch(products):
    input, weight, bias = arguments()
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(input, weight, bias).dtype == torch.bfloat16
    assert linear(input.double(), weight.double(), bias.double()).dtype == torch.float64
    assert linear(input[:0], weight, bias).shape == (0, 8, 40)
    assert linear(input[:1, :3], weight, bias).shape == (1, 3, 40)
    assert linear(input, weight, None).shape == (2, 8, 40)
    assert not products


def test_a_part_of_a_tensor_and_frozen_weights(products):
    input, weight, bias = arguments()
    layer = Linear(24, 40)
    layer.load_state_dict({"weight": weight.detach(), "bias": bias.detach()})
    layer.requires_grad_(False)
    wide = torch.cat([input, input], dim=-1).detach()[..., 12:36].requires_grad_()
    layer(wide).sum().backward()
    assert wide.grad is not None
    torch.testing.assert_close(wide.grad, weight.detach().sum(0).expand_as(wide), rtol=1e-5, atol=1e-4)
    assert layer.weight.grad is None
    assert len(products) == 2 * FITS  # there, and back to the input alone


def intermediate(act: str = "gelu") -> MegatronBertIntermediate:
    torch.manual_seed(5)
    return MegatronBertIntermediate(
        transformers.MegatronBertConfig(hidden_size=24, intermediate_size=40, num_attention_heads=2, hidden_act=act)
    )


@pytest.mark.parametrize("act", ["gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_python", "relu"])
def test_an_answering_mlp_gives_what_a_learning_one_gives(act, products):
    mlp, (input, _, _) = intermediate(act), arguments()
    wanted = mlp(input)
    del products[:]
    with torch.inference_mode():
        torch.testing.assert_close(mlp(input), wanted.detach(), rtol=1e-5, atol=1e-6)
    assert len(products) == FITS
    assert (wanted.detach() < 0).any() == (act != "relu")


@pytest.mark.parametrize("place", ["dense", "intermediate_act_fn"])
@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_of_an_answering_mlp_see_what_is_before_the_gelu(place, kind):
    mlp, (input, _, _) = intermediate(), arguments()
    seen: list[Tensor] = []
    getattr(getattr(mlp, place), kind)(lambda _module, given, *made: seen.append(made[0] if made else given[0]))
    with torch.no_grad():
        result, projected = mlp(input), nn.functional.linear(input, mlp.dense.weight, mlp.dense.bias)
    is_before_the_product = (place, kind) == ("dense", "register_forward_pre_hook")
    is_after_the_gelu = (place, kind) == ("intermediate_act_fn", "register_forward_hook")
    wanted = input if is_before_the_product else result if is_after_the_gelu else projected
    torch.testing.assert_close(seen, [wanted], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("place", ["dense", "intermediate_act_fn"])
def test_what_is_put_in_the_place_of_a_forward_is_called(place):
    mlp, (input, _, _) = intermediate(), arguments()
    module = getattr(mlp, place)
    forward = module.forward
    with torch.no_grad():
        wanted = mlp.intermediate_act_fn(mlp.dense(input) * 0.5) if place == "dense" else mlp(input) * 0.5
        module.forward = lambda given: forward(given) * 0.5
        torch.testing.assert_close(mlp(input), wanted, rtol=1e-5, atol=1e-6)


def test_hooks_of_all_modules_see_each_call():
    mlp, (input, _, _) = intermediate(), arguments()
    seen: list[nn.Module] = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        with torch.no_grad():
            mlp(input)
    finally:
        handle.remove()
    assert seen == [mlp.dense, mlp.intermediate_act_fn, mlp]


def test_its_operations_are_counted():
    mlp, (input, _, _) = intermediate(), arguments()
    for learning in (False, True):
        with torch.set_grad_enabled(learning), FlopCounterMode(display=False) as counter:
            mlp(input)
        assert counter.get_total_flops() == 2 * 16 * 24 * 40


def test_another_kind_of_gelu_is_called():
    class Half(GELUActivation):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * 0.5

    mlp, (input, _, _) = intermediate(), arguments()
    with torch.no_grad():
        wanted = mlp(input) * 0.5
        mlp.intermediate_act_fn = Half()
        torch.testing.assert_close(mlp(input), wanted, rtol=1e-5, atol=1e-6)
