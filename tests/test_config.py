import dataclasses
from pathlib import Path
from typing import Literal

import pytest

from megabert.config import load, option, parse, save


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """The network."""

    num_layers: int = option(24, "layers", above=0, maximum=1000)
    ffn_width: int | None = option(None, "width", aliases=("intermediate-size",))
    fuse: bool = option(True, "fuse", aliases=("no-fusion",))
    style: Literal["linear", "cosine"] = option("linear", "style")
    scale: float = option(1.0, "scale")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command(Network):
    """The command."""

    inputs: tuple[str, ...] = option((), "files")
    named: dict[str, str] = option({}, "names")
    folder: Path | None = option(None, "folder", positional=True)


def read(*arguments: str) -> Command:
    return parse(Command, arguments, program="megabert test")


def test_defaults_then_file_then_flags(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('num-layers = 6\nintermediate_size = 64\nstyle = "cosine"\n[named]\na = "b"\n')
    config = read("--config", str(file), "--num-layers", "3")
    assert (config.num_layers, config.ffn_width, config.style, config.scale) == (3, 64, "cosine", 1.0)
    assert config.named == {"a": "b"}


def test_several_spellings_of_one_flag():
    assert read("--intermediate-size", "8").ffn_width == 8
    assert read("--ffn_width", "8").ffn_width == 8
    assert read("--no-fusion").fuse is False
    assert read("--no-fuse").fuse is False
    assert read("--fuse").fuse is True


def test_numbers_as_the_documents_write_them():
    assert read("--num-layers", "1e2").num_layers == 100
    assert read("--scale", "2**32").scale == 2.0**32
    assert read("--scale", "1e-4").scale == 1e-4


def test_saved_config_is_read_back_equal(tmp_path):
    config = read("out", "--inputs", 'a "quoted" ü\n', "b\\c", "--named", "x=1=2", "--scale", "3e-05", "--no-fuse")
    save(config, tmp_path / "run.toml", comment="what was run\ntwice")
    assert load(Command, tmp_path / "run.toml") == dataclasses.replace(config, folder=Path("out"))
    assert [path.name for path in tmp_path.iterdir()] == ["run.toml"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-layer", "3"], r"unknown flag --num-layer \(did you mean --num-layers\?\)"),
        (["--num-layers", "0"], "--num-layers: 0 is not above 0"),
        (["--num-layers", "1001"], "--num-layers: 1001 is over 1000"),
        (["--num-layers", "2.5"], "invalid whole number"),
        (["--scale", "nan"], "invalid number"),
        (["--style", "linaer"], "choose from"),
        (["--named", "a"], "NAME=VALUE is needed"),
        (["a", "b"], "unexpected argument 'b'"),
    ],
)
def test_wrong_flags_are_one_clear_line(arguments, message):
    with pytest.raises(ValueError, match=message) as failure:
        read(*arguments)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("num_layer = 3", r"run.toml: unknown key 'num_layer' \(did you mean num_layers\?\)"),
        ('num_layers = "three"', "run.toml: key 'num_layers': a whole number is needed, not 'three'"),
        ("num_layers = true", "a whole number is needed"),
        ("num_layers = -1", "--num-layers: -1 is not above 0"),
        ('fuse = "yes"', "true or false is needed"),
        ('style = "cubic"', "'cubic' is not one of linear, cosine"),
        ("num_layers = ", "is not valid TOML"),
    ],
)
def test_wrong_run_files_name_file_and_key(tmp_path, text, message):
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read("--config", str(file))


def test_missing_run_file():
    with pytest.raises(ValueError, match=r"there is no file nowhere\.toml"):
        read("--config", "nowhere.toml")


def test_help_tells_default_alias_and_group(capsys):
    with pytest.raises(SystemExit) as stop:
        read("--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "The network" in text and "--intermediate-size" in text and "default: 24" in text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Old(Network):
    """Old."""

    pair_head: bool = option(True, "old", aliases=("pair-no-head", "no-pair-head"), hidden=True)
    shares: str = option("1", "shares")


def test_hidden_switches_stay_hidden_and_each_spelling_is_shown_once(capsys):
    with pytest.raises(SystemExit):
        parse(Old, ["--help"], program="x")
    text = capsys.readouterr().out
    assert "pair" not in text and text.count("--no-fusion") == 1
    assert parse(Old, ["--no-pair-head"], program="x").pair_head is False


def test_one_option_in_two_spellings_is_refused(tmp_path):
    (tmp_path / "run.toml").write_text("num_layers = 2\nnum-layers = 3\n")
    with pytest.raises(ValueError, match="key 'num-layers': num_layers is set twice"):
        parse(Old, ["--config", str(tmp_path / "run.toml")], program="x")


def test_what_begins_as_a_negative_number_is_a_value():
    assert parse(Old, ["--shares", "-1,2,3"], program="x").shares == "-1,2,3"
