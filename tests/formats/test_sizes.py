"""What a checkpoint says and what it holds must be one model."""

import argparse

import made
import pytest
import torch
import transformers
from test_megatron import nested, post_layernorm

import megabert
from megabert.formats import huggingface_checkpoint, megatron, megatron_write, nemo, nemo_write, sizes, verify
from megabert.formats.checkpoint import LazyTensor


def file_of(path, tensors, **content):
    torch.save(
        {"model": nested(tensors, "encoder", "self_attention", "v2"), "checkpoint_version": 3.0, **content}, path
    )
    return path


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("told", [True, False])
def test_a_lost_layer_at_the_end_is_noticed(tmp_path, stages, told):
    source = made.checkpoint(made.weights(layers=4))
    layout = megatron_write.Layout(pipeline=stages, divisible_by=8)
    megatron_write.write(source, tmp_path / "x", layout=layout)
    # Of one stage the last of all; of two the last of the first, where the second's would slide down.
    file = min((tmp_path / "x").rglob("model_optim_rng.pt"))
    content = torch.load(file, weights_only=False)
    encoder = content["model"]["language_model"]["encoder"]
    for name in [name for name in encoder if name.startswith(f"layers.{4 // stages - 1}.")]:
        del encoder[name]
    if not told:
        content["args"] = argparse.Namespace()
    torch.save(content, file)
    if not told:
        other = max((tmp_path / "x").rglob("model_optim_rng.pt"))
        torch.save({**torch.load(other, weights_only=False), "args": argparse.Namespace()}, other)
    if stages == 1 and not told:
        assert megatron.read(tmp_path / "x", heads=4).config["num_hidden_layers"] == 3  # nothing could tell
        return
    message = "args tell of num_layers 4, but its tensors are those of 3" if told else "its stages hold 1, 2 layers"
    with pytest.raises(ValueError, match=message):
        megatron.read(tmp_path / "x", heads=4)


def test_nemo_tells_its_layers_too(tmp_path):
    nemo_write.write(made.checkpoint(made.weights(layers=3)), tmp_path / "x", layout=nemo_write.Layout(folder=True))
    file = tmp_path / "x" / "model_weights.ckpt"
    weights = torch.load(file)
    torch.save({name: tensor for name, tensor in weights.items() if ".layers.2." not in name}, file)
    with pytest.raises(ValueError, match="num_layers 3, but its tensors are those of 2"):
        nemo.read(tmp_path / "x")


def test_heads_of_several_classes_keep_their_number(tmp_path):
    tensors = made.weights(parts=("pooler", "tokentypes", "classification"))
    for format in ("megatron", "nemo"):
        megabert.save_checkpoint(made.checkpoint(tensors), tmp_path / format, format=format)
        folder = tmp_path / f"{format}-folder"
        found = megabert.open_checkpoint(tmp_path / format)
        megabert.save_checkpoint(found, folder)
        assert verify.largest_difference(found, megabert.open_checkpoint(folder))[0] == 0.0
        for model_class in (
            transformers.MegatronBertForSequenceClassification, megabert.MegatronBertForSequenceClassification,
        ):  # fmt: skip
            model = model_class.from_pretrained(folder)
            assert model.config.num_labels == 3
            assert torch.equal(model.classifier.weight, tensors["classifier.weight"])
    straight = megabert.MegatronBertForSequenceClassification.from_pretrained(tmp_path / "megatron")
    assert torch.equal(straight.classifier.weight, tensors["classifier.weight"])


def test_an_encoder_alone_is_compared_and_gets_no_random_pooler(tmp_path):
    source = made.checkpoint(made.weights(parts=("tokentypes",)))
    assert source.config["architectures"] == ["MegatronBertModel"]
    assert verify.largest_difference(source, source) == (0.0, {"last_hidden_state": 0.0})
    megabert.save_checkpoint(source, tmp_path / "x", format="megatron")
    model, said = megabert.MegatronBertModel.from_pretrained(tmp_path / "x", output_loading_info=True)
    assert model.pooler is None and not said["missing_keys"]


def test_a_folder_that_names_no_class_is_the_one_of_its_parts():
    source = made.checkpoint(made.weights())
    del source.config["architectures"]
    assert type(verify.make_model(source)).__name__ == "MegatronBertForPreTraining"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_answers_that_are_no_numbers_are_not_equal(value):
    weights = made.weights()
    weights["bert.encoder.layer.0.output.dense.weight"][0, 0] = value
    damaged = made.checkpoint(weights)
    with pytest.raises(ValueError, match="of the source are not finite"):
        verify.largest_difference(damaged, damaged)
    with pytest.raises(ValueError, match="of what was written are not finite"):
        verify.largest_difference(made.checkpoint(made.weights()), damaged)


@pytest.mark.parametrize(
    ("given", "args", "message"),
    [
        (4, {"num_attention_heads": 2}, "tells of 2 attention heads, but 4 were asked for"),
        (None, {"num_attention_heads": "4"}, r"args.num_attention_heads is '4'; a whole number"),
        (None, {"num_attention_heads": 0}, "args.num_attention_heads is 0"),
        (None, {"layernorm_epsilon": float("nan")}, "args.layernorm_epsilon is nan"),
        (None, {"num_attention_heads": 4, "megabert_vocab_size": True}, "args.megabert_vocab_size is True"),
        (None, {"bias_gelu_fusion": "no"}, "args.bias_gelu_fusion is 'no'"),
        (None, {"tensor_model_parallel_size": 10**5000}, "tensor-parallel ranks is a number of 16,610 bits"),
    ],
)
def test_args_are_numbers_and_win(tmp_path, given, args, message):
    path = file_of(tmp_path / "x.pt", made.weights(), args=argparse.Namespace(**args))
    with pytest.raises(ValueError, match=message) as raised:
        megatron.read(path, heads=given)
    assert "x.pt" in str(raised.value) and "\n" not in str(raised.value)


def change_post_layernorm(theirs, change):
    if change == "no LayerNorm":
        del theirs["bert.embeddings.LayerNorm.weight"]
    elif change == "no bias":
        del theirs["bert.encoder.layer.1.output.dense.bias"]
    elif change == "a wrong shape":
        theirs["bert.encoder.layer.1.intermediate.dense.weight"] = torch.zeros(20, 128)
    else:
        for name in [name for name in theirs if name.startswith(("cls.", "bert.pooler."))]:
            del theirs[name]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no LayerNorm", r"bert\.embeddings\.LayerNorm\.weight is missing"),
        ("no bias", r"layer 1 lacks output\.dense\.bias"),
        ("a wrong shape", r"intermediate\.dense\.weight is \[20, 128\], but must be \[32, 128\]"),
    ],
)
def test_post_layernorm_files_are_checked(tmp_path, fused, change, message):
    theirs = post_layernorm(fused)[2]
    change_post_layernorm(theirs, change)
    torch.save({"model": theirs}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=message):
        megatron.read(tmp_path / "x.pt")


def test_a_post_layernorm_encoder_alone_says_so(tmp_path):
    theirs = post_layernorm(True)[2]
    change_post_layernorm(theirs, "no heads")
    torch.save({"model": theirs}, tmp_path / "x.pt")
    found = megatron.read(tmp_path / "x.pt")
    assert found.config["architectures"] == ["BertModel"]
    assert "not in the checkpoint: lm_head, binary_head, pooler" in found.notes
    assert verify.largest_difference(found, found) == (0.0, {"last_hidden_state": 0.0})
    huggingface_checkpoint.write(found, tmp_path / "folder")
    _, said = transformers.BertModel.from_pretrained(
        tmp_path / "folder", add_pooling_layer=False, output_loading_info=True
    )
    assert not said["missing_keys"] and not said["unexpected_keys"]
    (tmp_path / "folder" / "config.json").write_text(
        (tmp_path / "folder" / "config.json").read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 1')
    )
    with pytest.raises(ValueError, match="tells of 1 layers, but its weights are those of 2"):
        huggingface_checkpoint.read(tmp_path / "folder")


def test_half_a_head_is_none():
    tensors = {name: LazyTensor.of(tensor, name) for name, tensor in made.weights().items()}
    config = made.checkpoint(made.weights()).config
    sizes.check(config, tensors)
    for name in ("cls.predictions.transform.dense.bias", "cls.seq_relationship.bias", "bert.encoder.ln.bias"):
        with pytest.raises(ValueError, match=f"{name} is missing"):
            sizes.check(config, {key: value for key, value in tensors.items() if key != name})
    with pytest.raises(ValueError, match="pad_token_id 40 is no entry"):
        sizes.check({**config, "pad_token_id": 40}, tensors)
