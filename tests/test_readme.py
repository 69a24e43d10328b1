"""The README's commands, run as written; only sizes are made small."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from megabert import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
SMALL = (
    "--num-layers 1 --hidden-size 24 --num-attention-heads 2 --vocab-size 300 --train-iters 2 --batch-size 2 "
    "--global-batch-size 2 --eval-iters 1 --num-workers 0"
).split()


def commands() -> list[list[str]]:
    lines = [line for _, block in BLOCKS for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("megabert ")]


def test_the_readme_shows_the_main_job():
    assert [command[0] for command in commands()] == [
        "pretrain", "predict", "inspect", "plan", "finetune", "evaluate", "predict",
    ]  # fmt: skip
    targets = re.findall(r"^make (\w+)", README, re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets and all(f"\n{target}:" in makefile for target in targets)


def test_every_verb_of_the_table_exists():
    verbs = re.findall(r"^\| `megabert ([a-z-]+)`", README, re.MULTILINE)
    assert set(verbs) == set(cli.VERBS)


def test_every_file_that_is_named_exists():
    for name in re.findall(r"`((?:src|recipes|benchmarks|tests|docs)/[\w./-]*)`", README):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / name).exists(), name


def test_the_commands_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    with (tmp_path / "my-texts.jsonl").open("w") as file:
        for number in range(60):
            text = f"The patient was given drug {number} for the pain. It helped after {number} days. Nobody knew why."
            file.write(json.dumps({"text": text}) + "\n")
    for name in ("train", "dev"):
        lines = [
            "sentence\tlabel",
            *(f"drug {number} was {'good' if number % 2 else 'bad'}\t{number % 2}" for number in range(20)),
        ]
        (tmp_path / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    for command in commands():
        if command[0] == "plan":
            continue  # of a large model; tests/commands/test_plan.py plans small ones
        arguments = [*command, *SMALL] if command[0] == "pretrain" else command
        assert cli.main(arguments) == 0, capsys.readouterr().err
    code = next(block for language, block in BLOCKS if language == "python")
    namespace: dict = {}
    exec(code, namespace)
    assert type(namespace["model"]).__name__ == "MegatronBertForMaskedLM"
    folder = tmp_path / "runs" / "mine"
    listed = re.findall(
        r"^  ([\w.]+)/?  ", next(block for _, block in BLOCKS if block.startswith("runs/")), re.MULTILINE
    )
    assert set(listed) - {"tensorboard"} <= {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("recipe", sorted(path.name for path in (ROOT / "recipes").glob("*.toml")))
def test_recipes_name_known_flags(recipe, capsys):
    # Stops at the missing data, so all flags of the recipe were read and checked.
    assert cli.main(["pretrain", "--config", str(ROOT / "recipes" / recipe)]) == 2
    assert "--train-data is missing" in capsys.readouterr().err
