"""Inputs of a run beside plain text files: stored samples, documents that stay in place, names of corpora."""

import json

import pytest

from megabert import cli

SMALL = (
    "--num-layers 1 --hidden-size 16 --num-attention-heads 2 --seq-length 32 --max-position-embeddings 32 "
    "--batch-size 2 --lr 1e-3 --log-interval 2 --eval-interval 4 --eval-iters 1 --num-workers 0 --no-tensorboard"
).split()
WORDS = "the sea is calm and a boat sails home under bright stars".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "."]) + "\n")
    with (folder / "sea.jsonl").open("w") as file:
        for number in range(40):
            sentence = " ".join(WORDS[number % 5 : number % 5 + 6]) + ". "
            file.write(json.dumps({"text": sentence * (3 + number % 4)}) + "\n")
    return folder


def run(verb, folder, *arguments):
    return cli.main([verb, *map(str, arguments), "--tokenizer", str(folder / "vocab.txt")])


def losses(run_folder):
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line.get("lm_loss"), line.get("valid_lm_loss"), line.get("nsp_loss")) for line in lines]


@pytest.fixture(scope="module")
def records(folder):
    name = folder / "made"
    asked = ["--seq-length", 32, "--max-preds-per-seq", 5, "--dupe-factor", 2, "--samples-per-file", 50, "--workers", 1]
    assert run("tokenize", folder, "--input", folder / "sea.jsonl", "--output", name, "--to", "tfrecord", *asked) == 0
    # The tokens that are there need not be made again.
    packed = ["--output", folder / "again", "--to", "tfrecord.gz"]
    assert run("tokenize", folder, "--input", name, *packed, *asked) == 0
    found = sorted(folder.glob("made-*.tfrecord"))
    assert len(found) == len(sorted(folder.glob("again-*.tfrecord.gz"))) >= 2
    return found


def test_stored_samples_are_trained_on_and_gone_on_with_exactly(folder, records, capsys):
    def train(name, steps, *more):
        given = ["--use-tfrecords", "--train-data", *records[1:], "--valid-data", records[0], "--save", folder / name]
        return run("pretrain", folder, *SMALL, *given, "--train-iters", steps, "--lr-decay-iters", 8, *more)

    assert train("whole", 8) == 0
    assert train("parts", 4) == 0 and train("parts", 8) == 0
    whole = losses(folder / "whole")
    assert [step for step, _, valid, _ in whole if valid] == [4, 8]
    assert all(nsp is not None for _, lm, _, nsp in whole if lm)
    steps = dict.fromkeys((6, 8))
    assert [line for line in losses(folder / "parts") if line[0] in steps] == [
        line for line in whole if line[0] in steps
    ]
    config = json.loads((folder / "whole" / "model" / "config.json").read_text())
    assert config["pair_task"] == "nsp"
    capsys.readouterr()
    assert run("pretrain", folder, *SMALL, "--use-tfrecords", "--train-data", records[0], "--seq-length", 16) == 2
    assert "say --seq-length 32" in capsys.readouterr().err


def test_a_table_of_corpora_and_documents_that_stay_in_place(folder, capsys):
    table = folder / "corpora.toml"
    table.write_text(f'train_iters = 4\n[corpora]\nwikipedia = ["{folder}/se*.jsonl"]\n')
    for name, flag in (("eager", "--no-lazy-loader"), ("lazy", "--lazy-loader")):
        given = ["--config", table, "--train-data", "wikipedia", "--save", folder / name]
        assert run("pretrain", folder, *SMALL, *given, flag, "--split", "80,20") == 0
    assert losses(folder / "lazy") == losses(folder / "eager")
    assert '"wikipedia" = [' in (folder / "lazy" / "run.toml").read_text()
    capsys.readouterr()
    assert run("pretrain", folder, *SMALL, "--config", table, "--train-data", "books") == 2
    error = capsys.readouterr().err
    assert "table [corpora] (wikipedia)" in error and 'books = "PATH"' in error and error.count("\n") == 1
