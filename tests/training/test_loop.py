import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megabert.training.loop import Trainer
from megabert.training.meter import TIMING_FIELDS
from megabert.training.restoring import restore
from megabert.training.resume import Checkpoints, find, read
from megabert.training.sinks import read_lines

from .toy import Toy, ToyObjective, ToyRows, files, options, toy


class SignallingRows(ToyRows):
    """Rows that send a signal to the training process when one of them is read."""

    def __init__(self, length, at, number):
        super().__init__(length)
        self.at = at
        self.number = number

    def __getitem__(self, index):
        if index == self.at:
            os.kill(os.getpid(), self.number)
        return super().__getitem__(index)


class BrokenObjective(ToyObjective):
    """A loss that is not a number in the given calls."""

    def __init__(self, calls):
        self.calls = calls
        self.count = 0

    def sums(self, outputs, batch):
        self.count += 1
        sums = super().sums(outputs, batch)
        return {"lm": sums["lm"] * float("nan"), "sop": sums["sop"]} if self.count in self.calls else sums


def trainer(folder: Path, *, rows=None, valid=True, model=None, objective=None, identity=None, said=None, **changes):
    lines = [] if said is None else said
    return Trainer(
        model or toy(), objective or ToyObjective(), rows or ToyRows(400), ToyRows(40, seed=1) if valid else None,
        options(**changes), folder=folder, identity=identity, say=lines.append,
    )  # fmt: skip


def metrics(folder: Path) -> list[dict]:
    return [
        {key: value for key, value in record.items() if key not in TIMING_FIELDS}
        for record in read_lines(folder / "metrics.jsonl")
    ]


def assert_same_run(first: Path, second: Path) -> None:
    """Bitwise: weights, optimizer state, random state, counters, metrics."""
    assert metrics(first) == metrics(second)
    one, two = find(first), find(second)
    assert one.name == two.name
    for name in ("model", "optimizer", "random"):
        assert (one / f"{name}.safetensors").read_bytes() == (two / f"{name}.safetensors").read_bytes(), name
    states = [json.loads((path / "state.json").read_text())["state"] for path in (one, two)]
    for state in states:
        state["meter"].pop("seconds")
    assert states[0] == states[1]


MODES = [
    {},
    {"bf16": True, "batch_size": 2, "global_batch_size": 4},
    {"fp16": True, "initial_loss_scale": 2.0**24, "hysteresis": 1, "loss_scale_window": 7},
    {"optimizer": "lamb", "num_workers": 1},
    {"optimizer": "sgd", "lr_decay_style": "cosine", "bf16": True, "fp32_layernorm": True, "fp32_embedding": True},
]


@pytest.mark.parametrize("mode", MODES, ids=["fp32", "bf16", "fp16", "lamb", "sgd"])
def test_thirty_steps_are_seventeen_and_thirteen(tmp_path, mode):
    whole = trainer(tmp_path / "whole", **mode).fit()
    assert whole.finished and whole.step == 30
    first = trainer(tmp_path / "parts", exit_interval=17, **mode).fit()
    assert not first.finished and first.step == 17 and "--exit-interval" in first.reason
    torch.manual_seed(99)
    second = trainer(tmp_path / "parts", model=toy(seed=8), **mode).fit()
    assert second.finished and second.evaluation == whole.evaluation
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    if mode.get("fp16"):
        assert 0 < metrics(tmp_path / "whole")[-2]["skipped"] < 30


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(tmp_path, number):
    before = signal.getsignal(number)
    trainer(tmp_path / "whole").fit()
    said: list[str] = []
    rows = SignallingRows(400, at=16 * 4 + 1, number=number)
    outcome = trainer(tmp_path / "parts", rows=rows, said=said).fit()
    assert outcome.step == 17 and not outcome.finished
    assert signal.Signals(number).name in said[-1] and "the same command goes on" in said[-1]
    assert signal.getsignal(number) is before
    trainer(tmp_path / "parts", said=said).fit()
    assert any("going on from" in line and "step 17/30" in line for line in said)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_signal_in_an_evaluation_gives_it_up_and_it_is_made_later(tmp_path):
    trainer(tmp_path / "whole").fit()
    first = trainer(tmp_path / "parts")
    first.valid_rows = SignallingRows(40, at=5, number=signal.SIGTERM)
    first.valid_rows.seed = 1
    assert first.fit().step == 10
    assert metrics(tmp_path / "parts")[-1]["step"] == 10 and "valid_loss" not in metrics(tmp_path / "parts")[-1]
    trainer(tmp_path / "parts").fit()
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


PROGRAM = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from training.test_loop import SignallingRows, ToyRows, trainer
folder, kind = Path(sys.argv[1]), sys.argv[2]
if kind.startswith("kill"):
    rows = SignallingRows(400, at=16 * 4 + 1, number=signal.SIGKILL)
    trainer(folder, rows=rows, save_interval=5, async_save=kind == "kill-in-save").fit()
else:
    class Slow(ToyRows):
        def __getitem__(self, index):
            if index == 80:
                print("reading", flush=True)
            return super().__getitem__(index)
    print(trainer(folder, rows=Slow(400), num_workers=2, train_iters=1_000_000, eval_interval=0).fit().reason)
"""


def program(folder: Path, kind: str) -> subprocess.Popen:
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), kind], env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["kill", "kill-in-save"])
def test_a_killed_run_goes_on_bitwise(tmp_path, kind):
    trainer(tmp_path / "whole", save_interval=5).fit()
    process = program(tmp_path / "parts", kind)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    # A save behind the training's back may be on its way still; then the one before it counts.
    whole = {"kill": {"step-00000015"}, "kill-in-save": {"step-00000010", "step-00000015"}}
    assert find(tmp_path / "parts").name in whole[kind]
    trainer(tmp_path / "parts", save_interval=5).fit()
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_signal_to_the_whole_group_leaves_the_workers_to_the_end(tmp_path):
    process = program(tmp_path, "group")
    assert process.stdout is not None
    process.stdout.readline()
    os.killpg(process.pid, signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "stopped by SIGTERM" in output
    read(find(tmp_path))


def test_a_loss_that_is_not_finite_stops_with_the_step_named(tmp_path):
    run = trainer(tmp_path, objective=BrokenObjective({12}), valid=False, save_interval=10)
    with pytest.raises(ValueError, match=r"^step 12: lm loss is nan; .*step-00000010.*--on-nan skip") as caught:
        run.fit()
    assert "\n" not in str(caught.value)
    assert find(tmp_path).name == "step-00000010"


def test_a_loss_that_is_not_finite_is_passed_over_and_counted_when_asked(tmp_path):
    run = trainer(tmp_path, objective=BrokenObjective({12, 13}), valid=False, on_nan="skip", log_interval=1, warmup=0.5)
    assert run.fit().finished
    lines = metrics(tmp_path)
    assert lines[-1]["skipped"] == 2
    rates = [line["lr"] for line in lines]
    # Skipped updates do not advance the schedule: the third try has the rate of the first.
    assert rates[11] == rates[12] == rates[13] < rates[14]
    assert rates[0] == 0.0


def test_passing_over_faults_ends_when_there_is_nothing_else(tmp_path):
    run = trainer(tmp_path, objective=BrokenObjective(range(1000)), valid=False, on_nan="skip", train_iters=1000)
    with pytest.raises(ValueError, match=r"^step 100: lm loss is nan.*100th such step in a row"):
        run.fit()


def test_a_run_that_was_saved_before_its_first_update_goes_on(tmp_path):
    # The search for the loss scale skips the first updates, so the optimizer has no state yet.
    mode = {"fp16": True, "initial_loss_scale": 2.0**40, "hysteresis": 1}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    trainer(whole, **mode).fit()
    trainer(parts, exit_interval=3, **mode).fit()
    held = read(parts / "checkpoints" / "step-00000003")
    assert held.state["progress"]["learned"] == 0 and not held.optimizer
    assert trainer(parts, **mode).fit().finished
    assert_same_run(whole, parts)


def test_the_precision_may_change_on_the_way(tmp_path):
    trainer(tmp_path, exit_interval=17).fit()
    said: list[str] = []
    assert trainer(tmp_path, fp16=True, initial_loss_scale=1024.0, said=said).fit().finished
    assert any("starts anew at 1024" in line for line in said)


def test_learns_and_reports(tmp_path):
    said: list[str] = []
    outcome = trainer(tmp_path, said=said, train_iters=300, log_interval=50, eval_interval=100, tensorboard=True).fit()
    lines = [line for line in metrics(tmp_path) if "lr" in line]
    assert [line["step"] for line in lines] == [50, 100, 150, 200, 250, 300]
    assert lines[-1]["lm_loss"] < 0.8 * lines[0]["lm_loss"]
    assert lines[-1]["samples"] == 1200
    assert outcome.evaluation is not None and outcome.evaluation.accuracies["lm"] > 0.2
    assert {"metrics.jsonl", "loss.png", "checkpoints", "tensorboard"} == files(tmp_path)
    assert any(line.startswith("step 50/300 | lm loss") for line in said)
    assert any("| validation | lm loss" in line for line in said)


def test_best_and_last_are_kept(tmp_path):
    trainer(tmp_path, train_iters=60, save_interval=7, keep_last=3).fit()
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    best = min((line for line in metrics(tmp_path) if "valid_loss" in line), key=lambda line: line["valid_loss"])
    named = checkpoints.named("best")
    assert named is not None and named.name == f"step-{best['step']:08d}"
    assert checkpoints.named("latest") == checkpoints.folder / "step-00000060"
    assert len(checkpoints.steps()) <= 4


def test_the_time_limit_saves_and_stops(tmp_path):
    outcome = trainer(tmp_path, exit_duration_in_mins=1e-9).fit()
    assert outcome.step == 1 and "--exit-duration-in-mins" in outcome.reason
    assert find(tmp_path).name == "step-00000001"


def test_a_finished_run_is_not_trained_again(tmp_path):
    trainer(tmp_path).fit()
    before = metrics(tmp_path)
    assert trainer(tmp_path).fit().finished
    assert metrics(tmp_path) == before


def test_a_longer_run_goes_on(tmp_path):
    trainer(tmp_path).fit()
    assert trainer(tmp_path, train_iters=40).fit().step == 40


def test_an_older_checkpoint_of_the_run_is_taken_up_again(tmp_path):
    trainer(tmp_path / "whole", save_interval=10, keep_last=0).fit()
    trainer(tmp_path / "again", save_interval=10, keep_last=0).fit()
    trainer(
        tmp_path / "again", save_interval=10, keep_last=0, load=tmp_path / "again" / "checkpoints" / "step-00000010"
    ).fit()
    assert_same_run(tmp_path / "whole", tmp_path / "again")


def test_weights_only(tmp_path):
    trainer(tmp_path / "first").fit()
    run = trainer(
        tmp_path / "second", model=toy(seed=9), load=tmp_path / "first", finetune=True, identity={"data": "b"}
    )
    restore(run)
    assert run.progress.step == 0 and not run.train_step.optimizer.state
    saved = read(find(tmp_path / "first")).weights
    for name, tensor in run.train_step.weights.state().items():
        assert torch.equal(tensor, saved[name])


def test_another_run_is_gone_on_from_in_a_new_folder(tmp_path):
    trainer(tmp_path / "first", exit_interval=20).fit()
    outcome = trainer(tmp_path / "second", load=tmp_path / "first").fit()
    assert outcome.step == 30
    assert find(tmp_path / "first").name == "step-00000020"
    assert [line["step"] for line in metrics(tmp_path / "second") if "lr" in line] == [25, 30]


def test_own_folder_as_load_starts_it_and_later_goes_on(tmp_path):
    trainer(tmp_path, load=tmp_path, exit_interval=20).fit()
    assert trainer(tmp_path, load=tmp_path).fit().step == 30


def test_checkpoints_of_the_run_win_over_load(tmp_path):
    trainer(tmp_path / "first").fit()
    trainer(tmp_path / "second", load=tmp_path / "first", finetune=True, exit_interval=20).fit()
    said: list[str] = []
    assert trainer(tmp_path / "second", load=tmp_path / "first", finetune=True, said=said).fit().step == 30
    assert "already holds checkpoints" in said[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": Toy(width=8)}, r"another model: word_embeddings.weight is \[23, 16\] there and \[23, 8\] here"),
        ({"identity": {"training data": "b"}}, "another training data: a there, b here"),
        ({"optimizer": "lamb"}, "another optimizer: adam there, lamb here"),
        ({"load": Path("nowhere")}, None),
    ],
)
def test_a_folder_of_another_run_is_refused(tmp_path, changes, message):
    trainer(tmp_path, identity={"training data": "a"}, exit_interval=10).fit()
    before = files(tmp_path / "checkpoints")
    run = trainer(tmp_path, **{"identity": {"training data": "a"}, **changes})
    if message is None:
        assert run.fit().finished, "the run's own checkpoints come first"
        return
    with pytest.raises(ValueError, match=message):
        run.fit()
    assert files(tmp_path / "checkpoints") == before


def test_a_path_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--load: there is no folder"):
        trainer(tmp_path / "run", load=tmp_path / "nowhere").fit()


def test_states_that_were_not_stored_are_asked_for(tmp_path):
    trainer(tmp_path, save_optim=False, save_rng=False, exit_interval=10).fit()
    with pytest.raises(ValueError, match="--no-load-optim"):
        trainer(tmp_path).fit()
    with pytest.raises(ValueError, match="--no-load-rng"):
        trainer(tmp_path, load_optim=False).fit()
    assert trainer(tmp_path, load_optim=False, load_rng=False).fit().finished


def test_a_damaged_checkpoint_is_refused(tmp_path):
    trainer(tmp_path, exit_interval=10).fit()
    path = find(tmp_path) / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model.safetensors is damaged: its SHA-256.*there is no whole one beside it"):
        trainer(tmp_path).fit()


def test_a_damaged_checkpoint_with_a_whole_one_before_it(tmp_path):
    trainer(tmp_path, save_interval=5, exit_interval=10).fit()
    (find(tmp_path) / "optimizer.safetensors").write_bytes(b"")
    whole = tmp_path / "checkpoints" / "step-00000005"
    with pytest.raises(ValueError, match=f"optimizer.safetensors is damaged: .*; .* --load {whole} goes on from it"):
        trainer(tmp_path).fit()
    assert trainer(tmp_path, load=whole).fit().finished


def test_nothing_is_written_before_the_checkpoint_is_accepted(tmp_path):
    calls: list[str] = []
    with pytest.raises(ValueError, match="there is no folder"):
        trainer(tmp_path / "new", load=tmp_path / "nowhere").fit(lambda: calls.append("written"))
    assert not calls and not (tmp_path / "new").exists()
    trainer(tmp_path, identity={"data": "a"}, exit_interval=10).fit(lambda: calls.append("written"))
    assert calls == ["written"]
    with pytest.raises(ValueError, match="another data"):
        trainer(tmp_path, identity={"data": "b"}).fit(lambda: calls.append("again"))
    assert calls == ["written"]


def test_a_run_past_its_end_is_refused(tmp_path):
    trainer(tmp_path, train_iters=10).fit()
    with pytest.raises(ValueError, match="is at step 10, past the 4 steps that are asked for now; ask for 10 or more"):
        trainer(tmp_path, train_iters=4).fit()
    assert trainer(tmp_path, train_iters=10).fit().finished


class BlindObjective(ToyObjective):
    """Sees every validation loss as not a number."""

    def sums(self, outputs, batch):
        return {name: total * float("nan") for name, total in super().sums(outputs, batch).items()}


def test_a_validation_loss_that_is_not_a_number_is_never_the_best(tmp_path):
    outcome = trainer(tmp_path, objective=BlindObjective(), train_iters=3, on_nan="skip", eval_interval=1).fit()
    assert outcome.finished and outcome.evaluation is not None and math.isnan(outcome.evaluation.loss)
    assert not (tmp_path / "checkpoints" / "best").exists()
    lines = [record for record in read_lines(tmp_path / "metrics.jsonl") if "valid_loss" in record]
    assert len(lines) == 3 and all(line["valid_loss"] is line["valid_perplexity"] is None for line in lines)


def test_a_state_of_another_shape_is_refused(tmp_path, monkeypatch):
    trainer(tmp_path, exit_interval=10).fit()
    run = trainer(tmp_path)
    found = read(find(tmp_path))
    del found.state["meter"]["tokens"]
    monkeypatch.setattr("megabert.training.resume.read", lambda path: found)
    with pytest.raises(ValueError, match=r"state.json does not fit this run: KeyError\('tokens'\)"):
        run.fit()


def test_the_length_in_samples(tmp_path):
    outcome = trainer(tmp_path, train_samples=50, lr_warmup_samples=4).fit()
    assert outcome.step == 12


def test_rows_that_cannot_be_read_are_one_line(tmp_path):
    class Damaged(ToyRows):
        def __getitem__(self, index):
            if index == 30:
                raise ValueError("data.bin: damaged at byte 7")
            return super().__getitem__(index)

    with pytest.raises(ValueError, match=r"^data.bin: damaged at byte 7$"):
        trainer(tmp_path, rows=Damaged(400), num_workers=1).fit()
