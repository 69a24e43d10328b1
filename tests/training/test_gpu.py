"""What only a GPU shows: number formats there, pinned batches, and its random state in a checkpoint."""

import pytest
import torch

from .test_loop import assert_same_run, trainer
from .toy import toy

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

MODES = [
    {},
    {"bf16": True, "fp32_layernorm": True, "fp32_embedding": True, "num_workers": 1},
    {"fp16": True, "fp32_layernorm": True, "initial_loss_scale": 2.0**24, "hysteresis": 1},
]


@pytest.mark.parametrize("mode", MODES, ids=["fp32", "bf16", "fp16"])
def test_thirty_steps_are_seventeen_and_thirteen(tmp_path, mode, monkeypatch):
    # The embedding's gradient adds up in any order otherwise.
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        trainer(tmp_path / "whole", model=toy().cuda(), **mode).fit()
        trainer(tmp_path / "parts", model=toy().cuda(), exit_interval=17, **mode).fit()
        torch.manual_seed(99)
        trainer(tmp_path / "parts", model=toy(seed=8).cuda(), **mode).fit()
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_learns(tmp_path):
    outcome = trainer(tmp_path, model=toy().cuda(), bf16=True, train_iters=300, eval_interval=100).fit()
    assert outcome.evaluation is not None and outcome.evaluation.accuracies["lm"] > 0.2
