import json

import pytest

from megabert.training.sinks import JsonLines, TensorBoard, console_line, draw_losses, read_lines

from .toy import files

TRAINING = {
    "step": 100, "samples": 400, "tokens": 9, "lm_loss": 5.123, "sop_loss": 0.65, "lr": 1e-3, "grad_norm": 1.2,
    "loss_scale": 1.0, "skipped": 0, "skipped_in_window": 0, "tokens_per_second": 23100.0, "data_wait_share": 0.01,
    "seconds_left": 192.0,
}  # fmt: skip
EVALUATION = {
    "step": 100, "valid_loss": 5.0, "valid_lm_loss": 4.5, "valid_lm_accuracy": 0.25, "valid_sop_loss": 0.5,
    "valid_sop_accuracy": 0.75, "valid_perplexity": 90.02,
}  # fmt: skip


def test_console_lines():
    assert console_line(TRAINING, 2000) == (
        "step 100/2000 | lm loss 5.1230 | sop loss 0.6500 | lr 1.00e-03 | grad norm 1.20 | 23,100 tokens/s | 3m12s left"
    )
    assert console_line(EVALUATION, 2000) == (
        "step 100/2000 | validation | lm loss 4.5000 | perplexity 90.02 | lm accuracy 25.0 % | sop loss 0.5000 | "
        "sop accuracy 75.0 %"
    )
    troubled = TRAINING | {"loss_scale": 65536.0, "skipped_in_window": 3, "data_wait_share": 0.4}
    text = console_line(troubled, 2000)
    assert "loss scale 65536 | skipped 3 |" in text and "waiting for data 40 %" in text


def test_lines_are_on_disk_at_once_and_strict_json(tmp_path):
    sink = JsonLines(tmp_path / "metrics.jsonl", after=0)
    sink.write({"step": 1, "grad_norm": float("inf")})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "grad_norm": None}
    sink.close()


def test_resuming_cuts_later_lines_and_a_torn_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 5}\n{"step": 10}\n{"step": 10, "valid_loss": 1}\n{"step": 15}\n{"step": 2')
    JsonLines(path, after=10).close()
    assert path.read_text() == '{"step": 5}\n{"step": 10}\n{"step": 10, "valid_loss": 1}\n'
    JsonLines(path, after=0).close()
    assert path.read_text() == ""


def test_a_full_disk_names_the_file(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    sink = JsonLines.__new__(JsonLines)
    sink.path, sink._file = tmp_path / "metrics.jsonl", open("/dev/full", "w")  # noqa: SIM115
    with pytest.raises(OSError, match=r"cannot write .*metrics.jsonl: No space left"):
        sink.write({"step": 1})


def test_picture(tmp_path):
    metrics, picture = tmp_path / "metrics.jsonl", tmp_path / "loss.png"
    metrics.write_text("")
    draw_losses(metrics, picture)
    assert not picture.exists()
    records = [TRAINING | {"step": step, "lm_loss": 9 / step, "sop_loss": None} for step in range(1, 5)]
    metrics.write_text("".join(json.dumps(record) + "\n" for record in [*records, EVALUATION]))
    draw_losses(metrics, picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert files(tmp_path) == {"metrics.jsonl", "loss.png"}


def test_tensorboard_events(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    sink = TensorBoard(tmp_path, after=0)
    sink.write(TRAINING)
    sink.write(EVALUATION)
    sink.close()
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.value for event in events.Scalars("training/lm_loss")] == pytest.approx([5.123])
    assert [event.step for event in events.Scalars("validation/lm_accuracy")] == [100]


def test_damaged_lines_are_left_out_and_said(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n[1]\n{"step": 2}\n\xff\x00\n{"step": 3}\n{"st')
    assert read_lines(path) == [{"step": 1}, {"step": 2}, {"step": 3}]
    said: list[str] = []
    JsonLines(path, after=2, say=said.append).close()
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    assert [line.removeprefix(f"{path}: ") for line in said] == [
        "line 2 is damaged and is left out", "line 4 is damaged and is left out",
    ]  # fmt: skip
