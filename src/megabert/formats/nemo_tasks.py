"""What NeMo's archive of a fine-tuned model says of its task, and the same from what we know of ours.

A task and its settings are plain values under `fine_tuned` in our config: its name, `labels`, `max_seq_length`, and
others of the task. An archive that is written here also holds them as they are (`megabert.fine_tuned`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from megabert.formats import nemo_config, nemo_heads
from megabert.formats.checkpoint import KEPT_AS, Checkpoint, LazyTensor
from megabert.formats.regions import Region

OURS = "megabert"
_PLACE = "nemo.collections.nlp.models."
_PATHS = {
    "TextClassificationModel": "text_classification.text_classification_model",
    "TokenClassificationModel": "token_classification.token_classification_model",
    "QAModel": "question_answering.qa_model",
}
_LARGEST_LABELS = 16 << 20
_MOST_LABELS = 1_000_000
# ours -> NeMo's key below `dataset`
_SPANS = {
    "max_seq_length": "max_seq_length", "doc_stride": "doc_stride", "max_query_length": "max_query_length",
    "max_answer_length": "max_answer_length", "n_best_size": "n_best_size", "no_answer": "version_2_with_negative",
    "null_threshold": "null_score_diff_threshold",
}  # fmt: skip
_PREFIXED = re.compile(r"([BIES])(?:-.+)?")


def class_of(config: Mapping[str, Any]) -> str:
    """NeMo's class, by `target` or by the head that is described; empty where nothing tells."""
    target = nemo_config.node(config, "target")
    if isinstance(target, str):
        return target.rpartition(".")[2]
    for name, key in (("QAModel", "token_classifier"), ("TextClassificationModel", "classifier_head")):
        if nemo_config.node(config, key) is not None:
            return name
    return "TokenClassificationModel" if nemo_config.node(config, "head", "num_fc_layers") is not None else ""


def activation(config: Mapping[str, Any]) -> Any:
    """Between the layers of the head, where it is told."""
    found = (nemo_config.node(config, key, "activation") for key in ("head", "token_classifier"))
    return next((value for value in found if value is not None), None)


def dropout(config: Mapping[str, Any]) -> float | None:
    """Before the head, where it is told."""
    places = (("head", "fc_dropout"), ("classifier_head", "fc_dropout"), ("token_classifier", "dropout"))
    for place in places:
        value = nemo_config.node(config, *place)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1:
            return float(value)
    return None


def taught(task: str, config: Mapping[str, Any], members: Mapping[str, Region], classes: int) -> dict[str, Any]:
    """Fields of our config that tell the task: `fine_tuned`, and the labels as Transformers has them.

    Args:
        task: NeMo's class.
        classes: outputs of the head.

    Raises:
        ValueError: there are more or fewer labels than outputs.
    """
    kept = nemo_config.node(config, OURS, KEPT_AS)
    if not isinstance(kept, dict) or not isinstance(kept.get("task"), str):
        kept = _derived(task, config, members, classes)
    names = kept.get("labels")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        return {KEPT_AS: kept}
    if len(names) != classes:
        raise ValueError(f"the archive tells {len(names)} labels, but the head has {classes} outputs")
    labels = {str(number): name for number, name in enumerate(names)}
    return {KEPT_AS: kept, "id2label": labels, "label2id": {name: int(number) for number, name in labels.items()}}


def _derived(task: str, config: Mapping[str, Any], members: Mapping[str, Region], classes: int) -> dict[str, Any]:
    """The settings of a model that NeMo itself trained."""

    def of_data(name: str) -> Any:
        value = nemo_config.node(config, "dataset", name)
        return value if isinstance(value, bool | int | float) else None

    if task == "QAModel":
        told = {ours: value for ours, theirs in _SPANS.items() if (value := of_data(theirs)) is not None}
        return {"task": "question-answering", **told}
    kept: dict[str, Any] = {"labels": _labels(config, members) or [str(number) for number in range(classes)]}
    if (length := of_data("max_seq_length")) is not None:
        kept["max_seq_length"] = length
    if task == "TextClassificationModel":
        return {"task": "sequence-classification", **kept}
    pieces = "first" if of_data("ignore_extra_tokens") is True else "all"
    return {"task": "token-classification", **kept, "label_pieces": pieces, "scheme": _scheme(kept["labels"])}


def _scheme(labels: list[str]) -> str:
    """How labels write entities, as far as their set tells."""
    prefixes = set()
    for label in labels:
        if label == "O":
            continue
        match = _PREFIXED.fullmatch(label)
        if match is None:
            return "io"
        prefixes.add(match[1])
    return "iobes" if prefixes & {"E", "S"} else "iob2" if "B" in prefixes else "iob1"


def _labels(config: Mapping[str, Any], members: Mapping[str, Region]) -> list[str]:
    numbers = nemo_config.node(config, "label_ids")
    if (
        isinstance(numbers, dict)
        and numbers
        and sorted(map(str, numbers.values())) == sorted(str(number) for number in range(len(numbers)))
    ):
        return sorted(map(str, numbers), key=lambda label: int(numbers[label]) if label in numbers else 0)
    said = nemo_config.node(config, "class_labels", "class_labels_file")
    wanted = str(said).removeprefix("nemo:").rpartition("/")[2] if said else "label_ids.csv"
    for name, region in sorted(members.items()):
        if name == wanted or re.sub(r"^[0-9a-f]{32}_", "", name) in (wanted, "label_ids.csv"):
            if region.length > _LARGEST_LABELS:
                raise ValueError(f"{region.name} is too large for a list of labels")
            lines = region.read().decode("utf-8", "replace").splitlines()
            return [line.strip() for line in lines if line.strip()][:_MOST_LABELS]
    return []


@dataclass(frozen=True, kw_only=True)
class Described:
    """A task's model as NeMo describes it.

    Attributes:
        target: its class.
        nodes: of `model_config.yaml`.
        labels: one a line; None: the task has none.
        head: the head's weights by NeMo's names; empty: it lies with the encoder, in a form that NeMo has not.
        notes: what is to be said.
    """

    target: str
    nodes: dict[str, Any]
    labels: bytes | None
    head: dict[str, LazyTensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def described(checkpoint: Checkpoint) -> Described | None:
    """What NeMo would say of the task that a checkpoint was taught; None when it has no such head."""
    kept = checkpoint.config.get(KEPT_AS)
    kept = kept if isinstance(kept, dict) else {}
    parts = checkpoint.parts
    layered = checkpoint.config.get("head_layers")
    if "question_answering" in parts:
        name, nodes = "QAModel", _of_spans(checkpoint.config, kept)
    elif "token_classification" in parts:
        name, nodes = "TokenClassificationModel", _of_tokens(checkpoint.config, kept)
    elif "classification" in parts and (kept or layered):
        name, nodes = "TextClassificationModel", _of_texts(checkpoint.config, kept)
    else:
        return None
    if kept:
        nodes[OURS] = {KEPT_AS: kept}
    plain = name == "TextClassificationModel" and not layered
    notes = ["NeMo's classifier reads the hidden state of [CLS] without a pooler, so this head is read back here only; "
             "one trained with --head-layers 2 is NeMo's own"] if plain else []  # fmt: skip
    labels = list(nodes.get("label_ids") or _names(checkpoint.config, kept))
    return Described(
        target=f"{_PLACE}{_PATHS[name]}.{name}", nodes=nodes, notes=notes,
        labels=None if name == "QAModel" else "".join(f"{label}\n" for label in labels).encode(),
        head={} if plain else nemo_heads.theirs(checkpoint.tensors),
    )  # fmt: skip


def _names(config: Mapping[str, Any], kept: Mapping[str, Any]) -> list[str]:
    if kept.get("labels"):
        return [str(label) for label in kept["labels"]]
    told = config.get("id2label") or {}
    classes = len(told) or config.get("num_labels") or 2
    return [str(told.get(str(number), told.get(number, number))) for number in range(classes)]


def _head_of(config: Mapping[str, Any], otherwise: float) -> tuple[int, float]:
    """Layers of the head, and the dropout before it."""
    probability = config.get("head_dropout")
    return config.get("head_layers") or 1, otherwise if probability is None else probability


def _of_texts(config: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    layers, probability = _head_of(config, config["hidden_dropout_prob"])
    return {
        "dataset": {"num_classes": len(_names(config, kept)), "do_lower_case": False, "class_balancing": None,
                    "max_seq_length": kept.get("max_seq_length", 256), "use_cache": False},
        "classifier_head": {"num_output_layers": layers, "fc_dropout": probability},
    }  # fmt: skip


def _of_tokens(config: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    layers, probability = _head_of(config, config["hidden_dropout_prob"])
    return {
        "dataset": {"data_dir": None, "class_balancing": None, "max_seq_length": kept.get("max_seq_length", 128),
                    "pad_label": "O", "ignore_extra_tokens": kept.get("label_pieces", "first") == "first",
                    "ignore_start_end": True, "use_cache": False},
        "head": {"num_fc_layers": layers, "fc_dropout": probability, "activation": "relu", "log_softmax": False,
                 "use_transformer_init": True},
        "label_ids": {label: number for number, label in enumerate(_names(config, kept))},
    }  # fmt: skip


def _of_spans(config: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    layers, probability = _head_of(config, 0.0)
    told = {theirs: kept[ours] for ours, theirs in _SPANS.items() if ours in kept}
    return {
        "dataset": {"do_lower_case": True, "use_cache": False, **told},
        "token_classifier": {"num_layers": layers, "dropout": probability, "num_classes": 2, "activation": "relu",
                             "log_softmax": False, "use_transformer_init": True},
    }  # fmt: skip
