"""What we know of a task that a model was taught, as NeMo's archives say it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from megabert.formats import nemo_heads
from megabert.formats.checkpoint import KEPT_AS, Checkpoint, LazyTensor
from megabert.formats.nemo_tasks import BESIDE, OURS, SPANS

_PLACE = "nemo.collections.nlp.models."
_PATHS = {
    "TextClassificationModel": "text_classification.text_classification_model",
    "TokenClassificationModel": "token_classification.token_classification_model",
    "QAModel": "question_answering.qa_model",
    "GLUEModel": "glue_benchmark.glue_benchmark_model",
    "IntentSlotClassificationModel": "intent_slot_classification.intent_slot_classification_model",
    "PunctuationCapitalizationModel": "token_classification.punctuation_capitalization_model",
}
_OF_TASKS = {"intent-slot": "IntentSlotClassificationModel", "punctuation": "PunctuationCapitalizationModel",
             "glue": "GLUEModel", "glue-regression": "GLUEModel"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Described:
    """A task's model as NeMo describes it.

    Attributes:
        target: its class.
        nodes: of `model_config.yaml`.
        labels: key below `class_labels` -> name and content of a file with a label a line.
        head: the head's weights by NeMo's names; empty: it lies with the encoder, in a form that NeMo has not.
        notes: what is to be said.
    """

    target: str
    nodes: dict[str, Any]
    labels: Mapping[str, tuple[str, bytes]]
    head: dict[str, LazyTensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def described(checkpoint: Checkpoint) -> Described | None:
    """What NeMo would say of the task that a checkpoint was taught; None when it has no such head."""
    config = checkpoint.config
    kept = config.get(KEPT_AS)
    kept = kept if isinstance(kept, dict) else {}
    name, layered = _class_of(checkpoint, kept), config.get("head_layers")
    if name is None:
        return None
    nodes, labels = _NODES[name](config, kept), _listed(name, _names(config, kept))
    if kept:
        nodes[OURS] = {KEPT_AS: kept}
    parts = [len(names) for names, _, _ in labels]
    notes, own = [], False
    if name in ("TextClassificationModel", "GLUEModel") and not layered:
        own = True
        notes = ["NeMo's classifier reads the hidden state of [CLS] without a pooler, so this head is read back here "
                 "only; one trained with --head-layers 2 is NeMo's own"]  # fmt: skip
    elif name in BESIDE and layered not in (None, 1) and config.get("head_parts") != parts:
        own = True
        notes = ["NeMo's two classifiers have layers of their own, so this head, whose layers are shared, is read back "
                 "here only"]  # fmt: skip
    return Described(
        target=f"{_PLACE}{_PATHS[name]}.{name}", nodes=nodes, notes=notes,
        labels={key: (file, "".join(f"{label}\n" for label in names).encode()) for names, key, file in labels if key},
        head={} if own else nemo_heads.theirs(checkpoint.tensors, name, parts, config["hidden_size"]),
    )  # fmt: skip


def _class_of(checkpoint: Checkpoint, kept: Mapping[str, Any]) -> str | None:
    parts, taught = checkpoint.parts, _OF_TASKS.get(str(kept.get("task")))
    if "question_answering" in parts:
        return "QAModel"
    if "token_classification" in parts:
        return taught if taught in BESIDE else "TokenClassificationModel"
    if "classification" in parts and (kept or checkpoint.config.get("head_layers")):
        return taught or "TextClassificationModel"
    return None


def _listed(name: str, labels: list[str]) -> list[tuple[list[str], str, str]]:
    """The labels of each classifier, the key of their file, and its name."""
    if name in BESIDE:
        return [([label.removeprefix(kind) for label in labels if label.startswith(kind)], key, file)
                for kind, _, key, file in BESIDE[name]]  # fmt: skip
    if name in ("QAModel", "GLUEModel"):
        return [(labels, "", "")]
    return [(labels, "class_labels_file", "label_ids.csv")]


def _names(config: Mapping[str, Any], kept: Mapping[str, Any]) -> list[str]:
    if kept.get("labels"):
        return [str(label) for label in kept["labels"]]
    told = config.get("id2label") or {}
    classes = len(told) or config.get("num_labels") or 2
    return [str(told.get(str(number), told.get(number, number))) for number in range(classes)]


def _numbered(name: str, config: Mapping[str, Any], kept: Mapping[str, Any]) -> list[dict[str, int]]:
    """The number of each label, for each classifier."""
    return [
        {label: number for number, label in enumerate(labels)} for labels, *_ in _listed(name, _names(config, kept))
    ]


def _head_of(config: Mapping[str, Any], otherwise: float | None = None) -> tuple[int, float]:
    """Layers of the head, and the dropout before it."""
    told = (config.get("head_dropout"), otherwise, config["hidden_dropout_prob"])
    return config.get("head_layers") or 1, next(value for value in told if value is not None)


def _mlp(layers: str, config: Mapping[str, Any]) -> dict[str, Any]:
    count, probability = _head_of(config)
    return {layers: count, "fc_dropout": probability, "activation": "relu", "log_softmax": False,
            "use_transformer_init": True}  # fmt: skip


def _of_texts(config: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    layers, probability = _head_of(config)
    return {
        "dataset": {"num_classes": len(_names(config, kept)), "do_lower_case": False, "class_balancing": None,
                    "max_seq_length": kept.get("max_seq_length", 256), "use_cache": False},
        "classifier_head": {"num_output_layers": layers, "fc_dropout": probability},
    }  # fmt: skip


def _of_glue(config: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    data = {"data_dir": None, "max_seq_length": kept.get("max_seq_length", 128), "use_cache": False}
    return {"task_name": kept.get("row"), "supported_tasks": [kept.get("row")], "output_dir": None, "dataset": data}


def _words(config: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    return {"data_dir": None, "max_seq_length": kept.get("max_seq_length", 128), "pad_label": "O",
            "ignore_extra_tokens": kept.get("label_pieces", "first") == "first", "ignore_start_end": True,
            "use_cache": False}  # fmt: skip


def _of_tokens(config: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    (numbers,) = _numbered("TokenClassificationModel", config, kept)
    return {"dataset": {**_words(config, kept), "class_balancing": None}, "head": _mlp("num_fc_layers", config),
            "label_ids": numbers}  # fmt: skip


def _of_spans(config: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    layers, probability = _head_of(config, 0.0)
    told = {theirs: kept[ours] for ours, theirs in SPANS.items() if ours in kept}
    return {
        "dataset": {"do_lower_case": True, "use_cache": False, **told},
        "token_classifier": {"num_layers": layers, "dropout": probability, "num_classes": 2, "activation": "relu",
                             "log_softmax": False, "use_transformer_init": True},
    }  # fmt: skip


def _of_utterances(config: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    layers, probability = _head_of(config)
    intents, slots = _numbered("IntentSlotClassificationModel", config, kept)
    described: dict[str, Any] = {"pad_label": "O"}
    for kind, numbers in (("intent", intents), ("slot", slots)):
        described |= {f"{kind}_labels": list(numbers), f"{kind}_label_ids": numbers,
                      f"{kind}_weights": [1.0] * len(numbers)}  # fmt: skip
    return {
        "data_dir": None, "class_balancing": None, "intent_loss_weight": kept.get("intent_share", 0.6),
        "pad_label": -1, "ignore_extra_tokens": kept.get("label_pieces", "first") == "first", "ignore_start_end": True,
        "language_model": {"max_seq_length": kept.get("max_seq_length", 50)}, "data_desc": described,
        "head": {"num_output_layers": layers, "fc_dropout": probability},
    }  # fmt: skip


def _of_marks(config: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    marks, cases = _numbered("PunctuationCapitalizationModel", config, kept)
    heads = {f"{kind}_head": _mlp(f"{kind}_num_fc_layers", config) for kind in ("punct", "capit")}
    return {"dataset": _words(config, kept), "punct_label_ids": marks, "capit_label_ids": cases, **heads}


_NODES: Mapping[str, Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]] = {
    "TextClassificationModel": _of_texts, "GLUEModel": _of_glue, "TokenClassificationModel": _of_tokens,
    "QAModel": _of_spans, "IntentSlotClassificationModel": _of_utterances, "PunctuationCapitalizationModel": _of_marks,
}  # fmt: skip
