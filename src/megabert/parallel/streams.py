"""Random streams: what is whole on several processes must be dropped alike there, what is cut must not.

Processes of one tensor-parallel group start from one seed and draw alike. Where a region is cut, it draws one number
from the common stream, goes on with a stream of its own made of (number, tensor rank), and gives the common stream back
as it was after that draw. Recomputation restores the common stream at its start, so it repeats both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def mixed(*parts: int | str) -> int:
    """A seed in [0, 2**62) that is a function of `parts`; other parts, another seed."""
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2


def common_seed(seed: int, *, pipeline: int, data: int) -> int:
    """The seed that a process starts from: equal within a tensor-parallel group, another for each stage and data rank.

    The first stage of the first data rank, and so a single process, has `seed` itself.
    """
    return seed if pipeline == data == 0 else mixed("stream", seed, pipeline, data)


@contextmanager
def own_stream(rank: int, device: torch.device) -> Iterator[None]:
    """Draw from a stream of this tensor rank's own inside the block.

    The number comes from the CPU's generator on every device, so nothing waits for a GPU.
    """
    state = _leave_common(rank, device)
    try:
        yield
    finally:
        _generator(device).set_state(state)


def _generator(device: torch.device) -> torch.Generator:
    return torch.cuda.default_generators[device.index or 0] if device.type == "cuda" else torch.default_generator


@torch.compiler.disable()  # a number on the host ends what is captured, of which it would warn at each layer
def _leave_common(rank: int, device: torch.device) -> torch.Tensor:
    """Begin the rank's own stream; returns the state of the common one."""
    seed = mixed(int(torch.randint(2**62, ())), rank)
    generator = _generator(device)
    state = generator.get_state()
    generator.manual_seed(seed)
    return state
