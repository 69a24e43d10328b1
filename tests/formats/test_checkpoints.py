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
WITH_OPTIMIZER = ("megatron", "megatron-core")


def a_target(draw, name):
    """Any way in which a format can be written."""
    tensor = draw(st.sampled_from([1, 2, 4]))
    pipeline, chunks = draw(st.sampled_from([(1, 1), (2, 1), (4, 1), (2, 2)]))
    common = {"tensor": tensor, "divisible_by": draw(st.sampled_from([1, 8]))}
    if name == "huggingface":
        return {"shard_bytes": draw(st.sampled_from([5_000, 1 << 30])), "container": draw(
            st.sampled_from(["safetensors", "torch"]))}  # fmt: skip
    if name == "megatron":
        era = draw(st.sampled_from(["v1", "v2", "v4"]))
        cut = {} if era == "v1" else {"pipeline": pipeline, "chunks": chunks}
        return {"layout": megatron_write.Layout(era=era, **cut, **common)}
    if name == "megatron-core":
        kind, spec = draw(st.sampled_from(["torch", "torch_dist"])), draw(st.sampled_from(["te", "local"]))
        cut = {"pipeline": pipeline, "spec": spec} if kind == "torch" else {"common": draw(st.booleans())}
        return {"layout": megatron_core_write.Layout(kind=kind, **cut, **common)}
    generation = draw(st.sampled_from(["1.7", "1.0", "2021-05"]))
    cut = {"pipeline": pipeline} if generation == "1.7" else {}
    return {"layout": nemo_write.Layout(generation=generation, ranks=draw(st.booleans()), **cut, **common)}


@pytest.mark.parametrize("second", TARGETS)
@pytest.mark.parametrize("first", TARGETS)
@settings(max_examples=2, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_pair_of_formats_round_trips_bit_for_bit(tmp_path, first, second, data):
    """There and back: weights, optimizer state where both formats hold one, sizes and parts."""
    draw = data.draw
    heads = set(draw(st.sampled_from(HEADS)))
    weights = made.weights(
        layers=4, dtype=draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16])), parts=tuple(heads),
        vocabulary=draw(st.integers(3, 40)), seed=draw(st.integers(0, 99)),
    )  # fmt: skip
    source = between = made.checkpoint(weights, optimizer=True, training={"iteration": 3})
    state = made.loaded(source.optimizer)
    for step, name in enumerate((first, second, first)):
        path = tmp_path / (f"{step}.nemo" if name == "nemo" else str(step))
        choices = a_target(draw, name)
        notes = checkpoints.save_checkpoint(between, path, format=name, overwrite=True, **choices)
        if name not in WITH_OPTIMIZER and between.optimizer:
            assert any("optimizer" in note for note in notes), "dropped without a word"
        assert checkpoints.find_format(path) == name
        between = checkpoints.open_checkpoint(path, heads=4)
        made.assert_equal(between.tensors, weights)
        state = state if name in WITH_OPTIMIZER else {}
        made.assert_equal(between.optimizer, state)
        for field in ("vocab_size", "num_attention_heads", "layer_norm_eps", "hidden_act", "intermediate_size"):
            assert between.config[field] == source.config[field], field
        assert between.parts == source.parts


def test_a_checkpoint_is_never_saved_over_its_source(tmp_path):
    source = made.checkpoint(made.weights())
    layout = megatron_write.Layout(tensor=2, divisible_by=8)
    root = tmp_path / "run" / "ckpt"
    checkpoints.save_checkpoint(source, root, format="megatron", layout=layout)
    (tmp_path / "link").symlink_to(root)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "release").symlink_to(root / "release")
    file = root / "release" / "mp_rank_01" / "model_optim_rng.pt"
    before = file.read_bytes()
    for opened, target in (
        (root, root), (root, root.parent), (root, root / "inside"), (root, tmp_path / "link"),
        (tmp_path / "link", root), (tmp_path / "link", tmp_path / "link"), (file, root / "release" / "mp_rank_00"),
        (file, file), (tmp_path / "elsewhere" / "release", tmp_path / "elsewhere"),
        (tmp_path / "elsewhere" / "release", root), (root / "release", tmp_path / "run"),
    ):  # fmt: skip
        found = megabert.open_checkpoint(opened, heads=4)
        for form in ("megatron", "huggingface"):
            with pytest.raises(ValueError, match="a source is never changed"):
                megabert.save_checkpoint(dataclasses.replace(found, notes=()), target, format=form, overwrite=True)
    assert file.read_bytes() == before and (tmp_path / "link").is_symlink()
    megabert.save_checkpoint(found, root.parent / "beside", format="huggingface")


def test_absurd_numbers_in_names_and_arguments(tmp_path):
    layout = megatron_write.Layout(divisible_by=8)
    checkpoints.save_checkpoint(made.checkpoint(made.weights()), tmp_path / "x", format="megatron", layout=layout)
    file = tmp_path / "x" / "release" / "mp_rank_00" / "model_optim_rng.pt"
    whole = torch.load(file, weights_only=False)
    encoder = whole["model"]["language_model"]["encoder"]

    def fails(message):
        torch.save(whole, file)
        with pytest.raises(ValueError, match=message) as raised:
            megabert.open_checkpoint(tmp_path / "x")
        assert "\n" not in str(raised.value)

    encoder["layers.999999999.input_layernorm.weight"] = torch.ones(16)
    fails("names layer 999999999, but holds 39 tensors")
    del encoder["layers.999999999.input_layernorm.weight"]
    encoder[f"layers.{'9' * 5000}.input_layernorm.weight"] = torch.ones(16)
    fails("holds a name of 5,053 letters")
    del encoder[f"layers.{'9' * 5000}.input_layernorm.weight"]
    for name in [name for name in encoder if name.startswith("layers.1.")]:
        del encoder[name]
    fails("args tell of num_layers 2, but its tensors are those of 1")
    whole["args"].num_layers = None
    for heads in (-4, 10**15):
        whole["args"].num_attention_heads = heads
        fails("heads")


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


def test_from_pretrained_knows_the_users_names(tmp_path, monkeypatch):
    weights = made.weights()
    monkeypatch.setenv("MEGABERT_CACHE", str(tmp_path / "cache"))
    checkpoints.save_checkpoint(made.checkpoint(weights), tmp_path / "x", format="megatron")
    checkpoints.save_checkpoint(made.checkpoint(weights), tmp_path / "cache" / "in-cache")
    (tmp_path / "cache" / "names.toml").write_text(f'my-bert = "{tmp_path / "x"}"\n')
    for name in ("my-bert", "in-cache"):
        model = megabert.MegatronBertForMaskedLM.from_pretrained(name)
        assert torch.equal(model.bert.encoder.ln.weight, weights["bert.encoder.ln.weight"])


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
