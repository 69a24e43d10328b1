"""What NeMo's archive of a fine-tuned model says of its task (`nemo_described` says the same of ours).

A task and its settings are plain values under `fine_tuned` in our config: its name, `labels`, `max_seq_length`, and
others of the task. An archive that is written here also holds them as they are (`megabert.fine_tuned`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from megabert.formats import nemo_config
from megabert.formats.checkpoint import KEPT_AS
from megabert.formats.regions import Region

OURS = "megabert"
_LARGEST_LABELS = 16 << 20
_MOST_LABELS = 1_000_000
SPANS = {
    "max_seq_length": "max_seq_length", "doc_stride": "doc_stride", "max_query_length": "max_query_length",
    "max_answer_length": "max_answer_length", "n_best_size": "n_best_size", "no_answer": "version_2_with_negative",
    "null_threshold": "null_score_diff_threshold",
}  # fmt: skip
"""A setting of question answering -> NeMo's key below `dataset`."""
BESIDE = {
    "IntentSlotClassificationModel": (
        ("intent:", "data_desc.intent_label_ids", "intent_labels_file", "intent_labels.csv"),
        ("slot:", "data_desc.slot_label_ids", "slot_labels_file", "slot_labels.csv"),
    ),
    "PunctuationCapitalizationModel": (
        ("mark:", "punct_label_ids", "punct_labels_file", "punct_label_ids.csv"),
        ("case:", "capit_label_ids", "capit_labels_file", "capit_label_ids.csv"),
    ),
}
"""NeMo's class with two classifiers -> of each: how our labels begin, and where its own are: a node with their numbers,
the key of a file below `class_labels`, and what the file is called."""
_PREFIXED = re.compile(r"([BIES])(?:-.+)?")


def class_of(config: Mapping[str, Any]) -> str:
    """NeMo's class, by `target` or by the head that is described; empty where nothing tells."""
    target = nemo_config.node(config, "target")
    if isinstance(target, str):
        return target.rpartition(".")[2]
    for name, key in (("QAModel", "token_classifier"), ("TextClassificationModel", "classifier_head"),
                      ("PunctuationCapitalizationModel", "punct_head")):  # fmt: skip
        if nemo_config.node(config, key) is not None:
            return name
    return "TokenClassificationModel" if nemo_config.node(config, "head", "num_fc_layers") is not None else ""


def activation(config: Mapping[str, Any]) -> Any:
    """Between the layers of the head, where it is told."""
    found = (nemo_config.node(config, key, "activation") for key in ("head", "token_classifier", "punct_head"))
    return next((value for value in found if value is not None), None)


def dropout(config: Mapping[str, Any]) -> float | None:
    """Before the head, where it is told or the class has always the same."""
    if class_of(config) == "GLUEModel":
        return 0.0
    places = (("head", "fc_dropout"), ("classifier_head", "fc_dropout"), ("token_classifier", "dropout"),
              ("punct_head", "fc_dropout"))  # fmt: skip
    for place in places:
        value = nemo_config.node(config, *place)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1:
            return float(value)
    return None


def taught(
    task: str, config: Mapping[str, Any], members: Mapping[str, Region], classes: Sequence[int]
) -> dict[str, Any]:
    """Fields of our config that tell the task: `fine_tuned`, and the labels as Transformers has them.

    Args:
        task: NeMo's class.
        classes: outputs of each classifier.

    Raises:
        ValueError: there are more or fewer labels than outputs.
    """
    kept = nemo_config.node(config, OURS, KEPT_AS)
    if not isinstance(kept, dict) or not isinstance(kept.get("task"), str):
        kept = _derived(task, config, members, classes)
    names = kept.get("labels")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        return {KEPT_AS: kept}
    _check_count(len(names), sum(classes), "labels")
    labels = {str(number): name for number, name in enumerate(names)}
    return {KEPT_AS: kept, "id2label": labels, "label2id": {name: int(number) for number, name in labels.items()}}


def _check_count(said: int, outputs: int, what: str) -> None:
    if said != outputs:
        raise ValueError(f"the archive tells {said} {what}, but the head has {outputs} outputs")


def _derived(
    task: str, config: Mapping[str, Any], members: Mapping[str, Region], classes: Sequence[int]
) -> dict[str, Any]:
    """The settings of a model that NeMo itself trained."""

    def told(*place: str) -> Any:
        value = nemo_config.node(config, *place)
        return value if isinstance(value, bool | int | float) else None

    if task == "QAModel":
        found = {ours: value for ours, theirs in SPANS.items() if (value := told("dataset", theirs)) is not None}
        return {"task": "question-answering", **found}
    length = told("language_model" if task == "IntentSlotClassificationModel" else "dataset", "max_seq_length")
    long = {} if length is None else {"max_seq_length": length}
    if task == "GLUEModel":
        row = str(nemo_config.node(config, "task_name"))
        return {"task": "glue-regression" if row == "sts-b" else "glue", "row": row, **long}
    if task in BESIDE:
        return {**_of_two(task, config, members, classes), **long}
    listed = _labels(config, members, "label_ids", "class_labels_file", "label_ids.csv")
    kept: dict[str, Any] = {"labels": listed or [str(number) for number in range(sum(classes))], **long}
    if task in ("TextClassificationModel", "ZeroShotIntentModel"):
        return {"task": "sequence-classification", **kept}
    pieces = "first" if told("dataset", "ignore_extra_tokens") is True else "all"
    return {"task": "token-classification", **kept, "label_pieces": pieces, "scheme": _scheme(kept["labels"])}


def _of_two(
    task: str, config: Mapping[str, Any], members: Mapping[str, Region], classes: Sequence[int]
) -> dict[str, Any]:
    """Labels of both classifiers, and what else their task is told."""
    labels: list[str] = []
    found: list[str] = []
    for (kind, place, key, file), outputs in zip(BESIDE[task], classes, strict=True):
        found = _labels(config, members, place, key, file) or [str(number) for number in range(outputs)]
        _check_count(len(found), outputs, f"{kind.removesuffix(':')} labels")
        labels += [kind + name for name in found]
    everywhere = "dataset" if task == "PunctuationCapitalizationModel" else ""
    ignored = nemo_config.node(config, *filter(None, (everywhere, "ignore_extra_tokens")))
    kept = {"labels": labels, "label_pieces": "first" if ignored is True else "all"}
    if task == "PunctuationCapitalizationModel":
        return {"task": "punctuation", **kept}
    share = nemo_config.node(config, "intent_loss_weight")
    shared = {"intent_share": share} if isinstance(share, int | float) and 0 <= share <= 1 else {}
    return {"task": "intent-slot", **kept, **shared, "scheme": _scheme(found)}


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


def _labels(config: Mapping[str, Any], members: Mapping[str, Region], place: str, key: str, file: str) -> list[str]:
    """Labels in the order of their numbers; empty where nothing tells them.

    Args:
        place: of a node with the number of each label.
        key: below `class_labels`, the name of a file with a label a line.
        file: what that is called otherwise.
    """
    numbers = nemo_config.node(config, *place.split("."))
    if (
        isinstance(numbers, dict)
        and numbers
        and sorted(map(str, numbers.values())) == sorted(str(number) for number in range(len(numbers)))
    ):
        return [str(label) for label, _ in sorted(numbers.items(), key=lambda one: int(one[1]))]
    said = nemo_config.node(config, "class_labels", key)
    wanted = str(said).removeprefix("nemo:").rpartition("/")[2] if said else file
    for name, region in sorted(members.items()):
        if name == wanted or re.sub(r"^[0-9a-f]{32}_", "", name) in (wanted, file):
            if region.length > _LARGEST_LABELS:
                raise ValueError(f"{region.name} is too large for a list of labels")
            lines = region.read().decode("utf-8", "replace").splitlines()
            return [line.strip() for line in lines if line.strip()][:_MOST_LABELS]
    return []
