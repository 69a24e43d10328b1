import argparse
import shutil
import zipfile

import made
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megabert.formats import megatron, megatron_write, plausibility
from megabert.formats.megatron_write import Layout

PRETRAINING = ("lm_head", "binary_head", "pooler", "tokentypes")


def nested(tensors, transformer="transformer", attention="attention", order="v0", heads=4):
    """A model in Megatron's nesting, written by hand for one rank: a second opinion beside the table."""

    def pick(prefix):
        return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    encoder = {}
    layers = sum(name.endswith(".intermediate.dense.weight") for name in tensors)
    for layer in range(layers):
        ours = pick(f"bert.encoder.layer.{layer}.")
        theirs = f"layers.{layer}."
        for leaf in ("weight", "bias"):
            parts = [ours[f"attention.self.{name}.{leaf}"] for name in ("query", "key", "value")]
            split = [part.view(heads, -1, *part.shape[1:]) for part in parts]
            fused = {"v0": torch.cat(parts), "v1": torch.stack(split, 2).flatten(0, 2),
                     "v2": torch.stack(split, 1).flatten(0, 2)}[order]  # fmt: skip
            encoder[f"{theirs}input_layernorm.{leaf}"] = ours[f"attention.ln.{leaf}"]
            encoder[f"{theirs}{attention}.query_key_value.{leaf}"] = fused.clone()
            encoder[f"{theirs}{attention}.dense.{leaf}"] = ours[f"attention.output.dense.{leaf}"]
            encoder[f"{theirs}post_attention_layernorm.{leaf}"] = ours[f"ln.{leaf}"]
            encoder[f"{theirs}mlp.dense_h_to_4h.{leaf}"] = ours[f"intermediate.dense.{leaf}"]
            encoder[f"{theirs}mlp.dense_4h_to_h.{leaf}"] = ours[f"output.dense.{leaf}"]
    for leaf in ("weight", "bias"):
        encoder[f"final_layernorm.{leaf}"] = tensors[f"bert.encoder.ln.{leaf}"]
    embedding = pick("bert.embeddings.")
    head = {
        name.replace("LayerNorm", "layernorm"): tensor for name, tensor in pick("cls.predictions.transform.").items()
    }
    return {
        "language_model": {
            "embedding": {
                "word_embeddings": {"weight": embedding["word_embeddings.weight"]},
                "position_embeddings": {"weight": embedding["position_embeddings.weight"]},
                "tokentype_embeddings": {"weight": embedding["token_type_embeddings.weight"]},
            },
            transformer: encoder,
            "pooler": pick("bert.pooler."),
        },
        "lm_head": {"bias": tensors["cls.predictions.bias"], **head},
        "binary_head": pick("cls.seq_relationship."),
    }  # fmt: skip


def published(path, tensors, **content):
    (path / "release" / "mp_rank_00").mkdir(parents=True)
    torch.save({"model": nested(tensors), **content}, path / "release" / "mp_rank_00" / "model_optim_rng.pt",
               _use_new_zipfile_serialization=False)  # fmt: skip
    (path / "latest_checkpointed_iteration.txt").write_text("release")
    return path


@pytest.fixture
def tensors():
    return made.weights(hidden=128, inner=64, vocabulary=40, dtype=torch.float16)


@pytest.mark.parametrize("inside", ["", "release", "release/mp_rank_00", "release/mp_rank_00/model_optim_rng.pt"])
def test_the_published_345m_layout(tmp_path, tensors, inside):
    # fp16, no args, no version, the container of torch before 1.6; 2 heads of size 64.
    weights = made.weights(hidden=128, inner=64, dtype=torch.float16)
    folder = published(tmp_path, weights)
    model = nested(weights, heads=2)
    torch.save({"model": model, "iteration": 7}, folder / "release/mp_rank_00/model_optim_rng.pt",
               _use_new_zipfile_serialization=False)  # fmt: skip
    found = megatron.read(folder / inside)
    made.assert_equal(found.tensors, weights)
    assert found.config["num_attention_heads"] == 2 and found.config["hidden_act"] == "gelu"
    assert found.config["layer_norm_eps"] == 1e-5 and found.config["architectures"] == ["MegatronBertForPreTraining"]
    notes = " ".join(found.notes)
    assert "no checkpoint_version" in notes and "2 taken" in notes and "erf supposed" in notes


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_the_published_zip(tmp_path, tensors, compression):
    folder = published(tmp_path / "folder", tensors)
    path = tmp_path / "megatron_bert_345m_v0_1_uncased.zip"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in folder.rglob("*"):
            archive.write(file, file.relative_to(folder))
    before = path.read_bytes()
    made.assert_equal(megatron.read(path, heads=4).tensors, tensors)
    assert path.read_bytes() == before
    with zipfile.ZipFile(path, "a", compression) as archive:
        archive.writestr("release/vocab.txt", "[PAD]\n")
    assert megatron.read(path, heads=4).vocabulary == {"vocab.txt": b"[PAD]\n"}


@pytest.mark.parametrize(
    ("version", "order"), [(None, "v0"), (0, "v0"), (1, "v1"), (1.0, "v1"), (2.0, "v2"), (3.0, "v2")]
)
@pytest.mark.parametrize("names", [("transformer", "attention"), ("encoder", "self_attention")])
def test_versions_and_names(tmp_path, version, order, names):
    weights = made.weights()
    content = {} if version is None else {"checkpoint_version": version}
    arguments = argparse.Namespace(num_attention_heads=4, layernorm_epsilon=1e-6, bias_gelu_fusion=False)
    torch.save({"model": nested(weights, *names, order=order), "args": arguments, **content}, tmp_path / "x.pt")
    found = megatron.read(tmp_path / "x.pt")
    made.assert_equal(found.tensors, weights)
    assert found.config["layer_norm_eps"] == 1e-6 and found.config["hidden_act"] == "gelu"


def test_a_wrong_stamp_can_be_overruled_and_is_doubted(tmp_path):
    weights = made.weights(layers=3)
    for name in list(weights):
        if name.endswith("key.bias"):
            weights[name] *= 0.01  # as in every trained model
    torch.save({"model": nested(weights, order="v0"), "checkpoint_version": 3.0,
                "args": argparse.Namespace(num_attention_heads=4)}, tmp_path / "x.pt")  # fmt: skip
    taken = megatron.read(tmp_path / "x.pt")
    assert "doubtful" in " ".join(taken.notes) and "--assume-qkv-layout v0" in " ".join(taken.notes)
    right = megatron.read(tmp_path / "x.pt", order="v0")
    made.assert_equal(right.tensors, weights)
    assert "doubtful" not in " ".join(right.notes)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("order", ["v0", "v1", "v2"])
def test_the_right_order_is_not_doubted(order, ranks):
    weights = made.weights(layers=3)
    for name in list(weights):
        if name.endswith("key.bias"):
            weights[name] *= 0.01
    assert plausibility.doubt(made.checkpoint(weights), order, ranks) is None
    assert plausibility.doubt(made.checkpoint(made.weights(layers=3)), order, ranks) is None


SIZES = st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([(1, 1), (2, 1), (4, 1), (2, 2)]))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SIZES, st.sampled_from(["v1", "v2", "v4"]), st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
       st.sets(st.sampled_from(PRETRAINING)), st.integers(3, 50), st.integers(0, 9))  # fmt: skip
def test_any_cut_round_trips_bit_for_bit(tmp_path, cut, era, dtype, parts, vocabulary, seed):
    tensor, (pipeline, chunks) = cut
    era = "v2" if pipeline > 1 and era == "v1" else era
    weights = made.weights(layers=4, vocabulary=vocabulary, dtype=dtype, parts=tuple(parts), seed=seed)
    source = made.checkpoint(weights, optimizer=True, training={"iteration": 12, "consumed_train_samples": 96})
    layout = Layout(tensor=tensor, pipeline=pipeline, chunks=chunks, era=era, divisible_by=8)
    megatron_write.write(source, tmp_path / "x", layout=layout, overwrite=True)
    found = megatron.read(tmp_path / "x")
    made.assert_equal(found.tensors, weights)
    assert {name: found.config[name] for name in source.config} == source.config
    assert found.training["iteration"] == 12 and found.training["consumed_train_samples"] == 96
    made.assert_equal(found.optimizer, made.loaded(source.optimizer))


@pytest.mark.parametrize(
    ("part", "head"), [("classification", "classification_head"), ("multiple_choice", "multichoice_head")]
)
def test_task_heads(tmp_path, part, head):
    weights = made.weights(parts=("pooler", "tokentypes", part))
    source = made.checkpoint(weights)
    source.config["architectures"] = [
        "MegatronBertForMultipleChoice" if part == "multiple_choice" else "MegatronBertForSequenceClassification"
    ]
    megatron_write.write(source, tmp_path / "x", layout=Layout(tensor=2))
    content = torch.load(tmp_path / "x/release/mp_rank_00/model_optim_rng.pt", weights_only=False)
    assert set(content["model"]) == {"language_model", head}
    found = megatron.read(tmp_path / "x")
    made.assert_equal(found.tensors, weights)
    assert part in found.parts and found.config["architectures"] == source.config["architectures"]


def test_what_is_written_is_what_megatron_writes(tmp_path):
    weights = made.weights(layers=4, vocabulary=40)
    source = made.checkpoint(weights, optimizer=True, training={"iteration": 1000})
    notes = megatron_write.write(source, tmp_path / "x", layout=Layout(tensor=2, pipeline=2))
    assert (tmp_path / "x/latest_checkpointed_iteration.txt").read_text() == "1000"
    folder = tmp_path / "x" / "iter_0001000"
    assert sorted(path.name for path in folder.iterdir()) == [
        "mp_rank_00_000", "mp_rank_00_001", "mp_rank_01_000", "mp_rank_01_001"
    ]  # fmt: skip
    first, last = (
        torch.load(folder / f"mp_rank_01_00{stage}/model_optim_rng.pt", weights_only=False) for stage in (0, 1)
    )
    assert first["checkpoint_version"] == 3.0 and first["iteration"] == 1000
    assert first["args"].padded_vocab_size == 256 and first["args"].num_attention_heads == 4
    assert set(first["model"]) == {"language_model"} and set(first["model"]["language_model"]) == {
        "embedding",
        "encoder",
    }
    assert set(last["model"]) == {"language_model", "word_embeddings_for_head", "lm_head", "binary_head"}
    assert set(last["model"]["language_model"]) == {"encoder", "pooler"}
    assert last["model"]["lm_head"]["bias"].shape == (128,)
    assert {name.split(".")[1] for name in last["model"]["language_model"]["encoder"] if name[0] == "l"} == {"0", "1"}
    query = weights["bert.encoder.layer.2.attention.self.query.weight"]
    fused = last["model"]["language_model"]["encoder"]["layers.0.self_attention.query_key_value.weight"]
    assert torch.equal(fused[:4], query[8:12])  # head 2 is the first of rank 1
    groups = last["optimizer"]["optimizer"]["param_groups"]
    assert [len(group["params"]) for group in groups] == [4 * 2 + 4, 8 * 2 + 8] and groups[1]["weight_decay"] == 0.0
    assert "216 rows of padding" in " ".join(notes)


def test_the_count_of_optimizer_parameters_of_the_345m_model():
    from megabert.formats import bert_names, megatron_optimizer

    names = [row.theirs for row in bert_names.legacy(24) if "classification" not in row.theirs]
    decayed, others = megatron_optimizer.groups(names)
    assert (len(decayed), len(others)) == (102, 200)
    assert decayed[3] == "language_model.encoder.layers.0.self_attention.query_key_value.weight"
    assert others[-5:] == ["lm_head.bias", "lm_head.dense.bias", "lm_head.layernorm.weight", "lm_head.layernorm.bias",
                           "binary_head.bias"]  # fmt: skip


def write(tmp_path, **layout):
    source = made.checkpoint(made.weights(layers=4), optimizer=True, training={"iteration": 5})
    megatron_write.write(source, tmp_path / "x", layout=Layout(**layout))
    return tmp_path / "x" / "iter_0000005"


def changed(path, change):
    content = torch.load(path, weights_only=False)
    change(content)
    torch.save(content, path)


def test_a_missing_rank_is_named(tmp_path):
    folder = write(tmp_path, tensor=2, pipeline=2)
    shutil.rmtree(folder / "mp_rank_01_001")
    with pytest.raises(ValueError, match=r"tensor rank 1 of stage 1 is missing \(mp_rank_01_001\)"):
        megatron.read(tmp_path / "x")
    shutil.rmtree(folder / "mp_rank_01_000")
    with pytest.raises(ValueError, match="arguments tell of 2 tensor-parallel ranks, but 1 is there"):
        megatron.read(tmp_path / "x")


def test_ranks_of_other_runs_are_named(tmp_path):
    folder = write(tmp_path, tensor=2)
    file = folder / "mp_rank_01" / "model_optim_rng.pt"
    changed(file, lambda content: content.update(iteration=6))
    with pytest.raises(ValueError, match=r"mp_rank_01.*not of one run"):
        megatron.read(tmp_path / "x")
    changed(file, lambda content: content.update(iteration=5, checkpoint_version=2.0))
    with pytest.raises(ValueError, match="checkpoint_version 2, but 3"):
        megatron.read(tmp_path / "x")


def test_damage_names_file_and_key(tmp_path):
    folder = write(tmp_path, tensor=2)
    file = folder / "mp_rank_01" / "model_optim_rng.pt"
    whole = file.read_bytes()
    key = "layers.0.mlp.dense_h_to_4h.weight"
    changed(file, lambda content: content["model"]["language_model"]["encoder"].update({key: torch.zeros(16, 17)}))
    with pytest.raises(ValueError, match=rf"mp_rank_01/model_optim_rng\.pt: .*{key}"):
        megatron.read(tmp_path / "x")
    file.write_bytes(whole)
    changed(file, lambda content: content["model"]["language_model"]["encoder"].pop(key))
    with pytest.raises(ValueError, match=rf"rank 1 of 2 lacks .*{key}"):
        megatron.read(tmp_path / "x")
    file.write_bytes(whole)
    changed(file, lambda content: content["optimizer"]["optimizer"]["state"].pop(3))
    with pytest.raises(ValueError, match=r"optimizer: 61 states do not fit 62 weights; give --no-optimizer"):
        megatron.read(tmp_path / "x")
    assert not megatron.read(tmp_path / "x", optimizer=False).optimizer
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"mp_rank_01/model_optim_rng\.pt is damaged"):
        megatron.read(tmp_path / "x")


def test_the_tracker_chooses(tmp_path):
    write(tmp_path)
    root = tmp_path / "x"
    shutil.copytree(root / "iter_0000005", root / "iter_0000009")
    assert "iter_0000005" in megatron.read(root).notes[0]
    (root / "latest_checkpointed_iteration.txt").write_text("7")
    with pytest.raises(ValueError, match="names iter_0000007, which is not there"):
        megatron.read(root)
    (root / "latest_checkpointed_iteration.txt").write_text("../../etc")
    with pytest.raises(ValueError, match="a number of iterations or the word release"):
        megatron.read(root)
    (root / "latest_checkpointed_iteration.txt").unlink()
    with pytest.raises(ValueError, match=r"2 checkpoints and no latest_checkpointed_iteration\.txt"):
        megatron.read(root)


def test_folders_of_a_distributed_optimizer_are_no_ranks(tmp_path):
    folder = write(tmp_path, tensor=2)
    for rank in ("mp_rank_00_000", "mp_rank_01_000"):
        (folder / rank).mkdir()
        torch.save({"flat": torch.ones(4)}, folder / rank / "optim.pt")
        shutil.move(folder / rank[:10] / "model_optim_rng.pt", folder / rank[:10] / "model_rng.pt")
    found = megatron.read(tmp_path / "x")
    assert not found.optimizer and "distributed optimizer" in " ".join(found.notes)


def test_what_has_no_place_is_refused_before_anything_is_written(tmp_path):
    source = made.checkpoint(made.weights(parts=("untied", "lm_head")))
    for checkpoint, layout, message in (
        (source, Layout(), r"no place for cls\.predictions\.decoder\.weight"),
        (made.checkpoint(made.weights()), Layout(tensor=3), "cannot be shared by 3"),
        (made.checkpoint(made.weights()), Layout(pipeline=3), "2 layers cannot be cut into 3"),
        (made.checkpoint(made.weights()), Layout(era="v1", pipeline=2), "had no pipeline"),
    ):
        with pytest.raises(ValueError, match=message):
            megatron_write.write(checkpoint, tmp_path / "x", layout=layout)
    assert not list(tmp_path.iterdir())


def test_biencoders_and_other_networks_are_refused(tmp_path):
    weights = made.weights(hidden=128)
    model = nested(weights)
    torch.save({"model": {"query_model": model, "context_model": model}}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="several encoders"):
        megatron.read(tmp_path / "x.pt")
    torch.save({"model": model, "args": argparse.Namespace(swiglu=True)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="swiglu"):
        megatron.read(tmp_path / "x.pt")


def post_layernorm(fused):
    from transformers import BertConfig, BertForPreTraining

    torch.manual_seed(3)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 12}
    config = BertConfig(vocab_size=40, hidden_size=128, **sizes)
    model = BertForPreTraining(config).eval()
    ours = {name: tensor for name, tensor in model.state_dict().items() if "decoder" not in name}
    theirs = {}
    for name, tensor in ours.items():
        if fused and ".self." in name:
            if ".query." in name:
                parts = [ours[name.replace("query", part)] for part in ("query", "key", "value")]
                theirs[name.replace("query", "query_key_value")] = torch.cat(parts)
        else:
            theirs[name] = tensor
    theirs["cls.predictions.decoder_weight" if fused else "cls.predictions.decoder.weight"] = ours[
        "bert.embeddings.word_embeddings.weight"
    ]
    return model, ours, theirs


@pytest.mark.parametrize("fused", [False, True])
def test_the_first_generations_are_post_layernorm(tmp_path, fused):
    from megabert.formats import verify

    model, ours, theirs = post_layernorm(fused)
    wrapped = {f"module.{name}": tensor for name, tensor in theirs.items()}
    content = {"model": theirs, "iteration": 3} if fused else {"sd": wrapped, "total_iters": 3, "epoch": 1}
    torch.save(content, tmp_path / "model.pt", _use_new_zipfile_serialization=False)
    found = megatron.read(tmp_path / "model.pt")
    assert found.family == "bert" and found.config["architectures"] == ["BertForPreTraining"]
    made.assert_equal(found.tensors, ours)
    assert found.training["iteration"] == 3
    assert not any("eleven" in note for note in found.notes)
    types = "bert.embeddings.token_type_embeddings.weight"
    eleven = content | {"model" if fused else "sd": {
        name: torch.zeros(11, 128) if name.endswith(types) else tensor
        for name, tensor in (theirs if fused else wrapped).items()
    }}  # fmt: skip
    torch.save(eleven, tmp_path / "eleven.pt")
    assert any("two texts are 2 and 3" in note for note in megatron.read(tmp_path / "eleven.pt").notes)
    if not fused:
        answers = verify.logits(found, 40)
        inputs = verify.fixed_inputs(found.config, 40)
        with torch.no_grad():
            expected = model(**inputs).prediction_logits[inputs["attention_mask"].bool()]
        assert torch.allclose(answers["prediction_logits"], expected, atol=1e-6)
    with pytest.raises(ValueError, match="post-LayerNorm"):
        megatron_write.write(found, tmp_path / "y")
