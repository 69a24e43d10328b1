"""Say what a checkpoint, a data set or a run folder holds, and whether it is whole.

  megabert inspect runs/demo                     what was run, the loss, checkpoints
  megabert inspect runs/demo/model               sizes, parameters, heads, tokenizer
  megabert inspect runs/demo/checkpoints/step-00001000
  megabert inspect iter_0080000                  a checkpoint of Megatron-LM, Megatron-core or NeMo, a zip or .nemo
  megabert inspect data/wiki_text_sentence --tokenizer bert-large-uncased

What is damaged is told, with exit status 2 when it is PATH itself.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megabert.config import option

if TYPE_CHECKING:
    from megabert.tokenization.base import Tokenizer

SUMMARY = "say what a checkpoint, a data set or a run folder holds"

_SIZES = (
    "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "max_position_embeddings",
    "vocab_size", "hidden_act", "head_act", "layer_norm_eps", "tie_word_embeddings", "add_binary_head", "pair_task",
)  # fmt: skip
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_SHOWN_TOKENS = 64


@dataclass(frozen=True, kw_only=True)
class Config:
    """The command."""

    path: Path = option(
        dataclasses.MISSING, "a model's folder, a run folder, a training checkpoint, a prefix of indexed data or a "
        "tokenizer", positional=True,
    )  # fmt: skip
    tokenizer: str | None = option(
        None, "of a data set: turns the examples into text; a path, or a name such as bert-large-uncased; left out, "
        "the one that made the data, if it is still there",
        metavar="PATH|NAME", example="runs/demo/tokenizer",
    )  # fmt: skip
    cache_dir: Path | None = option(None, "folder with tokenizers by name", example="cache")
    examples: int = option(3, "documents of a data set to show", minimum=0, maximum=1000, example="10")
    check: bool = option(True, "read every byte and compare checksums; --no-check looks at sizes and headers only")
    json: bool = option(False, "write one JSON object instead of text")


def run(config: Config) -> None:
    """Look, and print what was found.

    Raises:
        ValueError, OSError: nothing known is there, or it is damaged.
    """
    from megabert.formats import download, named
    from megabert.formats.open import look

    path = config.path
    if named.stands_for(path):
        path = named.resolve(str(path), progress=download.show_progress(str(path))).path
    found = look(path)
    if found.kind == "model" and not any(found.path.glob("*.safetensors")):
        found = found._replace(kind="foreign")  # its weights are a pickle, which only formats reads
    describe = {
        "foreign": _foreign, "model": _model, "run": _run, "checkpoint": _checkpoint, "data": _data,
        "tokenizer": _tokenizer,
    }  # fmt: skip
    facts = {"kind": found.kind, "path": str(found.path), **describe[found.kind](found.path, config)}
    if config.json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    show = {"run": _show_run, "data": _show_data}.get(found.kind, _show_table)
    print(f"{found.path}: {found.name}")
    for line in show(facts):
        print(f"  {line}".rstrip())


def _model(folder: Path, config: Config) -> dict[str, Any]:
    import megabert
    from megabert.formats import huggingface

    facts = huggingface.read_facts(folder)
    facts_of_config = dict(facts.config)
    architecture = facts.architecture
    if architecture in megabert.__all__:
        huggingface.check_weights(facts, getattr(megabert, architecture))
    return {
        "architecture": architecture or "(not said)",
        "parameters": facts.parameters,
        "dtype": [_DTYPES.get(dtype, dtype) for dtype in facts.dtypes],
        "bytes": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        "weights": f"{len(facts.tensors)} tensors, as config.json says",
        **{name: facts_of_config[name] for name in _SIZES if name in facts_of_config},
        "tokenizer": _tokenizer(folder, config) if facts.tokenizer else None,
    }


def _foreign(path: Path, config: Config) -> dict[str, Any]:
    from megabert.formats import checkpoints

    checkpoint = checkpoints.open_checkpoint(path)
    if config.check:
        for tensor in (*checkpoint.tensors.values(), *checkpoint.optimizer.values()):
            tensor.load()
    kinds = {name.partition("/")[0] for name in checkpoint.optimizer}
    return {
        "format": checkpoints.find_format(path),
        "family": "post-LayerNorm BERT" if checkpoint.family == "bert" else "Megatron BERT",
        "parameters": checkpoint.parameters,
        "bytes": checkpoint.bytes,
        "dtype": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in checkpoint.tensors.values()}),
        "weights": f"{len(checkpoint.tensors)} tensors, {'each was read' if config.check else 'not read (--no-check)'}",
        "parts": list(checkpoint.parts),
        "optimizer": sorted(kinds) or None,
        **{name: checkpoint.config[name] for name in _SIZES if name in checkpoint.config},
        "iteration": checkpoint.training.get("iteration"),
        "consumed_train_samples": checkpoint.training.get("consumed_train_samples"),
        "vocabulary": sorted(checkpoint.vocabulary) or None,
        "notes": list(checkpoint.notes),
    }


def _tokenizer(path: Path, config: Config) -> dict[str, Any]:
    del config
    from megabert.tokenization import opening

    tokenizer = opening.load(path)
    special = {tokenizer.tokens[index]: index for index in tokenizer.special_ids}
    return {
        "entries": tokenizer.vocabulary_size,
        "case": "letters lowered" if tokenizer.lower_case else "cased",
        "continuations": int(tokenizer.continuation.sum()),
        "special": " ".join(f"{token}={index}" for token, index in special.items()),
        "fingerprint": tokenizer.fingerprint(),
    }


def _checkpoint(folder: Path, config: Config) -> dict[str, Any]:
    from megabert.formats import native
    from megabert.training import stored

    if config.check:
        stored.verify(folder)
    state = _read_state(folder / "state.json")
    parts = native.tensors_of(folder)
    weights, optimizer = parts["model"], parts["optimizer"]
    return {
        "checksums": "right" if config.check else "not looked at (--no-check)",
        "step": _step_of(folder),
        "parameters": sum(tensor.numbers for tensor in weights.values()),
        "dtype": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in weights.values()}),
        "layout": state.get("layout"),
        "optimizer": sorted({name.partition("/")[0] for name in optimizer}) or None,
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "made of": state.get("identity", {}),
    }


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path.parent} is not a whole checkpoint: {path.name} is missing") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    return state if isinstance(state, dict) else {}


def _step_of(folder: Path) -> int | None:
    digits = folder.resolve().name.removeprefix("step-")
    return int(digits) if digits.isdigit() else None


def _run(folder: Path, config: Config) -> dict[str, Any]:
    records = _metrics(folder / "metrics.jsonl")
    training = [record for record in records if "lm_loss" in record]
    validation = [record for record in records if "valid_loss" in record]
    settings = _settings(folder / "run.toml")
    return {
        "settings": settings,
        "steps": max((record["step"] for record in records), default=0),
        "train_iters": settings.get("train_iters"),
        "last": training[-1] if training else None,
        "last_validation": validation[-1] if validation else None,
        "best_validation": min(validation, key=lambda record: record["valid_loss"], default=None),
        "test": next((record for record in reversed(records) if "test_loss" in record), None),
        "lm_loss": [[record["step"], record["lm_loss"]] for record in training],
        "valid_loss": [[record["step"], record["valid_loss"]] for record in validation],
        "checkpoints": [_one_of_run(path, config) for path in sorted((folder / "checkpoints").glob("step-*"))],
        "latest": _pointer(folder / "checkpoints" / "latest"),
        "best": _pointer(folder / "checkpoints" / "best"),
        "model": (folder / "model" / "config.json").is_file(),
    }


def _metrics(path: Path) -> list[dict[str, Any]]:
    from megabert.training.sinks import read_lines

    if not path.is_file():
        return []
    number = int | float
    return [
        record
        for record in read_lines(path)
        if isinstance(record.get("step"), int)
        and all(isinstance(record.get(key, 0.0), number) for key in ("lm_loss", "valid_loss"))
    ]


def _settings(path: Path) -> dict[str, Any]:
    """What `run.toml` says and a default does not."""
    from megabert.data.options import DataOptions
    from megabert.models.options import ModelOptions
    from megabert.tokenization.options import TokenizerOptions
    from megabert.training.options import TrainingOptions

    if not path.is_file():
        return {}
    try:
        written = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from None
    defaults: dict[str, Any] = {}
    for options in (ModelOptions, DataOptions, TokenizerOptions, TrainingOptions):
        for field in dataclasses.fields(options):
            defaults[field.name] = list(field.default) if isinstance(field.default, tuple) else field.default
    kept = ("num_layers", "hidden_size", "num_attention_heads", "seq_length", "batch_size", "train_iters", "lr")
    return {
        name: value
        for name, value in written.items()
        if name in kept or (name in defaults and value not in (defaults[name], {}, []))
    }


def _one_of_run(folder: Path, config: Config) -> dict[str, Any]:
    try:
        facts = _checkpoint(folder, config)
        return {"name": folder.name, "whole": True, "bytes": facts["bytes"], "problem": None}
    except (ValueError, OSError) as error:
        return {"name": folder.name, "whole": False, "bytes": None, "problem": " ".join(str(error).split())}


def _pointer(path: Path) -> str | None:
    return path.read_text(encoding="utf-8", errors="replace").strip()[:80] if path.is_file() else None


def _data(prefix: Path, config: Config) -> dict[str, Any]:
    from megabert.data import indexed
    from megabert.tokenization import named, opening

    if config.check:
        indexed.verify(prefix)
    facts = indexed.describe(prefix, config.examples)
    made_by = facts["tokenizer"]
    if config.tokenizer is not None:
        tokenizer = opening.load(named.find(config.tokenizer, config.cache_dir))
        facts["tokenizer_matches"] = tokenizer.fingerprint() == made_by if made_by else None
    else:
        tokenizer = opening.remembered(facts["tokenizer_place"], made_by)
        if tokenizer is not None:
            facts["tokenizer_matches"] = True
    if tokenizer is not None:
        facts["examples"] = [_text(tokenizer, ids) for ids in facts["examples"]]
    return facts


def _text(tokenizer: Tokenizer, ids: list[int]) -> str:
    if max(ids, default=0) >= tokenizer.vocabulary_size:
        raise ValueError(
            f"--tokenizer: the data holds id {max(ids):,}, but the tokenizer has only {tokenizer.vocabulary_size:,} "
            "entries: it is not the one that made the data"
        )
    return tokenizer.decode(ids[:_SHOWN_TOKENS]) + (" ..." if len(ids) > _SHOWN_TOKENS else "")


def _show_table(facts: dict[str, Any]) -> Iterator[str]:
    from megabert.serving import report

    plain = {
        name: value for name, value in facts.items() if name not in ("kind", "path") and not isinstance(value, dict)
    }
    notes = plain.pop("notes", None) or []
    if "bytes" in plain:
        plain["size"] = report.amount(plain.pop("bytes"), "B")
    yield from report.table(plain)
    yield from (f"note: {note}" for note in notes)
    for name, value in facts.items():
        if isinstance(value, dict):
            yield from ("", name, *report.indented(report.table(value)))


def _show_run(facts: dict[str, Any]) -> Iterator[str]:
    from megabert.serving import report

    yield "what was run (and is not a default)"
    yield from report.indented(report.table(facts["settings"]))
    wanted = f" of {facts['train_iters']:,}" if facts["train_iters"] else ""
    yield from ("", f"steps: {facts['steps']:,}{wanted}")
    curve = [loss for _, loss in facts["lm_loss"]]
    if curve:
        yield f"lm_loss     {curve[0]:7.3f} {report.sparkline(curve)} {curve[-1]:.3f}"
    curve = [loss for _, loss in facts["valid_loss"]]
    if curve:
        yield f"valid_loss  {curve[0]:7.3f} {report.sparkline(curve)} {curve[-1]:.3f}"
    titles = {"last": "last training record", "last_validation": "last validation", "test": "test"}
    for key, title in titles.items():
        if facts[key]:
            yield from ("", title, *report.indented(report.table(facts[key])))
    best = facts["best_validation"]
    if best:
        yield from ("", f"best validation: loss {best['valid_loss']:.4f} at step {best['step']:,}")
    yield from ("", f"checkpoints: {len(facts['checkpoints'])}")
    for checkpoint in facts["checkpoints"]:
        marks = [name for name in ("latest", "best") if facts[name] == checkpoint["name"]]
        note = f"  ({', '.join(marks)})" if marks else ""
        size = f"whole, {report.amount(checkpoint['bytes'], 'B')}" if checkpoint["whole"] else checkpoint["problem"]
        yield f"  {checkpoint['name']}  {size}{note}"
    yield "model/: a Transformers folder" if facts["model"] else "model/: not written yet"


def _show_data(facts: dict[str, Any]) -> Iterator[str]:
    from megabert.serving import report

    names = ("documents", "sentences", "tokens", "dtype", "checksums", "tokenizer", "tokenizer_matches")
    yield from report.table({name: facts.get(name) for name in names if facts.get(name) != ""})
    for key, title in (("sentence_lengths", "sentence"), ("document_lengths", "document")):
        lengths = facts[key]
        yield from ("", f"tokens of a {title}: {lengths['mean']:.1f} on average, {lengths['largest']:,} at most")
        yield from report.indented(report.histogram(lengths["edges"], lengths["counts"]))
    if facts["examples"]:
        yield from ("", "first documents" if facts.get("tokenizer_matches", "") != "" else "first documents, as ids")
    for example in facts["examples"]:
        shown = example if isinstance(example, str) else " ".join(map(str, example[:_SHOWN_TOKENS]))
        yield f"  {shown}"
