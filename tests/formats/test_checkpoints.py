import dataclasses
import json

import made
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import megabert
from megabert.formats import checkpoints, megatron_core_write, megatron_write, nemo_write, verify

HEADS = [("lm_head", "binary_head", "pooler", "tokentypes"), ("lm_head",), ("lm_head", "tokentypes"), ("pooler",),
         ("binary_head", "pooler", "tokentypes"), ("lm_head", "pooler", "tokentypes")]  # fmt: skip
TARGETS = {
    "huggingface": lambda ranks: {"shard_bytes": 5_000},
    "megatron": lambda ranks: {"layout": megatron_write.Layout(tensor=ranks, pipeline=2, divisible_by=8)},
    "megatron-core": lambda ranks: {"layout": megatron_core_write.Layout(tensor=ranks, divisible_by=8)},
    "nemo": lambda ranks: {"layout": nemo_write.Layout(tensor=ranks, divisible_by=8)},
}


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(list(TARGETS)), st.sampled_from(list(TARGETS)), st.sampled_from(HEADS),
       st.sampled_from([torch.float32, torch.float16, torch.bfloat16]), st.sampled_from([1, 2, 4]),
       st.integers(3, 40), st.integers(0, 99))  # fmt: skip
def test_every_pair_of_formats_round_trips_bit_for_bit(tmp_path, first, second, parts, dtype, ranks, vocabulary, seed):
    weights = made.weights(dtype=dtype, parts=parts, vocabulary=vocabulary, seed=seed)
    source = made.checkpoint(weights)
    one, two = tmp_path / ("a.nemo" if first == "nemo" else "a"), tmp_path / ("b.nemo" if second == "nemo" else "b")
    checkpoints.save_checkpoint(source, one, format=first, overwrite=True, **TARGETS[first](ranks))
    assert checkpoints.find_format(one) == first
    between = checkpoints.open_checkpoint(one, heads=4)
    made.assert_equal(between.tensors, weights)
    checkpoints.save_checkpoint(between, two, format=second, overwrite=True, **TARGETS[second](3 - min(ranks, 2)))
    found = checkpoints.open_checkpoint(two, heads=4)
    made.assert_equal(found.tensors, weights)
    for name in ("vocab_size", "num_attention_heads", "layer_norm_eps", "hidden_act", "intermediate_size"):
        assert found.config[name] == source.config[name], name
    assert found.parts == source.parts


def test_the_optimizers_state_goes_with_the_weights(tmp_path):
    weights = made.weights(layers=4)
    source = made.checkpoint(weights, optimizer=True, training={"iteration": 7})
    checkpoints.save_checkpoint(source, tmp_path / "a", format="megatron",
                                layout=megatron_write.Layout(tensor=2, pipeline=2))  # fmt: skip
    between = checkpoints.open_checkpoint(tmp_path / "a")
    checkpoints.save_checkpoint(between, tmp_path / "b", format="megatron",
                                layout=megatron_write.Layout(tensor=4, era="v1"))  # fmt: skip
    found = checkpoints.open_checkpoint(tmp_path / "b")
    made.assert_equal(found.optimizer, made.loaded(source.optimizer))
    assert not checkpoints.open_checkpoint(tmp_path / "b", optimizer=False).optimizer


def test_the_vocabulary_is_cut_and_never_loses_entries(tmp_path):
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{index}" for index in range(20))]
    source = dataclasses.replace(made.checkpoint(made.weights(vocabulary=40)),
                                 vocabulary={"vocab.txt": "\n".join(tokens).encode()})  # fmt: skip
    assert checkpoints.tokenizer_entries(source) == 25
    cut = checkpoints.with_vocabulary(source, 25)
    assert cut.config["vocab_size"] == 25 and cut.tensors["cls.predictions.bias"].shape == (25,)
    with pytest.raises(ValueError, match="would lose entries: the tokenizer has 25"):
        checkpoints.with_vocabulary(source, 24)


def test_what_is_no_checkpoint(tmp_path):
    (tmp_path / "photo.png").write_bytes(b"\x89PNG")
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    for name in ("photo.png", "folder", "notes.txt"):
        with pytest.raises(ValueError, match="is no checkpoint that is known here"):
            megabert.open_checkpoint(tmp_path / name)
    with pytest.raises(ValueError, match="no file or folder"):
        megabert.open_checkpoint(tmp_path / "nothing")
    with pytest.raises(ValueError, match="'pickle' is not written; one of huggingface, megatron"):
        megabert.save_checkpoint(made.checkpoint(made.weights()), tmp_path / "x", format="pickle")


@pytest.mark.parametrize("format", ["megatron", "megatron-core", "nemo"])
def test_a_model_from_any_format(tmp_path, format):
    weights = made.weights(layers=4, dtype=torch.float32)
    source = made.checkpoint(weights)
    path = tmp_path / ("x.nemo" if format == "nemo" else "x")
    checkpoints.save_checkpoint(source, path, format=format, **TARGETS[format](2))
    checkpoints.save_checkpoint(source, tmp_path / "folder", format="huggingface")
    expected = megabert.MegatronBertForPreTraining.from_pretrained(tmp_path / "folder")
    model, said = megabert.MegatronBertForPreTraining.from_pretrained(path, output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"]
    assert model.config.layer_norm_eps == 1e-5 and model.config.head_act == "gelu" and not model.training
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    masked = megabert.MegatronBertForMaskedLM.from_pretrained(path, dtype=torch.bfloat16)
    assert masked.dtype == torch.bfloat16
    base = megabert.MegatronBertModel.from_pretrained(str(path))
    assert torch.equal(base.encoder.ln.weight, weights["bert.encoder.ln.weight"])


def test_a_name_that_leads_nowhere_stops_from_pretrained(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("MEGABERT_CACHE", str(tmp_path))
    with pytest.raises((ValueError, OSError), match="megatron-bert-345m-uncased"):
        megabert.MegatronBertForMaskedLM.from_pretrained("megatron-bert-345m-uncased")


def test_verify_sees_a_changed_weight():
    weights = made.weights()
    source = made.checkpoint(weights)
    assert verify.largest_difference(source, made.checkpoint(weights))[0] == 0.0
    other = dict(weights)
    name = "bert.encoder.layer.1.attention.self.key.weight"
    other[name] = weights[name] + 0.01
    assert verify.largest_difference(source, made.checkpoint(other))[0] > verify.LIMIT
    with pytest.raises(ValueError, match="weights missing: "):
        verify.make_model(made.checkpoint({key: value for key, value in weights.items() if key != name}))


@pytest.mark.parametrize("parts", HEADS)
def test_a_written_folder_is_the_same_function_in_plain_transformers(tmp_path, parts):
    source = made.checkpoint(made.weights(parts=parts))
    source.config.update(hidden_act="gelu", head_act="gelu")
    checkpoints.save_checkpoint(source, tmp_path / "x")
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    model_class = getattr(transformers, config["architectures"][0])
    model, said = model_class.from_pretrained(tmp_path / "x", output_loading_info=True)
    assert not said["missing_keys"]
    inputs = verify.fixed_inputs(source.config, 40)
    if "tokentypes" not in parts:
        inputs["token_type_ids"].zero_()
    with torch.no_grad():
        output = model.eval()(**inputs)
    real = inputs["attention_mask"].bool()
    for name, expected in verify.logits(source, 40).items():
        value = output[name]
        if value is None:
            continue
        value = value[real] if value.dim() > 2 else value
        assert torch.allclose(value, expected, atol=1e-5), name
