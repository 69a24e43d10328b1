"""Runs a function in several processes joined by gloo, with a time limit."""

from __future__ import annotations

import os
import socket
import traceback
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

SECONDS = 240


def _child(rank, world, port, function, arguments, errors):
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world, timeout=timedelta(seconds=60)
        )
        function(*arguments)
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        errors.put((rank, traceback.format_exc()))
        # The others wait for messages that will not come: nobody tidies up.
        os._exit(1)


def run_in(world, function, *arguments, seconds=SECONDS):
    """Call `function(*arguments)` in `world` processes; the first error of any of them is raised here."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    errors = context.SimpleQueue()
    children = [
        context.Process(target=_child, args=(rank, world, port, function, arguments, errors), daemon=True)
        for rank in range(world)
    ]
    for child in children:
        child.start()
    try:
        for child in children:
            child.join(seconds)
            if child.exitcode is None:
                raise AssertionError(f"no end after {seconds} s")
            if child.exitcode != 0:
                break
        if any(child.exitcode for child in children):
            rank, text = (None, "a process died") if errors.empty() else errors.get()
            raise AssertionError(f"rank {rank}: {text}")
    finally:
        for child in children:
            if child.is_alive():
                child.kill()
            child.join()
