from pathlib import Path

from megabert import cli


def test_the_demo_shows_all_it_promises(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo", "--minutes", "0.02", "--save", "runs/demo"]) == 0
    shown = capfd.readouterr().out
    assert "$ megabert pretrain --train-data builtin" in shown
    assert "tokens/s" in shown and "left" in shown
    assert "that is a factor of" in shown
    difference = float(shown.partition("largest difference of the logits: ")[2].split()[0])
    assert difference <= 1e-5
    assert shown.count("[MASK]") >= 6 and shown.count("<-") == 6
    assert (Path("runs/demo") / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_that_exists_is_left_alone(tmp_path, capsys):
    assert cli.main(["demo", "--save", str(tmp_path)]) == 2
    assert "exists already" in capsys.readouterr().err
