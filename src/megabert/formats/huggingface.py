"""Transformers folders (`config.json`, `model.safetensors`, the tokenizer's files), written whole and read strictly."""

from __future__ import annotations

import dataclasses
import glob
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import MegatronBertConfig, PreTrainedModel
from transformers.utils import logging

from megabert import runtime
from megabert.formats import safetensors_header
from megabert.formats.safetensors_header import Stored
from megabert.tokenization.base import Tokenizer

Model = TypeVar("Model", bound=PreTrainedModel)

_PREDICTIONS = "cls.predictions"
MARK = "megabert_only.plain_transformers_computes_other_numbers"
"""A tensor in weights that plain Transformers has no settings for."""
_SHOWN_NAMES = 3
_MOST_LABELS = 1_000_000
_MOST_OF_ANYTHING = 1_000_000_000


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a Transformers folder says about its model.

    Attributes:
        config: the content of `config.json`.
        tensors: what the safetensors files hold, by name.
        tokenizer: whether a tokenizer lies beside the model.
    """

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Stored]
    tokenizer: bool

    @property
    def parameters(self) -> int:
        """How many numbers the weights are; tied ones count once."""
        return sum(stored.numbers for stored in self.tensors.values())

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The types of the weights, the most used one first."""
        counts: dict[str, int] = {}
        for stored in self.tensors.values():
            counts[stored.dtype] = counts.get(stored.dtype, 0) + stored.numbers
        return tuple(sorted(counts, key=lambda dtype: (-counts[dtype], dtype)))

    @property
    def architecture(self) -> str:
        """The class that wrote the folder, or an empty string."""
        names = self.config.get("architectures")
        return str(names[0]) if isinstance(names, list) and names else ""


def read_facts(folder: Path) -> Facts:
    """Read what a Transformers folder holds, without its weights.

    Raises:
        ValueError: it is no such folder, not of a Megatron BERT, or damaged.
    """
    config = runtime.read_object(folder / "config.json", kind="Transformers folder")
    kind = config.get("model_type")
    if kind != "megatron-bert":
        raise ValueError(f"{folder}: config.json is of model_type {kind!r}; 'megatron-bert' is needed")
    tensors: dict[str, Stored] = {}
    for path in _weight_files(folder):
        tensors |= safetensors_header.read(path)
    tokenizer = any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt"))
    return Facts(folder, config, tensors, tokenizer)


def _weight_files(folder: Path) -> list[Path]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        places = runtime.read_object(index).get("weight_map")
        names = sorted({str(name) for name in places.values()}) if isinstance(places, dict) else []
        for name in names:
            if Path(name).name != name or not (folder / name).is_file():
                raise ValueError(f"{index} names {name[:80]!r}, which is no file of this folder")
        if names:
            return [folder / name for name in names]
        raise ValueError(f"{index} is damaged: it names no file")
    if (folder / "pytorch_model.bin").is_file():
        raise ValueError(
            f"{folder} holds its weights as a pickle (pytorch_model.bin), which is not read here: opening one can run "
            "code; save it again as safetensors with the tool that you trust it to"
        )
    raise ValueError(f"{folder} holds no weights: model.safetensors is missing")


@contextmanager
def _quiet() -> Iterator[None]:
    """Transformers without bars and reports: what it would report is an error here."""
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def foreign_settings(config: MegatronBertConfig) -> list[str]:
    """The settings of a model that plain Transformers does not have: with its classes the model gives other numbers."""
    said = []
    if getattr(config, "apply_residual_connection_post_layernorm", False):
        said.append("the residual is taken after each LayerNorm (--apply-residual-connection-post-layernorm)")
    head = getattr(config, "head_act", None)
    if head not in (None, config.hidden_act):
        said.append(f"the activation is {config.hidden_act} in the layers and {head} in the masked-word head")
    if layers := getattr(config, "head_layers", None):
        said.append(f"the task's head has {layers} {'matrix' if layers == 1 else 'matrices'} of its own, as in NeMo")
    return said


def _more_tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Tensors for plain Transformers' eyes; our classes pass over them.

    A bias that it makes for untied embeddings and never reads, lest it report it as missing; and a mark that it reports
    as unexpected, lest weights that it computes other numbers with open in silence.
    """
    more = {}
    if (
        not model.config.tie_word_embeddings
        and (found := model.state_dict().get(f"{_PREDICTIONS}.decoder.bias")) is not None
    ):
        more[f"{_PREDICTIONS}.bias"] = found.clone()
    if foreign_settings(model.config):  # type: ignore[arg-type]
        more[MARK] = torch.ones(1)
    return more


def _write_note(folder: Path, config: MegatronBertConfig) -> None:
    said = foreign_settings(config)
    if not said:
        return
    model_class = (config.architectures or ["MegatronBertModel"])[0]
    lines = [
        "# Open this model with megabert\n",
        "Plain Transformers lacks some of its settings: its classes load the weights and compute other numbers.\n",
        *(f"* {line}" for line in said),
        f"\n```python\nfrom megabert import {model_class}\n```",
    ]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write(model: PreTrainedModel, tokenizer: Tokenizer | None, folder: Path) -> None:
    """Write a Transformers folder; it appears whole, and one that was there before is replaced only then.

    A `MegatronBertForPreTraining` without its sentence-pair head holds the weights of a `MegatronBertForMaskedLM`, and
    `config.json` says so.

    Raises:
        ValueError: `folder` holds something that is not a model.
        OSError: the disk is full or not writable; what was there before stays.
    """
    if folder.is_dir():
        strange = next((path.name for path in folder.iterdir() if not (folder / "config.json").is_file()), None)
        if strange:
            raise ValueError(f"{folder} is not a model's folder (it holds {strange}); nothing was replaced")
    elif folder.exists():
        raise ValueError(f"{folder} is a file; a folder is needed")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    replaced = folder.with_name(f".{folder.name}.{os.getpid()}.replaced")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        with _quiet():
            model.save_pretrained(temporary, state_dict=model.state_dict() | _more_tensors(model))
        _name_headless(temporary / "config.json")
        _write_note(temporary, model.config)  # type: ignore[arg-type]
        if tokenizer is not None:
            tokenizer.save(temporary)
            _tell_longest(temporary / "tokenizer_config.json", model.config.max_position_embeddings)
        for path in temporary.iterdir():
            runtime.usual_permissions(path)
            _sync(path)
        runtime.sync_folder(temporary)
        if folder.exists():
            folder.rename(replaced)
        temporary.rename(folder)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if replaced.exists() and not folder.exists():
            replaced.rename(folder)
        if type(error).__name__ == "SafetensorError":
            raise OSError(f"cannot write {folder}: {error}") from error
        raise
    runtime.sync_folder(folder.parent)
    # Also what a process that was killed in the middle has left.
    for suffix in ("part", "replaced"):
        for path in folder.parent.glob(f".{glob.escape(folder.name)}.*.{suffix}"):
            shutil.rmtree(path, ignore_errors=True)


def _name_headless(path: Path) -> None:
    config = runtime.read_object(path)
    if config.get("add_binary_head") is False and config.get("architectures") == ["MegatronBertForPreTraining"]:
        config["architectures"] = ["MegatronBertForMaskedLM"]
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _tell_longest(path: Path, positions: int) -> None:
    """Let Transformers' `truncation=True` cut where the model's positions end."""
    path.write_text(
        json.dumps(runtime.read_object(path) | {"model_max_length": positions}, indent=2) + "\n", encoding="utf-8"
    )


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def load(
    folder: Path,
    model_class: type[Model],
    *,
    fresh: tuple[str, ...] = (),
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    attention: str | None = None,
) -> tuple[Model, list[str]]:
    """Read a model, in eval mode, and refuse one whose weights do not fit.

    Args:
        model_class: one of megabert's, or of Transformers' Megatron BERT classes.
        fresh: beginnings of names of weights that may be missing and then start afresh, such as `cls.`.
        attention: the kernel, as Transformers names it (`sdpa`, `eager`, ...).

    Returns:
        The model, and the names of the weights that were not in the folder.

    Raises:
        ValueError: weights are missing, left over or of another shape; the first few are named.
    """
    facts = read_facts(folder)
    missing = check_weights(facts, model_class, fresh)
    options: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    with _quiet():
        model = model_class.from_pretrained(folder, dtype=dtype, local_files_only=True, use_safetensors=True, **options)
    return model.to(device).eval(), missing  # type: ignore[arg-type, return-value]


def check_weights(facts: Facts, model_class: type[PreTrainedModel], fresh: tuple[str, ...] = ()) -> list[str]:
    """Compare the weights of a folder with those that a class needs; allocates none of them.

    Returns:
        Names of weights that are missing and may be (`fresh`).

    Raises:
        ValueError: as `load`.
    """
    expected, same = _expected(facts, model_class)
    prefix = f"{model_class.base_model_prefix}."
    found = facts.tensors
    if not any(name.startswith(prefix) for name in found) and any(name.startswith(prefix) for name in expected):
        found = {prefix + name: stored for name, stored in found.items()}  # an encoder that was saved alone
    differences = []
    missing = []
    for name, shape in expected.items():
        stored = found.get(name)
        if stored is not None and stored.shape != shape:
            differences.append(f"{name} is {list(stored.shape)} there and {list(shape)} by config.json")
        elif stored is None and not any(twin in found for twin in same.get(name, ())):
            missing.append(name)
    refused = [name for name in missing if not name.startswith(fresh or ("\0",))]
    differences += [f"{name} is missing" for name in refused]
    unread = [*(getattr(model_class, "_keys_to_ignore_on_load_unexpected", None) or ()), r".*\.position_ids", MARK]
    for name in found:
        if name not in expected and not any(re.fullmatch(pattern, name) for pattern in unread):
            differences.append(f"{name} is not known to it")
    if differences:
        more = len(differences) - _SHOWN_NAMES
        rest = f", and {more} more" if more > 0 else ""
        raise ValueError(
            f"{facts.folder}: the weights do not fit {model_class.__name__}: "
            f"{', '.join(differences[:_SHOWN_NAMES])}{rest}"
        )
    return missing


def _expected(
    facts: Facts, model_class: type[PreTrainedModel]
) -> tuple[dict[str, tuple[int, ...]], dict[str, set[str]]]:
    """(name -> shape that the class needs, name -> names that are the same parameter)."""
    for name, value in facts.config.items():
        # No model has so many of anything; Transformers would make a table of that many labels.
        if isinstance(value, int) and value > (_MOST_LABELS if name == "num_labels" else _MOST_OF_ANYTHING):
            raise ValueError(f"{facts.folder / 'config.json'} describes no model: {name} {value:,} is too large")
    try:
        config = MegatronBertConfig.from_dict(dict(facts.config))
        layers = config.num_hidden_layers
        # Names are few in a small file: a config that asks for a million layers is refused before they are built.
        if layers > len(facts.tensors):
            raise ValueError(f"{layers} layers do not fit {len(facts.tensors)} tensors")
        with torch.device("meta"), _quiet():
            model = model_class(config)
    except Exception as error:  # whatever a damaged config makes the constructors raise
        raise ValueError(f"{facts.folder / 'config.json'} describes no model: {' '.join(str(error).split())}") from None
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    by_identity: dict[int, set[str]] = {}
    for name, parameter in parameters.items():
        by_identity.setdefault(id(parameter), set()).add(name)
    same = {name: by_identity[id(parameter)] - {name} for name, parameter in parameters.items()}
    return shapes, same
