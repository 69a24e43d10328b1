import json

import made
import pytest
import safetensors.torch
import torch
import transformers

import megabert
from megabert.formats import huggingface_checkpoint as huggingface

CONFIG = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32,
    "max_position_embeddings": 12,
}  # fmt: skip
CLASSES = [name for name in megabert.__all__ if name.startswith("MegatronBert") and name != "MegatronBertConfig"]


def saved(path, name, **options):
    torch.manual_seed(5)
    config = transformers.MegatronBertConfig(**CONFIG, **options)
    model = getattr(transformers, name)(config)
    model.save_pretrained(path)
    return model


@pytest.mark.parametrize("name", CLASSES)
def test_a_folder_of_transformers_and_back_has_the_same_tensors_and_keys(tmp_path, name):
    saved(tmp_path / "a", name)
    huggingface.write(huggingface.read(tmp_path / "a"), tmp_path / "b")
    one, two = (safetensors.torch.load_file(tmp_path / folder / "model.safetensors") for folder in "ab")
    assert sorted(one) == sorted(two) and all(torch.equal(one[key], two[key]) for key in one)
    first, second = (json.loads((tmp_path / folder / "config.json").read_text()) for folder in "ab")
    for config in (first, second):
        config.pop("transformers_version", None)
    assert {key: second[key] for key in first} == first


def test_untied_weights_load_without_loss(tmp_path):
    model = saved(tmp_path / "a", "MegatronBertForPreTraining", tie_word_embeddings=False)
    huggingface.write(huggingface.read(tmp_path / "a"), tmp_path / "b")
    back, said = transformers.MegatronBertForPreTraining.from_pretrained(tmp_path / "b", output_loading_info=True)
    assert not said["missing_keys"]
    ids = torch.arange(10).view(1, 10)
    with torch.no_grad():
        assert torch.equal(back.eval()(ids).prediction_logits, model.eval()(ids).prediction_logits)


def test_shards_and_pickles_are_read(tmp_path):
    model = saved(tmp_path / "a", "MegatronBertForMaskedLM")
    expected = huggingface.read(tmp_path / "a")
    transformers.MegatronBertForMaskedLM.save_pretrained(model, tmp_path / "s", max_shard_size="5KB")
    assert (tmp_path / "s" / "model.safetensors.index.json").is_file()
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "config.json").write_text((tmp_path / "a" / "config.json").read_text())
    torch.save(
        {**model.state_dict(), "bert.embeddings.position_ids": torch.arange(12)}, tmp_path / "p/pytorch_model.bin"
    )
    for folder in "sp":
        made.assert_equal(huggingface.read(tmp_path / folder).tensors, made.loaded(expected.tensors))


def test_shards_are_written_as_transformers_reads_them(tmp_path):
    weights = made.weights()
    huggingface.write(made.checkpoint(weights), tmp_path / "x", shard_bytes=4_000)
    assert len(list((tmp_path / "x").glob("model-*.safetensors"))) > 3
    model, said = transformers.MegatronBertForPreTraining.from_pretrained(tmp_path / "x", output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"]
    assert torch.equal(model.bert.encoder.ln.bias, weights["bert.encoder.ln.bias"])
    made.assert_equal(huggingface.read(tmp_path / "x").tensors, weights)


def test_a_tokenizer_goes_with_the_model(tmp_path):
    import dataclasses

    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world", "##s"]
    vocabulary = {"vocab.txt": ("\n".join(tokens) + "\n").encode()}
    source = dataclasses.replace(made.checkpoint(made.weights(vocabulary=8)), vocabulary=vocabulary)
    notes = huggingface.write(source, tmp_path / "x")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "x")("Hello worlds")["input_ids"] == [2, 5, 6, 7, 3]
    assert not any("no tokenizer" in note for note in notes)
    assert huggingface.read(tmp_path / "x").vocabulary["vocab.txt"] == vocabulary["vocab.txt"]


def test_a_hostile_pytorch_model_is_refused(tmp_path):
    saved(tmp_path, "MegatronBertModel")
    (tmp_path / "model.safetensors").unlink()

    class Hostile:
        def __reduce__(self):
            return eval, (f"open({str(tmp_path / 'ran')!r}, 'w')",)

    torch.save({"embeddings.x": Hostile()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin asks for .*eval"):
        huggingface.read(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_damage_is_named(tmp_path):
    saved(tmp_path, "MegatronBertForMaskedLM")
    whole = safetensors.torch.load_file(tmp_path / "model.safetensors")
    key = "bert.encoder.layer.1.intermediate.dense.weight"
    safetensors.torch.save_file({**whole, key: torch.zeros(3, 16)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=rf"model\.safetensors: {key}: .*must be \[32, 16\]"):
        huggingface.read(tmp_path)
    kept = {name: tensor for name, tensor in whole.items() if name != key}
    safetensors.torch.save_file(kept, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"lacks intermediate\.dense\.weight"):
        huggingface.read(tmp_path)
    safetensors.torch.save_file(whole, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(ValueError, match="tells of 3 layers, but its weights are those of 2"):
        huggingface.read(tmp_path)


def test_a_failed_write_leaves_nothing(tmp_path):
    source = made.checkpoint(made.weights())
    name = "bert.encoder.ln.bias"

    def broken():
        raise ValueError("x.pt is damaged")

    source.tensors[name]._read = broken
    with pytest.raises(ValueError, match="damaged"):
        huggingface.write(source, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_an_existing_target_is_refused_and_replaced_whole(tmp_path):
    source = made.checkpoint(made.weights())
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine.txt").write_text("kept")
    with pytest.raises(ValueError, match="--overwrite"):
        huggingface.write(source, tmp_path / "x")
    with pytest.raises(ValueError, match=r"no checkpoint has a file mine\.txt"):
        huggingface.write(source, tmp_path / "x", overwrite=True)
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["mine.txt"]
    (tmp_path / "x" / "mine.txt").rename(tmp_path / "x" / "pytorch_model.bin")
    huggingface.write(source, tmp_path / "x", overwrite=True)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["config.json", "model.safetensors", "x"]
