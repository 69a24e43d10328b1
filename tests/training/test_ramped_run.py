"""Whole runs whose batch or weight decay grows, and what lines of metrics say when asked."""

import itertools
import json
import os

import pytest
import torch

from megabert.training.resume import find, read

from .test_loop import assert_same_run, metrics, trainer
from .toy import ToyRows, toy

RAMP = {
    "batch_size": 2, "global_batch_size": 8, "rampup_batch_size": (2, 2, 40), "train_samples": 150, "train_iters": None,
    "weight_decay_incr_style": "cosine", "start_weight_decay": 0.01, "end_weight_decay": 0.5, "num_workers": 1,
    "log_interval": 1, "lr_decay_samples": 120, "lr_warmup_samples": 10, "warmup": 0.0,
}  # fmt: skip


class Remembering(ToyRows):
    """Rows that remember what was asked for; read in the training process."""

    def __init__(self, length):
        super().__init__(length)
        self.asked = []

    def __getitem__(self, index):
        self.asked.append(index)
        return super().__getitem__(index)


def test_rows_are_read_once_in_growing_batches(tmp_path):
    rows = Remembering(400)
    outcome = trainer(tmp_path, rows=rows, valid=False, **RAMP | {"num_workers": 0}).fit()
    lines = metrics(tmp_path)
    # 13.3 rows for each size; read before: 0 2 4 .. 12 | 14 18 22 26 | 30 36 | 42 is over 40
    assert [line["batch_size"] for line in lines[:15]] == [2] * 7 + [4] * 4 + [6] * 2 + [8] * 2
    assert [line["samples"] for line in lines[6:9]] == [14, 18, 22]
    assert outcome.finished and outcome.step == len(lines) == 13 + (150 - 42) // 8
    assert rows.asked == list(range(lines[-1]["samples"])) == list(range(146))
    # the learning rate goes by samples: 10 of warm-up, done at 120
    assert [line["lr"] for line in lines[:6]] == pytest.approx([0.0, 0.002, 0.004, 0.006, 0.008, 0.01])
    assert lines[-1]["lr"] == 0.0
    assert lines[0]["weight_decay"] == pytest.approx(0.01)
    assert all(one["weight_decay"] < two["weight_decay"] for one, two in itertools.pairwise(lines))


@pytest.mark.parametrize("stop", [3, 9, 14])
def test_resuming_in_the_middle_of_the_ramp_is_bitwise(tmp_path, stop):
    trainer(tmp_path / "whole", **RAMP).fit()
    trainer(tmp_path / "parts", exit_interval=stop, **RAMP).fit()
    trainer(tmp_path / "parts", **RAMP).fit()
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_only_decayed_weights_follow_the_weight_decay(tmp_path):
    run = trainer(tmp_path, valid=False, **RAMP)
    run.fit()
    decays = {group["decayed"]: group["weight_decay"] for group in run.train_step.optimizer.param_groups}
    assert decays == {True: metrics(tmp_path)[-1]["weight_decay"], False: 0.0}


def test_passes_over_the_data(tmp_path):
    rows = Remembering(10)
    trainer(tmp_path, rows=rows, valid=False, train_iters=None, epochs=3, save_interval=None).fit()
    assert rows.asked == list(range(32))  # 8 updates of 4 rows: 3 x 10, and the rest of the last update


def test_the_schedules_of_the_checkpoint(tmp_path):
    given = {"valid": False, "log_interval": 1, "lr": 0.01}
    trainer(tmp_path, exit_interval=15, **given).fit()
    trainer(tmp_path, exit_interval=20, use_checkpoint_lr_scheduler=True, **given | {"lr": 0.5}).fit()
    trainer(tmp_path, **given | {"lr": 0.5}).fit()
    rates = [line["lr"] for line in metrics(tmp_path)]
    assert max(rates[:20]) == pytest.approx(0.01) and rates[18] < rates[14] and rates[20] > 0.1


def test_numbers_that_are_asked_for(tmp_path):
    model = toy()
    model.norm.bias.register_hook(torch.zeros_like)
    run = trainer(
        tmp_path,
        model=model,
        valid=False,
        train_iters=1,
        log_interval=1,
        log_params_norm=True,
        log_num_zeros_in_grad=True,
    )
    run.fit()
    (line,) = metrics(tmp_path)
    weights = read(find(tmp_path)).weights.values()
    assert line["params_norm"] == pytest.approx(float(torch.stack([w.norm() for w in weights]).norm()), rel=1e-5)
    assert line["zeros_in_grad"] == 16


def test_what_tensorboard_is_not_told(tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trainer(
        tmp_path, valid=False, tensorboard=True, train_iters=5, log_learning_rate_to_tensorboard=False,
        log_loss_scale_to_tensorboard=False,
    ).fit()  # fmt: skip
    events = accumulators.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert "training/lm_loss" in tags and not {"training/lr", "training/loss_scale"} & tags


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_checkpoints_have_the_usual_permissions(tmp_path, mask):
    before = os.umask(mask)
    try:
        trainer(tmp_path, valid=False, train_iters=1).fit()
    finally:
        os.umask(before)
    files = list(find(tmp_path).iterdir())
    assert len(files) == 5 and {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~mask}
    assert json.loads((find(tmp_path) / "state.json").read_text())["version"] == 1
