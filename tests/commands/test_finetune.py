"""A task from data to prediction, as a user types it, on data made here."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

import megabert
from megabert import cli
from megabert import config as configuration
from megabert.commands import evaluate
from megabert.commands.finetune import command
from megabert.commands.finetune.parts import changed
from megabert.formats import huggingface
from megabert.tokenization import word_piece

WORDS = "good bad fine poor the film was very a it not and paris london who wrote went to city".split()
FAST = "--lr 3e-3 --batch-size 8 --max-seq-length 32 --log-interval 100 --no-tensorboard --device cpu".split()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, ".", "?", "e", "##n"]
    config = megabert.MegatronBertConfig(
        vocab_size=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("encoder") / "model"
    tokenizer = word_piece.from_tokens(tokens, lower_case=True)
    huggingface.write(megabert.MegatronBertForPreTraining(config), tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    generator = random.Random(0)
    for name, count in (("train", 120), ("dev", 41)):
        texts, tagged, questions = [], [], []
        for number in range(count):
            word, label = generator.choice([("good", "pos"), ("fine", "pos"), ("bad", "neg"), ("poor", "neg")])
            texts.append(f"the film was {'very ' * generator.randint(0, 3)}{word}\t{label}")
            city, verb = generator.choice(["paris", "london"]), generator.choice(["went to", "wrote to"])
            tagged.append("".join(f"{w}\t{'B-LOC' if w == city else 'O'}\n" for w in f"it {verb} {city} .".split()))
            context = f"It was {generator.choice(['good', 'bad'])} and {verb} {city} ."
            answers = [{"text": city, "answer_start": context.index(city)}] if number % 3 else []
            questions.append({"context": context, "qas": [{"id": str(number), "question": "who ?", "answers": answers,
                                                           "is_impossible": not answers}]})  # fmt: skip
        (folder / f"{name}.tsv").write_text("\n".join(texts) + "\n")
        (folder / f"{name}.conll").write_text("\n".join(tagged))
        (folder / f"{name}.json").write_text(json.dumps({"data": [{"paragraphs": questions}]}))
    return folder


def finetune(task, encoder, data, folder, *more, kind="tsv"):
    return cli.main(
        ["finetune", task, "--model", str(encoder), "--train-file", str(data / f"train.{kind}"),
         "--validation-file", str(data / f"dev.{kind}"), "--save", str(folder), *FAST, *more]
    )  # fmt: skip


@pytest.fixture(scope="module")
def classifier(encoder, data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert finetune("sequence-classification", encoder, data, folder, "--epochs", "8") == 0
    return folder


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def scores(folder: Path) -> list[dict]:
    return [line for line in lines(folder / "metrics.jsonl") if "valid_accuracy" in line]


def test_a_classifier_learns_and_tells_its_scores(classifier):
    found = json.loads((classifier / "scores.json").read_text())
    assert found["validation"]["accuracy"] > 0.9
    assert found["validation_details"]["labels"] == ["neg", "pos"]
    predictions = lines(classifier / "predictions.jsonl")
    assert len(predictions) == 41
    right = sum(one["label"] == one["gold"] for one in predictions) / 41
    assert right == pytest.approx(found["validation"]["accuracy"])
    steps = [line["step"] for line in scores(classifier)]
    assert steps == list(range(15, 121, 15))  # after each pass
    page = (classifier / "report.html").read_text()
    assert f"{sum(one['label'] == one['gold'] for one in predictions)} of 41" in page and "<h2>Training</h2>" in page
    best = max(scores(classifier), key=lambda line: line["valid_accuracy"])
    assert best["valid_accuracy"] == found["validation"]["accuracy"] and best["step"] == found["step"]


def test_plain_transformers_says_the_same(classifier):
    pipeline = transformers.pipeline(
        "text-classification",
        model=transformers.MegatronBertForSequenceClassification.from_pretrained(classifier / "model"),
        tokenizer=transformers.AutoTokenizer.from_pretrained(classifier / "model"),
    )
    for one in lines(classifier / "predictions.jsonl")[:5]:
        (said,) = pipeline(one["text"])  # type: ignore[misc]
        assert said["label"] == one["label"] and said["score"] == pytest.approx(one["probability"], abs=1e-5)


def test_evaluate_scores_every_example_as_training_did(classifier, data, tmp_path, capsys):
    output = tmp_path / "scores"
    for tokens in ("8", "4096"):
        arguments = ["evaluate", str(classifier), "--file", str(data / "dev.tsv"), "--output", str(output)]
        assert cli.main([*arguments, "--batch-tokens", tokens]) == 0
        found = json.loads((output / "dev" / "scores.json").read_text())
        assert found["examples"] == 41
        assert found["scores"] == json.loads((classifier / "scores.json").read_text())["validation"]
        assert "accuracy" in capsys.readouterr().out
        assert "<h2>Training</h2>" in (output / "dev" / "report.html").read_text()


def test_scores_of_another_file_are_not_replaced_in_silence(classifier, data, tmp_path, capsys):
    other = tmp_path / "other" / "dev.tsv"
    other.parent.mkdir()
    other.write_bytes((data / "dev.tsv").read_bytes())
    told = []
    for file in (data / "dev.tsv", data / "dev.tsv", other):
        assert cli.main(["evaluate", str(classifier), "--file", str(file), "--output", str(tmp_path / "scores")]) == 0
        told += [line for line in capsys.readouterr().out.splitlines() if line.startswith("notice: ")]
    folder = tmp_path / "scores" / "dev"
    assert told == [f"notice: {folder} held the scores of {data / 'dev.tsv'}; --output names another folder"]
    assert json.loads((folder / "scores.json").read_text())["file"] == str(other)


def test_predict(classifier, data, tmp_path, capsys):
    assert cli.main(["predict", str(classifier), "--text", "the film was good", "bad"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1::2]] == ["pos", "neg"]
    texts = tmp_path / "texts.txt"
    texts.write_text("good\nbad\n")
    assert cli.main(["predict", str(classifier), "--file", str(texts), "--output", str(tmp_path / "out.jsonl")]) == 0
    assert [one["label"] for one in lines(tmp_path / "out.jsonl")] == ["pos", "neg"]


def test_an_interrupted_run_goes_on_bitwise(classifier, encoder, data, tmp_path):
    folder = tmp_path / "cut"
    common = ("sequence-classification", encoder, data, folder, "--epochs", "8")
    for _ in range(3):
        assert finetune(*common, "--exit-interval", "50") == 0
    whole = huggingface.read_facts(classifier / "model")
    assert huggingface.read_facts(folder / "model").tensors.keys() == whole.tensors.keys()
    for name in ("model.safetensors", "config.json"):
        assert (folder / "model" / name).read_bytes() == (classifier / "model" / name).read_bytes()
    assert scores(folder) == scores(classifier)
    assert (folder / "predictions.jsonl").read_bytes() == (classifier / "predictions.jsonl").read_bytes()


def test_patience_ends_a_run_and_keeps_it_ended(encoder, data, tmp_path, capsys):
    more = ("--epochs", "30", "--patience", "2", "--freeze-encoder", "--class-weights", "balanced", "--lr", "1e-9")
    assert finetune("sequence-classification", encoder, data, tmp_path / "run", *more) == 0
    assert [line["step"] for line in scores(tmp_path / "run")] == [15, 30, 45]
    assert "no better score in 2 evaluations" in capsys.readouterr().out
    assert finetune("sequence-classification", encoder, data, tmp_path / "run", *more) == 0
    assert [line["step"] for line in scores(tmp_path / "run")] == [15, 30, 45]
    assert json.loads((tmp_path / "run" / "scores.json").read_text())["step"] == 15


def test_frozen_weights_stay(encoder, data, tmp_path):
    folder = tmp_path / "run"
    assert finetune("sequence-classification", encoder, data, folder, "--epochs", "1", "--freeze-layers", "1") == 0
    before = megabert.MegatronBertModel.from_pretrained(encoder).state_dict()
    after = megabert.MegatronBertModel.from_pretrained(folder / "model").state_dict()
    first = "encoder.layer.0.intermediate.dense.weight"
    assert torch.equal(before[first], after[first])
    assert torch.equal(before["embeddings.word_embeddings.weight"], after["embeddings.word_embeddings.weight"])
    assert not torch.equal(before["encoder.layer.1.intermediate.dense.weight"],
                           after["encoder.layer.1.intermediate.dense.weight"])  # fmt: skip


def test_seeds_are_summarised(encoder, data, tmp_path, capsys):
    folder = tmp_path / "runs"
    assert (
        finetune("sequence-classification", encoder, data, folder, "--epochs", "1", "--seeds", "2", "--seed", "3") == 0
    )
    each = [json.loads((folder / f"seed-{seed}" / "scores.json").read_text()) for seed in (3, 4)]
    values = [one["validation"]["accuracy"] for one in each]
    summary = json.loads((folder / "scores.json").read_text())["validation"]["accuracy"]
    assert summary["each"] == values and summary["mean"] == pytest.approx(sum(values) / 2)
    assert "2 seeds: accuracy" in capsys.readouterr().out


def test_entities(encoder, data, tmp_path, capsys):
    folder = tmp_path / "ner"
    assert finetune("ner", encoder, data, folder, "--epochs", "4", kind="conll") == 0
    shown = capsys.readouterr().out
    assert "fresh, with random weights: classifier.weight, classifier.bias" in shown
    assert json.loads((folder / "scores.json").read_text())["validation"]["f1"] > 0.9
    assert cli.main(["predict", str(folder), "--text", "It went to London.", "--json"]) == 0
    (entity,) = json.loads(capsys.readouterr().out)["entities"]
    assert (entity["type"], entity["text"], entity["start"], entity["end"]) == ("LOC", "London", 11, 17)


def test_questions_and_a_second_task_on_top(encoder, data, tmp_path, capsys):
    folder = tmp_path / "squad"
    more = ("--epochs", "3", "--doc-stride", "8")
    assert finetune("squad2", encoder, data, folder, *more, kind="json") == 0
    found = json.loads((folder / "scores.json").read_text())["validation"]
    assert {"exact", "f1", "HasAns_f1", "NoAns_f1", "best_f1", "best_f1_thresh"} <= set(found)
    kept = json.loads((folder / "model" / "config.json").read_text())["fine_tuned"]
    assert kept["task"] == "question-answering" and kept["no_answer"]
    capsys.readouterr()
    # The same head goes on being taught; another task's does not.
    assert finetune("squad2", folder, data, tmp_path / "again", *more, "--epochs", "1", kind="json") == 0
    assert "fresh" not in capsys.readouterr().out
    assert finetune("ner", folder, data, tmp_path / "ner", "--epochs", "1", kind="conll") == 0
    assert "fresh, with random weights: classifier" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dance", "--model", "ENCODER", "--train-file", "DATA/train.tsv"], "unknown task 'dance'"),
        (["ner", "--train-file", "DATA/train.conll"], "--model is missing"),
        (["ner", "--model", "ENCODER"], "--train-file is missing"),
        (["ner", "--model", "/no/model", "--train-file", "DATA/train.conll"], "/no/model"),
        (["ner", "--model", "ENCODER", "--train-file", "DATA/train.conll", "--doc-stride", "3"], "has no setting"),
        (["ner", "--model", "ENCODER", "--train-file", "DATA/train.json"], "train.json:1"),
        (["cola", "--model", "ENCODER", "--train-file", "DATA/train.tsv"], "train.tsv:1: 2 columns between tabs"),
        (["sst-2", "--model", "ENCODER", "--train-file", "DATA/train.tsv"], "is not one of the 2 labels"),
        (["ner", "--model", "ENCODER", "--train-file", "DATA/train.conll", "--max-seq-length", "99"], "64 positions"),
        (["ner", "--model", "ENCODER", "--train-file", "DATA/train.conll", "--patience", "2"], "--validation-file"),
        (["ner", "--model", "ENCODER", "--train-file", "DATA/train.conll", "--cased"], "--cased contradicts"),
        (["ner", "--model", "ENCODER", "--train-file", "DATA/train.conll", "--tokenizer", "DATA/other.txt"],
         "holds another tokenizer than the one that was named"),
        (["ner", "--model", "ENCODER", "--train-file", "DATA/train.conll", "--freeze-layers", "5",
          "--max-seq-length", "32"], "the model has 2 layers"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(encoder, data, tmp_path, capsys, arguments, message):
    (data / "other.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "B"]) + "\n")
    arguments = [item.replace("ENCODER", str(encoder)).replace("DATA", str(data)) for item in arguments]
    assert cli.main(["finetune", *arguments, "--save", str(tmp_path / "run")]) == 2
    output = capsys.readouterr()
    assert message in output.err and output.err.count("\n") == 1
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "RUN", "--file", "DATA/dev.conll"], "dev.conll:1"),
        (["evaluate", "RUN"], "--file is missing"),
        (["evaluate", "ENCODER", "--file", "DATA/dev.tsv"], "was not fine-tuned for a task"),
        (["predict", "RUN", "--text", "good", "--text-pair", "bad"], "this model reads one text"),
        (["predict", "fill-mask", "RUN", "--text", "[MASK]"], "neither a masked-word head"),
        (["predict", "squad", "RUN", "--text", "good"], "only the path of a model that was fine-tuned"),
    ],
)
def test_a_wrong_task_for_a_checkpoint_is_refused(classifier, encoder, data, capsys, arguments, message):
    places = {"RUN": str(classifier), "ENCODER": str(encoder)}
    arguments = [places.get(item, item.replace("DATA", str(data))) for item in arguments]
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("length", "epochs"), [({}, 3), ({"train_iters": 5}, None), ({"train_samples": 64}, None), ({"epochs": 2}, 2)]
)
def test_passes_are_counted_unless_the_length_is_said_otherwise(monkeypatch, tmp_path, length, epochs):
    found = []
    monkeypatch.setattr(command, "_run_all", lambda config, world, device: found.append(config) or tmp_path)
    config = command.Config(task="rte", model="m", train_file=tmp_path / "a.tsv", device="cpu", **length)
    assert command.run(config) == tmp_path
    assert found[0].epochs == epochs


def test_a_run_that_goes_on_otherwise_says_so(tmp_path):
    config = command.Config(task="sst-2", lr=3e-3, log_interval=7)
    configuration.save(config, tmp_path / "run.toml", comment="x")
    assert not [*changed(replace(config, log_interval=9), tmp_path)]
    (said,) = changed(replace(config, lr=1e-4), tmp_path)
    assert said == f"notice: --lr is 0.0001 from here on; the run in {tmp_path} was begun with 0.003"
    assert not [*changed(config, tmp_path / "nothing")]


@pytest.mark.parametrize(
    ("name", "stem"), [("dev-v1.1.json", "dev-v1.1"), ("dev.tsv", "dev"), ("dev-v1.1.jsonl.gz", "dev-v1.1"), ("a", "a")]
)
def test_scores_lie_in_a_folder_of_the_file_s_name(name, stem):
    assert evaluate._stem(Path(name)) == stem
