"""The two examples of Transformers' page on Megatron BERT, but for the import line and the device."""

import os

import pytest
import torch
import transformers

import megabert
from megabert.formats import huggingface
from megabert.tokenization import word_piece

WORDS = "the capital of france is paris in italy , pizza served formal settings presented unsliced . sky blue".split()


@pytest.fixture
def _folders(tmp_path, monkeypatch):
    """$MYDIR as the page has it, and the same model under its name in the cache."""
    torch.manual_seed(0)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    config = megabert.MegatronBertConfig(
        vocab_size=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64,
    )  # fmt: skip
    tokenizer = word_piece.from_tokens(tokens, lower_case=True)
    for place in ("mydir/nvidia/megatron-bert-uncased-345m", "cache/megatron-bert-345m-uncased"):
        huggingface.write(megabert.MegatronBertForPreTraining(config), tokenizer, tmp_path / place)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("MYDIR", str(tmp_path / "mydir"))
    monkeypatch.setenv("MEGABERT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path / "elsewhere")


def _model(model_class):
    tokenizer = megabert.BertTokenizer.from_pretrained("nvidia/megatron-bert-uncased-345m")
    directory = os.path.join(os.environ["MYDIR"], "nvidia/megatron-bert-uncased-345m")
    model = model_class.from_pretrained(directory)
    device = torch.device("cpu")
    model.to(device)
    model.eval()
    model.half()
    return tokenizer, model, device, directory


@pytest.mark.usefixtures("_folders")
def test_masked_lm():
    tokenizer, model, device, directory = _model(megabert.MegatronBertForMaskedLM)
    input = tokenizer("The capital of France is [MASK]", return_tensors="pt").to(device)
    label = tokenizer("The capital of France is Paris", return_tensors="pt")["input_ids"].to(device)
    with torch.no_grad():
        output = model(**input, labels=label)
    assert label.tolist() == [[2, 5, 6, 7, 8, 9, 10, 3]] and output.logits.shape == (1, 8, 32)
    theirs = transformers.MegatronBertForMaskedLM.from_pretrained(directory).eval()
    assert output.loss.item() == pytest.approx(theirs(**input, labels=label).loss.item(), abs=2e-2)


@pytest.mark.usefixtures("_folders")
def test_next_sentence_prediction():
    tokenizer, model, device, directory = _model(megabert.MegatronBertForNextSentencePrediction)
    input = tokenizer("In Italy, pizza served in formal settings is presented unsliced.",
                      "The sky is blue due to the shorter wavelength of blue light.",
                      return_tensors="pt").to(device)  # fmt: skip
    label = torch.LongTensor([1]).to(device)
    with torch.no_grad():
        output = model(**input, labels=label)
    assert output.logits.shape == (1, 2) and output.logits.dtype == torch.float16
    theirs = transformers.MegatronBertForNextSentencePrediction.from_pretrained(directory).eval()
    assert output.loss.item() == pytest.approx(theirs(**input, labels=label).loss.item(), abs=2e-2)


@pytest.mark.usefixtures("_folders")
def test_a_name_that_nobody_knows_gives_no_empty_tokenizer():
    with pytest.raises((OSError, ValueError)):
        megabert.BertTokenizer.from_pretrained("nobody/nothing")
