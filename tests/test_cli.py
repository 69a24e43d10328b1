import subprocess
import sys

import pytest

from megabert import cli


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
