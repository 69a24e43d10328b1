"""What NeMo's documents told users to type and its scripts did not take: taken here, with a notice."""

from __future__ import annotations

import re
from collections.abc import Sequence

_FILES = {"question_answering_squad": "file", "text_classification_with_bert": "file_path",
          "token_classification_train": "text_file", "glue_benchmark": "ds_item",
          "intent_slot_classification": "prefix", "punctuation_capitalization_train": "text_file",
          "zero_shot_intent_train": "file_name"}  # fmt: skip
_FLAGS = {
    "--bert_config": "model.language_model.config_file",
    "--bert_checkpoint": "model.language_model.lm_checkpoint",
    "--vocab_file": "model.tokenizer.vocab_file",
    "--pretrained_model_name": "model.language_model.pretrained_model_name",
    "--train_file": "model.train_ds.",
    "--eval_file": "model.validation_ds.",
    "--test_file": "model.test_ds.",
}
_GROUP = re.compile(r"(\+{0,2})model\.(train_ds|validation_ds|test_ds)=(.*)", re.DOTALL)
_RENAMED = {
    "model.test_file": "model.test_ds.{file}", "model.train_ds.file_name": "model.train_ds.{file}",
    "model.validation_ds.file_name": "model.validation_ds.{file}", "model.test_ds.file_name": "model.test_ds.{file}",
    "model.dataset.classes_num": "model.dataset.num_classes", "from_pretrained": "pretrained_model",
}  # fmt: skip


def corrected(arguments: Sequence[str], script: str) -> tuple[list[str], list[str]]:
    """The overrides that were meant, and a notice for each one that was changed.

    Raises:
        ValueError: a flag that no document has.
    """
    key, found, notices = _FILES[script], [], []
    pending = iter(arguments)
    for argument in pending:
        if argument.startswith("--"):
            flag, separator, value = argument.partition("=")
            if flag == "--do_lower_case":
                notices.append("--do_lower_case is a flag of NeMo 0.x: whether case is kept is told by the tokenizer")
                continue
            if flag not in _FLAGS:
                raise ValueError(f"unknown flag {flag}: this script takes NAME=VALUE; --help shows the names")
            value = value if separator else next(pending, "")
            to = _FLAGS[flag] + (key if _FLAGS[flag].endswith(".") else "")
            notices.append(f"{flag} is a flag of NeMo 0.x: taken for {to}={value}")
            found.append(f"{to}={value}")
            continue
        group = _GROUP.fullmatch(argument)
        name, _, value = argument.partition("=")
        if group and not group[3].startswith(("{", "$")):
            found.append(f"model.{group[2]}.{key}={group[3]}")
        elif name in _RENAMED and _RENAMED[name].format(file=key) != name:
            found.append(f"{_RENAMED[name].format(file=key)}={value}")
        else:
            found.append(argument)
            continue
        notices.append(f"{argument} is taken for {found[-1]}")
    return found, notices
