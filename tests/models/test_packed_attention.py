"""Attention on packed rows by borders in place of a mask: on a CPU with doubles of the kernels, on a GPU with them."""

import sys
import types

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import varlen

from megabert.models import attention, masks
from megabert.models.masks import PackedRows, own_mask, packed_rows
from megabert.models.packed_attention import by_operator, by_varlen, packed_context

from .test_behaviour import VOCABULARY, assert_near, gradients, make

without_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

# Rows of 3, 1 and 2 samples; the second is full, the others end in padding.
SAMPLES = torch.tensor([[1] * 4 + [2] * 3 + [3] * 4 + [0], [1] * 12, [1] * 2 + [2] * 8 + [0] * 2])
STARTS = torch.tensor([[0, 4, 7], [0, 0, 0], [0, 2, 0]])
PLACES = torch.tensor([[1, 5, 8], [2, 3, 11], [1, 4, 0]])


def batch():
    ids = torch.randint(1, VOCABULARY, SAMPLES.shape, generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "sample_ids": SAMPLES, "sample_starts": STARTS, "masked_positions": PLACES}


def plain(query, key, value, borders, other_borders, longest, other_longest, **settings):
    """Sample by sample, as the varlen kernels compute."""
    assert borders.dtype == torch.int32 and torch.equal(borders, other_borders)
    assert borders[0] == 0 and borders[-1] == len(query) and longest == other_longest
    scaling = settings.get("softmax_scale", query.shape[-1] ** -0.5)
    parts = []
    for begin, end in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
        assert end - begin <= longest
        one = [tensor[begin:end].transpose(0, 1) for tensor in (query, key, value)]
        weights = torch.softmax(one[0] @ one[1].transpose(1, 2) * scaling, dim=-1)
        parts.append((weights @ one[2]).transpose(0, 1))
    return torch.cat(parts)


@pytest.fixture
def served(monkeypatch):
    """As if the kernels served every device and format."""
    monkeypatch.setattr(attention, "kernels_take", lambda *_: True)


@pytest.fixture(params=["package", "varlen"])
def way(request, served, monkeypatch):
    """A way to the kernel, with a double in the kernel's place; counts its calls."""
    calls = []

    def counted(*arguments, **settings):
        calls.append(settings)
        return plain(*arguments, **settings)

    package = types.ModuleType("flash_attn")
    package.flash_attn_varlen_func = counted
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setattr(varlen, "varlen_attn", counted)
    monkeypatch.setattr(attention, "is_flash_attn_2_available", lambda: request.param == "package")
    return calls


def results(model, inputs):
    model.zero_grad(set_to_none=True)
    outputs = model(**inputs)
    (outputs.prediction_logits.square().mean() + outputs.seq_relationship_logits.square().mean()).backward()
    return [outputs.prediction_logits, outputs.seq_relationship_logits, gradients(model)]


@pytest.mark.parametrize("captured", [False, True], ids=["eager", "captured"])
def test_borders_give_the_numbers_of_the_mask(way, monkeypatch, captured):
    model = make(num_hidden_layers=3)
    with monkeypatch.context() as without:
        without.setattr(attention, "kernels_take", lambda *_: False)
        expected = results(model, batch())
    assert not way
    if captured:
        monkeypatch.setattr(masks, "is_tracing", lambda *_: True)
    given = results(model, batch())
    # The last layer asks at a few places only, under a mask of these.
    assert len(way) == 2
    assert_near(given, expected)


@pytest.mark.parametrize("way", ["package"], indirect=True)
def test_dropout_and_scale_reach_the_package(way):
    query = torch.randn(1, 2, 4, 8)
    borders = torch.tensor([0, 3, 4], dtype=torch.int32)
    packed_context(
        attention.packed_kernel(0.25, 0.5, 8), query, query, query, borders=borders, probability=0.25, scaling=0.5
    )
    assert way == [{"dropout_p": 0.25, "softmax_scale": 0.5}]


def test_what_the_public_kernel_lacks_takes_the_operator(monkeypatch):
    monkeypatch.setattr(attention, "is_flash_attn_2_available", lambda: False)
    chosen = [attention.packed_kernel(p, scaling, 64) for p, scaling in ((0.0, 0.125), (0.1, 0.125), (0.0, 0.2))]
    assert chosen == [by_varlen, by_operator, by_operator]


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_pytorch_takes_the_arguments_and_nothing_waits_for_the_device(served, monkeypatch, dropout):
    """Tensors without numbers: whatever asked for one on the host would raise, and so would a foreign signature."""
    monkeypatch.setattr(attention, "is_flash_attn_2_available", lambda: False)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = make(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout).train()
        outputs = model(**{key: torch.empty_like(value) for key, value in batch().items()})
        (outputs.prediction_logits.sum() + outputs.seq_relationship_logits.sum()).backward()
        assert model.bert.encoder.layer[0].attention.self.query.weight.grad.shape == (32, 32)


def test_borders_are_where_samples_begin():
    rows = packed_rows(SAMPLES, None, dtype=torch.float32)
    assert isinstance(rows, PackedRows)
    found = [0, 4, 7, 11, 12, 24, 26, 34, 36]  # 4 + 1 + 3 samples, padding counted
    assert rows.borders.tolist() == found
    assert rows.borders.dtype == torch.int32
    with masks.numbers_unasked():
        # Room for 3 and padding in each of the 3 rows: the shape must not depend on the numbers.
        assert packed_rows(SAMPLES, 3, dtype=torch.float32).borders.tolist() == [*found, *[36] * 4]


def test_full_rows_of_one_sample_need_nothing():
    ones = torch.ones(2, 6, dtype=torch.long)
    assert packed_rows(ones, 1, dtype=torch.float32) is None
    with masks.numbers_unasked():
        assert packed_rows(ones, 1, dtype=torch.float32).borders.tolist() == [0, 6, 12, 12, 12]


def test_a_sample_in_pieces_has_a_mask():
    scattered = torch.tensor([[1, 2, 1, 1], [1, 1, 2, 2]])
    mask = packed_rows(scattered, 2, dtype=torch.float32)
    expected = own_mask(
        None, scattered, query_length=4, past_length=0, causal=False, dtype=torch.float32, device=scattered.device
    )
    assert torch.equal(mask, expected)


def test_while_captured_the_number_of_samples_must_be_told(monkeypatch):
    monkeypatch.setattr(masks, "is_tracing", lambda *_: True)
    assert isinstance(packed_rows(SAMPLES, None, dtype=torch.float32), torch.Tensor)
    with pytest.raises(RuntimeError, match="more samples"):
        packed_rows(SAMPLES, 2, dtype=torch.float32)
    with pytest.raises(RuntimeError, match="in pieces"):
        packed_rows(torch.tensor([[1, 2, 1, 1]]), 3, dtype=torch.float32)


@pytest.mark.parametrize(
    "changes", [{"kernel": "eager"}, {"name": "MegatronBertForCausalLM", "is_decoder": True}], ids=["eager", "causal"]
)
def test_other_kernels_and_decoders_keep_their_masks(way, changes):
    inputs = {key: value for key, value in batch().items() if key in ("input_ids", "sample_ids")}
    make(**changes)(**inputs)
    assert not way


@pytest.fixture
def on_a_gpu():
    torch.manual_seed(5)
    shape = (len(SAMPLES), 4, SAMPLES.shape[1], 64)
    tensors = [torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    return tensors, packed_rows(SAMPLES.cuda(), None, dtype=torch.bfloat16)


@pytest.mark.parametrize("kernel", ["package", "varlen", "operator"])
@pytest.mark.gpu
@without_gpu
def test_the_kernels_give_the_numbers_of_the_mask(on_a_gpu, kernel):
    tensors, rows = on_a_gpu
    if kernel == "package":
        pytest.importorskip("flash_attn", reason="needs the package flash-attn")
    chosen = {"package": attention.by_package, "varlen": by_varlen, "operator": by_operator}[kernel]
    context = packed_context(chosen, *tensors, borders=rows.borders, probability=0.0, scaling=0.125)
    own = torch.autograd.grad(context.square().sum(), tensors)
    mask = masks.additive(masks.same_sample(SAMPLES.cuda()), torch.bfloat16)
    expected = attention.fused_attention(*tensors, mask, probability=0.0, scaling=0.125)
    assert_near(context, expected, 2e-2)
    for given, wanted in zip(own, torch.autograd.grad(expected.square().sum(), tensors), strict=True):
        assert_near(given, wanted, 5e-2)


@pytest.mark.gpu
@without_gpu
def test_the_operator_drops_weights_and_keeps_the_mean():
    samples = torch.arange(8, device="cuda").repeat_interleave(64)[None] + 1
    rows = packed_rows(samples, None, dtype=torch.bfloat16)
    query = torch.zeros(1, 16, 512, 64, device="cuda", dtype=torch.bfloat16)
    ones = torch.ones_like(query)
    context = packed_context(
        by_operator, query, query, ones, borders=rows.borders, probability=0.1, scaling=0.125
    ).float()
    # Sums of 64 equal weights, each there with probability 0.9 and scaled by 1 / 0.9.
    assert context.std() > 0.02 and abs(context.mean() - 1) < 0.01


@pytest.mark.gpu
@without_gpu
def test_a_model_on_a_gpu_takes_borders(monkeypatch):
    inputs = {key: value.cuda() for key, value in batch().items()}
    model = make(hidden_size=64, num_attention_heads=4, num_hidden_layers=3).cuda().bfloat16()
    given = model(**inputs).prediction_logits
    monkeypatch.setattr(attention, "kernels_take", lambda *_: False)
    assert_near(given, model(**inputs).prediction_logits, 5e-2)
