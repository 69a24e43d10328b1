"""`megabert finetune`, `evaluate` and `predict` in two processes, against one: every layout the same numbers."""

import json
import os
import random
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

import megabert
from megabert import cli
from megabert.formats import huggingface
from megabert.tokenization import word_piece

from .jobs import free_port, run

WORDS = "good bad fine poor the film was very a it not and".split()
COMMON = (
    "sequence-classification --batch-size 8 --lr 3e-3 --epochs 2 --max-seq-length 16 --hidden-dropout 0 "
    "--attention-dropout 0 --log-interval 1 --no-tensorboard --device cpu --no-async-save"
).split()
LAYOUTS = {
    "tensor": "--tensor-model-parallel-size 2",
    "sequence": "--tensor-model-parallel-size 2 --sequence-parallel",
    "data": "--batch-size 4 --global-batch-size 8",
    "sharded": "--batch-size 4 --global-batch-size 8 --data-parallel-sharding full",
    "stages": "--pipeline-model-parallel-size 2 --batch-size 4 --global-batch-size 8",
}
BUDGET = "--batch-tokens 64 --global-batch-tokens 128 --freeze-layers 1 --layer-decay 0.5".split()


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """An encoder as shards of two tensor-parallel processes, and examples."""
    folder = tmp_path_factory.mktemp("finetune")
    torch.manual_seed(0)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "."]
    config = megabert.MegatronBertConfig(
        vocab_size=len(tokens), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=16, initializer_range=0.1,
    )  # fmt: skip
    tokenizer = word_piece.from_tokens(tokens, lower_case=True)
    huggingface.write(megabert.MegatronBertForPreTraining(config), tokenizer, folder / "encoder")
    shards = ["convert", str(folder / "encoder"), str(folder / "shards"), "--to", "megatron"]
    assert cli.main([*shards, "--tensor-model-parallel-size", "2"]) == 0
    generator = random.Random(0)
    for name, count in (("train", 45), ("dev", 21)):
        words = [generator.choice(["good", "fine", "bad", "poor"]) for _ in range(count)]
        lines = [f"the film was {'very ' * generator.randint(0, 7)}{one}\t{int(one in WORDS[::2])}" for one in words]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def flags(place: Path, name: str) -> list[str]:
    return [
        "finetune", *COMMON, "--model", str(place / "shards"), "--tokenizer", str(place / "encoder" / "vocab.txt"),
        "--train-file", str(place / "train.tsv"), "--validation-file", str(place / "dev.tsv"),
        "--save", str(place / name),
    ]  # fmt: skip


def commands(place: Path) -> list[list[str]]:
    trained = [[*flags(place, name), *layout.split()] for name, layout in LAYOUTS.items()]
    # Stopped in the middle, and gone on with.
    trained.insert(1, [*flags(place, "cut"), *LAYOUTS["tensor"].split(), "--exit-interval", "5"])
    trained.insert(2, [*flags(place, "cut"), *LAYOUTS["tensor"].split()])
    trained.append([*flags(place, "budget"), *BUDGET])
    dev = str(place / "dev.tsv")
    asked = [["evaluate", str(place / "alone"), "--file", dev, "--output", str(place / f"scores-{name}"), "--device",
              "cpu", "--batch-tokens", "64", *layout.split()] for name, layout in (
        ("data", ""), ("tensor", LAYOUTS["tensor"]), ("stages", "--pipeline-model-parallel-size 2"))]  # fmt: skip
    said = ["predict", str(place / "alone"), "--file", dev, "--output", str(place / "said.jsonl"), "--device", "cpu"]
    return [*trained, *asked, said]


def work(jobs: list[list[str]], place: Path) -> None:
    for number, arguments in enumerate(jobs):
        # A port that is free now: those of the jobs before are in use for a while.
        told = place / f"port-{number}"
        if os.environ["RANK"] == "0":
            told.with_suffix(".part").write_text(str(free_port()))
            told.with_suffix(".part").rename(told)
        while not told.exists():
            time.sleep(0.01)
        os.environ["MASTER_PORT"] = told.read_text()
        status = cli.main(arguments)
        assert status == 0, arguments
    sys.exit(0)


@pytest.fixture(scope="module")
def results(place) -> Path:
    assert cli.main(flags(place, "alone")) == 0
    assert cli.main([*flags(place, "alone-budget"), *BUDGET]) == 0
    assert cli.main(["predict", str(place / "alone"), "--file", str(place / "dev.tsv"), "--output",
                     str(place / "said-alone.jsonl"), "--device", "cpu"]) == 0  # fmt: skip
    ended = run(work, 2, commands(place), place, seconds=240)
    assert all(one.status == 0 for one in ended), [one.errors for one in ended]
    return place


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [line["label_loss"] for line in lines(folder / "metrics.jsonl") if "label_loss" in line]


@pytest.mark.parametrize(
    ("name", "like"), [*((name, "alone") for name in LAYOUTS), ("cut", "alone"), ("budget", "alone-budget")]
)
def test_every_layout_trains_as_one_process(results, name, like):
    here, there = results / name, results / like
    assert losses(here) == pytest.approx(losses(there), abs=1e-5) and len(losses(here)) >= 10
    mine, its = (safetensors.torch.load_file(folder / "model" / "model.safetensors") for folder in (here, there))
    assert mine.keys() == its.keys()
    for key, tensor in its.items():
        if key.endswith("key.bias"):
            continue  # has no influence, hence no gradient but noise, which Adam blows up
        torch.testing.assert_close(mine[key], tensor, rtol=0, atol=1e-5)
    scores = [json.loads((folder / "scores.json").read_text())["validation"] for folder in (here, there)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-9)
    assert [one["id"] for one in lines(here / "predictions.jsonl")] == [str(number) for number in range(1, 22)]
    assert (here / "model" / "vocab.txt").is_file()


def test_an_interrupted_run_goes_on_bitwise(results):
    for name in ("model.safetensors", "config.json"):
        assert (results / "cut" / "model" / name).read_bytes() == (results / "tensor" / "model" / name).read_bytes()
    assert losses(results / "cut") == losses(results / "tensor")


def test_every_example_is_scored_once_in_every_layout(results):
    whole = json.loads((results / "alone" / "scores.json").read_text())["validation"]
    gold = lines(results / "alone" / "predictions.jsonl")
    for name in ("data", "tensor", "stages"):
        found = json.loads((results / f"scores-{name}" / "dev" / "scores.json").read_text())
        assert found["examples"] == 21 and found["scores"] == pytest.approx(whole, abs=1e-9)
        said = lines(results / f"scores-{name}" / "dev" / "predictions.jsonl")
        assert [one["id"] for one in said] == [one["id"] for one in gold]
        assert [one["probability"] for one in said] == pytest.approx([one["probability"] for one in gold], abs=1e-5)
    said, alone = lines(results / "said.jsonl"), lines(results / "said-alone.jsonl")
    assert [one["label"] for one in said] == [one["label"] for one in alone]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--tensor-model-parallel-size 2", "needs 2 processes, and this is one"),
        ("--tensor-model-parallel-size 3", "does not divide"),
        ("--global-batch-tokens 8", "needs --batch-tokens"),
        ("--batch-tokens 64 --global-batch-tokens 65", "the next one is 128"),
        ("--batch-tokens 64 --global-batch-size 8", "say --global-batch-tokens"),
        ("--lora-alpha 2", "--lora-alpha needs --lora-rank"),
        ("--lora-rank 2 --layer-decay 0.9", "does not go with --lora-rank"),
        ("--lora-rank 2 --freeze-encoder", "leave out --freeze-encoder"),
    ],
)
def test_flags_that_contradict_each_other(place, tmp_path, capsys, more, message):
    assert cli.main([*flags(place, "refused"), *more.split()]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not (place / "refused" / "checkpoints").exists()
