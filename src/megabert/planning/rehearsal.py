"""A rank of any world, without the world: its program runs on tensors that have shapes and no memory.

PyTorch's `fake` process group answers every collective at once, and `FakeTensorMode` computes shapes only, so one
process on a laptop runs what rank 317 of 512 would run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode  # private; meta tensors that know a device

from megabert.planning.kernels import stand_ins
from megabert.planning.recorder import Recorder


@contextmanager
def rehearsal(rank: int, world: int) -> Iterator[Recorder]:
    """Be `rank` of `world` processes; tensors that are made inside have no memory.

    Yields a recorder; enter it around what is to be recorded.

    Raises:
        ValueError: this process is already one of a group.
    """
    if dist.is_initialized():
        raise ValueError("megabert plan runs in one process: start it without torchrun")
    from torch.testing._internal.distributed.fake_pg import FakeStore  # private; registers the backend by its import

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    recorder = Recorder()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), stand_ins(recorder):
            yield recorder
    finally:
        dist.destroy_process_group()


def materialise(model: nn.Module) -> None:
    """Give a model on the meta device tensors without memory on the CPU, inside a `rehearsal`; ties are kept."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in made:
                tensor = torch.empty_like(parameter, device="cpu")
                made[id(parameter)] = nn.Parameter(tensor, requires_grad=parameter.requires_grad)
            module._parameters[name] = made[id(parameter)]
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = torch.empty_like(buffer, device="cpu")
