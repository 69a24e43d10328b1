"""What each of NeMo's scripts asks of `megabert finetune`: the task, its files and settings, its head."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megabert.compat.nemo import defaults
from megabert.compat.nemo.defaults import WANTED
from megabert.compat.nemo.settings import Settings

_GROUPS = {"train_file": "train_ds", "validation_file": "validation_ds", "test_file": "test_ds"}


@dataclass(frozen=True)
class Choice:
    """A script.

    Attributes:
        defaults: its settings.
        head: the class of the model that it teaches.
        task: what that is taught, where several tasks have this class.
        values: all settings -> fields of finetune's config, and under `read` the settings that they were made of.
        file_of: all settings and a group of data -> its file; None: none is named.
    """

    defaults: Callable[[], Settings]
    head: str
    values: Callable[[Settings], dict[str, Any]]
    file_of: Callable[[Settings, str], Path | None]
    task: str = ""


def _files(tree: Settings, file_of: Callable[[Settings, str], Path | None], *keys: str) -> dict[str, Any]:
    """The three files, the batch size, and what was read for them.

    Raises:
        ValueError: there is no training file, or only a part of the data is wanted.
    """
    found: dict[str, Any] = {name: file_of(tree, group) for name, group in _GROUPS.items()}
    if found["train_file"] is None:
        raise ValueError(f"model.train_ds.{keys[0]} is missing: give the training data")
    for group in _GROUPS.values():
        count = tree.find(f"model.{group}.num_samples")
        if count not in (None, -1):
            raise ValueError(f"model.{group}.num_samples={count}: all examples of a file are taken; cut the file")
    if tree.find("model.train_ds.shuffle") is False or tree.find("model.train_ds.drop_last"):
        raise ValueError("model.train_ds: examples are always shuffled and none is dropped; leave out shuffle and "
                         "drop_last")  # fmt: skip
    found["batch_size"] = int(tree.find("model.train_ds.batch_size"))
    read = [f"model.{group}.{key}" for group in _GROUPS.values()
            for key in (*keys, "batch_size", "num_samples", "shuffle", "drop_last")]  # fmt: skip
    return {**found, "read": read}


def _file(key: str) -> Callable[[Settings, str], Path | None]:
    def file_of(tree: Settings, group: str) -> Path | None:
        value = tree.find(f"model.{group}.{key}")
        if value == "":
            raise ValueError(f"model.{group}.{key} is empty: name a file, or leave it out")
        return None if value in (None, WANTED) else Path(str(value)).expanduser()

    return file_of


def _head(tree: Settings, node: str, layers: str, dropout: str, *, plain: bool) -> dict[str, Any]:
    """`head_layers` and `head_dropout`; one layer is Transformers' head where that is the same function.

    Raises:
        ValueError: layers with another activation than ReLU between them.
    """
    count = int(tree.find(f"model.{node}.{layers}"))
    activation = tree.find(f"model.{node}.activation")
    if count > 1 and activation not in (None, "relu"):
        raise ValueError(f"model.{node}.activation={activation} is not here; relu is needed")
    if tree.find(f"model.{node}.use_transformer_init") is False:
        raise ValueError(f"model.{node}.use_transformer_init=false is not here: heads begin as Transformers' do")
    found = {"head_dropout": float(tree.find(f"model.{node}.{dropout}"))}
    return found if plain and count == 1 else {**found, "head_layers": count}


def _pieces(tree: Settings, node: str) -> dict[str, Any]:
    return {"label_pieces": "first" if tree.find(f"{node}.ignore_extra_tokens") else "all"}


def _weights(tree: Settings, path: str = "model.dataset.class_balancing") -> dict[str, Any]:
    value = tree.find(path)
    if value not in (None, "weighted_loss"):
        raise ValueError(f"{path}={value} is not known; weighted_loss or null is needed")
    return {"class_weights": "balanced"} if value else {}


def _questions(tree: Settings) -> dict[str, Any]:
    data = tree.model.dataset
    found = _files(tree, _file("file"), "file")
    found["read"] += [f"model.dataset.{name}" for name in defaults.question_answering().model.dataset]
    found["read"] += ["model.token_classifier", "model.nemo_path", "pretrained_model", "do_training"]
    if tree.find("model.token_classifier.num_classes") not in (None, 2):
        raise ValueError("model.token_classifier.num_classes: an answer has 2 ends; leave it out")
    no_answer = bool(data.version_2_with_negative)
    names = ("doc_stride", "max_query_length", "max_seq_length", "max_answer_length", "n_best_size")
    return {
        **found, "task": "squad2" if no_answer else "squad", **{name: int(data[name]) for name in names},
        "null_threshold": float(data.null_score_diff_threshold) if no_answer else None,
        **_head(tree, "token_classifier", "num_layers", "dropout", plain=True),
    }  # fmt: skip


def _texts(tree: Settings) -> dict[str, Any]:
    data = tree.model.dataset
    found = _files(tree, _file("file_path"), "file_path")
    found["read"] += ["model.dataset.class_balancing", "model.dataset.max_seq_length", "model.classifier_head",
                      "model.nemo_path", "model.infer_samples"]  # fmt: skip
    if data.num_classes in (None, WANTED):
        raise ValueError("model.dataset.num_classes is missing: give the number of classes")
    return {
        **found, "task": "text-classification", "labels": tuple(map(str, range(int(data.num_classes)))),
        "max_seq_length": int(data.max_seq_length), **_weights(tree),
        **_head(tree, "classifier_head", "num_output_layers", "fc_dropout", plain=False),
    }  # fmt: skip


def _words_file(tree: Settings, group: str) -> Path | None:
    texts, labels = tree.find(f"model.{group}.text_file"), tree.find(f"model.{group}.labels_file")
    folder = tree.find("model.dataset.data_dir")
    if texts in (None, WANTED):
        return None
    if not Path(texts).is_absolute() and folder in (None, WANTED):
        raise ValueError("model.dataset.data_dir is missing: give the folder of the data")
    expected = f"labels_{Path(texts).name.removeprefix('text_')}"
    if not Path(texts).name.startswith("text_") or (labels and Path(labels).name != expected):
        raise ValueError(f"model.{group}: text_file is called text_NAME.txt and labels_file labels_NAME.txt, not "
                         f"{Path(texts).name} and {labels}")  # fmt: skip
    return Path(folder or ".").expanduser() / texts


def _words(tree: Settings) -> dict[str, Any]:
    data = tree.model.dataset
    found = _files(tree, _words_file, "text_file", "labels_file")
    found["read"] += [f"model.dataset.{name}" for name in
                      ("data_dir", "class_balancing", "max_seq_length", "ignore_extra_tokens")]  # fmt: skip
    found["read"] += ["model.head", "model.nemo_path", "pretrained_model", "model.class_labels"]
    if found["test_file"] == found["validation_file"]:
        found["test_file"] = None
    return {
        **found, "task": "token-classification", "max_seq_length": int(data.max_seq_length),
        **_pieces(tree, "model.dataset"), **_weights(tree),
        **_head(tree, "head", "num_fc_layers", "fc_dropout", plain=True),
    }  # fmt: skip


def _glue_file(tree: Settings, group: str) -> Path | None:
    item, folder = tree.find(f"model.{group}.ds_item"), tree.find("model.dataset.data_dir")
    if item in (None, WANTED):
        return None
    if folder in (None, WANTED):
        raise ValueError("model.dataset.data_dir is missing: give the folder of the data")
    if item == "dev.tsv" and tree.find("model.task_name") == "mnli":
        item = "dev_matched.tsv"
    return Path(folder).expanduser() / item


# NeMo's own, which no setting of its script changes.
_GLUE_HEAD = {"head_layers": 2, "head_dropout": 0.0}


def _glue(tree: Settings) -> dict[str, Any]:
    found = _files(tree, _glue_file, "ds_item")
    found["read"] += [f"model.{name}" for name in
                      ("dataset.data_dir", "dataset.max_seq_length", "task_name", "nemo_path")]  # fmt: skip
    return {**found, "task": str(tree.model.task_name), "max_seq_length": int(tree.model.dataset.max_seq_length),
            **_GLUE_HEAD}  # fmt: skip


def _in_folder(key: str, folder: str, ending: str = "") -> Callable[[Settings, str], Path | None]:
    def file_of(tree: Settings, group: str) -> Path | None:
        item, place = tree.find(f"model.{group}.{key}"), tree.find(folder)
        if item in (None, WANTED):
            return None
        if place in (None, WANTED):
            raise ValueError(f"{folder} is missing: give the folder of the data")
        return Path(place).expanduser() / f"{item}{ending}"

    return file_of


_utterances_file = _in_folder("prefix", "model.data_dir", ".tsv")
_inference_file = _in_folder("file_name", "model.dataset.data_dir")


def _utterances(tree: Settings) -> dict[str, Any]:
    found = _files(tree, _utterances_file, "prefix")
    found["read"] += [f"model.{name}" for name in
                      ("data_dir", "class_balancing", "intent_loss_weight", "class_labels", "head", "nemo_path",
                       "language_model.max_seq_length", "pad_label", "ignore_extra_tokens")]  # fmt: skip
    if found["test_file"] == found["validation_file"]:
        found["test_file"] = None
    return {
        **found, "task": "intent-slot", "max_seq_length": int(tree.find("model.language_model.max_seq_length")),
        "intent_share": float(tree.model.intent_loss_weight), **_pieces(tree, "model"),
        **_head(tree, "head", "num_output_layers", "fc_dropout", plain=True),
        **_weights(tree, "model.class_balancing"),
    }  # fmt: skip


def _marks(tree: Settings) -> dict[str, Any]:
    found = _files(tree, _words_file, "text_file", "labels_file")
    found["read"] += [f"model.dataset.{name}" for name in ("data_dir", "max_seq_length", "ignore_extra_tokens")]
    found["read"] += ["model.class_labels", "pretrained_model", "model.nemo_path", "model.punct_head",
                      "model.capit_head"]  # fmt: skip
    if found["test_file"] == found["validation_file"]:
        found["test_file"] = None
    head, other = (_head(tree, f"{kind}_head", f"{kind}_num_fc_layers", "fc_dropout", plain=True)
                   for kind in ("punct", "capit"))  # fmt: skip
    if head != other:
        raise ValueError("model.punct_head and model.capit_head differ: both classifiers have as many layers and one "
                         "dropout here")  # fmt: skip
    return {
        **found, "task": "punctuation", "max_seq_length": int(tree.model.dataset.max_seq_length), **head,
        **_pieces(tree, "model.dataset"),
    }  # fmt: skip


def _inference(tree: Settings) -> dict[str, Any]:
    found = _files(tree, _inference_file, "file_name")
    found["read"] += [f"model.dataset.{name}" for name in ("data_dir", "max_seq_length", "class_balancing")]
    found["read"] += ["pretrained_model", "model.nemo_path", "model.classifier_head", "model.infer_samples",
                      "model.infer_labels"]  # fmt: skip
    return {**found, "task": "mnli", "max_seq_length": int(tree.model.dataset.max_seq_length), **_weights(tree),
            **_head(tree, "classifier_head", "num_output_layers", "fc_dropout", plain=False)}  # fmt: skip


_TOKENS = "MegatronBertForTokenClassification"
_TEXT = "MegatronBertForSequenceClassification"
CHOICES: Mapping[str, Choice] = {
    "question_answering_squad": Choice(
        defaults.question_answering, "MegatronBertForQuestionAnswering", _questions, _file("file")
    ),
    "text_classification_with_bert": Choice(defaults.text_classification, _TEXT, _texts, _file("file_path")),
    "token_classification_train": Choice(
        defaults.token_classification, _TOKENS, _words, _words_file, "token-classification"
    ),
    "glue_benchmark": Choice(defaults.glue, _TEXT, _glue, _glue_file),
    "intent_slot_classification": Choice(defaults.intent_slot, _TOKENS, _utterances, _utterances_file, "intent-slot"),
    "punctuation_capitalization_train": Choice(defaults.punctuation, _TOKENS, _marks, _words_file, "punctuation"),
    "zero_shot_intent_train": Choice(defaults.zero_shot, _TEXT, _inference, _inference_file),
}
"""Script -> what it asks for."""

_NEMO = {"precision": "nemo_precision", "f1": "nemo_f1", "recall": "nemo_recall"}
RESULTS: Mapping[str, Mapping[str, str]] = {
    "question_answering_squad": {"exact_match": "nemo_exact_match", "f1": "nemo_f1"},
    "text_classification_with_bert": _NEMO,
    "token_classification_train": {
        **_NEMO,
        "entity_f1": "f1",
        "entity_precision": "precision",
        "entity_recall": "recall",
    },
    "glue_benchmark": {},
    "intent_slot_classification": {
        "intent_f1": "nemo_intent_f1",
        "slot_f1": "nemo_slot_f1",
        "slot_entity_f1": "slot_f1",
    },
    "punctuation_capitalization_train": {
        f"{kind}_{score}": f"nemo_{kind}_{score}"
        for kind in ("punct", "capit")
        for score in ("precision", "recall", "f1")
    },
    "zero_shot_intent_train": {},
}
"""Script -> NeMo's name of a score -> ours."""
