import os
import signal
from pathlib import Path

import pytest

# Many small models: one thread each is fastest, and two test processes do not fight over two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Nothing in the tests may reach for a network.
os.environ["HF_HUB_OFFLINE"] = "1"

# A shell that starts the tests in the background lets them, and all that they start, ignore this signal.
signal.signal(signal.SIGINT, signal.default_int_handler)

SEVERAL_PROCESSES = Path(__file__).parent / "distributed"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file's tests stay in one worker, where they share what its fixtures made.

    Those that start teams of processes wait for each other, all in one worker: two teams at once would starve each
    other into their time limits. They take longest, so they come first.
    """
    teams = [item for item in items if item.path.is_relative_to(SEVERAL_PROCESSES)]
    others = [item for item in items if not item.path.is_relative_to(SEVERAL_PROCESSES)]
    for item in teams:
        item.add_marker(pytest.mark.xdist_group("several processes"))
    for item in others:
        item.add_marker(pytest.mark.xdist_group(str(item.path)))
    items[:] = teams + others
