"""Products by oneDNN are PyTorch's own, forward and backward, packed or not; whose processor gets them."""

import pytest
import torch
import transformers

import megabert
from megabert.models import linear
from megabert.models.attention import fused_attention
from megabert.models.bert import packed
from megabert.models.bert.packed import PackedLinear, pack

ONEDNN = torch.backends.mkldnn.is_available()
needs_onednn = pytest.mark.skipif(not ONEDNN, reason="this PyTorch has no oneDNN")


@pytest.fixture
def served(monkeypatch):
    """A processor that MKL does not serve, whatever this one is."""
    monkeypatch.setattr(linear, "foreign_to_mkl", lambda: True)
    monkeypatch.setattr(packed, "foreign_to_mkl", lambda: True)


@pytest.fixture
def unserved(monkeypatch):
    monkeypatch.setattr(linear, "foreign_to_mkl", lambda: False)
    monkeypatch.setattr(packed, "foreign_to_mkl", lambda: False)


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def model(name="MegatronBertForSequenceClassification", **changes):
    torch.manual_seed(0)
    config = transformers.MegatronBertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=160, initializer_range=0.2, **changes,
    )  # fmt: skip
    return getattr(megabert, name)(config).eval()


def rows(length=140):
    """Two rows, the second one shorter."""
    ids = torch.randint(1, 60, (2, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, length // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 5, 24), (7, 24), (24,), (1, 1, 24)])
def test_values_and_gradients_are_those_of_pytorch(served, shape, bias):
    inputs = [drawn(*shape), drawn(40, 24), drawn(40)][: 3 if bias else 2]
    upper = drawn(*shape[:-1], 40)
    found = []
    for function in (linear.linear, torch.nn.functional.linear):
        leaves = [one.clone().requires_grad_() for one in inputs]
        result = function(*leaves, *([] if bias else [None]))
        found.append([result.detach(), *torch.autograd.grad(result, leaves, upper)])
        used = type(result.grad_fn).__name__
        assert ("_Linear" in used) == (function is linear.linear)
    for ours, theirs in zip(*found, strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@needs_onednn
def test_a_frozen_weight_or_input_gets_no_gradient(served):
    weight, input = drawn(40, 24), drawn(6, 24).requires_grad_()
    linear.linear(input, weight, None).sum().backward()
    torch.testing.assert_close(input.grad, weight.sum(0).expand(6, 24), rtol=1e-5, atol=1e-5)
    weight.requires_grad_()
    result = linear.linear(input.detach(), weight, None)
    result.sum().backward()
    torch.testing.assert_close(weight.grad, input.detach().sum(0).expand(40, 24), rtol=1e-5, atol=1e-5)


@needs_onednn
def test_other_formats_empty_batches_and_autocast_are_pytorchs(served):
    weight = drawn(40, 24)
    assert not linear.served(drawn(3, 24).double(), weight.double())
    assert not linear.served(drawn(3, 24).bfloat16(), weight.bfloat16())
    assert linear.linear(torch.zeros(0, 24), weight, None).shape == (0, 40)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear.linear(drawn(3, 24), weight, None).dtype == torch.bfloat16
    with torch.backends.mkldnn.flags(enabled=False):
        assert not linear.served(drawn(3, 24), weight)
    assert linear.served(drawn(3, 24), weight)


def test_the_maker_of_the_processor_decides(tmp_path):
    facts = tmp_path / "cpuinfo"
    facts.write_text("processor\t: 0\nvendor_id\t: AuthenticAMD\n")
    assert linear._by_other_maker(facts, "")
    facts.write_text("processor\t: 0\nvendor_id\t: GenuineIntel\n")
    assert not linear._by_other_maker(facts, "")
    assert linear._by_other_maker(tmp_path / "none", "AMD64 Family 26 Model 2 Stepping 1, AuthenticAMD")
    assert not linear._by_other_maker(tmp_path / "none", "")


@needs_onednn
def test_a_training_step_has_the_gradients_of_pytorchs_products(monkeypatch):
    found = []
    for foreign in (False, True):
        monkeypatch.setattr(linear, "foreign_to_mkl", lambda foreign=foreign: foreign)
        network = model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
        loss = network(**rows(), labels=torch.tensor([0, 1])).loss
        loss.backward()
        found.append((loss.detach(), {name: one.grad for name, one in network.named_parameters()}))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


@needs_onednn
def test_heads_one_by_one_attend_as_the_fused_kernel_does(monkeypatch):
    query, key, value = (
        drawn(2, 3, 130 + shift, 8).transpose(1, 2).contiguous().transpose(1, 2) for shift in (0, 9, 9)
    )
    mask = torch.zeros(2, 1, 1, 139).masked_fill_(torch.arange(139) > 100, torch.finfo(torch.float32).min)
    mask[1] = 0
    found = []
    for foreign in (False, True):
        monkeypatch.setattr(linear, "foreign_to_mkl", lambda foreign=foreign: foreign)
        for given in (None, mask):
            found.append(fused_attention(query, key, value, given, probability=0.0, scaling=0.3))
    torch.testing.assert_close(found[:2], found[2:], rtol=1e-5, atol=1e-5)
    assert not torch.equal(found[2], found[3])


@needs_onednn
@pytest.mark.parametrize("name", ["MegatronBertForSequenceClassification", "MegatronBertForPreTraining"])
def test_a_packed_model_answers_as_before(served, name):
    network = model(name)
    with torch.inference_mode():
        before = network(**rows())[0]
        pack(network)
        kinds = [type(module) for module in network.modules()]
        assert kinds.count(PackedLinear) >= 2 * 6, "all matrices of both layers"
        torch.testing.assert_close(network(**rows())[0], before, rtol=1e-4, atol=1e-5)
    if name == "MegatronBertForPreTraining":
        decoder = network.cls.predictions.decoder
        assert decoder.weight is network.bert.embeddings.word_embeddings.weight, "the tied table is not copied"


@pytest.mark.skipif(not ONEDNN or not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="no bfloat16 here")
@pytest.mark.parametrize("act", ["gelu", "gelu_new", "relu"])
def test_a_packed_half_model_answers_as_before(act):
    network = model(hidden_act=act).bfloat16()
    with torch.inference_mode():
        before = network(**rows()).logits.float()
        pack(network)
        after = network(**rows()).logits
    assert after.dtype == torch.bfloat16 == network.bert.encoder.dtype
    torch.testing.assert_close(after.float(), before, rtol=0.05, atol=0.05)


def test_where_pytorch_is_as_fast_nothing_is_packed(unserved):
    network = model()
    pack(network)
    assert not any(isinstance(module, PackedLinear) for module in network.modules())
