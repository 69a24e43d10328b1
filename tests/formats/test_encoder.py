"""What a fine-tuning begins with: weights that fit, and a vocabulary that belongs to them."""

import pytest
import torch

import megabert
from megabert.formats import huggingface
from megabert.formats.encoder import check_vocabulary, fill, open_encoder
from megabert.tokenization import word_piece

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def saved(folder, *, entries=16, tokenizer=None):
    torch.manual_seed(0)
    config = megabert.MegatronBertConfig(
        vocab_size=entries, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=16,
    )  # fmt: skip
    huggingface.write(megabert.MegatronBertForPreTraining(config), tokenizer, folder)
    return open_encoder(str(folder))


def tokenizer(count=16, *, lower_case=True):
    return word_piece.from_tokens([*SPECIAL, *(f"w{n}" for n in range(count - 5))], lower_case=lower_case)


def test_the_encoder_is_filled_and_the_head_starts_afresh(tmp_path):
    encoder = saved(tmp_path / "out")
    model = megabert.MegatronBertForSequenceClassification(megabert.MegatronBertConfig(**encoder.config))
    fresh, left = fill(model, encoder, head=("classifier.", "bert.pooler."), keep_head=False)
    assert fresh == ["classifier.weight", "classifier.bias"]
    assert left and all(name.startswith("cls.") for name in left)
    before = megabert.MegatronBertModel.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.bert.state_dict().items())


def test_weights_that_do_not_fit_stop_the_run(tmp_path):
    encoder = saved(tmp_path / "out")
    wider = megabert.MegatronBertConfig(**{**encoder.config, "intermediate_size": 32})
    with pytest.raises(ValueError, match=r"the weights do not fit: .* is \[16, 8\], not \[32, 8\]"):
        fill(megabert.MegatronBertForQuestionAnswering(wider), encoder, head=("qa_outputs.",), keep_head=False)


def test_another_vocabulary_is_noticed(tmp_path):
    own = saved(tmp_path / "own", tokenizer=tokenizer())
    assert check_vocabulary(own, tokenizer()) == []
    with pytest.raises(ValueError, match="the weights are uncased, the vocabulary is cased"):
        check_vocabulary(own, tokenizer(lower_case=False))
    small = saved(tmp_path / "small")
    with pytest.raises(ValueError, match=r"the tokenizer has 17 entries, but .* only 16"):
        check_vocabulary(small, tokenizer(17))
    assert check_vocabulary(small, tokenizer()) == []
    (warning,) = check_vocabulary(saved(tmp_path / "large", entries=2000), tokenizer())
    assert "2,000 entries and the tokenizer 16" in warning
    (warning,) = check_vocabulary(saved(tmp_path / "bert-cased"), tokenizer())
    assert "is cased by its name, but the tokenizer is uncased" in warning
    assert check_vocabulary(saved(tmp_path / "bert-uncased"), tokenizer()) == []
