"""Softmax in bfloat16 by other ways than PyTorch's own, at all lengths of rows."""

import pytest
import torch

from megabert.models.cpu_softmax import AT_ONCE, softmax_gradient, softmax_into

KEYS = [1, 2, 15, 16, 31, 32, 33, 64, 115]


@pytest.mark.parametrize("keys", KEYS)
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32, torch.float16])
def test_it_is_softmax_rounded_once(keys, kind):
    generator = torch.Generator().manual_seed(keys)
    scores = torch.randn(3, 2, 5, keys, generator=generator).mul_(4).to(kind)
    scores[0, ..., keys // 2 + 1 :] = torch.finfo(kind).min  # padding
    upper = torch.randn(3, 2, 5, keys, generator=generator).to(kind)
    exact = torch.softmax(scores.double(), dim=-1)
    place = torch.full((4, *scores.shape[1:]), torch.nan, dtype=kind)
    found = softmax_into(scores, place[1:])
    assert found.data_ptr() == place[1:].data_ptr() and place[0].isnan().all()
    near = {torch.bfloat16: 2**-8, torch.float16: 2**-10, torch.float32: 1e-6}[kind]
    torch.testing.assert_close(found.double(), exact, rtol=1.01 * near, atol=1e-6)
    assert not found[0, ..., keys // 2 + 1 :].any()
    weights, gradient = found.double(), softmax_gradient(upper, found)
    expected = weights * (upper.double() - (upper.double() * weights).sum(-1, keepdim=True))
    assert gradient.dtype == kind and gradient.is_contiguous()
    torch.testing.assert_close(gradient.double(), expected, rtol=4 * near, atol=4 * near)


def test_rows_beyond_one_piece():
    scores = torch.randn(2 * AT_ONCE // 33 + 7, 33, generator=torch.Generator().manual_seed(1)).bfloat16()
    found = softmax_into(scores, torch.empty_like(scores))
    torch.testing.assert_close(found, torch.softmax(scores.float(), dim=-1).bfloat16(), rtol=0, atol=0)
