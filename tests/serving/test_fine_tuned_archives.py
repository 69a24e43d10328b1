"""A model that was taught a task, as an archive of NeMo's and back: the same answers, and what is refused."""

import json

import pytest
import torch

import megabert
from megabert import cli
from megabert.formats import huggingface
from megabert.formats.checkpoints import open_checkpoint, save_checkpoint
from megabert.formats.nemo_write import Layout
from megabert.serving.fine_tuned import FineTuned
from megabert.tokenization import word_piece

WORDS = "good bad the film was paris london it in who where".split()
FAST = "--epochs 1 --batch-size 4 --max-seq-length 24 --device cpu --no-tensorboard --log-interval 100".split()
TEXTS = "".join(f"the film was {word}\t{word}\n" for word in ("good", "bad") * 4)
CONLL = "it\tO\nin\tO\nparis\tB-LOC\n\nlondon\tB-LOC\nwas\tO\n"
SQUAD = json.dumps({"data": [{"paragraphs": [{"context": "It was in paris", "qas": [
    {"id": "1", "question": "Where?", "answers": [{"text": "paris", "answer_start": 10}]}]}]}]})  # fmt: skip


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    torch.manual_seed(0)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "?", "."]
    config = megabert.MegatronBertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, layer_norm_eps=1e-5,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("encoder") / "model"
    tokenizer = word_piece.from_tokens(tokens, lower_case=True)
    huggingface.write(megabert.MegatronBertForPreTraining(config), tokenizer, folder)
    return folder


@pytest.mark.parametrize(
    ("task", "name", "content", "more"),
    [
        ("sequence-classification", "x.tsv", TEXTS, ("--head-layers", "2", "--head-dropout", "0.1")),
        ("sequence-classification", "x.tsv", TEXTS, ()),
        ("token-classification", "x.conll", CONLL, ()),
        ("squad", "x.json", SQUAD, ()),
    ],
)
def test_the_same_answers_from_the_archive_and_back(task, name, content, more, encoder, tmp_path, capsys):
    file, run = tmp_path / name, tmp_path / "run"
    file.write_text(content)
    arguments = ["finetune", task, "--model", str(encoder), "--train-file", str(file), "--save", str(run)]
    assert cli.main([*arguments, *FAST, *more]) == 0
    model = FineTuned.from_path(run)
    examples = model.task.examples(file)
    expected = model.answer(examples).predictions

    def same(path):
        found = FineTuned.from_path(path)
        assert found.task == model.task and found.answer(examples).predictions == expected

    checkpoint = open_checkpoint(run / "model")
    notes = save_checkpoint(checkpoint, tmp_path / "a.nemo", layout=Layout(tensor=2))
    assert any("without a pooler" in note for note in notes) == (task[0] == "s" and not more and task != "squad")
    same(tmp_path / "a.nemo")
    # From two ranks to one, in the layout that was documented first; and to a folder.
    one = Layout(generation="2021-05", folder=True, ranks=True)
    save_checkpoint(open_checkpoint(tmp_path / "a.nemo"), tmp_path / "b", format="nemo", layout=one)
    same(tmp_path / "b")
    assert cli.main(["convert", str(tmp_path / "a.nemo"), str(tmp_path / "folder")]) == 0
    same(tmp_path / "folder")
    assert cli.main(["evaluate", str(tmp_path / "a.nemo"), "--file", str(file), "--output", str(tmp_path / "e")]) == 0
    text = ["Where?", "--text-pair", "It was in paris"] if task == "squad" else ["it was paris"]
    assert cli.main(["predict", str(tmp_path / "a.nemo"), "--text", *text]) == 0
    # Taught further, the head is kept: nothing starts afresh.
    capsys.readouterr()
    arguments = ["finetune", task, "--model", str(tmp_path / "a.nemo"), "--train-file", str(file), "--save"]
    assert cli.main([*arguments, str(tmp_path / "further"), *FAST]) == 0
    assert "fresh" not in capsys.readouterr().out


def test_what_was_taught_nothing_is_refused(encoder, tmp_path, capsys):
    save_checkpoint(open_checkpoint(encoder), tmp_path / "a.nemo")
    assert cli.main(["evaluate", str(tmp_path / "a.nemo"), "--file", "x.tsv"]) == 2
    assert "holds no model that was taught a task" in capsys.readouterr().err
