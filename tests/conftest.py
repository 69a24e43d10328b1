import os
import signal
from typing import Any

import pytest

# Many small models: one thread each is fastest, and two test processes do not fight over two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Nothing in the tests may reach for a network.
os.environ["HF_HUB_OFFLINE"] = "1"

# A shell that starts the tests in the background lets them, and all that they start, ignore this signal.
signal.signal(signal.SIGINT, signal.default_int_handler)

SEVERAL_PROCESSES = "tests/distributed/"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that start teams of processes take longest, so they come first."""
    items.sort(key=lambda item: not item.nodeid.startswith(SEVERAL_PROCESSES))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n`, a file's tests stay in one worker, where they share what its fixtures made.

    Those that start teams of processes wait for each other, all in one worker: two teams at once would starve each
    other into their time limits. A mark, as `--dist loadgroup` takes, is read by no xdist up to 3.8 under pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return SEVERAL_PROCESSES if nodeid.startswith(SEVERAL_PROCESSES) else nodeid.partition("::")[0]

    config.option.loadscopereorder = False  # files in the order of their collection, not by how many tests they have
    return ByFile(config, log)


@pytest.fixture(scope="session")
def readme_2019() -> str:
    """The flags of the command in the README of Megatron's first BERT, of 2019."""
    return """
--batch-size 4 --tokenizer-type BertWordPieceTokenizer --cache-dir temp_cache_dir --tokenizer-model-type
bert-large-uncased --vocab-size 30522 --train-data wikipedia --loose-json --text-key text --split 1000,1,1 --lazy-loader
--max-preds-per-seq 80 --seq-length 512 --max-position-embeddings 512 --num-layers 24 --hidden-size 1024
--intermediate-size 4096 --num-attention-heads 16 --hidden-dropout 0.1 --attention-dropout 0.1 --train-iters 1000000
--lr 0.0001 --lr-decay-style linear --lr-decay-iters 990000 --warmup .01 --weight-decay 1e-2 --clip-grad 1.0 --fp16
--fp32-layernorm --fp32-embedding --hysteresis 2 --num-workers 2
"""
