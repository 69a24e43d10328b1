import os
import signal
import sys
import time

import pytest

from megabert.training.launch import Launch, first_node, launched

from .jobs import Job, free_port, run, succeed, world


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),
        (
            {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "5",
             "TORCHELASTIC_RESTART_COUNT": "2", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"},
            Launch(3, 8, 1, "a", 5, "torchrun", 2),
        ),
        (
            {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "16", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "123456",
             "SLURM_STEP_NODELIST": "gpu[007-010,20]"},
            Launch(5, 16, 1, "gpu007", 32956, "SLURM"),
        ),
        # A batch script of one task has SLURM's variables too, but is one process.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, None),
        ({"SLURM_PROCID": "0"}, None),
        (
            {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0", "SLURM_JOB_NODELIST": "rack[1-2]n[3,5],x"},
            Launch(1, 2, 0, "rack1n3", 29500, "SLURM"),
        ),
        # mpirun starts its daemons with srun, one on each machine, and they start the processes.
        (
            {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1",
             "MASTER_ADDR": "b"},
            Launch(1, 2, 0, "b", 29500, "MPI"),
        ),
        (
            {"PMI_RANK": "1", "PMI_SIZE": "2", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2",
             "SLURM_STEP_NODELIST": "a,b"},
            Launch(1, 2, 0, "a", 29500, "SLURM"),
        ),
        (
            {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
             "OMPI_COMM_WORLD_LOCAL_SIZE": "2"},
            Launch(1, 2, 1, "127.0.0.1", 29500, "MPI"),
        ),
        ({"PMI_RANK": "1", "PMI_SIZE": "4", "MASTER_ADDR": "b"}, Launch(1, 4, 0, "b", 29500, "MPI")),
    ],
)  # fmt: skip
def test_launchers(environment, expected):
    assert launched(environment) == expected


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "x", "WORLD_SIZE": "2", "MASTER_ADDR": "a"}, "RANK must be a whole number, but is 'x'"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR"),
        ({"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "a"}, "RANK is 2, but WORLD_SIZE is 2: .* from 0 to 1"),
        ({"RANK": "0"}, "RANK is '0', but WORLD_SIZE is not set"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is '2', but RANK is not set"),
        ({"PMI_RANK": "1", "PMI_SIZE": "4", "MPI_LOCALNRANKS": "2"}, "set MASTER_ADDR"),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4"}, "set MASTER_ADDR"),
        (
            {"SLURM_PROCID": "0", "SLURM_NTASKS": "16"},
            "16 tasks .SLURM_NTASKS., but srun's SLURM_STEP_NUM_TASKS is not",
        ),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, "2 tasks"),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "1"}, "SLURM_PROCID is 1, but SLURM_NTASKS is 1"),
        (
            {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "node[01-"},
            r"SLURM_STEP_NODELIST is 'node\[01-'",
        ),
    ],
)
def test_bad_variables_are_named(environment, message):
    with pytest.raises(ValueError, match=message):
        launched(environment)


@pytest.mark.parametrize(("nodes", "first"), [("a,b", "a"), ("n[1-3],b", "n1"), ("n[08]-ib", "n08-ib"), ("n7", "n7")])
def test_first_node(nodes, first):
    assert first_node(nodes) == first


@pytest.mark.parametrize("nodes", ["", "node[01-", "n[]", "n[a]", "n1]", "a b"])
def test_a_damaged_list_of_nodes_is_refused(nodes):
    with pytest.raises(ValueError, match="is no list of machines"):
        first_node(nodes)


def meet():
    from megabert.training.distributed import code_version

    with world() as found:
        found.agree({**code_version(), "data": "a"})
        assert found.add([1, found.rank]) == [3, 3]
        assert found.gather(f"r{found.rank}") == ["r0", "r1", "r2"]
        begin = time.monotonic()
        with found.first():
            if found.rank == 0:
                time.sleep(0.5)
        assert time.monotonic() - begin >= 0.4
        (slow,) = slowed(found, rank=1, times=5)
        assert slow.startswith(f"{found.named(1)} is a straggler: it multiplies matrices at "), slow
        assert not slowed(found, rank=1, times=1)
        print("only one speaks")


def slowed(found, rank, times):
    """What is said of the ranks' speeds when one rank's is so many times less than the others' equal ones."""
    import torch

    from megabert.training import distributed

    distributed._matrix_rate = lambda device: 2e10 / (times if found.rank == rank else 1)
    return found.slow_ranks(torch.device("cpu"))


def test_processes_meet_and_part():
    ended = succeed(meet, 3)
    assert [one.output for one in ended] == ["only one speaks\n", "", ""]
    assert not any("error" in one.errors for one in ended)


def misfit():
    with world() as found:
        found.agree({"--lr": "0.1", "data": "b" if found.rank == 2 else "a"})


def fault(ranks):
    import torch
    import torch.distributed as dist

    with world() as found:
        if found.rank in ranks:
            raise ValueError("data.bin: damaged at\nbyte 7")
        dist.all_reduce(torch.ones(3))


def broken():
    with world():
        raise FileNotFoundError(2, "No such file or directory", "vocab.txt")


@pytest.mark.parametrize(
    ("function", "arguments", "line"),
    [
        (misfit, (), "test: error: rank 2 on HOST was started with another data: b there, a on the others; start all"),
        (fault, ((1,),), "test: error: rank 1 on HOST: data.bin: damaged at byte 7"),
        (fault, ((0,),), "test: error: rank 0 on HOST: data.bin: damaged at byte 7"),
        (fault, ((0, 1, 2),), "test: error: data.bin: damaged at byte 7"),
        (broken, (), "test: error: vocab.txt: No such file or directory"),
    ],
)
def test_an_error_is_said_once_and_ends_all(function, arguments, line):
    ended = run(function, 3, *arguments)
    lines = [said for one in ended for said in one.errors.splitlines() if said.startswith("test: error")]
    assert len(lines) == 1 and lines[0].startswith(line.replace("HOST", os.uname().nodename))
    assert [one.status for one in ended] == [2, 2, 2]


def busy(stopped):
    import torch
    import torch.distributed as dist

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with world(seconds=4 if stopped else 30):
        for _ in range(10_000):
            dist.all_reduce(torch.ones(3))
            print(".", flush=True)
            time.sleep(0.005)


@pytest.mark.parametrize(("rank", "number"), [(0, signal.SIGKILL), (2, signal.SIGKILL), (1, signal.SIGSTOP)])
def test_a_lost_process_ends_the_job_with_its_name(rank, number):
    stopped = number == signal.SIGSTOP
    job = Job(busy, 3, stopped)
    while not (job.folder / "0.out").exists() or len((job.folder / "0.out").read_text()) < 40:
        time.sleep(0.02)
    job.kill(rank, number)
    if stopped:
        time.sleep(9)
        job.kill(rank, signal.SIGKILL)
    else:
        # What a launcher does when it sees the death.
        for other in {0, 1, 2} - {rank}:
            job.kill(other, signal.SIGTERM)
    ended = job.wait(20)
    lines = [said for one in ended for said in one.errors.splitlines() if "error:" in said]
    assert len(lines) == 1, [one.errors for one in ended]
    assert f"rank {rank} on {os.uname().nodename}" in lines[0] and "the job ends" in lines[0]
    assert all(one.status == 1 for index, one in enumerate(ended) if index != rank)


def waiting_for_nobody():
    import torch
    import torch.distributed as dist

    with world(60) as found:
        print("here", flush=True)
        sys.stderr.write("here\n")
        if found.rank == 0:
            dist.all_reduce(torch.ones(3))
        time.sleep(60)


def test_a_request_to_stop_is_heard_inside_a_collective():
    job = Job(waiting_for_nobody, 2)
    while not (job.folder / "0.err").exists() or "here" not in (job.folder / "0.err").read_text():
        time.sleep(0.02)
    time.sleep(0.5)
    job.kill(0, signal.SIGTERM)
    ended = job.wait(20)
    assert "rank 0 on" in ended[0].errors and "stopped by SIGTERM" in ended[0].errors
    assert [one.status for one in ended] == [143, 143]


def alone():
    with world(seconds=2):
        pass


def test_who_does_not_come_is_named():
    ended = run(alone, 1, environment={"WORLD_SIZE": "3"})
    assert "rank 1, 2 of 3 did not arrive within 2 s" in ended[0].errors


def lost():
    print("looking", flush=True)
    with world(60):
        pass


def test_who_finds_nobody_can_be_interrupted():
    environment = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    job = Job(lost, 1, environment=environment)
    while "looking" not in (job.folder / "0.out").read_text():
        time.sleep(0.02)
    time.sleep(1)
    job.kill(0, signal.SIGINT)
    assert "KeyboardInterrupt" in job.wait(20)[0].errors


def test_an_interruption_is_not_lost_in_a_callback_of_python(monkeypatch):
    """What a handler raises in a weak reference's callback goes nowhere, and threads have such callbacks."""
    import weakref
    from datetime import timedelta

    from megabert.training import meeting

    class Thing:
        pass

    def interrupted_in_a_callback(seconds):
        thing = Thing()
        reference = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGINT))
        del thing
        assert reference() is None

    monkeypatch.setattr(meeting.time, "sleep", interrupted_in_a_callback)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        meeting.meet(Launch(1, 2, 0, "127.0.0.1", free_port(), "torchrun"), timedelta(seconds=5), print)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_name_that_nobody_knows_is_said_in_one_line(monkeypatch):
    from datetime import timedelta

    from megabert.training import meeting

    monkeypatch.setattr(meeting, "UNKNOWN_SECONDS", 0.1)
    with pytest.raises(ValueError, match=r"rank 1 on .* knows no machine called nosuch.invalid .*set MASTER_ADDR"):
        meeting.meet(Launch(1, 2, 0, "nosuch.invalid", 29500, "torchrun"), timedelta(seconds=60), print)


def test_a_port_that_is_taken_is_said_by_rank_0():
    import socket
    from datetime import timedelta

    from megabert.training import meeting

    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"rank 0 on .* cannot listen on port {port} .*EADDRINUSE.*MASTER_PORT"):
            meeting.meet(Launch(0, 2, 0, "127.0.0.1", port, "torchrun"), timedelta(seconds=60), print)
