"""The flags of NeMo 0.x's `question_answering_squad.py` (May 2020), as overrides of the later settings."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from megabert.config import nearest

_EVALUATIONS = ("eval", "test")


@dataclass(frozen=True)
class Former:
    """What a command line of 0.x asks for.

    Attributes:
        overrides: of the later script's settings.
        mode: `train`, `train_eval`, `eval` or `test`.
        folder: the run's folder (`--work_dir`), or for eval and test the one with the model.
        file: the file of eval and test.
        predictions, n_best: files that eval and test write.
        notices: what is to be said.
    """

    overrides: list[str]
    mode: str
    folder: Path
    file: Path | None
    predictions: Path
    n_best: Path
    notices: list[str]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


# flag -> (type, default, setting); a switch has the type bool
_FLAGS: dict[str, tuple[type, Any, str]] = {
    "train_file": (str, None, "model.train_ds.file"),
    "eval_file": (str, None, "model.validation_ds.file"),
    "test_file": (str, None, ""),
    "pretrained_model_name": (str, "roberta-base", "model.language_model.pretrained_model_name"),
    "bert_config": (str, None, "model.language_model.config_file"),
    "bert_checkpoint": (str, None, "model.language_model.lm_checkpoint"),
    "head_checkpoint": (str, None, ""),
    "vocab_file": (str, None, "model.tokenizer.vocab_file"),
    "checkpoint_dir": (str, None, ""),
    "tokenizer": (str, "nemobert", ""),
    "tokenizer_model": (str, None, "model.tokenizer.tokenizer_model"),
    "do_lower_case": (bool, False, ""),
    "mode": (str, "train_eval", ""),
    "version_2_with_negative": (bool, False, "model.dataset.version_2_with_negative"),
    "null_score_diff_threshold": (float, 0.0, "model.dataset.null_score_diff_threshold"),
    "n_best_size": (int, 20, "model.dataset.n_best_size"),
    "max_answer_length": (int, 30, "model.dataset.max_answer_length"),
    "doc_stride": (int, 128, "model.dataset.doc_stride"),
    "max_query_length": (int, 64, "model.dataset.max_query_length"),
    "max_seq_length": (int, 384, "model.dataset.max_seq_length"),
    "no_data_cache": (bool, False, ""),
    "optimizer": (str, "adam_w", "model.optim.name"),
    "lr": (float, 3e-5, "model.optim.lr"),
    "lr_policy": (str, "WarmupAnnealing", "model.optim.sched.name"),
    "lr_warmup_proportion": (float, 0.0, "model.optim.sched.warmup_ratio"),
    "weight_decay": (float, 0.0, "model.optim.weight_decay"),
    "num_epochs": (int, 2, "trainer.max_epochs"),
    "max_steps": (int, -1, "trainer.max_steps"),
    "batch_size": (int, 8, "model.train_ds.batch_size"),
    "batches_per_step": (int, 1, "trainer.accumulate_grad_batches"),
    "grad_norm_clip": (float, -1.0, ""),
    "num_gpus": (int, 1, "trainer.gpus"),
    "local_rank": (int, None, ""),
    "amp_opt_level": (str, "O0", ""),
    "work_dir": (str, "output_squad", "exp_manager.explicit_log_dir"),
    "save_epoch_freq": (int, 1, ""),
    "save_step_freq": (int, -1, ""),
    "train_step_freq": (int, 100, "trainer.log_every_n_steps"),
    "eval_step_freq": (int, 500, "trainer.val_check_interval"),
    "output_prediction_file": (str, "predictions.json", ""),
    "output_nbest_file": (str, "nbest.json", ""),
}
_CHOICES = {"mode": ("train", "train_eval", *_EVALUATIONS), "amp_opt_level": ("O0", "O1", "O2")}


def read(arguments: Sequence[str]) -> Former:
    """Read a command line of 0.x.

    Raises:
        ValueError: an unknown flag, a missing file, or Megatron without its config, checkpoint and vocabulary.
    """
    parser = _Parser(prog="question_answering_squad.py", allow_abbrev=False, add_help=False)
    for name, (kind, default, _) in _FLAGS.items():
        if kind is bool:
            parser.add_argument(f"--{name}", action="store_true")
        else:
            parser.add_argument(f"--{name}", type=kind, default=default, choices=_CHOICES.get(name))
    found, unknown = parser.parse_known_args(list(arguments))
    if unknown:
        first = unknown[0].partition("=")[0]
        raise ValueError(f"unknown flag {first}{nearest(first, [f'--{name}' for name in _FLAGS])}")
    _check(found)
    if found.max_steps < 0:
        found.max_steps = None
    overrides = [f"{to}={_text(value)}" for name, (_, _, to) in _FLAGS.items()
                 if to and (value := getattr(found, name)) is not None]  # fmt: skip
    overrides += [
        f"trainer.gradient_clip_val={max(0.0, found.grad_norm_clip)}",
        f"trainer.precision={32 if found.amp_opt_level == 'O0' else 16}",
        "exp_manager.resume_if_exists=true", "exp_manager.resume_ignore_no_checkpoint=true",
    ]  # fmt: skip
    file = {"eval": found.eval_file, "test": found.test_file}.get(found.mode)
    return Former(
        overrides=overrides, mode=found.mode, folder=Path(found.checkpoint_dir or found.work_dir),
        file=Path(file) if file else None, predictions=Path(found.output_prediction_file),
        n_best=Path(found.output_nbest_file), notices=_notices(found),
    )  # fmt: skip


def _text(value: Any) -> str:
    return f"'{value}'" if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)


def _check(found: argparse.Namespace) -> None:
    needed = {"train": ["train_file"], "train_eval": ["train_file", "eval_file"], "eval": ["eval_file"],
              "test": ["test_file"]}[found.mode]  # fmt: skip
    for name in needed:
        if getattr(found, name) is None:
            raise ValueError(f"--{name} is missing: --mode {found.mode} needs it")
    if found.tokenizer != "nemobert" or found.tokenizer_model:
        raise ValueError("--tokenizer: a SentencePiece model is not read by this command; nemobert with --vocab_file "
                         "is needed")  # fmt: skip
    if found.head_checkpoint:
        raise ValueError("--head_checkpoint: a head alone is not read; --checkpoint_dir names a finished run")
    trained = found.mode not in _EVALUATIONS
    three = (found.bert_config, found.bert_checkpoint, found.vocab_file)
    if trained and "megatron" in found.pretrained_model_name and None in three:
        raise ValueError("Config file, checkpoint and vocabulary file should be provided for Megatron models: give "
                         "--bert_config, --bert_checkpoint and --vocab_file")  # fmt: skip
    if trained and "megatron" not in found.pretrained_model_name:
        raise ValueError(f"--pretrained_model_name {found.pretrained_model_name} is no Megatron BERT: megatron-uncased "
                         "or megatron-cased is needed")  # fmt: skip


def _notices(found: argparse.Namespace) -> list[str]:
    notices = []
    cased = "uncased" not in found.pretrained_model_name
    if found.do_lower_case == cased and "megatron" in found.pretrained_model_name:
        notices.append(f"--do_lower_case is decided by the name: {found.pretrained_model_name} "
                       f"{'keeps' if cased else 'lowers'} case")  # fmt: skip
    if found.save_step_freq > 0 or found.save_epoch_freq != 1:
        notices.append("--save_step_freq, --save_epoch_freq: a checkpoint is kept of the best and of the last weights")
    return notices
