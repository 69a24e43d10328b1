"""A pretraining that begins with the weights of another program's checkpoint."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

import megabert
from megabert import cli
from megabert.formats import huggingface
from megabert.tokenization import word_piece

WORDS = "the a cat dog sat lay on mat rug under over and then it was warm cold".split()
FLAGS = (
    "--num-layers 2 --hidden-size 32 --seq-length 32 --max-position-embeddings 32 --batch-size 2 --train-iters 1 "
    "--lr 1e-12 --eval-iters 0 --num-workers 0 --device cpu --no-tensorboard --finetune --num-attention-heads 2 "
    "--split 100,0,0"
).split()


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("beginning")
    torch.manual_seed(0)
    tokenizer = word_piece.from_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "."], lower_case=True)
    config = megabert.MegatronBertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
        max_position_embeddings=32, layer_norm_eps=1e-5,
    )  # fmt: skip
    model = megabert.MegatronBertForPreTraining(config)
    torch.nn.init.normal_(model.cls.predictions.bias)
    huggingface.write(model, tokenizer, folder / "theirs")
    assert cli.main(["convert", str(folder / "theirs"), str(folder / "shards"), "--to", "megatron",
                     "--tensor-model-parallel-size", "2"]) == 0  # fmt: skip
    texts = [" ".join(WORDS[(row + word) % len(WORDS)] for word in range(9)) + " ." for row in range(40)]
    (folder / "text.txt").write_text("\n\n".join(f"{one}\n{one}" for one in texts))
    return folder


def pretrain(place, name, *more):
    return cli.main(["pretrain", *FLAGS, "--train-data", str(place / "text.txt"), "--data-cache-path",
                     str(place / "cache"), "--save", str(place / name), "--tokenizer",
                     str(place / "theirs" / "vocab.txt"), *more])  # fmt: skip


def test_shards_are_the_beginning_and_padding_may_differ(place, capsys):
    assert pretrain(place, "run", "--load", str(place / "shards")) == 0
    said = capsys.readouterr().out
    assert f"starting from the weights of {place / 'shards'}" in said and "fresh" not in said
    before, after = (
        safetensors.torch.load_file(place / name / "model.safetensors") for name in ("theirs", "run/model")
    )
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        rows = min(len(tensor), len(after[name]))  # 64 rows there, 128 here
        assert torch.allclose(tensor[:rows], after[name][:rows], atol=1e-9), name
    # The same command goes on with its own checkpoint.
    assert pretrain(place, "run", "--load", str(place / "shards"), "--train-iters", "2") == 0
    assert "going on from" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--no-finetune"], "add --finetune to begin with them at step 0"),
        (["--num-layers", "3"], "has num_hidden_layers 2, but this run 3: give the checkpoint's (--num-layers)"),
    ],
)
def test_what_does_not_fit_is_refused(place, more, message, capsys):
    assert pretrain(place, "refused", "--load", str(place / "theirs"), *more) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (place / "refused" / "run.toml").exists()
