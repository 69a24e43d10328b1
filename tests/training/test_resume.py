import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from megabert.training import resume
from megabert.training import snapshot as snapshots
from megabert.training.optim import make_optimizer
from megabert.training.precision import Weights
from megabert.training.resume import Checkpoints, find, read
from megabert.training.snapshot import Snapshot

from .toy import files, options, toy


def snapshot(value=1.0, **identity):
    return Snapshot(
        weights={"weight": torch.full((3, 2), value)},
        optimizer={"exp_avg/weight": torch.full((3, 2), 2 * value)},
        random={"cpu": torch.get_rng_state()},
        state={"progress": {"step": 7}, "number": 0.1 + 0.2},
        identity=identity,
    )


def test_round_trip(tmp_path):
    path = Checkpoints(tmp_path).save(7, snapshot(tokenizer="abc"))
    assert path.name == "step-00000007"
    found = read(path)
    assert torch.equal(found.weights["weight"], torch.ones(3, 2))
    assert torch.equal(found.optimizer["exp_avg/weight"], torch.full((3, 2), 2.0))
    assert torch.equal(found.random["cpu"], torch.get_rng_state())
    assert found.state["number"] == 0.1 + 0.2 and found.identity == {"tokenizer": "abc"}


def test_latest_follows_and_old_ones_go(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep_last=2)
    for step in (1, 2, 3, 4, 5):
        checkpoints.save(step, snapshot(), best=step == 2)
    assert checkpoints.steps() == [2, 4, 5]
    assert checkpoints.named("latest").name == "step-00000005"
    assert checkpoints.named("best").name == "step-00000002"
    assert files(checkpoints.folder) == {"latest", "best", "step-00000002", "step-00000004", "step-00000005"}
    for start in (tmp_path, checkpoints.folder, checkpoints.folder / "step-00000005"):
        assert find(start) == checkpoints.folder / "step-00000005"


def test_a_checkpoint_that_a_user_removed_is_not_missed(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_last=1)
    shutil.rmtree(checkpoints.save(1, snapshot(), best=True))
    checkpoints.save(2, snapshot())
    assert checkpoints.steps() == [2]


def test_all_are_kept_at_zero(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_last=0)
    for step in range(5):
        checkpoints.save(step, snapshot())
    assert checkpoints.steps() == [0, 1, 2, 3, 4]


def test_saving_a_step_again_replaces_it(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, snapshot(1.0))
    checkpoints.save(1, snapshot(5.0))
    assert read(find(tmp_path)).weights["weight"][0, 0] == 5.0
    assert files(tmp_path) == {"latest", "step-00000001"}


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "random.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_damage_is_found_in_each_file(tmp_path, name, damage):
    path = Checkpoints(tmp_path).save(7, snapshot())
    content = bytearray((path / name).read_bytes())
    if damage == "gone":
        (path / name).unlink()
    else:
        content[-3] ^= 1
        (path / name).write_bytes(content if damage == "flip" else content[:-1])
    with pytest.raises(ValueError, match=name):
        read(path)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", "[" * 100_000, '{"../../etc/passwd": {}}', '{"model.safetensors": 1}']
)
def test_damaged_checksums(tmp_path, content):
    path = Checkpoints(tmp_path).save(7, snapshot())
    (path / "checksums.json").write_text(content)
    with pytest.raises(ValueError, match=r"checksums\.json"):
        read(path)


def test_another_version_is_refused(tmp_path):
    path = Checkpoints(tmp_path).save(7, snapshot())
    state = json.loads((path / "state.json").read_text()) | {"version": 2}
    (path / "state.json").write_text(json.dumps(state))
    sums = {name: resume._digest(path / name) for name in resume._FILES}
    (path / "checksums.json").write_text(json.dumps(sums))
    with pytest.raises(ValueError, match="version 2"):
        read(path)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no folder"):
        find(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no checkpoint"):
        find(tmp_path)
    for content in ("step-00000009", "../elsewhere", "", "\x00"):
        (tmp_path / "latest").write_text(content)
        with pytest.raises(ValueError, match="which is no checkpoint there"):
            find(tmp_path)


def test_where_a_run_begins(tmp_path):
    own, other = Checkpoints(tmp_path / "own" / "checkpoints"), Checkpoints(tmp_path / "other" / "checkpoints")
    theirs = other.save(3, snapshot())
    assert resume.beginning(own, None) == (None, True)
    assert resume.beginning(own, tmp_path / "other") == (theirs, False)
    own.folder.mkdir(parents=True)
    assert resume.beginning(own, tmp_path / "own") == (None, True)
    first, second = own.save(1, snapshot()), own.save(2, snapshot())
    assert resume.beginning(own, None) == (second, True)
    assert resume.beginning(own, tmp_path / "own") == (second, True)
    assert resume.beginning(own, tmp_path / "other") == (second, True)
    assert resume.beginning(own, first) == (first, True)
    with pytest.raises(ValueError, match="--load"):
        resume.beginning(Checkpoints(tmp_path / "new"), tmp_path / "nowhere")


def test_a_lost_pointer_does_not_begin_the_run_again(tmp_path):
    own = Checkpoints(tmp_path / "checkpoints", keep_last=0)
    first, second, third = (own.save(step, snapshot()) for step in (1, 2, 3))
    (own.folder / "latest").unlink()
    (third / "state.json").unlink()
    said: list[str] = []
    for load in (None, tmp_path, own.folder, tmp_path / "nowhere else"):
        if load is None or load.exists():
            assert resume.beginning(own, load, said.append) == (second, True)
    assert "latest is missing: the newest whole checkpoint is step-00000002" in said[0]
    assert resume.beginning(own, first, said.append) == (first, True)
    with pytest.raises(ValueError, match=f"latest is missing; .*--load {second} goes on from it"):
        find(tmp_path)
    for path in (first, second):
        (path / "checksums.json").write_text("{}")
    with pytest.raises(ValueError, match="none of the 3 checkpoints is whole"):
        resume.beginning(own, None)


def test_a_pointer_to_nothing_names_the_newest_whole_one(tmp_path):
    own = Checkpoints(tmp_path / "checkpoints", keep_last=0)
    first, second = own.save(1, snapshot()), own.save(2, snapshot())
    shutil.rmtree(second)
    with pytest.raises(ValueError, match=f"the newest whole one is step-00000001: --load {first} goes on from it"):
        resume.beginning(own, None)
    assert resume.beginning(own, first) == (first, True)
    shutil.rmtree(first)
    with pytest.raises(ValueError, match="there is no whole one beside it: start again with another --save folder"):
        resume.beginning(own, None)


def test_a_refused_run_leaves_no_folder(tmp_path):
    made = tmp_path / "new" / "run"
    with pytest.raises(ValueError, match="refused"), Checkpoints(made / "checkpoints").alone():
        raise ValueError("refused")
    assert not (tmp_path / "new").exists()
    made.mkdir(parents=True)
    (made / "kept").touch()
    with pytest.raises(ValueError, match="refused"), Checkpoints(made / "checkpoints").alone():
        raise ValueError("refused")
    assert files(made) == {"kept"}


def test_a_folder_is_one_process_s(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    with checkpoints.alone():
        child = os.fork()
        if child == 0:
            try:
                with checkpoints.alone():
                    os._exit(0)
            except ValueError as error:
                os._exit(7 if "another process is training in" in str(error) else 1)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    with checkpoints.alone():
        pass


def test_what_a_killed_save_left_is_removed(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, snapshot())
    (tmp_path / ".step-00000002.77").mkdir()
    (tmp_path / ".step-00000002.77" / "model.safetensors").write_bytes(b"half")
    (tmp_path / ".latest.77.part").write_text("step-0000")
    checkpoints.prepare()
    assert files(tmp_path) == {"latest", "step-00000001"}


def test_a_replacement_that_was_killed_between_its_renames_is_undone(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    path = checkpoints.save(1, snapshot())
    path.rename(tmp_path / ".step-00000001.77.replaced")
    checkpoints.prepare()
    assert read(find(tmp_path)).weights["weight"][0, 0] == 1.0
    assert files(tmp_path) == {"latest", "step-00000001"}


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_last=2)
    for round_number in range(12):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                for step in range(1, 1_000_000):
                    checkpoints.save(step, Snapshot(weights={"weight": torch.full((300, 300), float(step))}))
                    os.write(writing, b".")
            finally:
                os._exit(1)
        os.close(writing)
        os.read(reading, 1)
        # Somewhere within a save: they take a few milliseconds each.
        time.sleep(0.0007 * (round_number + 1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)
        path = find(tmp_path)
        assert read(path).weights["weight"][0, 0] == int(path.name.removeprefix("step-"))


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, snapshot())
    program = """
import resource, sys
from pathlib import Path
import torch
from megabert.training.resume import Checkpoints, Snapshot
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    Checkpoints(Path(sys.argv[1])).save(2, Snapshot(weights={"weight": torch.zeros(400, 400)}))
except OSError as error:
    print(error, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], stderr=subprocess.PIPE, text=True, check=True)
    message = done.stderr
    assert message.startswith("cannot write the checkpoint") and "too large" in message and message.count("\n") == 1
    assert files(tmp_path) == {"latest", "step-00000001"}
    assert find(tmp_path).name == "step-00000001"


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write the checkpoint"):
        Checkpoints(tmp_path / "file").save(1, snapshot())


def test_another_model_is_refused_by_name_and_shape(tmp_path):
    found = {"a": torch.zeros(2), "b": torch.zeros(3, 4)}
    snapshots.check_weights(found, found, tmp_path)
    with pytest.raises(ValueError, match=r"another model: c is missing, a is not in this model, b is \[3, 4\] there"):
        snapshots.check_weights({"c": torch.zeros(1), "b": torch.zeros(3, 5)}, found, tmp_path)


def test_other_data_is_refused(tmp_path):
    snapshots.check_identity({"tokenizer": "a", "new": "x"}, {"tokenizer": "a", "old": "y"}, tmp_path, own=True)
    with pytest.raises(ValueError, match="another tokenizer: b there, a here; give the same, or --finetune to take"):
        snapshots.check_identity({"tokenizer": "a"}, {"tokenizer": "b"}, tmp_path, own=False)
    # Of the run's own checkpoints --finetune takes nothing: another folder must be named.
    with pytest.raises(ValueError, match=f"another --save folder with --load {tmp_path} --finetune"):
        snapshots.check_identity({"tokenizer": "a"}, {"tokenizer": "b"}, tmp_path, own=True)


@pytest.mark.parametrize("name", ["adam", "lamb", "sgd"])
def test_optimizer_state_round_trip(tmp_path, name):
    first, second = Weights(toy(), options()), Weights(toy(), options())
    optimizers = [make_optimizer(weights, options(optimizer=name)) for weights in (first, second)]

    def step(weights, optimizer, value):
        for master in weights.masters.values():
            master.grad = torch.full_like(master, value)
        optimizer.step()

    step(first, optimizers[0], 0.5)
    tensors = snapshots.optimizer_tensors(optimizers[0], first.masters)
    second.load({key: value.clone() for key, value in first.state().items()})
    copies = {key: value.clone() for key, value in tensors.items()}
    snapshots.load_optimizer(optimizers[1], second.masters, copies, tmp_path)
    for weights, optimizer in zip((first, second), optimizers, strict=True):
        step(weights, optimizer, -2.0)
    for key, master in first.masters.items():
        assert torch.equal(second.masters[key], master), key
    with pytest.raises(ValueError, match="does not fit"):
        snapshots.load_optimizer(optimizers[1], second.masters, {"exp_avg/nobody": torch.zeros(1)}, tmp_path)


def test_no_pickle_in_a_checkpoint(tmp_path):
    path = Checkpoints(tmp_path).save(7, snapshot())
    assert all(name.endswith((".json", ".safetensors")) for name in os.listdir(path))
