import json

import pytest
import torch

import megabert
from megabert import cli
from megabert.data.indexed_writer import IndexedWriter
from megabert.formats import huggingface
from megabert.tokenization import opening, word_piece
from megabert.training.resume import Checkpoints, Snapshot

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world", "##s"]
RECORDS = [
    *({"step": step, "lm_loss": 9.0 - step, "sop_loss": 0.7, "lr": 1e-4} for step in range(1, 5)),
    {"step": 2, "valid_loss": 6.5, "valid_lm_loss": 6.0}, {"step": 4, "valid_loss": 7.5, "valid_lm_loss": 7.0},
    {"step": 4, "test_loss": 7.25},
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return word_piece.from_tokens(TOKENS, lower_case=True)


@pytest.fixture
def run_folder(tmp_path, tokenizer):
    run = tmp_path / "run"
    checkpoints = Checkpoints(run / "checkpoints", keep_last=0)
    for step in (2, 4):
        weights = {"bert.a": torch.ones(3, 4), "cls.b": torch.ones(5)}
        optimizer = {f"exp_avg/{name}": tensor * 2 for name, tensor in weights.items()}
        snapshot = Snapshot(weights, optimizer, {"cpu": torch.get_rng_state()}, {}, {"tokenizer": "abc"})
        checkpoints.save(step, snapshot, best=step == 2)
    config = megabert.MegatronBertConfig(
        vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16,
    )  # fmt: skip
    huggingface.write(megabert.MegatronBertForPreTraining(config), tokenizer, run / "model")
    (run / "run.toml").write_text('num_layers = 1\nlr = 0.5\ntrain_iters = 8\nsplit = "949,50,1"\nseed = 77\n')
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS) + '{"step": 5, "cut')
    return run


@pytest.fixture
def prefix(tmp_path, tokenizer):
    prefix = tmp_path / "wiki_text_sentence"
    with IndexedWriter(prefix, tokenizer.vocabulary_size, fingerprint=tokenizer.fingerprint()) as writer:
        for _ in range(20):
            writer.add_document([[5, 6, 7], [6]])
    return prefix


def inspect(capsys, *arguments):
    assert cli.main(["inspect", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def inspect_json(capsys, *arguments):
    return json.loads(inspect(capsys, *arguments, "--json"))


def test_run_folder(run_folder, capsys):
    facts = inspect_json(capsys, run_folder)
    assert facts["kind"] == "run" and facts["steps"] == 4 and facts["train_iters"] == 8
    assert facts["settings"] == {"num_layers": 1, "lr": 0.5, "train_iters": 8, "seed": 77}
    assert facts["last"]["lm_loss"] == 5.0 and facts["best_validation"]["step"] == 2
    assert [(one["name"], one["whole"]) for one in facts["checkpoints"]] == [
        ("step-00000002", True), ("step-00000004", True),
    ]  # fmt: skip
    assert facts["latest"] == "step-00000004" and facts["best"] == "step-00000002" and facts["model"]
    text = inspect(capsys, run_folder)
    assert "steps: 4 of 8" in text and "8.000 █▆▃▁ 5.000" in text
    assert "best validation: loss 6.5000 at step 2" in text and "(latest)" in text and "(best)" in text


def test_run_folder_with_a_damaged_checkpoint(run_folder, capsys):
    path = run_folder / "checkpoints" / "step-00000004" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    whole, damaged = inspect_json(capsys, run_folder)["checkpoints"]
    assert whole["whole"] and not damaged["whole"] and "SHA-256" in damaged["problem"]
    assert "is damaged" in inspect(capsys, run_folder)
    assert all(one["whole"] for one in inspect_json(capsys, run_folder, "--no-check")["checkpoints"])
    assert cli.main(["inspect", str(path.parent)]) == 2
    assert "is damaged" in capsys.readouterr().err


def test_run_that_has_only_begun(tmp_path, capsys):
    (tmp_path / "run.toml").write_text("train_iters = 8\n")
    text = inspect(capsys, tmp_path)
    assert "steps: 0 of 8" in text and "checkpoints: 0" in text and "model/: not written yet" in text


def test_checkpoint(run_folder, capsys):
    facts = inspect_json(capsys, run_folder / "checkpoints" / "step-00000004")
    assert facts["step"] == 4 and facts["parameters"] == 17 and facts["dtype"] == ["float32"]
    assert facts["optimizer"] == ["exp_avg"] and facts["checksums"] == "right"
    assert facts["made of"] == {"tokenizer": "abc"}
    assert "tokenizer  abc" in inspect(capsys, run_folder / "checkpoints" / "step-00000004")


def test_model(run_folder, capsys, tokenizer):
    facts = inspect_json(capsys, run_folder / "model")
    assert facts["architecture"] == "MegatronBertForPreTraining" and facts["hidden_size"] == 16
    assert facts["tokenizer"]["entries"] == 8 and facts["tokenizer"]["fingerprint"] == tokenizer.fingerprint()
    assert "[MASK]=4" in inspect(capsys, run_folder / "model")
    config = run_folder / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"hidden_size": 32}))
    assert cli.main(["inspect", str(run_folder / "model")]) == 2
    assert "do not fit" in capsys.readouterr().err


def test_data(prefix, run_folder, capsys):
    facts = inspect_json(capsys, prefix)
    assert (facts["documents"], facts["sentences"], facts["tokens"]) == (20, 40, 80)
    assert facts["examples"] == [[5, 6, 7, 6]] * 3
    text = inspect(capsys, prefix, "--tokenizer", run_folder / "model", "--examples", "1")
    assert "hello worlds world" in text and "tokens of a sentence: 2.0 on average, 3 at most" in text
    assert "tokenizer_matches" in text


def test_data_and_another_tokenizer(prefix, tmp_path, capsys):
    word_piece.from_tokens([*TOKENS[:5], "other", "words", "here"], lower_case=True).save(tmp_path / "other")
    assert inspect_json(capsys, prefix, "--tokenizer", tmp_path / "other")["tokenizer_matches"] is False
    word_piece.from_tokens(TOKENS[:5], lower_case=True).save(tmp_path / "small")
    assert cli.main(["inspect", str(prefix), "--tokenizer", str(tmp_path / "small")]) == 2
    assert "is not the one that made the data" in capsys.readouterr().err


def test_data_remembers_its_tokenizer(run_folder, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("Hello world\n")
    tokenizer = tmp_path / "tok"
    opening.load(run_folder / "model").save(tokenizer)
    arguments = ["--input", tmp_path / "a.txt", "--output", tmp_path / "out", "--tokenizer", tokenizer]
    assert cli.main(["tokenize", *map(str, arguments)]) == 0
    capsys.readouterr()
    facts = inspect_json(capsys, tmp_path / "out")
    assert facts["examples"] == ["hello world"] and facts["tokenizer_matches"] is True
    word_piece.from_tokens([*TOKENS, "more"], lower_case=True).save(tokenizer)  # another one stands there now
    facts = inspect_json(capsys, tmp_path / "out")
    assert facts["examples"] == [[5, 6]] and "tokenizer_matches" not in facts


def test_damaged_data(prefix, capsys):
    path = prefix.with_name(prefix.name + ".bin")
    path.write_bytes(path.read_bytes()[:-2])
    assert cli.main(["inspect", str(prefix)]) == 2
    assert str(path) in capsys.readouterr().err


def test_tokenizer(run_folder, tokenizer, capsys):
    facts = inspect_json(capsys, run_folder / "model" / "vocab.txt")
    assert facts["kind"] == "tokenizer" and facts["entries"] == 8 and facts["continuations"] == 1
    assert facts["fingerprint"] == tokenizer.fingerprint()


def test_a_name_stands_where_a_path_stands(capsys, run_folder, tmp_path, monkeypatch):
    (tmp_path / "names.toml").write_text(f'mine = "{run_folder}"\n')
    monkeypatch.setenv("MEGABERT_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path / "run")
    assert inspect_json(capsys, "mine")["kind"] == "run"
