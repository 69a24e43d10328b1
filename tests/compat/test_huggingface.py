import json
import zipfile

import pytest
import torch
import transformers

import megabert
from megabert import MegatronBertForPreTraining
from megabert.compat import huggingface
from megabert.formats import megatron_write
from megabert.formats.checkpoints import open_checkpoint, save_checkpoint


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the zip as NGC gives it: one rank, v0 order, fp16."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.MegatronBertConfig(vocab_size=64, max_position_embeddings=16, layer_norm_eps=1e-5, **sizes)
    MegatronBertForPreTraining(config).half().save_pretrained(tmp_path / "hf")
    layout = megatron_write.Layout(era="v1", divisible_by=1)
    save_checkpoint(open_checkpoint(tmp_path / "hf"), tmp_path / "old", format="megatron", layout=layout)
    (tmp_path / "models").mkdir()
    with zipfile.ZipFile(tmp_path / "models" / "checkpoint.zip", "w") as archive:
        for file in (tmp_path / "old").rglob("*"):
            archive.write(file, file.relative_to(tmp_path / "old"))
    monkeypatch.chdir(tmp_path / "models")
    return tmp_path / "models"


def test_the_documented_command_from_inside_the_folder(folder, capsys):
    assert huggingface.main(["--print-checkpoint-structure", "checkpoint.zip"]) == 0
    assert "bert.encoder.layer.1.ln.bias  [128]  float16" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint.zip", "config.json", "pytorch_model.bin"]
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    assert all(weights[f"cls.predictions.decoder.{leaf}"].dtype == torch.float16 for leaf in ("weight", "bias"))
    expected = MegatronBertForPreTraining.from_pretrained(folder.parent / "hf")
    model = transformers.MegatronBertForPreTraining.from_pretrained(folder)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert model.config.layer_norm_eps == 1e-5


def test_a_config_file_wins(folder, capsys):
    (folder / "sizes.json").write_text(json.dumps({"hidden_dropout_prob": 0.3, "num-attention-heads": 2}))
    assert huggingface.main(["checkpoint.zip", "--config_file", "sizes.json"]) == 0
    config = json.loads((folder / "config.json").read_text())
    assert config["hidden_dropout_prob"] == 0.3 and config["num_attention_heads"] == 2
    assert f"written: {folder} (huggingface)" in capsys.readouterr().out
    # Other heads than those of the file's args would cut query, key and value wrongly.
    (folder / "sizes.json").write_text(json.dumps({"num_attention_heads": 4}))
    assert huggingface.main(["checkpoint.zip", "--config_file", "sizes.json"]) == 2
    assert "tells of 2 attention heads, but 4 were asked for" in capsys.readouterr().err


def test_running_it_twice_replaces_the_first_result(folder):
    assert huggingface.main(["checkpoint.zip"]) == 0
    assert huggingface.main(["checkpoint.zip", "--layernorm-epsilon", "1e-6"]) == 0
    assert json.loads((folder / "config.json").read_text())["layer_norm_eps"] == 1e-6
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint.zip", "config.json", "pytorch_model.bin"]


def test_files_of_somebody_else_are_not_replaced(folder, capsys):
    (folder / "config.json").write_text("mine")
    assert huggingface.main(["checkpoint.zip"]) == 2
    assert "config.json exists, and is not of an earlier run" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint.zip", "config.json"]
    assert huggingface.main(["checkpoint.zip", "--overwrite"]) == 0
    assert (folder / "config.json").read_text() != "mine"
    # Weights that from_pretrained would prefer to the new ones.
    (folder / "model.safetensors").write_bytes(b"old")
    assert huggingface.main(["checkpoint.zip"]) == 2
    assert "in place of pytorch_model.bin" in capsys.readouterr().err
    assert (folder / "model.safetensors").read_bytes() == b"old"
    assert huggingface.main(["checkpoint.zip", "--overwrite"]) == 0
    assert not (folder / "model.safetensors").exists()


def test_the_source_and_the_config_file_are_never_replaced(folder, capsys):
    (folder / "config.json").write_text(json.dumps({"model_type": "megatron-bert", "hidden_dropout_prob": 0.3}))
    assert huggingface.main(["checkpoint.zip", "--config_file", "config.json", "--overwrite"]) == 2
    assert "config.json would be replaced by the result" in capsys.readouterr().err
    (folder / "config.json").unlink()
    (folder / "checkpoint.zip").rename(folder / "pytorch_model.bin")
    before = (folder / "pytorch_model.bin").read_bytes()
    assert huggingface.main(["pytorch_model.bin", "--overwrite"]) == 2
    assert (folder / "pytorch_model.bin").read_bytes() == before
    assert huggingface.main([str(folder.parent / "hf" / "model.safetensors")]) == 2
    assert "is in a Transformers folder already" in capsys.readouterr().err


TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "capital", "of", "france", "is", "paris"]


def test_the_document_s_snippets_run_on_the_folder(folder):
    """A tokenizer too: from the vocabulary that lies beside the checkpoint."""
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in TOKENS))
    for _ in range(2):
        assert huggingface.main(["checkpoint.zip"]) == 0
        tokenizers = [kind.from_pretrained(folder) for kind in (transformers.BertTokenizer, transformers.AutoTokenizer)]
        inputs = [tokenizer("The capital of France is [MASK]", return_tensors="pt") for tokenizer in tokenizers]
        assert inputs[0]["input_ids"].tolist() == inputs[1]["input_ids"].tolist() == [[2, 5, 6, 7, 8, 9, 4, 3]]
    for name in ("MegatronBertForMaskedLM", "MegatronBertForNextSentencePrediction"):
        for library in (transformers, megabert):
            model = getattr(library, name).from_pretrained(folder).eval()
            with torch.no_grad():
                assert model(**inputs[0]).logits.isfinite().all()
    auto = transformers.AutoModelForMaskedLM.from_pretrained(folder)
    assert type(auto).__name__ == "MegatronBertForMaskedLM"


def test_a_wrong_path_is_one_line(folder, capsys):
    assert huggingface.main(["nothing.zip"]) == 2
    error = capsys.readouterr().err
    assert "nothing.zip" in error and error.count("\n") == 1
