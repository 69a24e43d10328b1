"""A rank of any world, without the world: its program runs on tensors that have shapes and no memory.

PyTorch's `fake` process group answers every collective at once, and `FakeTensorMode` computes shapes only, so one
process on a laptop runs what rank 317 of 512 would run.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode  # private; meta tensors that know a device
from torch.distributed.device_mesh import DeviceMesh

from megabert.parallel.mesh import Layout, make_mesh
from megabert.planning.kernels import stand_ins
from megabert.planning.recorder import Recorder


@contextmanager
def rehearsal(rank: int, layout: Layout) -> Iterator[tuple[Recorder, DeviceMesh]]:
    """Be `rank` of a layout's processes; tensors that are made inside have no memory.

    Yields a recorder, to be entered around what is to be recorded, and the layout's mesh.

    Raises:
        ValueError: this process is already one of a group.
    """
    if dist.is_initialized():
        raise ValueError("megabert plan runs in one process: start it without torchrun")
    from torch.testing._internal.distributed.fake_pg import FakeStore  # private; registers the backend by its import

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=layout.world)
    recorder = Recorder()
    try:
        mesh = make_mesh(layout, "cpu")
        with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True), stand_ins(recorder):
            warnings.simplefilter("ignore")  # what torch says of its own code; nobody trains here
            yield recorder, mesh
    finally:
        dist.destroy_process_group()
