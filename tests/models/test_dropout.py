import pytest
import torch

from megabert.models import cpu_attention
from megabert.models.attention import fused_attention
from megabert.models.cpu_attention import blocked_attention, blocked_context
from megabert.models.dropout import Dropout, byte_threshold, draw_kept, drop_and_add, dropout, kept_scale


@pytest.mark.parametrize("probability, threshold", [(0.0, 0), (0.1, 26), (0.5, 128), (1e-6, 1), (0.9999, 255)])
def test_threshold_is_the_nearest_that_still_drops_and_keeps(probability, threshold):
    assert byte_threshold(probability) == threshold


def test_share_and_expectation_are_exact():
    """4 million draws: the share kept has a standard deviation of 0.00015, and every byte of a word must be uniform."""
    torch.manual_seed(0)
    kept = draw_kept((500_000, 8), 26).float()
    assert kept.mean().item() == pytest.approx(230 / 256, abs=0.001)
    for place in range(8):
        assert kept[:, place].mean().item() == pytest.approx(230 / 256, abs=0.002)
    assert 230 / 256 * kept_scale(26) == pytest.approx(1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_gradient_goes_where_the_value_went(dtype):
    torch.manual_seed(0)
    tensor = torch.rand(40, 50, dtype=dtype).add_(0.5).requires_grad_()
    output = dropout(tensor, 0.25, True)
    output.sum().backward()
    kept = output != 0
    assert 0.7 < kept.float().mean() < 0.8
    torch.testing.assert_close(output[kept], (tensor * (4 / 3))[kept])
    assert torch.equal(tensor.grad != 0, kept)
    assert tensor.grad[kept].unique().item() == pytest.approx(4 / 3, rel=1e-2)


def test_sum_with_residual_is_the_same_as_two_steps():
    tensor = torch.randn(6, 7, requires_grad=True)
    residual = torch.randn(6, 7, requires_grad=True)
    upper = torch.randn(6, 7)
    torch.manual_seed(5)
    expected = residual + dropout(tensor, 0.3, True)
    wanted = torch.autograd.grad(expected, (tensor, residual), upper)
    torch.manual_seed(5)
    given = drop_and_add(tensor, residual, 0.3, True)
    torch.testing.assert_close(given, expected)
    for one, other in zip(torch.autograd.grad(given, (tensor, residual), upper), wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_seed_decides_and_each_call_draws_anew():
    tensor = torch.ones(100)
    torch.manual_seed(3)
    first, second = dropout(tensor, 0.5, True), dropout(tensor, 0.5, True)
    torch.manual_seed(3)
    assert torch.equal(dropout(tensor, 0.5, True), first)
    assert not torch.equal(first, second)
    state = torch.get_rng_state()
    third = dropout(tensor, 0.5, True)
    torch.set_rng_state(state)
    assert torch.equal(dropout(tensor, 0.5, True), third)


def test_nothing_happens_out_of_training_and_all_at_one():
    tensor = torch.ones(10)
    assert dropout(tensor, 0.5, False) is tensor
    assert Dropout(0.0)(tensor) is tensor
    assert dropout(tensor, 1.0, True).sum() == 0
    assert isinstance(Dropout(0.1), torch.nn.Dropout)


def make_attention_inputs(key_length=9):
    torch.manual_seed(1)
    shapes = ((2, 7, 4, 8), (2, key_length, 4, 8), (2, key_length, 4, 8))
    return [torch.randn(shape).transpose(1, 2).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("block", [1, 130, 10**6])
@pytest.mark.parametrize("mask_shape", [None, (2, 1, 1, 9), (1, 1, 7, 9), (2, 4, 7, 9)])
def test_blocks_of_any_size_give_plain_attention(monkeypatch, block, mask_shape):
    """Blocks of one head, of some heads, of all samples: value and gradients are those of the formula."""
    monkeypatch.setattr(cpu_attention, "BLOCK", block)
    query, key, value = make_attention_inputs()
    mask = None if mask_shape is None else torch.randn(mask_shape)
    scores = query @ key.transpose(-1, -2) * 0.3
    expected = (torch.softmax(scores if mask is None else scores + mask, -1) @ value).transpose(1, 2)
    given = blocked_attention(query, key, value, mask, probability=0.0, scaling=0.3)
    torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-5)
    answered = blocked_context(query, key, value, mask, scaling=0.3)
    torch.testing.assert_close(answered, expected, rtol=1e-5, atol=1e-5)
    upper = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, (query, key, value), upper)
    for one, other in zip(torch.autograd.grad(given, (query, key, value), upper), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("block", [1, 10**6])
def test_attention_dropout_is_differentiated_with_the_mask_it_drew(monkeypatch, block):
    monkeypatch.setattr(cpu_attention, "BLOCK", block)
    query, key, value = make_attention_inputs()

    def plain(query, key, value):
        kept = draw_kept((2, 4, 7, 9), byte_threshold(0.4))
        weights = torch.softmax(query @ key.transpose(-1, -2) * 0.3, -1)
        return (weights * kept * kept_scale(byte_threshold(0.4)) @ value).transpose(1, 2)

    torch.manual_seed(9)
    expected = plain(query, key, value)
    torch.manual_seed(9)
    given = blocked_attention(query, key, value, None, probability=0.4, scaling=0.3)
    torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-5)
    upper = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, (query, key, value), upper)
    for one, other in zip(torch.autograd.grad(given, (query, key, value), upper), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length", [5, 40])
def test_answers_in_bfloat16_are_those_of_float32_rounded(length):
    """Below and above the length from which blocks are the faster way; a place that is masked has no weight."""
    torch.manual_seed(2)
    query, key, value = (torch.randn(2, length, 4, 8).transpose(1, 2) for _ in range(3))
    mask = torch.zeros(2, 1, 1, length).index_fill_(3, torch.tensor([length - 1]), torch.finfo(torch.bfloat16).min)
    with torch.inference_mode():
        expected = fused_attention(query, key, value, mask, probability=0.0, scaling=0.3)
        value[:, :, -1] = 1e4
        halves = [tensor.bfloat16() for tensor in (query, key, value, mask)]
        given = fused_attention(*halves, probability=0.0, scaling=0.3)
    assert given.dtype == torch.bfloat16
    torch.testing.assert_close(given.float(), expected, rtol=0.03, atol=0.03)
