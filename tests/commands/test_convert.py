import dataclasses
import functools
import http.server
import json
import os
import shutil
import threading

import pytest
import torch
import transformers

from megabert import MegatronBertForPreTraining, cli
from megabert.formats import named
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
        ((str(model), "x", "--megatron-era", "v1"), "--megatron-era has no effect on huggingface: give --to megatron"),
        ((str(model), "x", "--nemo-ranks"), "--nemo-ranks has no effect"),
        (
            (str(model), "x", "--to", "megatron", "--max-shard-size", "1"),
            "--max-shard-size is for a Transformers folder",
        ),
        ((str(model), "x", "--to", "megatron-core", "--transformer-impl", "local"), "give --ckpt-format torch too"),
        ((str(model), "x", "--no-safe-serialization", "--max-shard-size", "1"), "which writes one file"),
        ((str(model), "x", "--assume-qkv-layout", "v0"), "holds query, key and value apart"),
        ((str(model), "x", "--num-attention-heads", "2"), "tells of 4 attention heads, but 2 were asked for"),
        ((str(model), "x.pt"), "x.pt is called like a file"),
        ((str(model), "there", "--overwrite"), "no checkpoint has a file file"),
        ((str(model), "x", "--tokenizer", "./nowhere"), "no tokenizer at ./nowhere"),
    ):
        os.chdir(tmp_path)
        assert cli.main(["convert", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def no_args(folder, model):
    """The model as a file of Megatron's that does not tell its heads."""
    assert cli.main(["convert", str(model), str(folder / "m"), "--to", "megatron"]) == 0
    file = next((folder / "m").rglob("model_optim_rng.pt"))
    content = torch.load(file, weights_only=False)
    del content["args"]
    torch.save(content, folder / "noargs.pt")
    return folder / "noargs.pt"


def test_the_heads_of_a_config_file_cut_the_fused_rows(tmp_path, model, capsys):
    source, written = no_args(tmp_path, model), tmp_path / "c.json"
    for number, text in enumerate(('{"num_attention_heads": 4}', '{"hidden-size": 16, "num-attention-heads": 4}')):
        written.write_text(text)
        assert cli.main(["convert", str(source), str(tmp_path / f"{number}"), "--config-file", str(written)]) == 0
        expected = tensors(model)
        for name, tensor in tensors(tmp_path / f"{number}").items():
            rows = len(expected[name])
            assert torch.equal(tensor[:rows], expected[name]), name
    for text, message in (
        ('{"num_attention_heads": 4, "num_hidden_layers": 2}', "tells of 2 layers, but its weights are those of 4"),
        ('{"num_attention_heads": 4, "intermediate_size": 7}', "must be [7, 16] by the sizes"),
        ('{"num_attention_heads": 4, "max_position_embeddings": 99}', "must be [99, 16] by the sizes"),
        ('{"num_attention_heads": 2.5}', "num_attention_heads is 2.5; a whole number"),
    ):
        written.write_text(text)
        capsys.readouterr()
        assert cli.main(["convert", str(source), str(tmp_path / "x"), "--config-file", str(written)]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1 and not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "name", ["num_attention_heads", "hidden_act", "head_act", "model_type", "vocab_size", "is_decoder"]
)
@pytest.mark.parametrize("value", [None, -1, 0, "x", [1], {}, 1.5])
def test_a_config_json_of_a_wrong_type_is_one_line(tmp_path, model, capsys, name, value):
    shutil.copytree(model, tmp_path / "m")
    config = json.loads((model / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, name: value}))
    allowed = name == "head_act" and value is None
    assert cli.main(["convert", str(tmp_path / "m"), str(tmp_path / "x"), "--to", "megatron"]) == (0 if allowed else 2)
    assert capsys.readouterr().err.count("\n") == (0 if allowed else 1)


def test_only_checkpoints_are_replaced(tmp_path, model, capsys):
    for number, flags in enumerate(([], ["--to", "megatron"], ["--to", "megatron-core"], ["--to", "nemo"])):
        for _ in range(2):
            assert cli.main(["convert", str(model), str(tmp_path / f"x{number}.nemo"), *flags, "--overwrite"]) == 0
    papers = tmp_path / "my docs"
    (papers / "release").mkdir(parents=True)
    (papers / "config.json").write_text("{}")
    for strange in ("release/thesis.txt", "README.md"):
        (papers / "model.safetensors").write_text("")
        (papers / strange).write_text("years of work")
        assert cli.main(["convert", str(model), str(papers), "--overwrite"]) == 2
        assert f"no checkpoint has a file {strange}" in capsys.readouterr().err
        assert (papers / strange).read_text() == "years of work"
        (papers / strange).unlink()
    (papers / "model.safetensors").unlink()
    assert cli.main(["convert", str(model), str(papers), "--overwrite"]) == 2
    assert "there are no weights in it" in capsys.readouterr().err
    (tmp_path / "thesis.txt").write_text("years of work")
    assert cli.main(["convert", str(model), str(tmp_path / "thesis.txt"), "--to", "nemo", "--overwrite"]) == 2


def test_the_name_of_a_target_tells_its_format(tmp_path, model):
    assert cli.main(["convert", str(model), str(tmp_path / "o.NEMO")]) == 0
    assert (tmp_path / "o.NEMO").is_file()
    assert cli.main(["convert", str(tmp_path / "o.NEMO"), str(tmp_path / "back")]) == 0
    assert_same(model, tmp_path / "back")


def test_the_published_zip_gets_its_tokenizer_from_the_cache(tmp_path, model, capsys, monkeypatch):
    monkeypatch.setenv("MEGABERT_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "megatron_bert_345m_v0_1_uncased.pt"
    no_args(tmp_path, model).rename(source)
    convert = ["convert", str(source), "--num-attention-heads", "4"]
    assert cli.main([*convert, str(tmp_path / "a")]) == 0
    said = capsys.readouterr().out
    home = tmp_path / "cache" / "megatron-bert-345m-uncased" / "vocab.txt"
    assert "the tokenizer is missing: by its name this is megatron-bert-345m-uncased" in said and str(home) in said
    assert not (tmp_path / "a" / "tokenizer.json").exists()
    # Given by hand: the file's digest is known, so another is refused.
    home.parent.mkdir(parents=True)
    home.write_text("\n".join(TOKENS) + "\n")
    assert cli.main([*convert, str(tmp_path / "b")]) == 2
    assert "vocab.txt" in capsys.readouterr().err
    known = [dataclasses.replace(entry, vocabulary_digest=None) for entry in named.KNOWN]
    monkeypatch.setattr(named.known_as, "__defaults__", (tuple(known),))
    assert cli.main([*convert, str(tmp_path / "c")]) == 0
    assert f"the vocabulary is {home}" in capsys.readouterr().out
    assert (tmp_path / "c" / "tokenizer.json").is_file() and (tmp_path / "c" / "vocab.txt").is_file()
    # One that does not fit the rows is not taken.
    home.write_text("\n".join([*TOKENS, *(f"x{index}" for index in range(200))]) + "\n")
    assert cli.main([*convert, str(tmp_path / "d")]) == 0
    assert "is not taken: it has 230 entries, but the model has 128 rows" in capsys.readouterr().out
    assert cli.main([*convert, str(tmp_path / "e"), "--vocab-file", str(model / "vocab.txt")]) == 0
    assert (tmp_path / "e" / "tokenizer.json").is_file()


@pytest.fixture
def address(tmp_path):
    """Of a folder that is served."""
    (tmp_path / "served").mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_vocabulary_of_a_published_file_is_fetched(tmp_path, model, capsys, monkeypatch, address):
    monkeypatch.setenv("MEGABERT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    source = tmp_path / "megatron_bert_345m_v0_1_uncased.pt"
    no_args(tmp_path, model).rename(source)
    url = f"{address}/vocab.txt"
    known = [
        dataclasses.replace(entry, vocabulary_digest=None, vocabulary_urls=(url,)) if entry.vocabulary_urls else entry
        for entry in named.KNOWN
    ]
    monkeypatch.setattr(named.known_as, "__defaults__", (tuple(known),))
    convert = ["convert", str(source), "--num-attention-heads", "4"]
    assert cli.main([*convert, str(tmp_path / "without")]) == 0
    said = capsys.readouterr().out
    assert f"fetching {url}" in said and "could not be fetched" in said and "put it at" in said
    assert not (tmp_path / "without" / "tokenizer.json").exists()
    shutil.copy(model / "vocab.txt", tmp_path / "served")
    assert cli.main([*convert, str(tmp_path / "whole")]) == 0
    assert (tmp_path / "whole" / "tokenizer.json").is_file()


def test_rows_that_are_cut_are_told(tmp_path, model, capsys):
    assert cli.main(["convert", str(no_args(tmp_path, model)), str(tmp_path / "x"), "--num-attention-heads", "4",
                     "--vocab-size", "5"]) == 0  # fmt: skip
    said = capsys.readouterr().out
    assert "123 of 128 rows of the vocabulary are cut off; no tokenizer tells whether they were padding" in said


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
