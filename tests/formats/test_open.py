import made
import pytest

from megabert.formats import megatron_core_write, nemo_write
from megabert.formats import open as opening


@pytest.fixture
def run_folder(tmp_path):
    run = tmp_path / "run"
    for name in ("checkpoints/step-00000010", "model", "tokenizer"):
        (run / name).mkdir(parents=True)
    for name in ("run.toml", "metrics.jsonl", "checkpoints/latest", "model/config.json", "tokenizer/vocab.txt",
                 "checkpoints/step-00000010/state.json"):  # fmt: skip
        (run / name).write_text("")
    return run


@pytest.mark.parametrize(
    ("path", "kind", "found"),
    [
        ("", "run", ""), ("model", "model", "model"), ("model/config.json", "model", "model"),
        ("tokenizer", "tokenizer", "tokenizer"), ("tokenizer/vocab.txt", "tokenizer", "tokenizer/vocab.txt"),
        ("checkpoints", "run", ""), ("checkpoints/step-00000010", "checkpoint", "checkpoints/step-00000010"),
    ],
)  # fmt: skip
def test_parts_of_a_run(run_folder, path, kind, found):
    assert opening.look(run_folder / path) == (kind, run_folder / found)


@pytest.mark.parametrize("name", ["wiki.v2", "wiki.v2.bin", "wiki.v2.idx", "."])
def test_indexed_data(tmp_path, name):
    for suffix in (".bin", ".idx"):
        (tmp_path / f"wiki.v2{suffix}").write_bytes(b"")
    assert opening.look(tmp_path / name) == ("data", tmp_path / "wiki.v2")


def test_indexed_data_by_the_prefix_of_the_tokenizing_command(tmp_path):
    (tmp_path / "wiki_text_sentence.idx").write_bytes(b"")
    assert opening.look(tmp_path / "wiki") == ("data", tmp_path / "wiki_text_sentence")


def test_model_folder(run_folder):
    assert opening.model_folder(run_folder) == run_folder / "model"
    assert opening.model_folder(run_folder / "model") == run_folder / "model"
    with pytest.raises(ValueError, match="is a tokenizer; a model's folder or a run folder is needed"):
        opening.model_folder(run_folder / "tokenizer")
    with pytest.raises(ValueError, match=f"training checkpoint.*{run_folder / 'model'}"):
        opening.model_folder(run_folder / "checkpoints" / "step-00000010")
    (run_folder / "model" / "config.json").unlink()
    with pytest.raises(ValueError, match="has no model/ yet"):
        opening.model_folder(run_folder)


def test_what_is_unknown(tmp_path):
    (tmp_path / "photo.png").write_bytes(b"")
    for path, message in (("photo.png", "is not of a kind"), ("none", "there is nothing"), ("", "holds nothing")):
        with pytest.raises(ValueError, match=message) as failure:
            opening.look(tmp_path / path)
        assert "\n" not in str(failure.value)
    for name in ("a.idx", "b.idx"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"2 indexed data sets; name one of them: a\.idx, b\.idx"):
        opening.look(tmp_path)


@pytest.mark.parametrize("kind", ["torch", "torch_dist", "nemo"])
def test_a_checkpoint_with_its_vocabulary_is_no_tokenizer(tmp_path, kind):
    checkpoint = made.checkpoint(made.weights(), vocabulary={"vocab.txt": b"[PAD]\n"})
    if kind == "nemo":
        nemo_write.write(checkpoint, tmp_path / "x", layout=nemo_write.Layout(folder=True))
        (tmp_path / "x" / "vocab.txt").write_bytes(b"[PAD]\n")
    else:
        megatron_core_write.write(checkpoint, tmp_path / "x", layout=megatron_core_write.Layout(kind=kind))
    assert opening.look(tmp_path / "x").kind == "foreign"
