"""Who this process is among those that were started together: read from the variables of torchrun, SLURM or MPI."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megabert import runtime

if TYPE_CHECKING:
    import torch

DEFAULT_PORT = 29500
_MPI = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)
"""Open MPI; then MPICH, Intel MPI and what descends from them."""


@dataclass(frozen=True)
class Launch:
    """One process of a job.

    Attributes:
        rank: its number among all, from 0 on.
        size: how many there are.
        local_rank: its number on this machine.
        address, port: where rank 0 listens.
        by: who started it, in words.
        attempt: how often the job was started again before.
    """

    rank: int
    size: int
    local_rank: int
    address: str
    port: int
    by: str
    attempt: int = 0

    @property
    def host(self) -> str:
        """The name of this machine."""
        return socket.gethostname()


def launched(environment: Mapping[str, str]) -> Launch | None:
    """What the environment says; None when this process was started alone.

    torchrun's variables win, then SLURM's (of `srun`), then MPI's. MASTER_ADDR and MASTER_PORT are heeded everywhere.

    Raises:
        ValueError: a variable is missing or is no number; it is named.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        launch = _of_torchrun(environment)
    elif "SLURM_PROCID" in environment and "SLURM_STEP_NUM_TASKS" in environment:
        launch = _of_slurm(environment)
    else:
        names = next((names for names in _MPI if names[0] in environment and names[1] in environment), None)
        launch = None if names is None else _of_mpi(environment, names)
    if launch is None or launch.size == 1:
        return None
    if not 0 <= launch.rank < launch.size:
        raise ValueError(f"rank {launch.rank} of {launch.size} processes, as {launch.by} says, is impossible")
    return launch


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.strip().isdecimal():
        raise ValueError(f"{name} must be a whole number, but is {text!r}: it comes with the launcher of the processes")
    return int(text)


def _of_torchrun(environment: Mapping[str, str]) -> Launch:
    size = _number(environment, "WORLD_SIZE")
    if size > 1 and "MASTER_ADDR" not in environment:
        raise ValueError("RANK and WORLD_SIZE are set, but MASTER_ADDR, where rank 0 listens, is not")
    rank = _number(environment, "RANK")
    return Launch(
        rank, size, _number(environment, "LOCAL_RANK", 0), environment.get("MASTER_ADDR", "127.0.0.1"),
        _number(environment, "MASTER_PORT", DEFAULT_PORT), "torchrun",
        _number(environment, "TORCHELASTIC_RESTART_COUNT", 0),
    )  # fmt: skip


def _of_slurm(environment: Mapping[str, str]) -> Launch:
    size = _number(environment, "SLURM_STEP_NUM_TASKS")
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST") or ""
    address = environment.get("MASTER_ADDR") or first_node(nodes)
    if size > 1 and not address:
        raise ValueError("SLURM names no machine in SLURM_STEP_NODELIST; set MASTER_ADDR to the one of task 0")
    # Two jobs on one machine must not meet: the port follows the job's number.
    port = DEFAULT_PORT + _number(environment, "SLURM_JOB_ID", 0) % 10_000
    return Launch(
        _number(environment, "SLURM_PROCID"), size, _number(environment, "SLURM_LOCALID", 0), address,
        _number(environment, "MASTER_PORT", port), "SLURM", _number(environment, "SLURM_RESTART_COUNT", 0),
    )  # fmt: skip


def _of_mpi(environment: Mapping[str, str], names: tuple[str, str, str, str]) -> Launch:
    rank, size = _number(environment, names[0]), _number(environment, names[1])
    local_size = _number(environment, names[3], 0)
    address = environment.get("MASTER_ADDR", "127.0.0.1" if local_size == size else "")
    if size > 1 and not address:
        raise ValueError("MPI started processes on several machines: set MASTER_ADDR to the name of rank 0's")
    port = _number(environment, "MASTER_PORT", DEFAULT_PORT)
    return Launch(rank, size, _number(environment, names[2], 0), address, port, "MPI")


def first_node(nodes: str) -> str:
    """The first machine of a SLURM list: `gpu[007-012,20],big1` -> `gpu007`."""
    head = re.match(r"([^,\[\s]+)(?:\[([^\],-]+)[^\]]*\]([^,\[\s]*))?", nodes.strip())
    if head is None:
        return ""
    return head[1] + (head[2] or "") + (head[3] or "")


def chosen_device(name: str, local_rank: int = 0) -> torch.device:
    """`auto`, `cpu` or `cuda` as the device of this machine's process number `local_rank`, which is made ready for it.

    Raises:
        ValueError: there is no such device, or none left for this process.
    """
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: this machine has no GPU that PyTorch can use")
    if name == "cpu" or not torch.cuda.is_available():
        runtime.keep_freed_memory()
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"process {local_rank} of this machine has no GPU: there are {torch.cuda.device_count()}; start no more "
            "processes than that, or say --device cpu"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)
