"""Configuration: frozen dataclasses read from defaults, a TOML file and flags, in that order.

A room declares what it needs as a frozen, keyword-only dataclass whose fields are made with `option`; a command
inherits the ones that it uses, so its flags are flat, and hands itself on to each room. This file knows the fields of
nobody. argparse does the reading: its errors are one line, and it takes several spellings of one flag.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import inspect
import json
import math
import re
import tomllib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from megabert import runtime

Config = TypeVar("Config")


def option(
    default: Any,
    help: str,
    *,
    aliases: Sequence[str] = (),
    metavar: str | None = None,
    example: str | None = None,
    above: float | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    positional: bool = False,
    hidden: bool = False,
) -> Any:
    """Declare one field of a config: its default (written here and nowhere else), its help and its limits.

    Args:
        help: what the flag means, with its unit.
        aliases: other spellings, without the leading dashes (`"micro-batch-size"`).
        example: a value to show in the help text.
        above, minimum, maximum: limits of a number.
        positional: read without a flag.
        hidden: left out of the help (accepted for old command lines).
    """
    metadata = {
        "help": help, "aliases": tuple(aliases), "metavar": metavar, "example": example, "above": above,
        "minimum": minimum, "maximum": maximum, "positional": positional, "hidden": hidden,
    }  # fmt: skip
    if isinstance(default, dict | list):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def _turns_off(flag: str) -> bool:
    # `--no-fusion`, and Megatron's `--bert-no-binary-head`.
    return "no" in flag.lstrip("-").split("-")[:2]


def flag_name(field_name: str) -> str:
    """The flag of a field: `num_layers` -> `num-layers`."""
    return field_name.replace("_", "-")


class _Kind(typing.NamedTuple):
    """What a field's annotation means for reading: the type of one value, and whether there are several."""

    base: Any
    optional: bool
    several: bool
    mapping: bool
    choices: tuple[Any, ...]


def _kind(annotation: Any) -> _Kind:
    optional = several = mapping = False
    choices: tuple[Any, ...] = ()
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        arms = [arm for arm in typing.get_args(annotation) if arm is not type(None)]
        assert len(arms) == 1, f"a field takes one type or None, not {annotation}"
        annotation, optional = arms[0], True
    if typing.get_origin(annotation) is tuple:
        annotation, several = typing.get_args(annotation)[0], True
    if typing.get_origin(annotation) is dict:
        annotation, mapping, several = str, True, typing.get_origin(typing.get_args(annotation)[1]) is tuple
    if typing.get_origin(annotation) is typing.Literal:
        choices = typing.get_args(annotation)
        annotation = type(choices[0])
    return _Kind(annotation, optional, several, mapping, choices)


class _Parser(argparse.ArgumentParser):
    # Errors are raised: the command line has one place that prints and exits.
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)

    def _print_message(self, message: str, file: Any = None) -> None:
        print(message, end="", file=file)  # argparse's own says nothing when nobody reads


def _number(text: str) -> float:
    """Read `1e-4` or `2**32` (Megatron's documents write the loss scale so)."""
    base, power, exponent = text.partition("**")
    try:
        value = float(base) ** float(exponent) if power else float(text)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"invalid number: {text!r}")
    return value


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        value = _number(text)
    if value != int(value):
        raise argparse.ArgumentTypeError(f"invalid whole number: {text!r}")
    return int(value)


_integer.__name__, _number.__name__ = "whole number", "number"
_READERS = {int: _integer, float: _number, str: str, Path: Path}


def _owners(config_class: type) -> dict[str, type]:
    """field name -> the class that declares it: the groups of the help text."""
    return {name: base for base in reversed(config_class.__mro__) for name in inspect.get_annotations(base)}


def _help(field: dataclasses.Field, default: Any) -> str:
    if field.metadata["hidden"]:
        return argparse.SUPPRESS
    text = field.metadata["help"].replace("%", "%%")
    notes = []
    if default not in (None, (), {}, False) and default is not dataclasses.MISSING:
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        notes.append(f"default: {str(shown).replace('%', '%%')}")
    if field.metadata["example"]:
        flag = "" if field.metadata["positional"] else f"--{flag_name(field.name)} "
        notes.append(f"e.g. {flag}{field.metadata['example']}".replace("%", "%%"))
    return f"{text} ({'; '.join(notes)})" if notes else text


def _add(group: Any, field: dataclasses.Field, kind: _Kind) -> None:
    metadata = field.metadata
    keywords: dict[str, Any] = {"help": _help(field, field.default), "default": argparse.SUPPRESS}
    names = [f"--{name}" for name in (flag_name(field.name), *metadata["aliases"])]
    if kind.base is bool:
        off = list(dict.fromkeys([f"--no-{flag_name(field.name)}", *(name for name in names if _turns_off(name))]))
        on = [name for name in names if name not in off]
        group.add_argument(*on, dest=field.name, action="store_true", **keywords)
        if keywords["help"] != argparse.SUPPRESS:
            keywords["help"] = f"the opposite of {on[0]}" if field.default is True else argparse.SUPPRESS
        group.add_argument(*off, dest=field.name, action="store_false", **keywords)
        return
    keywords["type"] = _READERS[kind.base]
    if kind.choices:
        keywords["choices"] = kind.choices
        keywords["metavar"] = metadata["metavar"] or "{" + ",".join(map(str, kind.choices)) + "}"
    elif not metadata["positional"]:
        fallback = {int: "N", float: "X", Path: "PATH", str: "TEXT"}[kind.base]
        keywords["metavar"] = metadata["metavar"] or ("NAME=VALUE" if kind.mapping else fallback)
    if metadata["positional"]:
        required = field.default is dataclasses.MISSING
        keywords["nargs"] = {(True, True): "+", (True, False): "*", (False, False): "?"}.get((kind.several, required))
        group.add_argument(field.name, **keywords)
        return
    if kind.several or kind.mapping:
        keywords["nargs"] = "+"
    group.add_argument(*names, dest=field.name, **keywords)


def _make_parser(config_class: type, program: str, description: str) -> _Parser:
    names = " ".join(field.name.upper() for field in dataclasses.fields(config_class) if field.metadata["positional"])
    parser = _Parser(
        prog=program, usage=f"{program} {names + ' ' if names else ''}[flags]", description=description,
        allow_abbrev=False, add_help=False, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    # What begins as a negative number is a value, so that `--split -1,2,3` is refused for what it is: no flag does.
    parser._negative_number_matcher = re.compile(r"-\.?\d")
    general = parser.add_argument_group("general")
    general.add_argument("-h", "--help", action="help", help="show this text and exit")
    general.add_argument("--config", type=Path, metavar="FILE.toml", default=argparse.SUPPRESS,
                         help="a run file: flags written down, one `name = value` a line; flags given beside it win "
                              "(e.g. --config recipes/bert-345m.toml)")  # fmt: skip
    hints, owners = typing.get_type_hints(config_class), _owners(config_class)
    groups: dict[type, Any] = {}
    for field in dataclasses.fields(config_class):
        owner = owners[field.name]
        if owner not in groups:
            title, _, rest = (owner.__doc__ or owner.__name__).strip().partition("\n")
            groups[owner] = parser.add_argument_group(title.rstrip("."), " ".join(rest.split()) or None)
        group = parser if field.metadata["positional"] else groups[owner]
        _add(group, field, _kind(hints[field.name]))
    return parser


def _spellings(config_class: type) -> dict[str, dataclasses.Field]:
    names: dict[str, dataclasses.Field] = {}
    for field in dataclasses.fields(config_class):
        for name in (field.name, flag_name(field.name), *field.metadata["aliases"]):
            names[name] = field
            names[name.replace("-", "_")] = field
    return names


def nearest(name: str, known: Sequence[str]) -> str:
    """A phrase that points to the known name nearest to `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""


def _read_file(config_class: type, path: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"--config: there is no file {path}") from None
    except IsADirectoryError:
        raise ValueError(f"--config: {path} is a folder, not a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"--config: {path} is not valid TOML: {error}") from None
    spellings, hints = _spellings(config_class), typing.get_type_hints(config_class)
    values: dict[str, Any] = {}
    for key, value in table.items():
        field = spellings.get(key)
        if field is None:
            known = [field.name for field in dataclasses.fields(config_class)]
            raise ValueError(f"{path}: unknown key {key!r}{nearest(key.replace('-', '_'), known)}")
        if field.name in values:
            raise ValueError(f"{path}: key {key!r}: {field.name} is set twice, in two spellings; keep one of them")
        kind = _kind(hints[field.name])
        if kind.base is bool and field.name != key and _turns_off(flag_name(key)) and isinstance(value, bool):
            value = not value
        values[field.name] = _convert(f"{path}: key {key!r}", value, kind)
    return values


def _convert(where: str, value: Any, kind: _Kind) -> Any:
    if kind.mapping:
        if not isinstance(value, dict):
            raise ValueError(f"{where}: a table of strings is needed, not {value!r}")
        return {key: _convert(f"{where}: {key}", item, kind._replace(mapping=False)) for key, item in value.items()}
    if kind.several:
        items = value if isinstance(value, list) else [value]
        return tuple(_convert(where, item, kind._replace(several=False)) for item in items)
    if kind.base is bool:
        if not isinstance(value, bool):
            raise ValueError(f"{where}: true or false is needed, not {value!r}")
        return value
    if isinstance(value, bool | list | dict):
        raise ValueError(f"{where}: a {_READERS[kind.base].__name__} is needed, not {value!r}")
    try:
        converted = _READERS[kind.base](str(value))
    except (ValueError, argparse.ArgumentTypeError):
        raise ValueError(f"{where}: a {_READERS[kind.base].__name__} is needed, not {value!r}") from None
    if kind.choices and converted not in kind.choices:
        raise ValueError(f"{where}: {value!r} is not one of {', '.join(map(str, kind.choices))}")
    return converted


def _check_limits(field: dataclasses.Field, value: Any) -> None:
    name = field.name if field.metadata["positional"] else f"--{flag_name(field.name)}"
    for item in value if isinstance(value, tuple) else (value,):
        if not isinstance(item, int | float):
            continue
        above, minimum, maximum = (field.metadata[key] for key in ("above", "minimum", "maximum"))
        if above is not None and not item > above:
            raise ValueError(f"{name}: {item} is not above {above}")
        if minimum is not None and item < minimum:
            raise ValueError(f"{name}: {item} is below {minimum}, the least allowed")
        if maximum is not None and item > maximum:
            raise ValueError(f"{name}: {item} is over {maximum}, the most allowed")


def parse(config_class: type[Config], arguments: Sequence[str], *, program: str, description: str = "") -> Config:
    """Read a config: defaults < run file (`--config`) < flags.

    Raises:
        ValueError: an unknown flag or key (the nearest is named), a value of the wrong type or out of its limits.
    """
    parser = _make_parser(config_class, program, description)
    # Transformers' users type underscores, Megatron's hyphens: both are read.
    spelled = [re.sub(r"^--[\w-]+", lambda flag: flag_name(flag[0]), argument) for argument in arguments]
    namespace, unknown = parser.parse_known_args(spelled)
    if unknown:
        known = [
            name for action in parser._actions if action.help != argparse.SUPPRESS for name in action.option_strings
        ]
        first = unknown[0].partition("=")[0]
        if first.startswith("-"):
            raise ValueError(f"unknown flag {first}{nearest(first, known)}")
        raise ValueError(f"unexpected argument {first!r}")
    given = vars(namespace)
    values = _read_file(config_class, given.pop("config")) if "config" in given else {}
    hints = typing.get_type_hints(config_class)
    for name, value in given.items():
        kind = _kind(hints[name])
        if kind.mapping:
            pairs = [item.partition("=") for item in value]
            if not all(separator for _, separator, _ in pairs):
                raise ValueError(f"--{flag_name(name)}: NAME=VALUE is needed, not {' '.join(value)!r}")
            value = {key: tuple(v for k, _, v in pairs if k == key) if kind.several else item for key, _, item in pairs}
        values[name] = tuple(value) if isinstance(value, list) and kind.several else value
    for field in dataclasses.fields(config_class):  # type: ignore[arg-type]
        if field.name in values:
            _check_limits(field, values[field.name])
    return config_class(**values)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_toml_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    if isinstance(value, int | float):
        return repr(value)
    # A JSON string with its non-ASCII kept is a TOML basic string, but for DEL.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def show(config: Any) -> str:
    """The config as TOML, one `name = value` a line; values of None are left out (TOML has none)."""
    lines = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value is not None:
            lines.append(f"{field.name} = {_toml_value(value)}")
    return "\n".join(lines) + "\n"


def save(config: Any, path: Path, *, comment: str = "") -> None:
    """Write `show(config)` to `path`."""
    with runtime.atomic_write(path) as file:
        file.write("".join(f"# {line}\n" for line in comment.splitlines()) + show(config))


def load(config_class: type[Config], path: Path) -> Config:
    """Read a file written by `save` or by hand; errors as those of `parse`."""
    return config_class(**_read_file(config_class, path))
