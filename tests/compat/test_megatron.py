"""Megatron-LM's pretrain_bert.py and preprocess_data.py with their own command lines, and the four scripts of 2019."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from megabert import cli
from megabert import config as configuration
from megabert.commands import pretrain
from megabert.compat.megatron import pretraining
from megabert.compat.megatron.scripts import main

ROOT = Path(__file__).parents[2]
WORDS = "the sea is calm and a boat sails home under bright stars".split()
TINY = {
    "SEQ_LENGTH": "32", "NUM_LAYERS": "1", "HIDDEN_SIZE": "16", "NUM_ATTENTION_HEADS": "2", "TRAIN_ITERS": "2",
    "BATCH_SIZE": "2", "MAX_PREDS_PER_SEQ": "5", "VOCAB_SIZE": "60", "CACHE_DIR": "names", "NPROC_PER_NODE": "2",
    "NUM_WORKERS": "0", "SPLIT": "80,10,10",
}  # fmt: skip
PASSED_2019 = """
--fp32-allreduce --save-optim --save-rng --save-all-rng --load-optim --load-rng --load-all-rng --resume-dataloader
--shuffle --deep-init --override-lr-scheduler --adlr-autoresume --adlr-autoresume-interval --DDP-impl --eod-mask-loss
--reset-position-ids --reset-attention-mask
"""
OBEYED_2019 = """
--train-data a.json b.json --presplit-sentences --fp32-tokentypes --loss-scale 1024 --loss-scale-window 500
--min-scale 2 --checkpoint-activations --log-interval 10 --seed 7 --save-iters 100 --save x --load x --eval-batch-size
8 --eval-iters 20 --eval-seq-length 128 --eval-max-preds-per-seq 20 --eval-text-key body --valid-data v --test-data t
--tokenizer-path t.model --distributed-backend gloo --local_rank 0 --checkpoint-num-layers 2 --exit-interval 5
--make-vocab-size-divisible-by 64 --model-parallel-size 2 --min-lr 1e-6 --eval-interval 50 --no-save-optim --finetune
--use-checkpoint-lr-scheduler --tensorboard-dir tb --delim ; --pretrained-bert
"""
PASSED_2_6 = """
--onnx-safe --no-query-key-layer-scaling --attention-softmax-in-fp32 --accumulate-allreduce-grads-in-fp32 --mmap-warmup
--fp16-lm-cross-entropy --no-masked-softmax-fusion --no-bias-dropout-fusion --no-contiguous-buffers-in-local-ddp
--no-scatter-gather-tensors-in-pipeline --no-async-tensor-model-parallel-allreduce --lazy-mpu-init
--use-cpu-initialization --empty-unused-memory-level --dataloader-type --data-impl --tensorboard-log-interval
--tensorboard-queue-size --log-timers-to-tensorboard --log-batch-size-to-tensorboard --log-validation-ppl-to-tensorboard
--log-memory-to-tensorboard --override-lr-scheduler --DDP-impl
"""
OBEYED_2_6 = """
--data-path 0.7 one 0.3 two --vocab-file v.txt --ffn-hidden-size 64 --kv-channels 64 --global-batch-size 32
--rampup-batch-size 4 4 100 --train-samples 100 --distribute-checkpointed-activations --activations-checkpoint-method
block --activations-checkpoint-num-layers 2 --adam-beta1 0.8 --adam-beta2 0.99 --adam-eps 1e-7 --optimizer adam
--init-method-std 0.01 --init-method-xavier-uniform --lr-decay-samples 10 --lr-warmup-samples 1 --bf16
--initial-loss-scale 65536 --min-loss-scale 2 --tensor-model-parallel-size 2 --pipeline-model-parallel-size 2
--num-layers-per-virtual-pipeline-stage 2 --encoder-seq-length 128 --mask-prob 0.2 --short-seq-prob 0.2
--vocab-extra-ids 100 --no-bias-gelu-fusion --openai-gelu --apply-residual-connection-post-layernorm
--bert-no-binary-head --log-params-norm --log-num-zeros-in-grad --no-log-learnig-rate-to-tensorboard
--no-log-loss-scale-to-tensorboard --exit-duration-in-mins 9
"""
VALUES = {"--DDP-impl": "local", "--adlr-autoresume-interval": "1000", "--empty-unused-memory-level": "0",
          "--dataloader-type": "cyclic", "--data-impl": "lazy", "--tensorboard-log-interval": "7",
          "--tensorboard-queue-size": "5"}  # fmt: skip


@pytest.fixture
def read(monkeypatch, tmp_path, capsys):
    """What `megabert pretrain` is given, and what is said."""
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr(pretrain, "run", seen.append)

    def run(flags: str) -> tuple[pretrain.Config, str]:
        assert main(flags.split()) == 0, capsys.readouterr().err
        return seen.pop(), capsys.readouterr().out

    return run


def test_the_command_of_2019_reads_as_it_did_then(read, readme_2019):
    config, said = read(readme_2019)
    assert type(config) is pretrain.Config
    assert (config.batch_size, config.max_preds_per_seq, config.warmup, config.lr_decay_iters) == (4, 80, 0.01, 990_000)
    assert (config.masking, config.pairs, config.short_seq_prob) == ("token", "nsp", 0.01)
    assert (config.layernorm_epsilon, config.hidden_dropout, config.text_key) == (1e-12, 0.1, "text")
    assert "March 2019" in said and "--text-key" not in said and "--masking token" in said


@pytest.mark.parametrize(
    ("flags", "values"),
    [
        ("--train-data a", {"text_key": "sentence", "split": "1000,1,1", "hidden_dropout": 0.0, "masking": "token",
                            "tokenizer_model_type": "bert-large-uncased", "warmup": 0.01}),
        ("--train-data a --model-parallel-size 2", {"hidden_dropout": 0.1, "layernorm_epsilon": 1e-5,
                                                    "tensor_model_parallel_size": 2, "masking": "token"}),
        ("--train-data a --tokenizer-type SentencePieceTokenizer", {"tokenizer_model_type": None}),
        ("--train-data a --tokenizer-type CharacterLevelTokenizer --tokenizer-model-type bert-large-uncased",
         {"tokenizer_model_type": None}),
        ("--train-data a --epochs 2", {"train_iters": 1_000_000, "epochs": 2}),
        ("--train-data a --epochs 2 --train-iters 50 --save-interval 9", {"train_iters": 50, "epochs": None}),
        ("--data-path a --batch-size 8 --vocab-file v", {"warmup": 0.01, "masking": "ngram", "pair_task": "sop",
                                                         "text_key": "text", "split": "969, 30, 1", "batch_size": 8}),
        ("--data-path a --micro-batch-size 8", {"warmup": 0.0, "tokenizer_type": "BertWordPieceLowerCase",
                                                "hidden_dropout": 0.1, "layernorm_epsilon": 1e-5}),
        ("--data-path a --lr-warmup-fraction .02 --split 949,50,1", {"warmup": 0.02, "split": "949,50,1"}),
    ],
)  # fmt: skip
def test_what_is_left_out_is_that_of_its_year(read, flags, values):
    config, _ = read(flags)
    assert {name: getattr(config, name) for name in values} == values


@pytest.mark.parametrize(
    ("start", "passed", "obeyed"), [("", PASSED_2019, OBEYED_2019), ("--data-path a", PASSED_2_6, OBEYED_2_6)]
)
def test_every_flag_is_obeyed_or_said_to_change_nothing(read, start, passed, obeyed):
    plain, _ = read(f"{start} {obeyed}")
    _, before = read(start)
    for flag in passed.split():
        _, said = read(f"{start} {flag} {VALUES.get(flag, '')}")
        lines = set(said.splitlines()) - set(before.splitlines())
        assert any(line.startswith(f"notice: {flag.replace('_', '-')}: ") for line in lines), flag
    usual, _ = read(start)
    unmoved = {"kv_channels", "tokenizer_type", "optimizer", "split", "local_rank", "fp16"}
    flags = [word for word in obeyed.split() if word.startswith("--")]
    for flag in flags:
        field = dict(pretraining._given([flag]))[flag.replace("_", "-")].name
        assert field in unmoved or getattr(plain, field) != getattr(usual, field), flag


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--btach-size 4", "unknown flag --btach-size (did you mean --batch-size?)"),
        ("--train-data a --data-path b", "--train-data and --data-path name the same thing"),
        ("--train-iters x", "invalid whole number"),
        ("mercy_bert --x", "unknown script mercy_bert; scripts: pretrain_bert"),
        ("--train-data books", "--train-data: books: there is no such text file"),
        (
            "--pretrained-bert --train-data a",
            "--pretrained-bert: no Megatron BERT is called bert-large-uncased. Google's",
        ),
    ],
)
def test_a_mistake_is_one_line(flags, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(flags.split()) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_names_of_corpora_are_set_in_a_file(read, tmp_path, monkeypatch, capsys):
    (tmp_path / "corpora.toml").write_text('[corpora]\nwikipedia = ["wiki/*.json"]\n')
    assert read("--train-data wikipedia")[0].corpora == {"wikipedia": ("wiki/*.json",)}
    (tmp_path / "other.toml").write_text('seed = 9\n[corpora]\nbooks = ["books.json"]\n')
    config, _ = read("--train-data books --config other.toml")
    assert config.corpora == {"books": ("books.json",)} and config.seed == 9 and config.masking == "token"
    monkeypatch.setenv("MEGABERT_CORPORA", "other.toml")
    assert "books" in read("--train-data books")[0].corpora
    monkeypatch.setenv("MEGABERT_CORPORA", "gone.toml")
    assert main(["--train-data", "books"]) == 2 and "no file gone.toml" in capsys.readouterr().err


def test_processes_started_by_hand_meet_where_they_did():
    environment = {"RANK": "1", "WORLD_SIZE": "2"}
    pretraining._meeting_place(environment, local_rank=1)
    assert environment == {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "6000",
                           "LOCAL_RANK": "1"}  # fmt: skip
    alone = {"RANK": "0", "WORLD_SIZE": "1"}
    pretraining._meeting_place(alone, local_rank=None)
    assert alone == {"RANK": "0", "WORLD_SIZE": "1"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working folder with a corpus called wikipedia, a vocabulary called bert-large-uncased and stored samples."""
    place = tmp_path_factory.mktemp("place")
    (place / "names").mkdir()
    vocabulary = place / "names" / "bert-large-uncased-vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "."]) + "\n")
    with (place / "wiki.json").open("w") as file:
        for number in range(40):
            sentence = " ".join(WORDS[number % 5 : number % 5 + 6]).capitalize() + ". "
            file.write(json.dumps({"text": sentence * (3 + number % 4), "title": "the sea"}) + "\n")
    (place / "corpora.toml").write_text('[corpora]\nwikipedia = ["wiki.json"]\n')
    return place


def test_preprocess_data_writes_what_megabert_tokenize_writes(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    vocabulary = "names/bert-large-uncased-vocab.txt"
    script = ["preprocess_data", "--input", "wiki.json", "--vocab", vocabulary, "--output-prefix", "mine"]
    flags = "--json-keys text title --split-sentences --dataset-impl lazy --tokenizer-type BertWordPieceLowerCase"
    assert main([*script, *flags.split(), "--workers", "1", "--keep-newlines", "--log-interval", "100"]) == 0
    said = capsys.readouterr().out
    assert "notice: --keep-newlines:" in said and "notice: --dataset-impl lazy: mmap is written" in said
    arguments = ["--input", "wiki.json", "--tokenizer", vocabulary, "--output", "ours", "--workers", "1"]
    assert cli.main(["tokenize", *arguments]) == 0
    for ending in (".bin", ".idx"):
        assert (place / f"mine_text_sentence{ending}").read_bytes() == (place / f"ours{ending}").read_bytes()
    assert (place / "mine_title_sentence.idx").is_file()
    assert main([*script, "--workers", "1"]) == 0
    assert (place / "mine_text_document.idx").is_file() and "without --split-sentences" in capsys.readouterr().out
    assert main([*script, "--append-eod"]) == 2 and "--append-eod is for GPT" in capsys.readouterr().err


def command_of(script: str, place: Path, *flags: str) -> list[str]:
    """What a script would start."""
    environment = {**os.environ, **TINY, "PYTHON": "echo", "SAVE": str(place / script)}
    asked = ["bash", str(ROOT / "scripts" / f"{script}.sh"), *flags]
    return shlex.split(
        subprocess.run(asked, cwd=place, env=environment, check=True, capture_output=True, text=True).stdout
    )


def test_the_scripts_of_one_process_train(place, monkeypatch):
    monkeypatch.chdir(place)
    for script in ("pretrain_bert", "pretrain_bert_sentencepiece"):
        program, *arguments = command_of(script, place, "--seed", "7", "--no-tensorboard")
        assert Path(program) == ROOT / "pretrain_bert.py"
        assert main(arguments) == 0
        told = json.loads((place / script / "model" / "config.json").read_text())
        assert (told["num_hidden_layers"], told["hidden_size"], told["layer_norm_eps"]) == (1, 16, 1e-12)
        assert "seed = 7" in (place / script / "run.toml").read_text()
    assert (place / "tokenizer.model").is_file() and (place / "tokenizer.vocab").is_file()


def test_the_distributed_scripts_train_in_two_processes(place, monkeypatch):
    monkeypatch.chdir(place)
    (place / "tfrecords").mkdir()
    for name in ("train", "valid", "test"):
        made = ["--output", f"tfrecords/{name}", "--seq-length", "32", "--max-preds-per-seq", "5", "--dupe-factor", "1"]
        vocabulary = ["--tokenizer", "names/bert-large-uncased-vocab.txt", "--workers", "1"]
        assert cli.main(["tokenize", "--input", "wiki.json", "--to", "tfrecord", *made, *vocabulary]) == 0
    scripts = "pretrain_bert_distributed", "pretrain_bert_tfrecords_distributed"
    for script in scripts:
        arguments = command_of(script, place)
        assert arguments[:4] == "-m torch.distributed.run --nproc-per-node 2".split()
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, **TINY, "PYTHON": sys.executable, "SAVE": "two", "MASTER_PORT": str(port)}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / f"{scripts[1]}.sh"), "--no-tensorboard"], env=environment, check=False,
        capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "data 2" in done.stdout and done.stdout.count("March 2019") == 1
    assert (place / "two" / "model" / "model.safetensors").is_file()


def test_sentences_are_split_beforehand_and_data_sets_joined(place, monkeypatch, capsys):
    from megabert.corpora import sentences
    from megabert.data.indexed import IndexedData

    monkeypatch.chdir(place)
    assert main(["presplit_sentences_json", "wiki.json", "split.json"]) == 0
    before, after = ((place / name).read_text().splitlines() for name in ("wiki.json", "split.json"))
    for one, two in zip(map(json.loads, before), map(json.loads, after), strict=True):
        assert two == {**one, "text": two["text"]}
        assert two["text"].replace("\n", " ") == one["text"].strip()
        assert two["text"].split("\n") == sentences.split(one["text"])
    assert main(["presplit_sentences_json", "wiki.json", "wiki.json"]) == 2
    assert main(["presplit_sentences_json", "wiki.json", "x.json", "--text-key", "body"]) == 2
    assert "wiki.json, line 1: there is no text under 'body'" in capsys.readouterr().err and not Path("x.json").exists()

    vocabulary = "names/bert-large-uncased-vocab.txt"
    for name in ("one", "two"):
        made = ["--input", "wiki.json", "--output-prefix", f"parts/{name}", "--vocab-file", vocabulary]
        assert main(["preprocess_data", *made, "--split-sentences"]) == 0
    assert main(["merge_datasets", "--input", "parts", "--output-prefix", "joined"]) == 0
    assert IndexedData(Path("joined")).num_documents == 80


def test_ranks_are_joined_and_cut_anew(tmp_path, monkeypatch, capsys):
    import torch

    from megabert import MegatronBertConfig, MegatronBertForPreTraining

    monkeypatch.chdir(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 32}
    model = MegatronBertForPreTraining(MegatronBertConfig(vocab_size=17, intermediate_size=32, **sizes))
    model.save_pretrained("model")
    ranks = "--tensor-model-parallel-size 2".split()
    assert cli.main(["convert", "model", "cut", "--to", "megatron", *ranks]) == 0
    told = (
        "--num-layers 2 --hidden-size 16 --num-attention-heads 2 --seq-length 32 --max-position-embeddings 32".split()
    )
    script = [
        "merge_mp_partitions",
        "--model-type",
        "BERT",
        *ranks,
        *told,
        "--load",
        "cut",
        "--vocab-file",
        "vocab.txt",
    ]
    assert main([*script, "--save", "whole"]) == 0
    script = ["checkpoint_util", "--model-type", "BERT", "--load-dir", "cut", "--target-pipeline-parallel-size", "2"]
    assert main([*script, "--save-dir", "other", "--loader", "megatron"]) == 0
    found = {name: sorted(path.parent.name for path in Path(name).rglob("*.pt")) for name in ("whole", "other")}
    assert found["whole"] == ["mp_rank_00"]
    assert found["other"] == ["mp_rank_00_000", "mp_rank_00_001", "mp_rank_01_000", "mp_rank_01_001"]
    for name in found:
        opened = MegatronBertForPreTraining.from_pretrained(name).state_dict()
        assert all(torch.equal(opened[key], tensor) for key, tensor in model.state_dict().items())
    capsys.readouterr()
    assert main(["merge_mp_partitions", "--load", "cut", "--save", "x", "--num-layers", "3"]) == 2
    assert "--num-layers: 3, but cut has 2" in capsys.readouterr().err
    assert main(["checkpoint_util", "--model-type", "GPT", "--load-dir", "cut", "--save-dir", "x"]) == 2
    assert not Path("x").exists()


def test_the_page_for_those_who_come_from_elsewhere_names_what_is_there():
    page = (ROOT / "docs" / "coming-from.md").read_text(encoding="utf-8")
    seen = set()
    for line in re.findall(r"`((?:torchrun [^`]*)?megabert [a-z-]+ [^`]+)`", page):
        words = shlex.split(line)
        verb, *arguments = words[words.index("megabert") + 1 :]
        module = importlib.import_module(f"megabert.commands.{verb.replace('-', '_')}")
        configuration.parse(module.Config, arguments, program=line)
        seen.add(verb)
    assert seen == {"extract", "pretrain", "tokenize", "data", "convert", "finetune", "predict"}
    rows = re.findall(r"^\| (`--.*?) \|", page[: page.index("## NeMo")], re.MULTILINE)
    flags = {flag for row in rows for flag in re.findall(r"--[A-Za-z][\w-]*", row)}
    assert len(flags) > 40 and all(pretraining._given([flag]) for flag in flags), flags
    for name in re.findall(r"\b(?:scripts|tools|examples)/[\w/.]*\w", page):
        assert (ROOT / name).exists(), name
