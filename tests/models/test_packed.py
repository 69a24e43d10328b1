"""A model that was packed answers as before, and float32 attention head by head is the fused kernel's."""

import pytest
import torch
import transformers

import megabert
from megabert.models import attention
from megabert.models.attention import fused_attention
from megabert.models.bert import packed
from megabert.models.bert.packed import PackedLinear, pack
from megabert.models.cpu_linear import has_product

needs_onednn = pytest.mark.skipif(not has_product(torch.float32), reason="this PyTorch has no oneDNN")


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
def test_heads_one_by_one_attend_as_the_fused_kernel_does(monkeypatch):
    query, key, value = (
        drawn(2, 3, 130 + shift, 8).transpose(1, 2).contiguous().transpose(1, 2) for shift in (0, 9, 9)
    )
    mask = torch.zeros(2, 1, 1, 139).masked_fill_(torch.arange(139) > 100, torch.finfo(torch.float32).min)
    mask[1] = 0
    found = []
    for has in (False, True):
        monkeypatch.setattr(attention, "has_product", lambda _, has=has: has)
        for given in (None, mask):
            found.append(fused_attention(query, key, value, given, probability=0.0, scaling=0.3))
    torch.testing.assert_close(found[:2], found[2:], rtol=1e-5, atol=1e-5)
    assert not torch.equal(found[2], found[3])


@needs_onednn
@pytest.mark.parametrize("name", ["MegatronBertForSequenceClassification", "MegatronBertForPreTraining"])
def test_a_packed_model_answers_as_before(name):
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


@pytest.mark.skipif(not has_product(torch.bfloat16), reason="no bfloat16 here")
@pytest.mark.parametrize("act", ["gelu", "gelu_new", "relu"])
def test_a_packed_half_model_answers_as_before(act):
    network = model(hidden_act=act).bfloat16()
    with torch.inference_mode():
        before = network(**rows()).logits.float()
        pack(network)
        after = network(**rows()).logits
    assert after.dtype == torch.bfloat16 == network.bert.encoder.dtype
    torch.testing.assert_close(after.float(), before, rtol=0.05, atol=0.05)


def test_without_onednn_nothing_is_packed(monkeypatch):
    monkeypatch.setattr(packed, "has_product", lambda _: False)
    network = model()
    pack(network)
    assert not any(isinstance(module, PackedLinear) for module in network.modules())
