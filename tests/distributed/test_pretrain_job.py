"""`megabert pretrain` in several processes: what a user types, sees, and finds."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from megabert import MegatronBertForPreTraining, cli
from megabert.parallel.mesh import Layout
from megabert.training.distributed import backend_of

from .jobs import Job, run, world
from .runs import metrics, together
from .small import PackedRows
from .test_checkpoints import assert_same_curve

SMALL = (
    "--num-layers 4 --hidden-size 32 --num-attention-heads 4 --seq-length 32 --max-position-embeddings 32 "
    "--vocab-size 300 --batch-size 2 --global-batch-size 8 --train-iters 12 --lr 1e-3 --log-interval 1 "
    "--eval-interval 6 --eval-iters 3 --num-workers 0 --split 80,10,10 --no-tensorboard --hidden-dropout 0 "
    "--attention-dropout 0 --no-save-best --keep-last 0 --make-vocab-size-divisible-by 301"
).split()
STAGES = "--tensor-model-parallel-size 2 --pipeline-model-parallel-size 2 --exit-interval 4".split()
SHARDED = "--tensor-model-parallel-size 2 --data-parallel-sharding full --exit-interval 8".split()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    generator = torch.Generator().manual_seed(0)
    words = "the model reads a small text about cats dogs trees rivers and many other things that people know".split()

    def sentence():
        count = int(torch.randint(4, 10, (), generator=generator))
        return (
            " ".join(words[i] for i in torch.randint(0, len(words), (count,), generator=generator)).capitalize() + "."
        )

    with path.open("w") as file:
        for _ in range(80):
            file.write(json.dumps({"text": " ".join(sentence() for _ in range(6))}) + "\n")
    return path


def pretrain(arguments, odd_rank=None, odd=()):
    rank = int(os.environ["RANK"])
    sys.exit(cli.main(["pretrain", *arguments, *(odd if rank == odd_rank else ())]))


def test_a_run_goes_on_in_other_layouts_and_is_read_by_every_command(corpus, tmp_path, capsys):
    common = [*SMALL, "--train-data", str(corpus)]
    assert cli.main(["pretrain", *common, "--save", str(tmp_path / "whole")]) == 0
    parts = tmp_path / "parts"
    for flags, step in ((STAGES, 4), (SHARDED, 8)):
        ended = run(pretrain, 4, [*common, *flags, "--save", str(parts)], seconds=120)
        assert all(one.status == 0 for one in ended), [one.errors for one in ended]
        assert "stopped by --exit-interval" in ended[0].output and not any(one.output for one in ended[1:])
        folder = parts / "checkpoints" / f"step-{step:08d}"
        assert (folder / "index.json").is_file()
        # The exported model is the one that the checkpoint holds, put together without any process.
        exported = MegatronBertForPreTraining.from_pretrained(parts / "model").state_dict()
        opened = MegatronBertForPreTraining.from_pretrained(folder).state_dict()
        assert all(torch.equal(exported[name], tensor) for name, tensor in opened.items())
        converted = tmp_path / f"converted-{step}"
        assert cli.main(["convert", str(folder), str(converted), "--to", "megatron"]) == 0
        assert cli.main(["inspect", str(folder)]) == 0
    assert "data 2 (full sharded)" in capsys.readouterr().out
    assert cli.main(["pretrain", *common, "--save", str(parts)]) == 0
    assert_same_curve(metrics(tmp_path / "whole"), metrics(parts))


def test_nccl_without_a_gpu_is_refused():
    with pytest.raises(ValueError, match="--distributed-backend nccl carries messages between GPUs"):
        backend_of("nccl", torch.device("cpu"))


def test_another_flag_on_one_rank_is_named(corpus, tmp_path):
    arguments = [*SMALL, "--train-data", str(corpus), "--save", str(tmp_path / "run")]
    ended = run(pretrain, 2, arguments, 1, ("--lr", "0.5"))
    lines = [line for one in ended for line in one.errors.splitlines() if "error:" in line]
    assert len(lines) == 1 and f"rank 1 on {os.uname().nodename} was started with another --lr: 0.5 there" in lines[0]
    assert [one.status for one in ended] == [2, 2]
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_rows_that_cannot_be_shared_are_refused_with_the_nearest_number(corpus, tmp_path):
    arguments = [*SMALL, "--train-data", str(corpus), "--save", str(tmp_path / "run"), "--global-batch-size", "6"]
    ended = run(pretrain, 2, arguments)
    assert [one.status for one in ended] == [2, 2] and "--global-batch-size" in ended[0].errors
    assert "error: rank" not in ended[0].errors, "the mistake is not one rank's"


class Slow(PackedRows):
    def __getitem__(self, index):
        time.sleep(0.02)
        return super().__getitem__(index)


def slow(folder):
    with world(30) as found:
        layout = Layout(world=2, data=2)
        reason = together(found, layout, folder, rows=Slow(), train_iters=100_000, save_interval=None).fit().reason
        print(reason)
        sys.stderr.write(f"step {reason.split('after step ')[1].split('/')[0]}\n")


def test_a_signal_to_one_rank_stops_all_at_the_same_step(tmp_path):
    job = Job(slow, 2, tmp_path)
    while not (tmp_path / "metrics.jsonl").exists() or len(metrics(tmp_path)) < 3:
        time.sleep(0.05)
    job.kill(1, signal.SIGTERM)
    ended = job.wait(30)
    assert [one.status for one in ended] == [0, 0], [one.errors for one in ended]
    assert "stopped by SIGTERM" in ended[0].output and ended[1].output == ""
    steps = {line for one in ended for line in one.errors.splitlines() if line.startswith("step ")}
    assert len(steps) == 1
    assert (tmp_path / "checkpoints" / f"step-{int(steps.pop().split()[1]):08d}" / "index.json").is_file()


class Deadly(PackedRows):
    """Kills the process of rank 1, once, in the tenth update of the run's first attempt."""

    def __getitem__(self, index):
        if index >= 72 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def deadly(folder):
    with world(30) as found:
        together(found, Layout(world=2, data=2), Path(folder), rows=Deadly(), async_save=False).fit()


def test_torchrun_starts_a_killed_run_again(tmp_path):
    program = f"from {__name__} import deadly; deadly({str(tmp_path / 'run')!r})"
    script = tmp_path / "script.py"
    script.write_text(program)
    place = Path(__file__).parents[len(__name__.split(".")) - 1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1", script]
    path = os.pathsep.join([str(place), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "error: rank 1" in line]
    assert len(said) == 1 and "step-00000008; the same command goes on from it" in said[0]
    assert "going on from" in done.stdout and "step 8/12" in done.stdout
    assert [line["step"] for line in metrics(tmp_path / "run") if "lr" in line] == list(range(1, 13))
