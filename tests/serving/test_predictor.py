import pytest
import torch
import transformers

import megabert
from megabert.formats import huggingface
from megabert.serving.predictor import Predictor
from megabert.tokenization import word_piece

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijk", "##a", "."]
TEXTS = ["a b [MASK] c", "[MASK]", "a [MASK] b c d e f [MASK] g", "k j i h g f e d c b [MASK]"]


@pytest.fixture(scope="module")
def tokenizer():
    return word_piece.from_tokens(TOKENS, lower_case=True)


def make_model(name="MegatronBertForPreTraining", **changes):
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
        "max_position_embeddings": 16, "initializer_range": 0.5,
    }  # fmt: skip
    return getattr(megabert, name)(megabert.MegatronBertConfig(**(sizes | changes))).eval()


def by_hand(model, ids, position, segments=None):
    """Probabilities of the entries at a place, from one unpadded row."""
    with torch.no_grad():
        segments = None if segments is None else torch.tensor([segments])
        logits = model(input_ids=torch.tensor([ids]), token_type_ids=segments)[0]
    return logits[0, position, : len(TOKENS)].softmax(-1)


@pytest.mark.parametrize("batch_tokens", [1, 14, 8192])
def test_fill_mask_is_right_whatever_the_batches(tokenizer, batch_tokens):
    model = make_model()
    answers = Predictor(model, tokenizer, batch_tokens=batch_tokens).fill_mask(TEXTS, top_k=3)
    assert [len(masks) for masks in answers] == [1, 1, 2, 1]
    for text, masks in zip(TEXTS, answers, strict=True):
        ids = [2, *tokenizer.encode_batch([text])[0], 3]
        places = [place for place, entry in enumerate(ids) if entry == 4]
        for place, guesses in zip(places, masks, strict=True):
            values, entries = by_hand(model, ids, place).topk(3)
            assert [guess.token for guess in guesses] == [TOKENS[entry] for entry in entries]
            assert [guess.probability for guess in guesses] == pytest.approx(values.tolist(), abs=1e-5)


def test_entries_that_pad_the_vocabulary_are_never_guessed(tokenizer):
    model = make_model()
    with torch.no_grad():
        model.cls.predictions.bias[len(TOKENS) :] = 100.0
    ((guesses,),) = Predictor(model, tokenizer).fill_mask(["[MASK]"], top_k=99)
    assert sorted(guess.token for guess in guesses) == sorted(TOKENS)
    assert sum(guess.probability for guess in guesses) == pytest.approx(1.0, abs=1e-5)


def test_next_sentence(tokenizer):
    model = make_model()
    pairs = [("a b", "c"), ("c", "a b d e f g h"), ("a", "b")]
    answers = Predictor(model, tokenizer, batch_tokens=20).next_sentence(pairs)
    for (first, second), answer in zip(pairs, answers, strict=True):
        left, right = tokenizer.encode_batch([first, second])
        ids, segments = [2, *left, 3, *right, 3], [0] * (len(left) + 2) + [1] * (len(right) + 1)
        with torch.no_grad():
            logits = model(torch.tensor([ids]), token_type_ids=torch.tensor([segments])).seq_relationship_logits
        assert answer == pytest.approx(float(logits.softmax(-1)[0, 0]), abs=1e-5)
    assert len(set(answers)) == 3


@pytest.mark.parametrize(
    ("name", "changes", "masks", "pairs"),
    [
        ("MegatronBertForPreTraining", {}, True, True), ("MegatronBertForMaskedLM", {}, True, False),
        ("MegatronBertForNextSentencePrediction", {}, False, True),
        ("MegatronBertForPreTraining", {"add_binary_head": False}, True, False),
    ],
)  # fmt: skip
def test_every_head_is_found_in_its_folder(tmp_path, tokenizer, name, changes, masks, pairs):
    model = make_model(name, **changes)
    huggingface.write(model, tokenizer, tmp_path / "model")
    (tmp_path / "run.toml").write_text("")
    predictor = Predictor.from_path(tmp_path)
    if masks:
        ((found,),), ((expected,),) = (one.fill_mask(["a [MASK]"]) for one in (predictor, Predictor(model, tokenizer)))
        assert [guess.token for guess in found] == [guess.token for guess in expected]
        assert [guess.probability for guess in found] == pytest.approx([guess.probability for guess in expected])
    else:
        with pytest.raises(ValueError, match="no masked-word head"):
            predictor.fill_mask(["a [MASK]"])
    if pairs:
        expected = Predictor(model, tokenizer).next_sentence([("a", "b")])
        assert predictor.next_sentence([("a", "b")]) == pytest.approx(expected)
    else:
        with pytest.raises(ValueError, match="no sentence-pair head"):
            predictor.next_sentence([("a", "b")])


def test_bfloat16_is_close(tmp_path, tokenizer):
    huggingface.write(make_model(initializer_range=0.1), tokenizer, tmp_path / "model")
    exact = Predictor.from_path(tmp_path / "model").next_sentence([("a b", "c d")])
    rough = Predictor.from_path(tmp_path / "model", dtype=torch.bfloat16).next_sentence([("a b", "c d")])
    assert rough == pytest.approx(exact, abs=0.03)


def test_what_cannot_be_asked(tmp_path, tokenizer):
    predictor = Predictor(make_model(), tokenizer)
    with pytest.raises(ValueError, match=r"text 2 has no \[MASK\]: .*'b'"):
        predictor.fill_mask(["[MASK]", "b"])
    with pytest.raises(ValueError, match=r"text 1 is 22 tokens long, .* 16 at most"):
        predictor.fill_mask(["[MASK] " * 20])
    with pytest.raises(ValueError, match="16 at most"):
        predictor.next_sentence([("a " * 7, "b " * 7)])
    with pytest.raises(ValueError, match="no sentence-pair head"):
        Predictor(make_model(add_binary_head=False), tokenizer).next_sentence([("a", "b")])
    with pytest.raises(ValueError, match="18 entries, but the model only 8"):
        Predictor(make_model(vocab_size=8), tokenizer)


def test_folders_that_cannot_answer(tmp_path, tokenizer):
    huggingface.write(make_model(), None, tmp_path / "bare")
    with pytest.raises(ValueError, match="holds no tokenizer"):
        Predictor.from_path(tmp_path / "bare")
    huggingface.write(make_model("MegatronBertForTokenClassification"), tokenizer, tmp_path / "other")
    with pytest.raises(ValueError, match=r"neither a masked-word head .* MegatronBertForTokenClassification"):
        Predictor.from_path(tmp_path / "other")


def test_pair_meaning_follows_the_task_of_the_config(tokenizer):
    assert "swapped" in Predictor(make_model(pair_task="sop"), tokenizer).pair_meaning
    assert "another document" in Predictor(make_model(pair_task="nsp"), tokenizer).pair_meaning
    assert "follows the first" in Predictor(make_model(), tokenizer).pair_meaning


def test_answers_equal_those_of_transformers_pipeline(tmp_path, tokenizer):
    huggingface.write(make_model("MegatronBertForMaskedLM", vocab_size=len(TOKENS)), tokenizer, tmp_path / "model")
    pipeline = transformers.pipeline("fill-mask", model=str(tmp_path / "model"), top_k=4)
    ((ours,),) = Predictor.from_path(tmp_path / "model").fill_mask(["a b [MASK] c"], top_k=4)
    theirs = pipeline("a b [MASK] c")
    assert [guess.token for guess in ours] == [TOKENS[guess["token"]] for guess in theirs]
    assert [guess.probability for guess in ours] == pytest.approx([guess["score"] for guess in theirs], abs=1e-5)
