"""A `Trainer`, `NLPDDPPlugin` and `exp_manager` by their names, for Python written for NeMo 1 and Lightning 1."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megabert.compat.nemo import defaults
from megabert.compat.nemo.settings import Settings, plain
from megabert.config import nearest

if TYPE_CHECKING:
    from megabert.compat.nemo.models import TaskModel


def place() -> tuple[int, int]:
    """The number of this process among those that were started together, and how many they are."""
    from megabert.training.launch import launched

    launch = launched(os.environ)
    return (0, 1) if launch is None else (launch.rank, launch.size)


class NLPDDPPlugin:
    """What told Lightning of tensor parallelism; here the checkpoint and torchrun tell it, so this holds nothing."""

    def __init__(self, **settings: Any):
        self.settings = settings


class NLPDDPStrategy(NLPDDPPlugin):
    """The same by its name of 2022."""


class Trainer:
    """Lightning's settings of a run; `fit` is `megabert finetune`, `test` scores as `megabert evaluate`.

    Args:
        plugins, strategy: what was there for tensor parallelism; nothing of them is needed.
        settings: as in `trainer` of NeMo's configurations.

    Raises:
        ValueError: a setting that Lightning's trainer does not have; the nearest is named.
    """

    def __init__(self, plugins: Any = None, strategy: Any = None, callbacks: Any = None, **settings: Any):
        known = defaults.question_answering().trainer
        for name in settings:
            if name not in known:
                raise ValueError(f"Trainer has no setting {name!r}{nearest(name, list(known))}")
        if callbacks:
            raise ValueError("callbacks are not run here; metrics.jsonl in the run folder holds what they would see")
        if settings.get("resume_from_checkpoint"):
            raise ValueError("resume_from_checkpoint: exp_manager.resume_if_exists=true goes on with a run folder")
        self.settings = Settings(plain(settings))
        self.experiment: Settings | None = None

    @property
    def world_size(self) -> int:
        """Processes of this run."""
        return place()[1]

    @property
    def local_rank(self) -> int:
        """Number of this process on its machine."""
        return int(os.environ.get("LOCAL_RANK") or 0)

    @property
    def is_global_zero(self) -> bool:
        """Whether this is the process that writes."""
        return place()[0] == 0

    def fit(self, model: TaskModel) -> None:
        """Teach the model on its training data.

        Raises:
            ValueError, OSError: as `megabert finetune`.
        """
        model.teach(self)

    def test(
        self, model: TaskModel | None = None, test_dataloaders: Any = None, *, ckpt_path: str | None = "best"
    ) -> list[dict[str, float]]:
        """Score the model on what `setup_test_data` named; every example counts once.

        Args:
            ckpt_path: None, the weights that the model holds, or `best`, which are the same after `fit`.

        Raises:
            ValueError: no model, no test data, or another checkpoint.
        """
        if model is None or test_dataloaders is not None:
            raise ValueError("test(model=...) scores what model.setup_test_data(...) named")
        if ckpt_path not in (None, "best"):
            raise ValueError(f"ckpt_path={ckpt_path!r}: restore_from reads a checkpoint; None is needed here")
        return [model.score("test_ds", "test", aloud=self.is_global_zero)]

    def validate(self, model: TaskModel) -> list[dict[str, float]]:
        """The same on the validation data.

        Raises:
            ValueError: no validation data.
        """
        return [model.score("validation_ds", "val", aloud=self.is_global_zero)]


def exp_manager(trainer: Trainer, cfg: Mapping[str, Any] | None = None) -> Path:
    """Let a trainer's runs lie where NeMo's experiment manager would put them.

    Returns:
        The folder above the runs.
    """
    trainer.experiment = Settings(plain(cfg or {}))
    told = trainer.experiment
    if told.get("explicit_log_dir"):
        return Path(told.explicit_log_dir)
    return Path(told.get("exp_dir") or "nemo_experiments") / str(told.get("name") or "default")
