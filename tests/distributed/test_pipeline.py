from __future__ import annotations

import faulthandler
import os
import time
import traceback
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

LIMIT = 100.0


def child(rank: int, world: int, folder: str, checks: list) -> None:
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(LIMIT - 10, exit=True)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    from . import pipeline_checks

    for name, arguments in checks:
        try:
            getattr(pipeline_checks, name)(*arguments)
            dist.barrier()  # a send that nobody waits for must be through before its engine goes
        except BaseException:
            Path(folder, f"failed-{rank}").write_text(f"{name}{arguments} on rank {rank}:\n{traceback.format_exc()}")
            os._exit(1)
    dist.destroy_process_group()


def run(world: int, folder: Path, checks: list) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    context = mp.start_processes(child, (world, str(folder), checks), nprocs=world, join=False, start_method="spawn")
    end = time.monotonic() + LIMIT
    finished = False
    try:
        while not finished and time.monotonic() < end:
            finished = context.join(timeout=1.0)  # False also when only some have ended
    except Exception as error:
        told = "\n".join(path.read_text() for path in sorted(folder.glob("failed-*")))
        pytest.fail(told or str(error))
    if not finished:
        for process in context.processes:
            process.kill()
        pytest.fail(f"not finished after {LIMIT} s")


def test_two_stages_train_like_the_whole_model(tmp_path):
    run(
        2,
        tmp_path,
        [
            ("check_steps", (1, 4, 2)),
            ("check_steps", (1, 1)),
            ("check_steps", (2, 4)),
            ("check_heads", (1,)),
            ("check_heads", (2,)),
            ("check_evaluation", (1,)),
            ("check_evaluation", (2,)),
            ("check_dropout", (1,)),
            ("check_dropout", (2,)),
            ("check_refusals", ()),
        ],
    )


def test_four_stages(tmp_path):
    run(
        4,
        tmp_path,
        [
            ("check_steps", (1, 6, 2)),
            ("check_steps", (1, 3, 1)),
            ("check_steps", (2, 4, 2, 8)),
            ("check_heads", (1,)),
            ("check_evaluation", (1,)),
        ],
    )
