import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from megabert import cli, runtime


def test_every_verb_has_its_module_and_help(capsys):
    for verb in cli.VERBS:
        assert cli.main([verb, "--help"]) == 0
        text = capsys.readouterr().out
        assert f"usage: megabert {verb}" in text
        assert "default:" in text and "e.g." in text


def test_overview_names_every_verb(capsys):
    assert cli.main([]) == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in cli.VERBS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrian"], "unknown verb 'pretrian' (did you mean pretrain?)"),
        (["pretrain", "--num-layer", "3"], "unknown flag --num-layer (did you mean --num-layers?)"),
        (["inspect", "/no/such/path"], "/no/such/path"),
    ],
)
def test_mistakes_are_one_line_and_status_2(arguments, message, capsys):
    assert cli.main(arguments) == 2
    output = capsys.readouterr()
    assert message in output.err
    assert output.err.count("\n") == 1
    assert output.out == ""


def test_help_needs_no_torch():
    """The first thing a user types must answer at once: torch takes seconds to import."""
    code = (
        "import sys; from megabert import cli\n"
        "for verb in cli.VERBS: assert cli.main([verb, '--help']) == 0\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=60)


@pytest.mark.parametrize(
    "arguments", [["pretrain", "--help"], [], ["inspect", "--json", "FOLDER"], ["inspect", "FOLDER"]]
)
def test_a_reader_that_goes_away_ends_a_command_quietly(arguments, tmp_path):
    """As under `megabert ... | head -1`: the status of SIGPIPE, and not a word."""
    (tmp_path / "config.json").write_text('{"model_type": "megatron-bert"}')
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    given = [str(tmp_path) if argument == "FOLDER" else argument for argument in arguments]
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "megabert", *given]
    done = subprocess.run(command, check=False, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_another_broken_pipe_is_an_error(capsys):
    def command() -> int:
        raise BrokenPipeError(32, "Broken pipe", "a socket")

    assert cli.to_the_end(command) == 2
    assert "a socket" in capsys.readouterr().err


def test_of_many_processes_the_first_says_a_mistake_and_the_others_wait_for_their_launcher(monkeypatch, capsys):
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    waited = []

    def ended(seconds):
        waited.append(seconds)
        raise runtime.Terminated

    monkeypatch.setattr(cli.time, "sleep", ended)
    assert cli.main(["pretrain", "--bogus-flag", "3"]) == 143
    assert waited and not capsys.readouterr().err
    monkeypatch.setattr(cli.time, "sleep", waited.append)
    assert cli.main(["pretrain", "--bogus-flag", "3"]) == 2
    assert "--bogus-flag" in capsys.readouterr().err
    waited.clear()
    monkeypatch.setenv("RANK", "0")
    assert cli.main(["pretrain", "--bogus-flag", "3"]) == 2
    assert not waited and "--bogus-flag" in capsys.readouterr().err
