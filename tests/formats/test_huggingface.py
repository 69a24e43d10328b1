import json
import os
import shutil
import signal

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import megabert
from megabert.formats import huggingface, huggingface_checkpoint
from megabert.tokenization import opening, word_piece

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijk"]


@pytest.fixture(scope="module")
def tokenizer():
    return word_piece.from_tokens(TOKENS, lower_case=True)


def make_model(name="MegatronBertForPreTraining", **changes):
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 24, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
        "max_position_embeddings": 16,
    }  # fmt: skip
    return getattr(megabert, name)(megabert.MegatronBertConfig(**(sizes | changes))).eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("saved") / "model"
    huggingface.write(make_model(), tokenizer, folder)
    return folder


@pytest.fixture
def folder(tmp_path, saved):
    return shutil.copytree(saved, tmp_path / "model")


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


INPUTS = {"input_ids": torch.tensor([[2, 5, 6, 4, 3, 0]]), "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0]])}


def test_plain_transformers_opens_the_folder_and_gives_the_same_logits(saved):
    theirs = transformers.MegatronBertForPreTraining.from_pretrained(saved)
    ours = make_model()
    with torch.no_grad():
        for mine, other in zip(ours(**INPUTS)[:2], theirs(**INPUTS)[:2], strict=True):
            torch.testing.assert_close(
                mine[:, :5] if mine.dim() == 3 else mine, other[:, :5] if other.dim() == 3 else other
            )
    tokenizer = transformers.AutoTokenizer.from_pretrained(saved)
    assert tokenizer("a b")["input_ids"] == [2, 5, 6, 3]
    assert len(tokenizer("a " * 50, truncation=True)["input_ids"]) == 16
    assert sorted(path.name for path in saved.parent.iterdir()) == ["model"]


@pytest.mark.parametrize("untied", [False, True])
def test_round_trip(tmp_path, tokenizer, untied):
    model = make_model(tie_word_embeddings=not untied)
    huggingface.write(model, tokenizer, tmp_path / "model")
    back, missing = huggingface.load(tmp_path / "model", megabert.MegatronBertForPreTraining)
    assert missing == [] and not back.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, back.state_dict()[name]), name
    tied = back.cls.predictions.decoder.weight is back.bert.embeddings.word_embeddings.weight
    assert tied is not untied


def test_dtype(saved):
    model, _ = huggingface.load(saved, megabert.MegatronBertForPreTraining, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_facts(saved):
    facts = huggingface.read_facts(saved)
    assert facts.parameters == sum(parameter.numel() for parameter in make_model().parameters())
    assert facts.dtypes == ("F32",) and facts.tokenizer and facts.architecture == "MegatronBertForPreTraining"
    assert facts.config["hidden_size"] == 16


def test_model_without_pair_head_is_named_a_masked_language_model(tmp_path):
    huggingface.write(make_model(add_binary_head=False), None, tmp_path / "model")
    facts = huggingface.read_facts(tmp_path / "model")
    assert facts.architecture == "MegatronBertForMaskedLM"
    assert not any("pooler" in name or "seq_relationship" in name for name in facts.tensors)
    huggingface.load(tmp_path / "model", megabert.MegatronBertForMaskedLM)
    _, report = transformers.MegatronBertForMaskedLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(report.values())


def test_fresh_head_only_where_it_is_asked_for(saved, tmp_path):
    with pytest.raises(ValueError, match="do not fit MegatronBertForSequenceClassification"):
        huggingface.load(saved, megabert.MegatronBertForSequenceClassification)
    plain = tmp_path / "encoder"
    huggingface.write(make_model("MegatronBertModel"), None, plain)
    with pytest.raises(ValueError, match=r"cls\.predictions\.bias is missing"):
        huggingface.load(plain, megabert.MegatronBertForMaskedLM, fresh=("bert.pooler.",))


def test_encoder_without_heads_takes_fresh_ones(tmp_path):
    encoder = make_model("MegatronBertModel")
    huggingface.write(encoder, None, tmp_path / "encoder")
    model, missing = huggingface.load(
        tmp_path / "encoder", megabert.MegatronBertForSequenceClassification, fresh=("classifier.",)
    )
    assert missing == ["classifier.weight", "classifier.bias"]
    assert torch.equal(model.bert.encoder.ln.weight, encoder.encoder.ln.weight)
    assert torch.equal(model.bert.pooler.dense.weight, encoder.pooler.dense.weight)


def test_missing_head_is_named_when_allowed(tmp_path):
    huggingface.write(make_model(), None, tmp_path / "model")
    edit_weights(tmp_path / "model", lambda tensors: tensors.pop("cls.seq_relationship.bias"))
    _, missing = huggingface.load(tmp_path / "model", megabert.MegatronBertForPreTraining, fresh=("cls.seq_",))
    assert missing == ["cls.seq_relationship.bias"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("bert.encoder.ln.weight"), r"bert\.encoder\.ln\.weight is missing"),
        (lambda tensors: tensors.update(extra=torch.zeros(2)), "extra is not known to it"),
        (lambda tensors: tensors.update({"bert.pooler.dense.bias": torch.zeros(3)}),
         r"bert\.pooler\.dense\.bias is \[3\] there and \[16\] by config\.json"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit(folder, change, message):
    edit_weights(folder, change)
    with pytest.raises(ValueError, match=message):
        huggingface.load(folder, megabert.MegatronBertForPreTraining)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10**9}, "layers do not fit"), ({"vocab_size": 99}, r"\[24, 16\] there and \[99, 16\]"),
        ({"num_attention_heads": 5}, "describes no model"), ({"hidden_act": "nope"}, "describes no model"),
        ({"model_type": "bert"}, "'megatron-bert' is needed"), ({"hidden_size": "big"}, "describes no model"),
        ({"num_labels": 10**8}, "num_labels 100,000,000"), ({"vocab_size": 10**15}, "vocab_size"),
    ],
)  # fmt: skip
def test_configs_that_do_not_fit(folder, changes, message):
    edit_config(folder, **changes)
    with pytest.raises(ValueError, match=message) as failure:
        huggingface.load(folder, megabert.MegatronBertForPreTraining)
    assert "\n" not in str(failure.value)


def test_truncated_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="is damaged"):
        huggingface.read_facts(folder)


def test_pickled_weights_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickle"):
        huggingface.read_facts(folder)


def test_sharded_weights(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path / "model", max_shard_size="8KB")
    assert (tmp_path / "model" / "model.safetensors.index.json").is_file()
    back, _ = huggingface.load(tmp_path / "model", megabert.MegatronBertForPreTraining)
    assert torch.equal(back.bert.encoder.ln.weight, model.bert.encoder.ln.weight)
    (tmp_path / "model" / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../etc/passwd"}}')
    with pytest.raises(ValueError, match="which is no file of this folder"):
        huggingface.read_facts(tmp_path / "model")


def test_what_was_there_is_replaced_whole(folder, tokenizer):
    (folder / "stale.txt").write_text("left over")
    for name in (".model.1.part", ".model.1.replaced"):
        (folder.parent / name).mkdir()  # of a process that was killed
    model = make_model(num_hidden_layers=1)
    huggingface.write(model, tokenizer, folder)
    assert huggingface.read_facts(folder).config["num_hidden_layers"] == 1
    assert not (folder / "stale.txt").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_failed_write_leaves_what_was_there(folder, tokenizer, monkeypatch):
    before = (folder / "model.safetensors").read_bytes()
    monkeypatch.setattr(tokenizer, "save", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        huggingface.write(make_model(num_hidden_layers=1), tokenizer, folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_folder_of_something_else_is_not_replaced(tmp_path, tokenizer):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"holds thesis\.tex"):
        huggingface.write(make_model(), tokenizer, tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def write_and_die(folder, tokenizer, countdown):
    """Replace the model in another process, which is killed at its `countdown`-th sync to the disk."""
    process = os.fork()
    if process:
        assert os.waitpid(process, 0)[1] == signal.SIGKILL
        return
    sync = os.fsync

    def fsync(descriptor):
        nonlocal countdown
        countdown -= 1
        if countdown == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        sync(descriptor)

    os.fsync = fsync
    huggingface.write(make_model(num_hidden_layers=1), tokenizer, folder)
    os._exit(1)


def test_kill_in_the_middle_leaves_a_whole_model(folder, tokenizer):
    # Three files of the tokenizer with their folder, five files of the model, its folder; renamed at last, the parent.
    for countdown in range(1, 14):
        write_and_die(folder, tokenizer, countdown)
        assert huggingface.read_facts(folder).config["num_hidden_layers"] == (1 if countdown == 13 else 2)
        huggingface.load(folder, megabert.MegatronBertForPreTraining)
        assert opening.load(folder).tokens == TOKENS
    huggingface.write(make_model(), None, folder)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_untied_folders_open_in_plain_transformers_without_a_report(tmp_path):
    model = make_model(tie_word_embeddings=False)
    huggingface.write(model, None, tmp_path / "model")
    _, report = transformers.MegatronBertForPreTraining.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    _, report = megabert.MegatronBertForPreTraining.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"apply_residual_connection_post_layernorm": True}, "residual is taken after each LayerNorm"),
        ({"hidden_act": "gelu_pytorch_tanh", "head_act": "gelu"}, "gelu in the masked-word head"),
    ],
)
def test_what_plain_transformers_computes_otherwise_does_not_open_in_silence(tmp_path, settings, said):
    model = make_model(**settings)
    huggingface.write(model, None, tmp_path / "model")
    assert (
        said in huggingface.foreign_settings(model.config)[0] and said in (tmp_path / "model" / "README.md").read_text()
    )
    for name in ("MegatronBertForPreTraining", "MegatronBertModel"):
        _, report = getattr(transformers, name).from_pretrained(tmp_path / "model", output_loading_info=True)
        assert "megabert_only.plain_transformers_computes_other_numbers" in report["unexpected_keys"]
        _, report = getattr(megabert, name).from_pretrained(tmp_path / "model", output_loading_info=True)
        assert not report["missing_keys"] and not [key for key in report["unexpected_keys"] if "megabert" in key]
    huggingface.load(tmp_path / "model", megabert.MegatronBertForPreTraining)
    assert not any("megabert_only" in name for name in huggingface_checkpoint.read(tmp_path / "model").tensors)
