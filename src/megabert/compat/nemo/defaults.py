"""The settings of NeMo 1.0's scripts with their defaults (the YAML files beside its scripts)."""

from __future__ import annotations

import dataclasses
from typing import Any

from megabert.compat.nemo.settings import Settings
from megabert.parallel.options import ParallelOptions

WANTED = "???"
"""A setting without a default: the user gives it."""

LAYOUT = tuple(field.name for field in dataclasses.fields(ParallelOptions) if not field.metadata["hidden"])
"""Flags of `megabert finetune` for many processes; they are settings below `model`, where later versions of NeMo had
`tensor_model_parallel_size` and its like. None: the checkpoint and the launcher decide."""

_EXPERIMENT = {
    "explicit_log_dir": None, "exp_dir": None, "version": None, "use_datetime_version": True, "resume_if_exists": False,
    "resume_past_end": False, "resume_ignore_no_checkpoint": False, "create_tensorboard_logger": True,
    "summary_writer_kwargs": None, "create_wandb_logger": False, "wandb_logger_kwargs": None,
    "create_checkpoint_callback": True, "files_to_copy": None,
    "checkpoint_callback_params": {
        "filepath": None, "dirpath": None, "filename": None, "monitor": "val_loss", "verbose": True, "save_last": True,
        "save_top_k": 3, "save_weights_only": False, "mode": "min", "period": 1, "prefix": None, "postfix": ".nemo",
        "save_best_model": False, "always_save_nemo": False,
    },
}  # fmt: skip


def _trainer(epochs: int, precision: int, level: str) -> dict[str, Any]:
    return {
        "gpus": 1, "num_nodes": 1, "max_epochs": epochs, "max_steps": None, "accumulate_grad_batches": 1,
        "gradient_clip_val": 0.0, "amp_level": level, "precision": precision, "accelerator": "ddp",
        "log_every_n_steps": 1, "val_check_interval": 1.0, "resume_from_checkpoint": None, "num_sanity_val_steps": 0,
        "checkpoint_callback": False, "logger": False, "devices": None, "strategy": None, "enable_checkpointing": False,
        "use_distributed_sampler": True, "replace_sampler_ddp": True, "amp_backend": None,
        "benchmark": False, "deterministic": False, "progress_bar_refresh_rate": None, "check_val_every_n_epoch": 1,
    }  # fmt: skip


def _optimizer(name: str, rate: float, decay: float, schedule: str, warmup: float) -> dict[str, Any]:
    return {
        "name": name, "lr": rate, "weight_decay": decay, "betas": [0.9, 0.999],
        "sched": {"name": schedule, "warmup_steps": None, "warmup_ratio": warmup, "last_epoch": -1,
                  "monitor": "val_loss", "reduce_on_plateau": False, "min_lr": 0.0, "power": 1.0},
    }  # fmt: skip


def _encoder() -> dict[str, Any]:
    return {
        **dict.fromkeys(LAYOUT),
        "tokenizer": {"tokenizer_name": "${model.language_model.pretrained_model_name}", "vocab_file": None,
                      "tokenizer_model": None, "special_tokens": None},
        "language_model": {"pretrained_model_name": "bert-base-uncased", "lm_checkpoint": None, "config_file": None,
                           "config": None},
    }  # fmt: skip


def _sets(batch_size: int, **files: tuple[Any, Any, Any]) -> dict[str, Any]:
    """Three groups for data; `files` are keys with a value for each."""
    groups = {}
    for number, name in enumerate(("train_ds", "validation_ds", "test_ds")):
        told = {key: values[number] for key, values in files.items()}
        groups[name] = {**told, "batch_size": batch_size, "shuffle": number == 0, "num_samples": -1, "num_workers": 2,
                        "pin_memory": False, "drop_last": False}  # fmt: skip
    return groups


def _of_set(**more: Any) -> dict[str, Any]:
    return {"use_cache": False, "num_workers": 2, "pin_memory": False, "drop_last": False, **more}


def question_answering() -> Settings:
    """Of `question_answering_squad_config.yaml`."""
    return Settings(
        pretrained_model=None, do_training=True, trainer=_trainer(2, 16, "O1"),
        model={
            **_encoder(), "nemo_path": None,
            "dataset": _of_set(
                version_2_with_negative=False, doc_stride=128, max_query_length=64, max_seq_length=384,
                max_answer_length=30, null_score_diff_threshold=0.0, n_best_size=20, use_cache=True, do_lower_case=True,
            ),
            **_sets(24, file=(None, None, None)),
            "token_classifier": {"num_layers": 1, "dropout": 0.0, "num_classes": 2, "activation": "relu",
                                 "log_softmax": False, "use_transformer_init": True},
            "optim": _optimizer("adamw", 3e-5, 0.0, "SquareRootAnnealing", 0.0),
        },
        exp_manager={**_EXPERIMENT, "name": "QA"},
    )  # fmt: skip


def text_classification() -> Settings:
    """Of `text_classification_config.yaml`."""
    return Settings(
        trainer=_trainer(100, 32, "O0"),
        model={
            **_encoder(), "nemo_path": "text_classification_model.nemo",
            "dataset": _of_set(num_classes=WANTED, do_lower_case=False, max_seq_length=256, class_balancing=None),
            "class_labels": {"class_labels_file": None},
            "classifier_head": {"num_output_layers": 2, "fc_dropout": 0.1},
            **_sets(64, file_path=(WANTED, None, None)),
            "optim": _optimizer("adam", 2e-5, 0.01, "WarmupAnnealing", 0.1),
            "infer_samples": [
                "the film is a joy from its first minute to its last .",
                "a long , slow and tired story that nobody asked for .",
                "there are good ideas in it , and too few of them .",
            ],
        },
        exp_manager={**_EXPERIMENT, "name": "TextClassification"},
    )  # fmt: skip


def token_classification() -> Settings:
    """Of `token_classification_config.yaml`."""
    texts = ("text_train.txt", "text_dev.txt", "text_dev.txt")
    labels = ("labels_train.txt", "labels_dev.txt", "labels_dev.txt")
    return Settings(
        pretrained_model=None, trainer=_trainer(5, 16, "O0"),
        model={
            **_encoder(), "nemo_path": None, "label_ids": None,
            "class_labels": {"class_labels_file": "label_ids.csv"},
            "dataset": _of_set(data_dir=WANTED, class_balancing=None, max_seq_length=128, pad_label="O",
                               ignore_extra_tokens=False, ignore_start_end=False, use_cache=True),
            **_sets(64, text_file=texts, labels_file=labels),
            "head": {"num_fc_layers": 2, "fc_dropout": 0.5, "activation": "relu", "use_transformer_init": True},
            "optim": _optimizer("adam", 5e-5, 0.0, "WarmupAnnealing", 0.1),
        },
        exp_manager={**_EXPERIMENT, "name": "token_classification_model"},
    )  # fmt: skip


def glue() -> Settings:
    """Of `glue_benchmark_config.yaml`."""
    return Settings(
        trainer=_trainer(3, 16, "O0"),
        model={
            **_encoder(), "nemo_path": None, "task_name": "mrpc", "supported_tasks": None, "output_dir": None,
            "dataset": _of_set(data_dir=WANTED, max_seq_length=128, use_cache=True),
            **_sets(32, ds_item=("train.tsv", "dev.tsv", None)),
            "optim": _optimizer("adam", 5e-5, 0.0, "WarmupAnnealing", 0.1),
        },
        exp_manager={**_EXPERIMENT, "name": "glue"},
    )  # fmt: skip


def intent_slot() -> Settings:
    """Of `intent_slot_classification_config.yaml`."""
    encoder = _encoder()
    encoder["language_model"]["max_seq_length"] = 50
    return Settings(
        trainer=_trainer(50, 32, "O0"),
        model={
            **encoder, "nemo_path": None, "data_dir": WANTED, "class_balancing": None, "intent_loss_weight": 0.6,
            "class_labels": {"intent_labels_file": "intent_labels.csv", "slot_labels_file": "slot_labels.csv"},
            "pad_label": -1, "ignore_extra_tokens": False, "ignore_start_end": True,
            **_sets(32, prefix=("train", "test", "test")),
            "head": {"num_output_layers": 2, "fc_dropout": 0.1},
            "optim": _optimizer("adam", 2e-5, 0.01, "WarmupAnnealing", 0.1),
        },
        exp_manager={**_EXPERIMENT, "name": "IntentSlot"},
    )  # fmt: skip


def punctuation() -> Settings:
    """Of `punctuation_capitalization_config.yaml`, version 1.0."""
    texts = ("text_train.txt", "text_dev.txt", "text_dev.txt")
    labels = ("labels_train.txt", "labels_dev.txt", "labels_dev.txt")
    return Settings(
        pretrained_model=None, trainer=_trainer(3, 16, "O0"),
        model={
            **_encoder(), "nemo_path": None, "punct_label_ids": None, "capit_label_ids": None,
            "class_labels": {"punct_labels_file": "punct_label_ids.csv", "capit_labels_file": "capit_label_ids.csv"},
            "dataset": _of_set(data_dir=WANTED, max_seq_length=128, pad_label="O", ignore_extra_tokens=False,
                               ignore_start_end=False, use_cache=True),
            **_sets(64, text_file=texts, labels_file=labels),
            "punct_head": {"punct_num_fc_layers": 1, "fc_dropout": 0.1, "activation": "relu",
                           "use_transformer_init": True},
            "capit_head": {"capit_num_fc_layers": 1, "fc_dropout": 0.1, "activation": "relu",
                           "use_transformer_init": True},
            "optim": _optimizer("adam", 1e-4, 0.0, "WarmupAnnealing", 0.1),
        },
        exp_manager={**_EXPERIMENT, "name": "Punctuation_and_Capitalization"},
    )  # fmt: skip


def zero_shot() -> Settings:
    """Of `zero_shot_intent_config.yaml`."""
    return Settings(
        pretrained_model=None, trainer=_trainer(1, 16, "O0"),
        model={
            **_encoder(), "nemo_path": None,
            "dataset": _of_set(data_dir=WANTED, sentence_1_column=8, sentence_2_column=9, label_column=-1,
                               class_balancing=None, num_classes=3, max_seq_length=128, do_lower_case=True,
                               use_cache=True),
            "classifier_head": {"num_output_layers": 2, "fc_dropout": 0.1, "activation": "relu",
                                "use_transformer_init": True},
            **_sets(64, file_name=("train.tsv", "dev_matched.tsv", None)),
            "optim": _optimizer("adam", 5e-5, 0.0, "WarmupAnnealing", 0.1),
            # What zero_shot_intent_infer asks; NeMo's script had such texts in it.
            "infer_samples": ["two tickets for the late show , please", "it is far too dark in the kitchen"],
            "infer_labels": ["buy tickets", "switch on the light", "ask for the way", "play a song"],
        },
        exp_manager={**_EXPERIMENT, "name": "ZeroShotIntent"},
    )  # fmt: skip
