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

    torchrun's variables win, then MPI's, then SLURM's: MPI's own processes may have been started by `srun`.
    MASTER_ADDR and MASTER_PORT are heeded everywhere.

    Raises:
        ValueError: a variable is missing or is no number, or they contradict each other; they are named.
    """
    names = next((names for names in _MPI if names[0] in environment and names[1] in environment), None)
    slurm = "SLURM_PROCID" in environment and "SLURM_STEP_NUM_TASKS" in environment
    if "RANK" in environment and "WORLD_SIZE" in environment:
        launch = _of_torchrun(environment)
    elif names is not None and not (slurm and _same(environment, names)):
        launch = _of_mpi(environment, names)
    elif slurm or "SLURM_PROCID" in environment:
        launch = _of_slurm(environment)
    else:
        _refuse_half(environment)
        launch = None
    return None if launch is None or launch.size == 1 else launch


def _same(environment: Mapping[str, str], names: tuple[str, ...]) -> bool:
    """Whether SLURM says of this process what MPI says: then `srun` has set both, and SLURM tells the machines too."""
    said = (environment["SLURM_PROCID"], environment["SLURM_STEP_NUM_TASKS"])
    return (environment[names[0]], environment[names[1]]) == said


def _refuse_half(environment: Mapping[str, str]) -> None:
    for here, missing in (("RANK", "WORLD_SIZE"), ("WORLD_SIZE", "RANK")):
        if here in environment and (here == "RANK" or environment[here].strip() != "1"):
            raise ValueError(
                f"{here} is {environment[here]!r}, but {missing} is not set: of many processes each needs both, with "
                f"MASTER_ADDR (torchrun sets them); for one process alone, unset {here}"
            )


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.strip().isdecimal():
        raise ValueError(f"{name} must be a whole number, but is {text!r}: it comes with the launcher of the processes")
    return int(text)


def _rank_and_size(environment: Mapping[str, str], rank_name: str, size_name: str) -> tuple[int, int]:
    rank, size = _number(environment, rank_name), _number(environment, size_name)
    if rank >= size:
        raise ValueError(
            f"{rank_name} is {rank}, but {size_name} is {size}: it must be a number from 0 to {max(0, size - 1)}, "
            "another one in each process; the launcher (torchrun, srun, mpirun) sets both"
        )
    return rank, size


def _of_torchrun(environment: Mapping[str, str]) -> Launch:
    rank, size = _rank_and_size(environment, "RANK", "WORLD_SIZE")
    if size > 1 and "MASTER_ADDR" not in environment:
        raise ValueError("RANK and WORLD_SIZE are set, but MASTER_ADDR, where rank 0 listens, is not")
    return Launch(
        rank, size, _number(environment, "LOCAL_RANK", 0), environment.get("MASTER_ADDR", "127.0.0.1"),
        _number(environment, "MASTER_PORT", DEFAULT_PORT), "torchrun",
        _number(environment, "TORCHELASTIC_RESTART_COUNT", 0),
    )  # fmt: skip


def _of_slurm(environment: Mapping[str, str]) -> Launch | None:
    """A task of `srun`; None for the batch script of a job of one task, or for no job."""
    name = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS"
    if name not in environment and environment["SLURM_PROCID"].strip() == "0":
        return None
    tasks = _number(environment, name)
    # A batch script is its job's task 0, and so is the first process of a step that hides srun's variables.
    if name == "SLURM_NTASKS" and "SLURM_STEP_ID" not in environment and tasks > 1:
        raise ValueError(
            f"SLURM's job has {tasks} tasks (SLURM_NTASKS), but srun's SLURM_STEP_NUM_TASKS is not set in this one: "
            "begin the command with srun, which must hand its variables on, or torchrun; for one process alone, with "
            "SLURM_NTASKS=1"
        )
    rank, size = _rank_and_size(environment, "SLURM_PROCID", name)
    nodes = next((key for key in ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST") if environment.get(key)), "")
    address = environment.get("MASTER_ADDR") or (first_node(environment[nodes], nodes) if nodes and size > 1 else "")
    if size > 1 and not address:
        raise ValueError("SLURM names no machine in SLURM_STEP_NODELIST; set MASTER_ADDR to the one of task 0")
    # Two jobs on one machine must not meet: the port follows the job's number.
    port = DEFAULT_PORT + _number(environment, "SLURM_JOB_ID", 0) % 10_000
    return Launch(
        rank, size, _number(environment, "SLURM_LOCALID", 0), address,
        _number(environment, "MASTER_PORT", port), "SLURM", _number(environment, "SLURM_RESTART_COUNT", 0),
    )  # fmt: skip


def _of_mpi(environment: Mapping[str, str], names: tuple[str, str, str, str]) -> Launch:
    rank, size = _rank_and_size(environment, names[0], names[1])
    local_size = _number(environment, names[3], 0)
    address = environment.get("MASTER_ADDR", "127.0.0.1" if local_size == size else "")
    if size > 1 and not address:
        raise ValueError("MPI started processes on several machines: set MASTER_ADDR to the name of rank 0's")
    port = _number(environment, "MASTER_PORT", DEFAULT_PORT)
    return Launch(rank, size, _number(environment, names[2], 0), address, port, "MPI")


def first_node(nodes: str, name: str = "SLURM_STEP_NODELIST") -> str:
    """The first machine of a SLURM list: `gpu[007-012,20],big1` -> `gpu007`.

    Args:
        name: of the variable that the list comes from.

    Raises:
        ValueError: it is no such list.
    """
    first = re.match(r"(?:[^,\[\]\s]|\[\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*\])+(?=,|$)", nodes.strip())
    if first is None:
        raise ValueError(
            f"{name} is {nodes!r}, which is no list of machines such as node[01-04],big1: set MASTER_ADDR to the "
            "machine of task 0"
        )
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", first[0])


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
