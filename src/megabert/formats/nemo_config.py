"""What NeMo says about a model beside its weights: `model_config.yaml`, the encoder's JSON, hyper-parameters.

Only text is read (`yaml.safe_load`): a class path in it is a string and stays one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from megabert.formats.bounds import Budget
from megabert.formats.regions import Region

_LARGEST = 16 << 20
_LARGEST_YAML = 1 << 18
_LONGEST_NUMBER = 400
_MOST_VALUES = 100_000
_SCALARS = ("num_attention_heads", "hidden_dropout", "attention_dropout", "init_method_std", "layernorm_epsilon",
            "apply_residual_connection_post_layernorm", "openai_gelu", "onnx_safe", "bias_gelu_fusion",
            "position_embedding_type", "megabert_vocab_size")  # fmt: skip
_REFUSED = {
    "transformer_block_type": ("post_ln", "normformer"),
    "normalization": ("rmsnorm", "layernorm1p"),
    "activation": ("geglu", "reglu", "swiglu", "squared-relu", "fast-geglu", "fast-swiglu", "fast-reglu"),
}


def read_yaml(region: Region) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        ValueError: it is too large, not YAML, or no mapping.
    """
    import yaml

    text = _text(region, _LARGEST_YAML)
    try:
        value = yaml.load(text, _loader(region.name))
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        if str(error).startswith(region.name):
            raise
        raise ValueError(f"{region.name} is not YAML that can be read: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{region.name} is no configuration: it holds a {type(value).__name__}")
    return value


def _loader(where: str) -> Any:
    """YAML's safe loader, which makes plain data, with a limit on what a short text may stand for.

    Anchors are one object however often they are named; only merge keys (`<<`) copy what they name, and only numbers
    to base 60 cost the square of their length.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        budget = Budget(where, _MOST_VALUES)

        def flatten_mapping(self, node: Any) -> None:
            super().flatten_mapping(node)
            self.budget.spend(len(node.value))

        def number(self, node: Any) -> Any:
            if len(node.value) > _LONGEST_NUMBER:
                raise ValueError(f"a number of {len(node.value):,} digits")
            kind = node.tag.rpartition(":")[2]
            return self.construct_yaml_int(node) if kind == "int" else self.construct_yaml_float(node)

    for kind in ("int", "float"):
        Loader.add_constructor(f"tag:yaml.org,2002:{kind}", Loader.number)
    return Loader


def read_json(region: Region) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: it is too large, not JSON, or no object.
    """
    try:
        value = json.loads(_text(region))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{region.name} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{region.name} is JSON but not an object")
    return value


def _text(region: Region, largest: int = _LARGEST) -> str:
    if region.length > largest:
        raise ValueError(f"{region.name} is too large for what it should be ({region.length:,} bytes)")
    try:
        return region.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{region.name} is no text: {error}") from None


def find(tree: Any, name: str) -> Any:
    """The first plain value of that name, nearest to the top; hyphens count as underscores. None when there is none.

    An OmegaConf node that was read from a pickle keeps its value as `_val`, and is looked through.
    """
    level, visited = [tree], {id(tree)}  # aliases make one node many
    while level and len(visited) < _MOST_VALUES:
        deeper = []
        for mapping in level:
            items = mapping.items() if isinstance(mapping, Mapping) else ((None, item) for item in mapping)
            for key, value in items:
                if isinstance(key, str) and key.replace("-", "_") == name:
                    if isinstance(value, Mapping) and "_val" in value:
                        value = value["_val"]
                    if isinstance(value, str | int | float):
                        return value
                if isinstance(value, Mapping | list) and id(value) not in visited:
                    visited.add(id(value))
                    deeper.append(value)
        level = deeper
    return None


def node(tree: Any, *path: str) -> Any:
    """What lies at a path of keys below the model's node; None when nothing does.

    The model's node is the top, or `cfg` or `model` in it; nodes of OmegaConf that were read from a pickle keep their
    children as `_content` and a value as `_val`.
    """
    tree = _opened(tree)
    for outer in ("cfg", "model"):
        if isinstance(tree, Mapping) and path[0] not in tree and isinstance(_opened(tree.get(outer)), Mapping):
            tree = _opened(tree[outer])
    for key in path:
        tree = _opened(tree[key]) if isinstance(tree, Mapping) and key in tree else None
    return tree


def _opened(value: Any) -> Any:
    for _ in range(4):
        inner = next((key for key in ("_content", "_val") if isinstance(value, Mapping) and key in value), None)
        if inner is None:
            break
        value = value[inner]
    return value


def arguments(*trees: Mapping[str, Any]) -> dict[str, Any]:
    """What the configurations say, under the names of Megatron's `args`; the first that says something wins.

    Raises:
        ValueError: they describe a network that a Megatron BERT cannot be.
    """
    for name, refused in _REFUSED.items():
        for tree in trees:
            if find(tree, name) in refused:
                raise ValueError(f"the model has {name} {find(tree, name)}, which a Megatron BERT has not")
    found: dict[str, Any] = {}
    for name in _SCALARS:
        for tree in trees:
            value = find(tree, name)
            if value is None and name == "bias_gelu_fusion":
                value = find(tree, "bias_activation_fusion")
            if value is not None and value != "None":
                found.setdefault(name, _number(value))
    for tree in trees:
        beside = _beside(tree, "num_attention_heads")
        for name in ("num_layers", "hidden_size"):
            if beside.get(name) is not None:
                found.setdefault(name, _number(beside[name]))
    return found


def _beside(tree: Any, name: str) -> Mapping[str, Any]:
    """The mapping that holds a name, nearest to the top; hyphens count as underscores. Empty when none does."""
    level, visited = [tree], {id(tree)}
    while level and len(visited) < _MOST_VALUES:
        deeper = []
        for value in level:
            if isinstance(value, Mapping):
                plain = {key.replace("-", "_"): item for key, item in value.items() if isinstance(key, str)}
                if isinstance(plain.get(name), str | int | float):
                    return plain
            for item in value.values() if isinstance(value, Mapping) else value:
                if isinstance(item, Mapping | list) and id(item) not in visited:
                    visited.add(id(item))
                    deeper.append(item)
        level = deeper
    return {}


def _number(value: Any) -> Any:
    """`1e-5` is text to YAML 1.1, but a number to NeMo."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def is_recent(config: Mapping[str, Any]) -> bool:
    """Whether NeMo's own layers (1.6 and later) wrote it, and not Megatron-LM's inside NeMo."""
    version = find(config, "nemo_version")
    numbers = re.match(r"(\d+)\.(\d+)", str(version)) if version is not None else None
    if numbers:
        return (int(numbers[1]), int(numbers[2])) >= (1, 6)
    return find(config, "megatron_legacy") is not None or find(config, "mcore_bert") is not None
