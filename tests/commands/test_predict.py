import io
import json

import pytest
import torch

import megabert
from megabert import cli
from megabert.commands import predict
from megabert.formats import huggingface
from megabert.formats.checkpoint import KEPT_AS
from megabert.tasks import catalogue
from megabert.tasks.sequence_classification import SequenceClassification
from megabert.tokenization import word_piece


def written(network, folder, **more):
    """A tiny model of this class in this folder."""
    torch.manual_seed(0)
    tokenizer = word_piece.from_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijk"], lower_case=True)
    config = megabert.MegatronBertConfig(
        vocab_size=16, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16, **more,
    )  # fmt: skip
    huggingface.write(network(config), tokenizer, folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return written(megabert.MegatronBertForPreTraining, tmp_path_factory.mktemp("run") / "model")


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    task = SequenceClassification(max_seq_length=16, labels=("bad", "good"))
    folder = tmp_path_factory.mktemp("taught") / "model"
    settings = {"num_labels": 2, KEPT_AS: catalogue.kept(task)}
    return written(megabert.MegatronBertForSequenceClassification, folder, **settings)


def test_fill_mask(model, capsys):
    assert cli.main(["predict", "fill-mask", model, "--text", "a [MASK] b [MASK]", "[MASK]", "--top-k", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["a [MASK] b [MASK]", "  mask 1"]
    assert lines[4] == "  mask 2" and lines[7] == "[MASK]" and len(lines) == 10
    assert all(line.endswith(" %") for line in (lines[2], lines[3], lines[8]))


def test_a_model_of_any_format_and_by_name(model, tmp_path, monkeypatch, capsys):
    ask = ["--text", "a [MASK] b", "--top-k", "2"]
    assert cli.main(["predict", "fill-mask", model, *ask]) == 0
    expected = capsys.readouterr().out
    assert cli.main(["convert", model, str(tmp_path / "x"), "--to", "megatron"]) == 0
    assert cli.main(["convert", model, str(tmp_path / "y"), "--no-safe-serialization"]) == 0
    monkeypatch.setenv("MEGABERT_CACHE", str(tmp_path))
    (tmp_path / "names.toml").write_text(f'my-bert = "{tmp_path / "x"}"\n')
    for place in (str(tmp_path / "x"), str(tmp_path / "y"), "my-bert"):
        capsys.readouterr()
        assert cli.main(["predict", "fill-mask", place, *ask]) == 0
        assert capsys.readouterr().out == expected
    (tmp_path / "x" / "vocab.txt").unlink()
    for file in (tmp_path / "x").glob("tokenizer*"):
        file.unlink()
    for place, message in (
        ("my-bert", "holds no tokenizer: put a vocab.txt beside it"),
        ("megatron-bert-345m-uncased", "model_optim_rng.pt"),
        ("nobody/nothing", "nobody/nothing is no file or folder, and could not be had"),
        ("no-such-bert", "there is nothing at no-such-bert"),
    ):
        assert cli.main(["predict", "fill-mask", place, *ask]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_fill_mask_as_json_from_a_file(model, tmp_path, capsys):
    path = tmp_path / "texts.txt"
    path.write_text("a [MASK]\n\nb [MASK]\n")
    assert cli.main(["predict", "fill-mask", model, "--input", str(path), "--json", "--top-k", "3", "--bf16"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["text"] == "a [MASK]" and second["text"] == "b [MASK]"
    assert [set(guess) for guess in first["masks"][0]] == [{"token", "probability"}] * 3


def test_next_sentence(model, capsys, monkeypatch):
    assert cli.main(["predict", "next-sentence", model, "--text", "a", "b", "--text-pair", "c", "d"]) == 0
    shown = capsys.readouterr().out
    assert "a -> c" in shown and "that the second text follows the first" in shown
    monkeypatch.setattr("sys.stdin", io.StringIO("\ufeffa\tc\nb\td\n"))
    assert cli.main(["predict", "next-sentence", model, "--json"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(answer["text"], answer["text_pair"]) for answer in answers] == [("a", "c"), ("b", "d")]
    assert all(0 < answer["probability"] < 1 for answer in answers)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fill-mask", "MODEL", "--text", "a b"], "has no [MASK]"),
        (["fill-mask", "MODEL", "--text", "[MASK]", "--input", "x"], "--text and --input: give one of them"),
        (["fill-mask", "MODEL", "--text", "[MASK]", "--text-pair", "x"], "--text-pair is for next-sentence"),
        (["fill-mask", "MODEL", "--input", "/no/file"], "there is no file /no/file"),
        (["fill-mask", "MODEL"], "there is no text"),
        (["fill-mask", "/no/model", "--text", "[MASK]"], "there is nothing at /no/model"),
        (["fill-mask", "MODEL", "--text", "[MASK]" * 20], "16 at most"),
        (["next-sentence", "MODEL", "--text", "a"], "as many --text-pair as --text"),
        (["next-sentence", "MODEL", "--input", "INPUT"], "line 2: two texts with one tab"),
        (["translate", "MODEL"], "translate"),
    ],
)
def test_mistakes(model, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    (tmp_path / "input").write_text("a\tb\nc d\n")
    arguments = [{"MODEL": model, "INPUT": str(tmp_path / "input")}.get(item, item) for item in arguments]
    assert cli.main(["predict", *arguments]) == 2
    output = capsys.readouterr()
    assert message in output.err and output.err.count("\n") == 1


@pytest.mark.parametrize("flags, told", [([], True), (["--bf16"], False)])
def test_many_texts_are_told_of_bfloat16_where_the_processor_has_it(taught, monkeypatch, tmp_path, capsys, flags, told):
    monkeypatch.setattr(predict, "_MANY", 3)
    monkeypatch.setattr(predict, "_computes_bf16", lambda: True)
    arguments = ["predict", taught, "--json", "--device", "cpu", *flags]
    assert cli.main([*arguments, "--text", "a b"]) == 0
    assert not capsys.readouterr().err, "few texts: nothing to tell"
    assert cli.main([*arguments, "--text", "a b", "c", "d e f"]) == 0
    said = capsys.readouterr()
    assert ("--bf16" in said.err) == told
    assert [json.loads(line)["text"] for line in said.out.splitlines()] == ["a b", "c", "d e f"]


def test_an_output_that_cannot_be_written_is_told_first(tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("one\n")
    for output, message in (
        (tmp_path / "." / "texts.txt", "is a file that is read"), (tmp_path, "is a folder"),
        (tmp_path / "no" / "x.jsonl", "there is no folder"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"--output: .*{message}"):
            predict.run(predict.Config(task=str(tmp_path), input=texts, output=output))
    assert texts.read_text() == "one\n"
