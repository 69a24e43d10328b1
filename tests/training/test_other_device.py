"""A training step on a device that is not the CPU, on machines that have none: see `aside`."""

import os
import subprocess
import sys
from pathlib import Path


def test_a_step_gives_the_same_numbers_on_another_device_and_seldom_waits_for_it():
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.aside"],
        cwd=root, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout == "equal\n", done.stderr[-3000:]
