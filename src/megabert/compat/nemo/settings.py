"""A tree of settings with attributes, where NeMo's scripts had OmegaConf's: files, interpolation, dotted overrides."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from megabert.config import nearest

_REFERENCE = re.compile(r"\$\{([\w.]+)\}")
_OVERRIDE = re.compile(r"(\+\+|\+|~)?([A-Za-z_][\w.]*)(?:=(.*))?", re.DOTALL)
_INTEGER, _FLOAT = re.compile(r"[+-]?\d+"), re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_WORDS = {"null": None, "true": True, "false": False, "???": None}
_MOST_REFERENCES = 20


class Settings(dict):
    """A mapping whose keys are attributes too; mappings inside are of the same kind."""

    def __init__(self, values: Mapping[str, Any] | None = None, /, **more: Any):
        super().__init__()
        for name, value in {**(values or {}), **more}.items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, Settings(value) if isinstance(value, Mapping) else value)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"there is no setting {name!r}{nearest(name, list(self))}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def find(self, path: str) -> Any:
        """What lies at a dotted path; None when nothing does."""
        value: Any = self
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def put(self, path: str, value: Any) -> None:
        """Set a dotted path; mappings on the way are made.

        Raises:
            ValueError: a plain value lies on the way.
        """
        *way, last = path.split(".")
        tree = self
        for key in way:
            if tree.get(key) is None:
                tree[key] = {}
            tree = tree[key]
            if not isinstance(tree, Settings):
                raise ValueError(f"{path}: {key} is {tree!r}, and has nothing below it")
        tree[last] = value

    def leaves(self, before: str = "") -> Iterator[tuple[str, Any]]:
        """(dotted path, value) of everything that is no mapping with entries."""
        for name, value in self.items():
            path = f"{before}{name}"
            if isinstance(value, Settings) and value:
                yield from value.leaves(f"{path}.")
            else:
                yield path, value

    def merged(self, other: Mapping[str, Any]) -> Settings:
        """A copy in which `other`'s values win, mapping by mapping."""
        result = Settings(self)
        for name, value in other.items():
            mine = result.get(name)
            result[name] = mine.merged(value) if isinstance(mine, Settings) and isinstance(value, Mapping) else value
        return result

    def resolved(self) -> Settings:
        """A copy in which `${a.b}` is what lies there.

        Raises:
            ValueError: a reference leads nowhere, or in a circle.
        """
        return Settings({name: self._resolved(value, name) for name, value in self.items()})

    def _resolved(self, value: Any, path: str) -> Any:
        if isinstance(value, Mapping):
            return {name: self._resolved(item, f"{path}.{name}") for name, item in value.items()}
        for _ in range(_MOST_REFERENCES):
            match = _REFERENCE.search(value) if isinstance(value, str) else None
            if match is None:
                return value
            found = self.find(match[1])
            if found is None and match[1] not in dict(self.leaves()):
                raise ValueError(f"{path}: {match[0]} names no setting")
            value = found if match[0] == value else value.replace(match[0], str(found))
        raise ValueError(f"{path}: references lead in a circle")


def plain(value: Any) -> Any:
    """Mappings and lists of any kind (OmegaConf's, say) as dicts and lists."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(item) for item in value]
    return value


def load_config(path: str | Path) -> Settings:
    """A YAML file of settings; only plain values are read.

    Raises:
        ValueError: there is none, or it is no mapping.
    """
    from megabert.formats.nemo_config import read_yaml
    from megabert.formats.regions import Region

    if not Path(path).is_file():
        raise ValueError(f"there is no configuration file {path}")
    return Settings(read_yaml(Region.whole(Path(path))))


def overridden(tree: Settings, arguments: Sequence[str]) -> tuple[Settings, list[str]]:
    """The tree with overrides as Hydra reads them: `a.b=c`, `+a.b=c` adds, `++a.b=c` does either, `~a.b` removes.

    Returns:
        The tree, and the paths that were given.

    Raises:
        ValueError: an override cannot be read, or names a setting that is not there.
    """
    result, given = Settings(tree), []
    for argument in arguments:
        match = _OVERRIDE.fullmatch(argument)
        if match is None or (match[3] is None and match[1] != "~"):
            raise ValueError(f"{argument!r} is no override: NAME=VALUE is needed, such as trainer.max_epochs=3")
        sign, path = match[1], match[2]
        known = path in dict(result.leaves()) or isinstance(result.find(path), Settings)
        if not known and sign not in ("+", "++"):
            every = [name for name, _ in result.leaves()]
            raise ValueError(f"unknown setting {path}{nearest(path, every)}; +{path}=... would add one")
        if sign == "~":
            *way, last = path.split(".")
            parent = result.find(".".join(way)) if way else result
            parent.pop(last)
        else:
            result.put(path, value_of(match[3]))
        given.append(path)
    return result, given


def value_of(text: str) -> Any:
    """A value as Hydra reads it: null, true, numbers, `[0,1]`, `{a:1}`, quoted or bare text.

    Raises:
        ValueError: brackets or quotes do not close.
    """
    text = text.strip()
    if text[:1] in ("[", "{"):
        return _collection(text)
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    return _plain(text)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if not isinstance(value, str):
        return value
    if value.lower() in _WORDS:
        return _WORDS[value.lower()]
    if _INTEGER.fullmatch(value):
        return int(value)
    return float(value) if _FLOAT.fullmatch(value) else value


def _collection(text: str) -> Any:
    import yaml

    # YAML wants a space after a key's colon, Hydra does not; `://` and the like stay.
    spaced = re.sub(r"([{,]\s*[\w.-]+):(?![\s/])", r"\1: ", text)
    try:
        return _plain(yaml.load(spaced, yaml.SafeLoader))
    except yaml.YAMLError:
        raise ValueError(f"{text!r} cannot be read: a list is [a,b], a mapping {{a:1,b:2}}") from None
