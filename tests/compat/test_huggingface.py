import json
import zipfile

import pytest
import torch
import transformers

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
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint.zip", "config.json", "model.safetensors"]
    expected = MegatronBertForPreTraining.from_pretrained(folder.parent / "hf")
    model = transformers.MegatronBertForPreTraining.from_pretrained(folder)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert model.config.layer_norm_eps == 1e-5


def test_a_config_file_wins(folder):
    (folder / "sizes.json").write_text(json.dumps({"hidden_dropout_prob": 0.3, "num_attention_heads": 4}))
    assert huggingface.main(["checkpoint.zip", "--config_file", "sizes.json"]) == 0
    config = json.loads((folder / "config.json").read_text())
    assert config["hidden_dropout_prob"] == 0.3 and config["num_attention_heads"] == 4


def test_files_that_are_there_are_not_replaced(folder, capsys):
    (folder / "config.json").write_text("mine")
    assert huggingface.main(["checkpoint.zip"]) == 2
    assert "config.json exists" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint.zip", "config.json"]
    assert huggingface.main(["checkpoint.zip", "--overwrite"]) == 0
    assert (folder / "config.json").read_text() != "mine"


def test_a_wrong_path_is_one_line(folder, capsys):
    assert huggingface.main(["nothing.zip"]) == 2
    error = capsys.readouterr().err
    assert "nothing.zip" in error and error.count("\n") == 1
