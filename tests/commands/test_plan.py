import json
from pathlib import Path

import pytest

from megabert import cli

ROOT = Path(__file__).parents[2]
SMALL = (
    "plan --num-layers 4 --hidden-size 64 --num-attention-heads 4 --seq-length 32 --max-position-embeddings 32 "
    "--vocab-size 300 --batch-size 2"
).split()


def test_a_plan_tells_memory_messages_and_time(capsys):
    arguments = "--world-size 8 --tensor-model-parallel-size 2 --pipeline-model-parallel-size 2 --bf16".split()
    assert cli.main([*SMALL, *arguments]) == 0
    text = capsys.readouterr().out
    for phrase in ("tensor 2 x pipeline 2 x data 2 = 8 processes", "optimizer", "by recomputation, GB: none",
                   "all-reduce", "pipeline bubble", "it fits", "efficiency"):  # fmt: skip
        assert phrase in text, phrase


def test_json_is_one_object_and_the_file_holds_the_same(tmp_path, capsys):
    file = tmp_path / "plan.json"
    assert cli.main([*SMALL, "--world-size", "2", "--json", "--output", str(file)]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan == json.loads(file.read_text())
    assert plan["layout"]["data"] == 2
    rank = plan["ranks"]["0"]
    held = sum(rank[f"{name}_bytes"] for name in ("weight", "master", "gradient", "optimizer", "activation"))
    assert rank["peak_bytes"] == held + plan["reserved_bytes"]
    assert plan["seconds"]["step"] == pytest.approx(
        sum(seconds for name, seconds in plan["seconds"].items() if name not in ("step", "ideal"))
    )


def test_a_search_is_a_table(capsys):
    assert cli.main([*SMALL, "--num-layers", "2", "--world-size", "2", "--search"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["tensor", "pipeline", "data"]
    assert {tuple(row.split()[:3]) for row in rows} == {("1", "1", "2"), ("2", "1", "1"), ("1", "2", "1")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--world-size 6 --tensor-model-parallel-size 4", "nearest"),
        ("--world-size 3 --tensor-model-parallel-size 3", "nearest"),
        ("--world-size 3 --pipeline-model-parallel-size 3", "nearest"),
        ("--world-size 2 --global-batch-size 7", "the nearest is 8"),
        ("--world-size 2 --pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 3", "nearest"),
        ("--world-size 2 --tensor-model-parallel-size 2 --sequence-parallel --seq-length 31", "nearest"),
    ],
)
def test_impossible_layouts_name_the_nearest_possible_one(arguments, message, capsys):
    assert cli.main([*SMALL, *arguments.split()]) == 2
    output = capsys.readouterr()
    assert message in output.err and output.err.count("\n") == 1


@pytest.mark.parametrize(
    ("recipe", "world", "parameters"),
    [
        ("bert-345m-tp2-pp2", 8, 0.336e9),
        ("bert-1.2b", 64, 1.19e9),
        ("bert-2.5b", 128, 2.47e9),
        ("bert-3.9b", 512, 3.87e9),
        ("bert-8.3b", 512, 8.3e9),
    ],
)
def test_recipes_parse_and_fit(recipe, world, parameters):
    from megabert import config as configuration
    from megabert.commands.plan import Config
    from megabert.planning.assembly import assemble
    from megabert.planning.hardware import HARDWARE
    from megabert.planning.plan import kinds_of_rank, peak_of
    from megabert.planning.subject import Subject
    from megabert.planning.trace import short_trace

    file = str(ROOT / "recipes" / f"{recipe}.toml")
    config = configuration.parse(Config, ["--config", file, "--world-size", str(world)], program="megabert plan")
    subject = Subject.of(config, world)
    traces = [short_trace(subject, rank, assemble) for rank in kinds_of_rank(subject)]
    assert max(map(peak_of, traces)) < HARDWARE["h100"].memory
    held = sum(found.holdings.parameters for found in traces) * subject.layout.tensor
    assert held == pytest.approx(parameters, rel=0.12)  # embeddings tied over stages and replicated rows count again
