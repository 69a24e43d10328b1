"""The main job end to end, on a corpus made here: what a user types and what they find."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from megabert import cli
from megabert.training.resume import Checkpoints

SMALL = (
    "--num-layers 2 --hidden-size 32 --num-attention-heads 2 --seq-length 32 --max-position-embeddings 32 "
    "--vocab-size 300 --batch-size 4 --train-iters 30 --lr 1e-3 --log-interval 5 --eval-interval 10 --eval-iters 2 "
    "--num-workers 0 --split 80,10,10 --no-tensorboard"
).split()


def make_corpus(path: Path, documents: int = 60, seed: int = 0) -> Path:
    generator = random.Random(seed)
    words = "the model reads a small text about cats dogs trees rivers and many other things that people know".split()
    with path.open("w") as file:
        for _ in range(documents):
            sentences = [
                " ".join(generator.choices(words, k=generator.randint(4, 9))).capitalize() + "."
                for _ in range(generator.randint(3, 9))
            ]
            file.write(json.dumps({"text": " ".join(sentences)}) + "\n")
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl")


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory) -> Path:
    """The run folder of 30 steps without an interruption."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert cli.main(["pretrain", *SMALL, "--train-data", str(corpus), "--save", str(folder)]) == 0
    return folder


def metrics(folder: Path) -> list[dict]:
    """The lines of metrics.jsonl without what a clock decides."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clocked = ("tokens_per_second", "seconds", "data_wait", "data_share")
    return [{key: value for key, value in line.items() if not key.startswith(clocked)} for line in lines]


def test_the_run_folder_holds_what_the_readme_says(finished):
    assert {path.name for path in finished.iterdir()} == {
        "run.toml", "metrics.jsonl", "loss.png", "tokenizer", "checkpoints", "model",
    }  # fmt: skip
    lines = metrics(finished)
    training = [line for line in lines if "lr" in line]
    assert [line["step"] for line in training] == [5, 10, 15, 20, 25, 30]
    assert all({"lm_loss", "sop_loss", "grad_norm"} <= set(line) for line in training)
    assert [line["step"] for line in lines if "valid_lm_loss" in line] == [10, 20, 30]
    assert "test_lm_unigram_accuracy" in lines[-1]
    assert (finished / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_plain_transformers_opens_the_model_with_equal_logits(finished):
    import megabert

    theirs, report = transformers.MegatronBertForPreTraining.from_pretrained(
        finished / "model", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(finished / "model")
    batch = tokenizer(["the cats read many trees", "rivers"], padding=True, return_tensors="pt")
    ours = megabert.MegatronBertForPreTraining.from_pretrained(finished / "model")
    with torch.no_grad():
        expected, found = theirs.eval()(**batch), ours.eval()(**batch)
    torch.testing.assert_close(found.prediction_logits, expected.prediction_logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.seq_relationship_logits, expected.seq_relationship_logits, rtol=0, atol=1e-5)


def test_a_killed_run_goes_on_bit_for_bit(corpus, finished, tmp_path):
    """30 steps = 17 steps, killed, 13 more: weights, optimizer state and metrics."""
    folder = tmp_path / "killed"
    # From the other run's tokenizer and text cache: the same data.
    shutil.copytree(finished / "tokenizer", folder / "tokenizer")
    command = ["pretrain", *SMALL, "--train-data", str(corpus), "--save", str(folder), "--save-interval", "17"]
    process = subprocess.Popen(
        [sys.executable, "-m", "megabert", *command, "--data-cache-path", str(finished.parent / "cache")],
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while (
        Checkpoints(folder / "checkpoints").named("latest") is None
        or 17 not in Checkpoints(folder / "checkpoints").steps()
    ):
        assert process.poll() in (None, 0) and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for later in Checkpoints(folder / "checkpoints").steps():
        if later > 17:  # the kill came late: what lies after step 17 is taken away by hand
            shutil.rmtree(folder / "checkpoints" / f"step-{later:08d}")
    (folder / "checkpoints" / "latest").write_text("step-00000017\n")
    assert cli.main([*command, "--data-cache-path", str(finished.parent / "cache")]) == 0
    for name in ("model.safetensors", "optimizer.safetensors", "random.safetensors"):
        last = Path("checkpoints") / "step-00000030" / name
        assert (folder / last).read_bytes() == (finished / last).read_bytes(), name
    assert (folder / "model" / "model.safetensors").read_bytes() == (
        finished / "model" / "model.safetensors"
    ).read_bytes()
    assert metrics(folder) == metrics(finished)


def test_sigterm_saves_and_exits_0(corpus, tmp_path):
    folder = tmp_path / "stopped"
    process = subprocess.Popen(
        [sys.executable, "-m", "megabert", "pretrain", *SMALL, "--train-iters", "100000", "--train-data", str(corpus),
         "--save", str(folder)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 5/"):
            break
    process.send_signal(signal.SIGTERM)
    rest = process.stdout.read()
    assert process.wait(timeout=60) == 0
    assert "stopped by SIGTERM" in rest
    assert Checkpoints(folder / "checkpoints").named("latest") is not None
    assert (folder / "model" / "config.json").is_file()


def test_megatrons_numerics_are_saved_in_the_config(corpus, tmp_path):
    folder = tmp_path / "numerics"
    arguments = [*SMALL, "--train-iters", "2", "--train-data", str(corpus), "--save", str(folder)]
    arguments += ["--bias-gelu-fusion", "--apply-residual-connection-post-layernorm", "--pair-task", "nsp"]
    assert cli.main(["pretrain", *arguments]) == 0
    config = json.loads((folder / "model" / "config.json").read_text())
    assert config["layer_norm_eps"] == 1e-5
    assert (config["hidden_act"], config["head_act"]) == ("gelu_pytorch_tanh", "gelu")
    assert config["apply_residual_connection_post_layernorm"] is True
    assert config["scaled_output_init"] is True
    assert "nsp_loss" in metrics(folder)[0] or "test_nsp_loss" in metrics(folder)[-1]


def test_without_the_pair_task_the_folder_is_a_masked_word_model(corpus, tmp_path):
    folder = tmp_path / "words"
    arguments = [*SMALL, "--train-iters", "2", "--train-data", str(corpus), "--save", str(folder)]
    assert cli.main(["pretrain", *arguments, "--bert-no-binary-head", "--pack", "--bf16"]) == 0
    config = json.loads((folder / "model" / "config.json").read_text())
    assert config["architectures"] == ["MegatronBertForMaskedLM"]
    _, report = transformers.MegatronBertForMaskedLM.from_pretrained(folder / "model", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]


@pytest.mark.parametrize("precision", [["--bf16"], ["--fp16", "--fp32-layernorm", "--fp32-embedding"]])
def test_half_precisions_run(corpus, finished, tmp_path, precision):
    folder = tmp_path / "half"
    arguments = [*SMALL, "--train-data", str(corpus), "--save", str(folder), "--initial-loss-scale", "2**16"]
    assert cli.main(["pretrain", *arguments, *precision]) == 0
    for half, full in zip(metrics(folder), metrics(finished), strict=True):
        if "lm_loss" in full:
            assert half["lm_loss"] == pytest.approx(full["lm_loss"], abs=0.05)


def test_files_have_the_usual_permissions(finished):
    mask = os.umask(0)
    os.umask(mask)
    files = [path for path in finished.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert {str(path) for path in files if path.stat().st_mode & 0o777 != 0o666 & ~mask} == set()


def test_an_old_command_line_with_all_that_grows(corpus, finished, tmp_path):
    """Ramp-up, weight decay, recomputation, separate validation data read in its own way."""
    separate = tmp_path / "valid.jsonl"
    separate.write_text(corpus.read_text().replace('"text"', '"body"'))
    folder = tmp_path / "grown"
    flags = (
        "--global-batch-size 12 --rampup-batch-size 4 4 40 --train-samples 100 --start-weight-decay 0 "
        "--end-weight-decay 0.1 --weight-decay-incr-style linear --checkpoint-activations --checkpoint-num-layers 2 "
        "--eval-text-key body --eval-seq-length 16 --eval-max-preds-per-seq 3 --log-interval 1 --data-impl mmap "
        "--no-masked-softmax-fusion --log-params-norm"
    ).split()
    arguments = [*SMALL, *flags, "--valid-data", str(separate), "--tokenizer", str(finished / "model")]
    assert cli.main(["pretrain", *arguments, "--train-data", str(corpus), "--save", str(folder)]) == 0
    lines = [line for line in metrics(folder) if "lr" in line]
    assert [line["batch_size"] for line in lines] == [4] * 5 + [8] * 3 + [12] * 4
    assert lines[-1]["samples"] == 92 and lines[-1]["weight_decay"] == pytest.approx(0.1 * 80 / 100)
    assert any("valid_lm_loss" in line for line in metrics(folder))
    assert "train_samples = 100" in (folder / "run.toml").read_text()


def state_of(folder: Path) -> dict[str, bytes]:
    """All files of a run folder but its lock, by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def test_a_refused_run_leaves_its_folder_untouched(corpus, finished, tmp_path, capsys):
    folder = shutil.copytree(finished, tmp_path / "run")
    before = state_of(folder)
    data = ["pretrain", *SMALL, "--train-data", str(corpus), "--save", str(folder)]
    other = tmp_path / "vocab.txt"
    words = (finished / "tokenizer" / "vocab.txt").read_text().splitlines()
    other.write_text("\n".join([*words[:5], *reversed(words[5:])]) + "\n")  # as many entries, in another order
    for change, said in (
        (["--tokenizer", str(other)], "another tokenizer"),
        (["--seed", "3"], "another seed"),
        (["--train-iters", "4"], "is at step 30, past the 4 steps"),
        (["--load", str(folder / "checkpoints" / "step-00000777")], "there is no folder"),
    ):
        assert cli.main([*data, *change]) == 2
        assert said in capsys.readouterr().err
        assert state_of(folder) == before
    new = tmp_path / "runs" / "new"
    assert cli.main([*data[:-1], str(new), "--load", str(tmp_path / "nope")]) == 2
    assert not new.parent.exists() and "tokeni" not in capsys.readouterr().out


def test_without_the_pointer_the_run_goes_on(corpus, finished, tmp_path, capsys):
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / "checkpoints" / "latest").unlink()
    command = ["pretrain", *SMALL, "--train-data", str(corpus), "--save", str(folder)]
    assert cli.main([*command, "--hidden-size", "64"]) == 2
    assert "belongs to another model" in capsys.readouterr().err
    assert cli.main(command) == 0
    assert "latest is missing: the newest whole checkpoint is step-00000030" in capsys.readouterr().out
    assert (folder / "checkpoints" / "latest").read_text().strip() == "step-00000030"


@pytest.mark.parametrize("packed", [[], ["--pack"]])
def test_a_lengthened_run_reads_what_a_long_one_reads_and_is_tested_again(corpus, tmp_path, packed, capsys):
    even = ["--lr-decay-style", "constant", "--warmup", "0", "--eval-interval", "0", *packed]
    command = ["pretrain", *SMALL, *even, "--train-data", str(corpus), "--save"]
    short, long = tmp_path / "short", tmp_path / "long"
    assert cli.main([*command, str(short), "--train-iters", "7"]) == 0
    assert cli.main([*command, str(short), "--train-iters", "40"]) == 0
    assert cli.main([*command, str(long), "--train-iters", "40"]) == 0
    weights = [load_file(folder / "model" / "model.safetensors") for folder in (short, long)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
    tests = [line for line in metrics(short) if "test_lm_loss" in line]
    assert [line["step"] for line in tests] == [7, 40]
    assert tests[-1] == next(line for line in metrics(long) if "test_lm_loss" in line)
    capsys.readouterr()
    assert cli.main([*command, str(short), "--train-iters", "40"]) == 0
    assert "test: " not in capsys.readouterr().out, "the same test of the same model"
    assert cli.main([*command, str(short), "--train-iters", "40", "--eval-iters", "3"]) == 0
    assert "test: " in capsys.readouterr().out
    assert cli.main(["inspect", str(short)]) == 0


def test_a_run_that_learned_nothing_says_so(corpus, finished, tmp_path, capsys):
    arguments = [*SMALL, "--train-data", str(corpus), "--tokenizer", str(finished / "tokenizer"), "--train-iters", "3"]
    assert cli.main(["pretrain", *arguments, "--fp16", "--save", str(tmp_path / "half")]) == 0
    assert "warning: each of the 3 steps was skipped" in capsys.readouterr().out
    assert cli.main(["pretrain", *arguments, "--lr", "1e30", "--on-nan", "skip", "--save", str(tmp_path / "nan")]) == 0


def test_what_plain_transformers_cannot_express_is_said(corpus, finished, tmp_path, capsys):
    arguments = [*SMALL, "--train-data", str(corpus), "--tokenizer", str(finished / "tokenizer"), "--train-iters", "2"]
    flag = "--apply-residual-connection-post-layernorm"
    assert cli.main(["pretrain", *arguments, flag, "--save", str(tmp_path / "run")]) == 0
    assert "plain Transformers computes other numbers" in capsys.readouterr().out
    assert cli.main(["predict", "fill-mask", str(tmp_path / "run"), "--text", "The [MASK] reads."]) == 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_before_the_first_step_is_one_line_and_keeps_what_was_tokenized(corpus, tmp_path, number, status):
    text = tmp_path / "long.jsonl"
    text.write_text(corpus.read_text() * 8000)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *letters, *(f"##{letter}" for letter in letters)]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    named = ["--train-data", str(text), "--tokenizer", "vocab.txt", "--workers", "2", "--save", str(tmp_path / "run")]
    command = [sys.executable, "-m", "megabert", "pretrain", *SMALL, *named]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert any(line.startswith("tokenizing") for line in process.stdout)
    time.sleep(0.2)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    assert len(errors.splitlines()) == 1 and errors.startswith("megabert pretrain: ")
    assert list((tmp_path / "cache").glob("*.partial")) and not (tmp_path / "run").exists()


def test_a_closed_pipe_ends_a_run_quietly(corpus, finished, tmp_path):
    arguments = [*SMALL, "--train-data", str(corpus), "--tokenizer", str(finished / "tokenizer")]
    process = subprocess.Popen(
        [sys.executable, "-m", "megabert", "pretrain", *arguments, "--save", str(tmp_path / "run")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(timeout=60) == 141 and errors == ""


def test_passes_over_the_data_are_a_length(corpus, finished, tmp_path, capsys):
    folder = tmp_path / "passes"
    flags = [word for word in SMALL if word != "--train-iters" and word != "30"]
    arguments = [*flags, "--epochs", "2", "--tokenizer", str(finished / "model"), "--train-data", str(corpus)]
    assert cli.main(["pretrain", *arguments, "--save", str(folder)]) == 0
    said = capsys.readouterr().out
    rows = int(said.split("train ")[1].split(",")[0].replace(",", ""))
    assert metrics(folder)[-1]["step"] == -(-2 * rows // 4)
    assert "epochs = 2" in (folder / "run.toml").read_text()
    assert cli.main(["pretrain", "--config", str(folder / "run.toml")]) == 0


def fails(capsys, arguments: list[str], *parts: str) -> None:
    """The command exits with status 2 and one line that holds `parts`."""
    assert cli.main(["pretrain", *SMALL, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    for part in parts:
        assert part in error, error


def test_bad_data_is_one_clear_line(corpus, tmp_path, capsys):
    folder = tmp_path / "bad"
    save = ["--save", str(folder)]
    fails(capsys, save, "--train-data is missing")
    fails(capsys, ["--train-data", "no/such.jsonl", *save], "no/such.jsonl", "--train-data")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "One. Two."}\nnot json\n')
    fails(capsys, ["--train-data", str(broken), *save], "broken.jsonl", "line 2")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    fails(capsys, ["--train-data", str(empty), *save], "empty")
    fails(capsys, ["--train-data", str(corpus), "--text-key", "body", *save], "'body'")
    assert not folder.exists()
    assert not list(tmp_path.glob("**/*.bin"))


def test_a_vocabulary_that_does_not_fit(corpus, finished, tmp_path, capsys):
    folder = ["--save", str(tmp_path / "bad")]
    tokens = (finished / "tokenizer" / "vocab.txt").read_text().splitlines()
    maskless = tmp_path / "maskless.txt"
    maskless.write_text("\n".join(token for token in tokens if token != "[MASK]") + "\n")
    fails(capsys, ["--train-data", str(corpus), "--tokenizer", str(maskless), *folder], "maskless.txt", "[MASK]")
    short = tmp_path / "short.txt"
    short.write_text("\n".join(tokens[:-50]) + "\n")
    prefix = next((finished.parent / "cache").glob("*.idx"))
    fails(capsys, ["--train-data", str(prefix), "--tokenizer", str(short), *folder], str(prefix.with_suffix("")))
    # Megatron's own files have no fingerprint beside them: the largest id tells.
    bare = tmp_path / "bare"
    shutil.copy(prefix, tmp_path / "bare.idx")
    shutil.copy(prefix.with_suffix(".bin"), tmp_path / "bare.bin")
    fails(capsys, ["--train-data", str(bare), "--tokenizer", str(short), *folder], "holds the id 164", "115")
    fails(capsys, ["--train-data", str(bare), *folder], "--tokenizer is missing")


def test_shapes_that_do_not_fit(corpus, finished, tmp_path, capsys):
    data = ["--train-data", str(corpus)]
    fails(capsys, [*data, "--num-attention-heads", "5", "--save", str(tmp_path / "a")], "--num-attention-heads 5")
    fails(capsys, [*data, "--seq-length", "64", "--save", str(tmp_path / "a")], "--seq-length 64", "32 positions")
    fails(capsys, [*data, "--hidden-size", "64", "--save", str(finished)], "another model", "hidden_size")
    fails(capsys, [*data, "--global-batch-size", "6", "--save", str(tmp_path / "a")], "--global-batch-size")


def test_damaged_files_are_noticed(corpus, finished, tmp_path, capsys):
    copied = tmp_path / "cache"
    shutil.copytree(finished.parent / "cache", copied)
    tokens = next(copied.glob("*.bin"))
    content = bytearray(tokens.read_bytes())
    content[len(content) // 2] ^= 1
    tokens.write_bytes(content)
    tokenizer = ["--tokenizer", str(finished / "tokenizer"), "--save", str(tmp_path / "x")]
    fails(capsys, ["--train-data", str(tokens.with_suffix("")), *tokenizer], tokens.name, "damaged")
    tokens.write_bytes(content[:-2])
    fails(capsys, ["--train-data", str(tokens.with_suffix("")), *tokenizer], tokens.name, "damaged")
    index = tokens.with_suffix(".idx")
    index.write_bytes(b"MMIDIDY" + index.read_bytes()[7:])
    fails(capsys, ["--train-data", str(tokens.with_suffix("")), *tokenizer], index.name, "not an index")

    run = tmp_path / "run"
    shutil.copytree(finished, run)
    weights = run / "checkpoints" / "step-00000030" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    same = ["--train-data", str(corpus), "--data-cache-path", str(finished.parent / "cache"), "--save", str(run)]
    fails(capsys, same, "step-00000030", "model.safetensors", "damaged")


def test_a_loss_that_is_not_a_number_names_its_step(corpus, tmp_path, capsys):
    arguments = ["--train-data", str(corpus), "--lr", "1e30", "--warmup", "0", "--clip-grad", "0"]
    fails(capsys, [*arguments, "--save", str(tmp_path / "nan")], "step ", "loss is")


def test_a_run_folder_that_cannot_be_written(corpus, tmp_path, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("")
    fails(capsys, ["--train-data", str(corpus), "--save", str(blocked)], "file, not a folder")


def test_the_default_run_folder_is_named_by_time_and_data(corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["pretrain", *SMALL, "--train-iters", "1", "--train-data", os.path.relpath(corpus)]) == 0
    (folder,) = [path for path in (tmp_path / "runs").iterdir() if path.name != "cache"]
    assert folder.name.endswith("-corpus")
    assert (folder / "model" / "model.safetensors").is_file()
