import json
import os

import pytest
import torch
import transformers

from megabert import MegatronBertForPreTraining, cli
from megabert.formats.checkpoints import open_checkpoint

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{index}" for index in range(25))]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 32}
    config = transformers.MegatronBertConfig(
        vocab_size=32, max_position_embeddings=16, layer_norm_eps=1e-5, hidden_act="gelu_pytorch_tanh", **sizes
    )
    config.head_act = "gelu"
    MegatronBertForPreTraining(config).save_pretrained(folder / "m")
    (folder / "m" / "vocab.txt").write_text("\n".join(TOKENS) + "\n")
    return folder / "m"


def tensors(path):
    return {name: tensor.load() for name, tensor in open_checkpoint(path).tensors.items()}


def assert_same(path, other):
    one, two = tensors(path), tensors(other)
    assert sorted(one) == sorted(two) and all(torch.equal(one[name], two[name]) for name in one)


def test_around_all_formats(tmp_path, model, capsys):
    journey = [
        ("a", "--to", "megatron", "--tensor-model-parallel-size", "4", "--pipeline-model-parallel-size", "2"),
        ("b.nemo",),
        ("c", "--to", "megatron-core"),
        ("d", "--to", "megatron-core", "--ckpt-format", "torch", "--transformer-impl", "local"),
        ("e", "--to", "megatron", "--megatron-era", "v1", "--tensor-model-parallel-size", "2"),
        ("f",),
    ]
    source = model
    for name, *flags in journey:
        assert cli.main(["convert", str(source), str(tmp_path / name), *flags, "--verify"]) == 0
        assert "verified: largest difference of the logits 0 " in capsys.readouterr().out
        source = tmp_path / name
    assert_same(model, source)
    before, after = (json.loads((path / "config.json").read_text()) for path in (model, source))
    for key in ("vocab_size", "layer_norm_eps", "hidden_act", "head_act", "num_attention_heads"):
        assert after[key] == before[key]
    assert (source / "vocab.txt").read_text() == (model / "vocab.txt").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b.nemo", "c", "d", "e", "f"]


def test_the_vocabulary_is_cut_to_the_tokenizer(tmp_path, model, capsys):
    assert cli.main(["convert", str(model), str(tmp_path / "x"), "--unpad-vocab"]) == 0
    found = open_checkpoint(tmp_path / "x")
    assert found.config["vocab_size"] == 30
    assert cli.main(["convert", str(model), str(tmp_path / "y"), "--vocab-size", "20"]) == 2
    assert "would lose entries" in capsys.readouterr().err and not (tmp_path / "y").exists()


def test_what_the_source_does_not_say(tmp_path, model):
    flags = ["--gelu", "erf", "--layernorm-epsilon", "1e-12", "--tokenizer", str(model)]
    assert cli.main(["convert", str(model), str(tmp_path / "x"), *flags]) == 0
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    assert config["hidden_act"] == "gelu" and config["layer_norm_eps"] == 1e-12
    assert (tmp_path / "x" / "tokenizer.json").is_file()


def test_mistakes_are_one_line_and_write_nothing(tmp_path, model, capsys):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("")
    for arguments, message in (
        (("nothing", "x"), "nothing"),
        ((str(model), "there"), "there exists"),
        ((str(model), str(model), "--overwrite"), "never changed"),
        ((str(model), str(model / "inside")), "never changed"),
        ((str(model), str(model.parent), "--overwrite"), "never changed"),
        ((str(model), "x", "--tensor-model-parallel-size", "2"), "give --to megatron"),
        ((str(model), "x", "--to", "megatron", "--tensor-model-parallel-size", "3"), "cannot be shared by 3"),
        ((str(model), "x.nemo", "--no-safe-serialization"), "is for a Transformers folder"),
        ((str(model), "x", "--tokenizer", "./nowhere"), "no tokenizer at ./nowhere"),
    ):
        os.chdir(tmp_path)
        assert cli.main(["convert", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_inspect_says_what_a_checkpoint_is(tmp_path, model, capsys):
    flags = ["--pipeline-model-parallel-size", "2", "--virtual-pipeline-model-parallel-size", "2"]
    assert cli.main(["convert", str(model), str(tmp_path / "x"), "--to", "megatron", *flags]) == 0
    capsys.readouterr()
    assert cli.main(["inspect", str(tmp_path / "x"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["format"] == "megatron" and facts["num_hidden_layers"] == 4
    assert "1 tensor x 2 pipeline ranks x 2 chunks" in facts["notes"]
    assert cli.main(["inspect", str(tmp_path / "x")]) == 0
    assert "note: checkpoint_version 3" in capsys.readouterr().out


TRAINING = (
    "--num-layers 2 --hidden-size 16 --num-attention-heads 4 --max-position-embeddings 32 --seq-length 32 "
    "--train-iters 3 --batch-size 2 --split 80,10,10 --vocab-size 300 --lr 1e-3 --num-workers 0 --no-tensorboard"
).split()


def test_a_training_folder_is_converted_with_its_optimizer(tmp_path):
    run, words = tmp_path / "run", ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
    lines = [" ".join(words[(index * step) % 8] for step in range(1, 9)).capitalize() + "." for index in range(60)]
    documents = [json.dumps({"text": " ".join(lines[start : start + 6])}) for start in range(0, 60, 3)]
    (tmp_path / "text.jsonl").write_text("\n".join(documents))
    assert cli.main(["pretrain", *TRAINING, "--train-data", str(tmp_path / "text.jsonl"), "--save", str(run)]) == 0
    step = next(run.glob("checkpoints/step-*"))
    assert cli.main(["convert", str(step), str(tmp_path / "x"), "--to", "megatron", "--tensor-model-parallel-size", "2",
                     "--verify"]) == 0  # fmt: skip
    found, own = open_checkpoint(tmp_path / "x"), open_checkpoint(step)
    assert found.training["iteration"] == 3 and set(found.optimizer) == set(own.optimizer)
    for name in ("exp_avg/bert.encoder.layer.1.attention.self.key.weight", "master/cls.predictions.bias", "step"):
        assert torch.equal(found.optimizer[name].load(), own.optimizer[name].load())
    assert "tokenizer.json" in own.vocabulary
    folder = MegatronBertForPreTraining.from_pretrained(run / "model")
    same = MegatronBertForPreTraining.from_pretrained(step)
    assert torch.equal(same.bert.encoder.ln.weight, folder.bert.encoder.ln.weight)
    (run / "model" / "config.json").unlink()
    assert open_checkpoint(step).config["head_act"] == own.config["head_act"]
