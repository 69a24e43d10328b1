"""The command line of Transformers' `convert_megatron_bert_checkpoint.py`, unchanged, on `megabert convert`.

  python convert_megatron_bert_checkpoint.py megatron_bert_345m_v0_1_uncased.zip

`config.json` and the weights (`model.safetensors`) are written beside the file, which may be any checkpoint that
`megabert convert` reads. Files that are there already are replaced only with --overwrite.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megabert import cli
from megabert import config as configuration
from megabert.commands import convert
from megabert.config import option

PROGRAM = "convert_megatron_bert_checkpoint.py"


@dataclass(frozen=True, kw_only=True)
class Config(convert.SourceOptions):
    """The command."""

    path_to_checkpoint: str = option(dataclasses.MISSING, "a checkpoint, such as the zip of NGC", positional=True)
    vocab_size: int | None = option(None, "cut or pad the vocabulary to this many entries", minimum=1, example="30522")
    verify: bool = option(False, "run both sides on fixed inputs, and compare the logits")
    overwrite: bool = option(False, "replace a config.json and weights that are there")


def run(config: Config) -> None:
    """Convert, and put the results beside the source.

    Raises:
        ValueError, OSError: as `convert.run`, or files of that name are there.
    """
    source = Path(config.path_to_checkpoint)
    folder = source.resolve().parent if source.exists() else Path.cwd()
    shared = {field.name: getattr(config, field.name) for field in dataclasses.fields(convert.SourceOptions)}
    # Beside the source, so that a move is a rename.
    with tempfile.TemporaryDirectory(prefix=".megabert-", dir=folder) as temporary:
        made = Path(temporary) / "model"
        converted = convert.Config(
            source=config.path_to_checkpoint, target=made, to="huggingface", optimizer=False, verify=config.verify,
            vocab_size=config.vocab_size, **shared,
        )  # fmt: skip
        if not config.overwrite:
            _refuse(folder, ["config.json", "model.safetensors"])
        convert.run(converted)
        files = sorted(made.iterdir())
        if not config.overwrite:
            _refuse(folder, [file.name for file in files if file.name != "vocab.txt"])
        for file in files:
            if file.name != "vocab.txt" or not (folder / file.name).exists():
                file.replace(folder / file.name)
    print(f"config.json and the weights are in {folder}")


def _refuse(folder: Path, names: Sequence[str]) -> None:
    there = next((folder / name for name in names if (folder / name).exists()), None)
    if there is not None:
        raise ValueError(f"{there} exists; move it away, or give --overwrite to replace it")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status, as `megabert` does."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    return cli.to_the_end(lambda: _main(given))


def _main(given: list[str]) -> int:
    try:
        run(configuration.parse(Config, given, program=PROGRAM, description=__doc__ or ""))
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        return cli.fail(PROGRAM, error)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0
