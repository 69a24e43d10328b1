"""Learning rates by layer, adapters, and what becomes of them in a run folder."""

import json
import warnings
from pathlib import Path

import pytest
import torch

import megabert
from megabert import cli
from megabert.formats import huggingface
from megabert.serving.tuning import _rate
from megabert.tokenization import word_piece

peft = pytest.importorskip("peft")
WORDS = "good bad the film was very".split()


def test_rates_fall_from_the_head_to_the_embeddings():
    names = ("classifier.weight", "bert.pooler.dense.weight", "bert.encoder.ln.weight",
             "bert.encoder.layer.2.output.dense.weight", "bert.encoder.layer.0.ln.weight",
             "bert.embeddings.word_embeddings.weight")  # fmt: skip
    assert [_rate(name, decay=0.5, layers=3) for name in names] == [1, 1, 1, 0.5, 0.125, 0.125]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tuning")
    torch.manual_seed(0)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    config = megabert.MegatronBertConfig(
        vocab_size=len(tokens), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=16, initializer_range=0.1,
    )  # fmt: skip
    huggingface.write(
        megabert.MegatronBertModel(config), word_piece.from_tokens(tokens, lower_case=True), folder / "encoder"
    )
    for name, count in (("train", 48), ("dev", 10)):
        lines = [f"the film was {'very ' * (at % 5)}{['good', 'bad'][at % 2]}\t{at % 2}\n" for at in range(count)]
        (folder / f"{name}.tsv").write_text("".join(lines))
    return folder


def finetune(place: Path, name: str, *more: str) -> int:
    return cli.main(
        ["finetune", "sequence-classification", "--model", str(place / "encoder"), "--train-file",
         str(place / "train.tsv"), "--validation-file", str(place / "dev.tsv"), "--save", str(place / name),
         "--lr", "1e-2", "--batch-tokens", "96", "--max-seq-length", "16", "--epochs", "6", "--no-tensorboard",
         "--device", "cpu", *more]
    )  # fmt: skip


LORA = ("--lora-rank", "4", "--lora-dropout", "0.1", "--lora-modules", "query", "value", "dense")


def test_an_adapter_is_trained_merged_and_kept(place, capsys):
    with warnings.catch_warnings():
        # One of PEFT's and Transformers' own affairs would stand below the run's last line.
        warnings.simplefilter("error", FutureWarning)
        assert finetune(place, "lora", *LORA) == 0
    out, error = capsys.readouterr()
    assert out.splitlines()[-1].startswith("model: ") and "Warning" not in error
    assert json.loads((place / "lora" / "scores.json").read_text())["validation"]["accuracy"] == 1
    merged = megabert.MegatronBertForSequenceClassification.from_pretrained(place / "lora" / "model").eval()
    before = megabert.MegatronBertModel.from_pretrained(place / "encoder").state_dict()
    moved = {name for name, tensor in merged.bert.state_dict().items() if not torch.equal(tensor, before[name])}
    layer = "encoder.layer.0"
    assert f"{layer}.attention.self.query.weight" in moved and f"{layer}.output.dense.weight" in moved
    assert not any("key" in name or ("bias" in name and "pooler" not in name) or "embeddings" in name for name in moved)
    # PEFT puts the same model together from the encoder and the adapter.
    config = merged.config
    base = megabert.MegatronBertForSequenceClassification.from_pretrained(place / "encoder", config=config)
    opened = peft.PeftModel.from_pretrained(base, str(place / "lora" / "adapter")).eval()
    ids = torch.tensor([[2, 7, 8, 9, 5, 3], [2, 7, 8, 9, 6, 3]])
    with torch.no_grad():
        torch.testing.assert_close(opened(input_ids=ids).logits, merged(input_ids=ids).logits, rtol=0, atol=1e-5)
    # Its auto classes look for the class where they may.
    mapping = peft.PeftConfig.from_pretrained(str(place / "lora" / "adapter")).auto_mapping
    assert mapping == {"base_model_class": "MegatronBertForSequenceClassification", "parent_library": "transformers"}


def test_an_adapters_run_goes_on_bitwise_and_another_adapter_is_refused(place, capsys):
    for more in (("--exit-interval", "11"), ()):
        assert finetune(place, "cut", *LORA, *more) == 0
    for file in ("model/model.safetensors", "predictions.jsonl", "adapter/adapter_model.safetensors"):
        assert (place / "cut" / file).read_bytes() == (place / "lora" / file).read_bytes()
    capsys.readouterr()
    assert finetune(place, "cut", "--lora-rank", "2") == 2
    assert "belongs to another model" in capsys.readouterr().err
    assert finetune(place, "cut", *LORA, "--resume", "never") == 2
    assert "--resume never" in capsys.readouterr().err


def test_half_precision_and_recomputation(place):
    assert finetune(place, "half", "--bf16", "--recompute-granularity", "full", "--layer-decay", "0.9") == 0
    assert json.loads((place / "half" / "scores.json").read_text())["validation"]["accuracy"] == 1
    lines = [json.loads(line) for line in (place / "half" / "metrics.jsonl").read_text().splitlines()]
    assert [line["samples"] for line in lines if "valid_accuracy" in line] == [48 * number for number in range(1, 7)]
