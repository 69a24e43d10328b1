"""The command line of Transformers' `convert_megatron_bert_checkpoint.py`, unchanged, on `megabert convert`.

  python convert_megatron_bert_checkpoint.py megatron_bert_345m_v0_1_uncased.zip

`config.json` and `pytorch_model.bin` are written beside the file, which may be any checkpoint that `megabert convert`
reads, and a tokenizer where a vocab.txt lies there or --tokenizer names one. A second run replaces what the first one
wrote; other files of these names are replaced only with --overwrite.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megabert import cli, runtime
from megabert import config as configuration
from megabert.commands import convert
from megabert.config import option

PROGRAM = "convert_megatron_bert_checkpoint.py"
CONFIG, WEIGHTS = "config.json", "pytorch_model.bin"
_SHADOWING = ("model.safetensors", "model.safetensors.index.json")
"""What `from_pretrained` opens before `pytorch_model.bin`."""


@dataclass(frozen=True, kw_only=True)
class Config(convert.SourceOptions):
    """The command."""

    path_to_checkpoint: str = option(dataclasses.MISSING, "a checkpoint, such as the zip of NGC", positional=True)
    vocab_size: int | None = option(None, "cut or pad the vocabulary to this many entries", minimum=1, example="30522")
    verify: bool = option(False, "run both sides on fixed inputs, and compare the logits")
    overwrite: bool = option(False, "replace files that this command did not write")


def run(config: Config) -> None:
    """Convert, and put the results beside the source.

    Raises:
        ValueError, OSError: as `convert.run`, or files that are no earlier result are in the way.
    """
    source = Path(config.path_to_checkpoint)
    folder = source.resolve().parent if source.exists() else Path.cwd()
    _check(config, source, folder)
    shared = {field.name: getattr(config, field.name) for field in dataclasses.fields(convert.SourceOptions)}
    # Beside the source, so that a move is a rename.
    with tempfile.TemporaryDirectory(prefix=".megabert-", dir=folder) as temporary:
        made = Path(temporary) / "model"
        converted = convert.Config(
            source=config.path_to_checkpoint, target=made, to="huggingface", optimizer=False, verify=config.verify,
            vocab_size=config.vocab_size, safe_serialization=False, **shared,
        )  # fmt: skip
        convert.run(converted, shown=folder)
        for file in sorted(made.iterdir(), key=lambda file: file.name == CONFIG):  # the config last: then all is there
            there = folder / file.name
            if file.name in (CONFIG, WEIGHTS) or not there.exists() or config.tokenizer is not None:
                file.replace(there)
        for name in _SHADOWING:
            (folder / name).unlink(missing_ok=True)
    print(f"{CONFIG} and {WEIGHTS} are in {folder}")


def _check(config: Config, source: Path, folder: Path) -> None:
    """Refuse to write over the source, and over what an earlier run did not write.

    Raises:
        ValueError: one file is in the way; it is named.
    """
    from megabert.formats import huggingface_checkpoint  # heavy: not for --help

    written = [folder / name for name in (CONFIG, WEIGHTS)]
    used = {path.resolve() for path in (source, config.config_file) if path is not None and path.exists()}
    for path in written:
        if path.resolve() in used:
            raise ValueError(f"{path} would be replaced by the result: give it another name first")
    if source.is_file() and huggingface_checkpoint.look(source) is not None:
        raise ValueError(f"{source} is in a Transformers folder already: from_pretrained({str(folder)!r}) opens it")
    if config.overwrite:
        return
    shadowing = [folder / name for name in _SHADOWING if (folder / name).exists()]
    if shadowing:
        raise ValueError(f"{shadowing[0]} exists, which from_pretrained would take in place of {WEIGHTS}; move it "
                         "away, or give --overwrite to replace it")  # fmt: skip
    there = next((path for path in written if path.exists()), None)
    if there is not None and not _is_result(folder):
        raise ValueError(f"{there} exists, and is not of an earlier run; move it away, or give --overwrite to replace "
                         "it")  # fmt: skip
    if config.tokenizer is not None:
        names = (name for name in huggingface_checkpoint.VOCABULARY_FILES if (folder / name).exists())
        if name := next(names, None):
            raise ValueError(f"{folder / name} exists; move it away, or give --overwrite to replace it by --tokenizer")


def _is_result(folder: Path) -> bool:
    """Whether config.json is one that this command, or Transformers', writes."""
    try:
        return runtime.read_object(folder / CONFIG).get("model_type") in ("megatron-bert", "bert")
    except (ValueError, OSError):
        return False


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
