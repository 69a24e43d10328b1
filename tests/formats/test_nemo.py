import io
import json
import os
import pickle
import tarfile
from collections import OrderedDict

import made
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MegatronBertConfig

from megabert.formats import checkpoints, megatron_core_write, nemo, nemo_write
from megabert.formats.nemo_write import Layout
from megabert.models import auto

VOCABULARY = b"".join(b"%d\n" % number for number in range(40))


def write(checkpoint, path, **layout):
    return nemo_write.write(checkpoint, path, layout=Layout(**{"divisible_by": 1, **layout}))


def names_in(path):
    with tarfile.open(path) as tar:
        return [entry.name for entry in tar.getmembers() if entry.isfile()]


def legacy_state(tensors, heads, order, prefix="bert_model."):
    """A Megatron encoder's state as NeMo keeps it; rows of the fused weight in the given order."""
    state = OrderedDict()
    base = f"{prefix}language_model."
    for ours, theirs in (("word", "word"), ("position", "position"), ("token_type", "tokentype")):
        name = f"bert.embeddings.{ours}_embeddings.weight"
        state[f"{base}embedding.{theirs}_embeddings.weight"] = tensors[name]
    layers = sum(name.endswith("intermediate.dense.weight") for name in tensors)
    for layer in range(layers):
        ours, theirs = f"bert.encoder.layer.{layer}.", f"{base}encoder.layers.{layer}."
        for leaf in ("weight", "bias"):
            parts = [tensors[f"{ours}attention.self.{name}.{leaf}"] for name in ("query", "key", "value")]
            cut = [part.reshape(heads, -1, *part.shape[1:]) for part in parts]
            fused = torch.stack(cut, {"v0": 0, "v1": 2, "v2": 1}[order])
            state[f"{theirs}self_attention.query_key_value.{leaf}"] = fused.reshape(-1, *parts[0].shape[1:])
            for mine, other in {
                "attention.ln": "input_layernorm", "attention.output.dense": "self_attention.dense",
                "ln": "post_attention_layernorm", "intermediate.dense": "mlp.dense_h_to_4h",
                "output.dense": "mlp.dense_4h_to_h",
            }.items():  # fmt: skip
                state[f"{theirs}{other}.{leaf}"] = tensors[f"{ours}{mine}.{leaf}"]
    for leaf in ("weight", "bias"):
        state[f"{base}encoder.final_layernorm.{leaf}"] = tensors[f"bert.encoder.ln.{leaf}"]
    return state


def archive_of(path, members, *, compressed=True, dotted=True):
    with tarfile.open(path, "w:gz" if compressed else "w") as tar:
        for name, content in members.items():
            if not isinstance(content, bytes):
                buffer = io.BytesIO()
                torch.save(content, buffer)
                content = buffer.getvalue()
            info = tarfile.TarInfo(("./" if dotted else "") + name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


ENCODER = json.dumps({"hidden-size": 16, "num-attention-heads": 4, "num-layers": 2, "max-seq-length": 12}).encode()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"tensor": 2},
        {"tensor": 2, "pipeline": 2},
        {"compressed": True},
        {"folder": True, "ranks": True},
        {"generation": "1.0"},
        {"generation": "1.0", "tensor": 4},
        {"generation": "2021-05", "tensor": 2},
        {"generation": "2021-05", "folder": True},
    ],
)
def test_round_trip_is_bit_equal(tmp_path, layout, dtype):
    tensors = made.weights(dtype=dtype)
    checkpoint = made.checkpoint(tensors, vocabulary={"vocab.txt": VOCABULARY})
    notes = write(checkpoint, tmp_path / "out.nemo", **layout)
    assert bool(notes) == (layout.get("generation", "1.7") != "1.7")
    read = nemo.read(tmp_path / "out.nemo")
    made.assert_equal(read.tensors, tensors)
    assert read.config == checkpoint.config
    assert read.vocabulary == {"vocab.txt": VOCABULARY}
    write(checkpoint, tmp_path / "again.nemo", **layout)
    if (tmp_path / "out.nemo").is_file():
        assert (tmp_path / "out.nemo").read_bytes() == (tmp_path / "again.nemo").read_bytes()


@settings(max_examples=20, deadline=None)
@given(
    st.data(),
    st.sampled_from(["1.7", "1.0", "2021-05"]),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    st.sets(st.sampled_from(["lm_head", "pooler", "tokentypes", "binary_head"])),
    st.sampled_from(["", "classification", "multiple_choice"]),
)
def test_any_shape_and_parts_round_trip(tmp_path_factory, data, generation, dtype, parts, head):
    tensor = data.draw(st.sampled_from([1, 2, 3]))
    pipeline = data.draw(st.sampled_from([1, 2])) if generation == "1.7" else 1
    heads = tensor * data.draw(st.integers(1, 3))
    hidden = heads * data.draw(st.sampled_from([1, 2, 4]))
    tensors = made.weights(
        layers=pipeline * data.draw(st.integers(1, 3)), hidden=hidden, inner=tensor * data.draw(st.integers(1, 9)),
        vocabulary=data.draw(st.integers(5, 40)), dtype=dtype, parts=(*parts, "pooler", head),
    )  # fmt: skip
    layout = Layout(
        generation=generation, tensor=tensor, pipeline=pipeline, ranks=data.draw(st.booleans()),
        divisible_by=data.draw(st.sampled_from([1, 8])), folder=data.draw(st.booleans()),
    )  # fmt: skip
    path = tmp_path_factory.mktemp("nemo") / "out.nemo"
    nemo_write.write(made.checkpoint(tensors, heads=heads), path, layout=layout)
    made.assert_equal(nemo.read(path).tensors, tensors)


def test_the_documented_layout(tmp_path):
    checkpoint = made.checkpoint(made.weights(), vocabulary={"vocab.txt": VOCABULARY})
    write(checkpoint, tmp_path / "a.nemo", generation="2021-05", tensor=2)
    assert (tmp_path / "a.nemo").read_bytes()[:2] == b"\x1f\x8b"
    assert sorted(names_in(tmp_path / "a.nemo")) == [
        "megatron-bert-uncased_encoder_config.json", "megatron_checkpoint_version.json", "model_config.yaml",
        "mp_rank_00/model_weights.ckpt", "mp_rank_01/model_weights.ckpt", "tokenizer.vocab_file",
        "tokenizer_vocab_dict.json",
    ]  # fmt: skip
    write(checkpoint, tmp_path / "b.nemo", generation="1.0")
    plain = [name.split("_", 1) for name in names_in(tmp_path / "b.nemo")]
    assert all(len(first) == 32 for first, *_ in plain if first != "model")
    write(checkpoint, tmp_path / "c.nemo", tensor=2, pipeline=2)
    assert "tp_rank_01_pp_rank_001/model_weights.ckpt" in names_in(tmp_path / "c.nemo")
    with tarfile.open(tmp_path / "c.nemo") as tar:
        config = yaml.safe_load(tar.extractfile("model_config.yaml").read())
        weights = torch.load(tar.extractfile("tp_rank_01_pp_rank_001/model_weights.ckpt"), weights_only=True)
    assert config["num_attention_heads"] == 4 and config["layernorm_epsilon"] == 1e-5
    assert config["target"].endswith(".MegatronBertModel") and config["tokenizer"]["vocab_file"].startswith("nemo:")
    assert "model.language_model.encoder.layers.0.self_attention.query_key_value.weight" in weights
    assert "model.lm_head.bias" in weights


@pytest.mark.parametrize("order", ["v0", "v1", "v2"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_order_of_the_fused_rows_by_the_version_file(tmp_path, order, ranks):
    tensors = made.weights(parts=("tokentypes",))
    version = {"v0": 0, "v1": 1.0, "v2": 2.0}[order]
    members = {
        "model_config.yaml": b"target: nemo.x.TextClassificationModel\n",
        "0123456789abcdef0123456789abcdef_megatron-bert-uncased_encoder_config.json": ENCODER,
        "0123456789abcdef0123456789abcdef_megatron_checkpoint_version.json": json.dumps(
            {"checkpoint_version": version}
        ).encode(),
        "0123456789abcdef0123456789abcdef_tokenizer_vocab_dict": json.dumps({"b": 1, "a": 0}).encode(),
    }
    if ranks == 1:
        members["model_weights.ckpt"] = legacy_state(tensors, 4, order)
    for rank in range(ranks if ranks > 1 else 0):
        members[f"mp_rank_{rank:02d}/model_weights.ckpt"] = legacy_state(_share(tensors, rank), 2, order)
    read = nemo.read(archive_of(tmp_path / "x.nemo", members))
    made.assert_equal(read.tensors, tensors)
    assert read.config["num_attention_heads"] == 4
    assert read.config["layer_norm_eps"] == 1e-5 and read.config["hidden_act"] == "gelu"
    assert read.vocabulary == {"vocab.txt": b"a\nb\n"}
    assert any(f"checkpoint_version {version:g}" in note for note in read.notes)


def _share(tensors, rank):
    """What one of two tensor ranks holds."""
    found = {}
    for name, tensor in tensors.items():
        dim = None
        if "word_embeddings" in name or ".attention.self." in name or ".intermediate." in name:
            dim = 0
        elif name.endswith(("output.dense.weight",)):
            dim = 1
        found[name] = tensor if dim is None else tensor.chunk(2, dim)[rank].clone()
    return found


def test_where_no_version_is_said(tmp_path):
    tensors = made.weights(parts=("tokentypes",))
    encoder = {"a_encoder_config.json": ENCODER}
    old = {**encoder, "model_config.yaml": b"target: x\n", "model_weights.ckpt": legacy_state(tensors, 4, "v0")}
    read = nemo.read(archive_of(tmp_path / "old.nemo", old))
    made.assert_equal(read.tensors, tensors)
    assert any("--assume-qkv-layout" in note for note in read.notes)
    later = {**old, "model_weights.ckpt": legacy_state(tensors, 4, "v2")}
    made.assert_equal(nemo.read(archive_of(tmp_path / "later.nemo", later), order="v2").tensors, tensors)
    recent = {
        "model_config.yaml": b"nemo_version: 1.10.0\nnum_attention_heads: 4\nlayernorm_epsilon: 1e-6\n",
        "model_weights.ckpt": legacy_state(tensors, 4, "v2", "model."),
    }
    read = nemo.read(archive_of(tmp_path / "recent.nemo", recent, compressed=False, dotted=False))
    made.assert_equal(read.tensors, tensors)
    assert read.config["layer_norm_eps"] == 1e-6 and read.config["hidden_act"] == "gelu_pytorch_tanh"
    recent["model_config.yaml"] += b"megatron_legacy: true\n"
    recent["model_weights.ckpt"] = legacy_state(tensors, 4, "v0", "model.")
    made.assert_equal(nemo.read(archive_of(tmp_path / "legacy.nemo", recent)).tensors, tensors)


def test_lightning_files_and_folders_of_ranks(tmp_path):
    tensors = made.weights(parts=("tokentypes",))
    for rank in range(2):
        folder = tmp_path / "checkpoints" / f"tp_rank_{rank:02d}_pp_rank_000"
        folder.mkdir(parents=True)
        content = {
            "state_dict": legacy_state(_share(tensors, rank), 2, "v2", "model."),
            "pytorch-lightning_version": "1.9.5",
            "hyper_parameters": {"cfg": {"num_attention_heads": 4, "nemo_version": "1.20.0"}},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}],
        }
        torch.save(content, folder / "megatron_bert--val_loss=0.35-epoch=0-last.ckpt")
        torch.save({}, folder / "megatron_bert--val_loss=0.45-epoch=0.ckpt")
    read = nemo.read(tmp_path / "checkpoints")
    made.assert_equal(read.tensors, tensors)
    assert read.config["num_attention_heads"] == 4
    alone = tmp_path / "alone.ckpt"
    torch.save({**content, "state_dict": legacy_state(tensors, 4, "v2", "model.")}, alone)
    made.assert_equal(nemo.read(alone).tensors, tensors)


def test_megatron_core_inside_nemo(tmp_path):
    tensors = made.weights()
    layout = megatron_core_write.Layout(kind="torch", divisible_by=1)
    megatron_core_write.write(made.checkpoint(tensors), tmp_path / "core", layout=layout)
    file = tmp_path / "core" / "release" / "mp_rank_00" / "model_optim_rng.pt"
    state = {f"model.{name}": tensor for name, tensor in torch.load(file, weights_only=False)["model"].items()}
    config = b"mcore_bert: true\nnum_attention_heads: 4\nnemo_version: 1.21.0\n"
    members = {"model_config.yaml": config, "model_weights.ckpt": state}
    made.assert_equal(nemo.read(archive_of(tmp_path / "x.nemo", members)).tensors, tensors)


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("common", [False, True])
def test_distributed_weights_inside_an_archive_are_read_in_place(tmp_path, folder, common):
    tensors = made.weights(dtype=torch.bfloat16)
    layout = megatron_core_write.Layout(divisible_by=1, common=common)
    megatron_core_write.write(made.checkpoint(tensors), tmp_path / "core", layout=layout)
    config = b"mcore_bert: true\nnum_attention_heads: 4\nnemo_version: 1.22.0\nlayernorm_epsilon: 1e-6\n"
    members = {"model_config.yaml": config, "0123_vocab.txt": VOCABULARY}
    for file in (tmp_path / "core" / "release").iterdir():
        members[f"model_weights/{file.name}"] = file.read_bytes()
    path = archive_of(tmp_path / "x.nemo", members, compressed=not common)
    if folder:
        with tarfile.open(path) as tar:
            tar.extractall(tmp_path / "unpacked", filter="data")
        path = tmp_path / "unpacked"
    before = sorted(tmp_path.rglob("*"))
    read = checkpoints.open_checkpoint(path)
    made.assert_equal(read.tensors, tensors)
    assert read.vocabulary == {"vocab.txt": VOCABULARY} and read.config["num_attention_heads"] == 4
    assert "a NeMo checkpoint with distributed weights" in read.notes
    assert sorted(tmp_path.rglob("*")) == before
    del members["model_weights/.metadata"]
    with pytest.raises(ValueError, match=r"x\.nemo keeps its weights .* not read \(zarr\)"):
        nemo.read(archive_of(tmp_path / "x.nemo", members))


def task_archive(path, target, layers, *, classes=2, heads=None, more=b"", members=None):
    """A fine-tuned model as NeMo 1.0 writes it; `heads`: outputs by the names of its classifiers."""
    tensors = made.weights(parts=("tokentypes",))
    state = legacy_state(tensors, 4, "v0")
    generator = torch.Generator().manual_seed(1)
    for place, count in (heads or {"classifier.mlp": classes}).items():
        for number in range(layers):
            outputs = count if number == layers - 1 else 16
            for leaf, shape in (("weight", (outputs, 16)), ("bias", (outputs,))):
                state[f"{place}.layer{2 * number}.{leaf}"] = torch.randn(shape, generator=generator)
    config = f"target: nemo.collections.nlp.models.x.{target}\n".encode() + more
    given = {"model_config.yaml": config, "c_encoder_config.json": ENCODER, "model_weights.ckpt": state}
    return archive_of(path, {**given, **(members or {})}), state, tensors


@pytest.mark.parametrize(
    ("target", "layers", "names"),
    [
        ("TokenClassificationModel", 1, {"classifier.weight", "classifier.bias"}),
        ("QAModel", 1, {"qa_outputs.weight", "qa_outputs.bias"}),
        ("TokenClassificationModel", 2,
         {f"classifier.mlp.layer{n}.{leaf}" for n in (0, 2) for leaf in ("weight", "bias")}),
        ("TextClassificationModel", 1, {"classifier.mlp.layer0.weight", "classifier.mlp.layer0.bias"}),
        ("QAModel", 3, {f"qa_outputs.mlp.layer{n}.{leaf}" for n in (0, 2, 4) for leaf in ("weight", "bias")}),
        ("SomeModel", 2, set()),
    ],
)  # fmt: skip
def test_heads_of_tasks(tmp_path, target, layers, names):
    path, _, tensors = task_archive(tmp_path / "x.nemo", target, layers)
    read = nemo.read(path)
    assert set(read.tensors) - set(tensors) == names
    said = [note for note in read.notes if "left out, a task's head" in note]
    assert bool(said) == (not names)
    if not names:
        assert "classifier.mlp.layer0.weight" in said[0] and "SomeModel has no counterpart" in said[0]
    else:
        assert read.config["num_labels"] == 2
        assert target[:2] in read.config["architectures"][0] or target[:4] in ("QAMo", "Text")
        plain = layers == 1 and target[:4] != "Text"
        assert read.config.get("head_layers") == (None if plain else layers)


@pytest.mark.parametrize("ranks", [{}, {"tensor": 2}, {"ranks": True, "generation": "2021-05"}])
def test_a_taught_model_comes_back_bit_for_bit(tmp_path, ranks):
    labels = {"0123456789abcdef0123456789abcdef_label_ids.csv": b"O\nB\nI\n"}
    more = (b"dataset: {max_seq_length: 11, ignore_extra_tokens: false}\nhead: {fc_dropout: 0.5, activation: relu}\n"
            b"class_labels: {class_labels_file: 'nemo:0123456789abcdef0123456789abcdef_label_ids.csv'}\n")  # fmt: skip
    path, _, _ = task_archive(tmp_path / "x.nemo", "TokenClassificationModel", 2, classes=3, more=more, members=labels)
    read = nemo.read(path)
    assert read.config["fine_tuned"] == {"task": "token-classification", "labels": ["O", "B", "I"], "scheme": "iob2",
                                         "max_seq_length": 11, "label_pieces": "all"}  # fmt: skip
    assert read.config["id2label"] == {"0": "O", "1": "B", "2": "I"} and read.config["head_dropout"] == 0.5
    write(read, tmp_path / "again.nemo", **ranks)
    names = names_in(tmp_path / "again.nemo")
    assert any(name.endswith("label_ids.csv") for name in names)
    assert ("mp_rank_00/model_weights.ckpt" in names) == bool(ranks)
    again = nemo.read(tmp_path / "again.nemo")
    made.assert_equal(again.tensors, {name: tensor.load() for name, tensor in read.tensors.items()})
    assert again.config == read.config
    with pytest.raises(ValueError, match="--nemo-generation"):
        write(read, tmp_path / "third.nemo", generation="1.7")


INTENTS = ("IntentSlotClassificationModel", {"classifier.intent_mlp": 2, "classifier.slot_mlp": 3},
           b"intent_loss_weight: 0.7\nlanguage_model: {max_seq_length: 9}\nignore_extra_tokens: false\n"
           b"head: {fc_dropout: 0.3}\ndata_desc: {intent_label_ids: {ask: 1, tell: 0}}\n"
           b"class_labels: {slot_labels_file: 'nemo:0123456789abcdef0123456789abcdef_slot_labels.csv'}\n",
           {"0123456789abcdef0123456789abcdef_slot_labels.csv": b"O\nB-x\nI-x\n"},
           {"task": "intent-slot", "max_seq_length": 9, "intent_share": 0.7, "label_pieces": "all", "scheme": "iob2",
            "labels": ["intent:tell", "intent:ask", "slot:O", "slot:B-x", "slot:I-x"]})  # fmt: skip
MARKS = ("PunctuationCapitalizationModel", {"punct_classifier.mlp": 3, "capit_classifier.mlp": 2},
         b"dataset: {max_seq_length: 9, ignore_extra_tokens: true}\npunct_head: {fc_dropout: 0.2, activation: relu}\n",
         {"punct_label_ids.csv": b"O\n,\n.\n", "capit_label_ids.csv": b"O\nU\n"},
         {"task": "punctuation", "max_seq_length": 9, "label_pieces": "first",
          "labels": ["mark:O", "mark:,", "mark:.", "case:O", "case:U"]})  # fmt: skip
GLUE = ("GLUEModel", {"pooler.mlp": 2}, b"task_name: rte\ndataset: {max_seq_length: 9}\n", {},
        {"task": "glue", "row": "rte", "max_seq_length": 9})  # fmt: skip


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("given", [INTENTS, MARKS, GLUE], ids=["intents", "marks", "glue"])
def test_models_with_heads_of_other_names(tmp_path, given, layers):
    """They give NeMo's numbers, and are written with NeMo's names again."""
    target, heads, more, members, kept = given
    path, state, _ = task_archive(tmp_path / "x.nemo", target, layers, heads=heads, more=more, members=members)
    read = nemo.read(path)
    assert read.config["fine_tuned"] == kept
    model = auto.class_of(read.config["architectures"][0])(MegatronBertConfig(**read.config)).eval()
    model.load_state_dict({name: tensor.load() for name, tensor in read.tensors.items()})
    ids = torch.randint(0, 40, (2, 5), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        hidden, logits = model.bert(ids).last_hidden_state, model(ids).logits
    expected = []
    for place in heads:
        values = hidden[:, 0] if target == "GLUEModel" else hidden
        for number in range(layers):
            values = torch.relu(values) if number else values
            weight, bias = (state[f"{place}.layer{2 * number}.{leaf}"] for leaf in ("weight", "bias"))
            values = values @ weight.T + bias
        expected.append(values)
    torch.testing.assert_close(logits, torch.cat(expected, -1))
    write(read, tmp_path / "again", tensor=2, generation="2021-05", folder=True)
    written = {entry.name for entry in (tmp_path / "again").iterdir()}
    assert {name[33:] if name[:1] == "0" else name for name in members} <= written
    again = torch.load(tmp_path / "again" / "mp_rank_01" / "model_weights.ckpt")
    for place in heads:
        name = f"{place}.layer{2 * layers - 2}.weight"
        assert torch.equal(again[name], state[name])
    assert {name for name in again if not name.startswith("bert_model.")} == {
        name for name in state if not name.startswith("bert_model.")
    }
    back = nemo.read(tmp_path / "again")
    made.assert_equal(back.tensors, {name: tensor.load() for name, tensor in read.tensors.items()})
    assert back.config == read.config


def test_heads_that_are_not_alike_are_left_out(tmp_path):
    path, state, _ = task_archive(tmp_path / "x.nemo", INTENTS[0], 2, heads=INTENTS[1])
    del state["classifier.slot_mlp.layer0.bias"]
    read = nemo.read(archive_of(path, {"model_config.yaml": b"target: x.IntentSlotClassificationModel\n",
                                       "c_encoder_config.json": ENCODER, "model_weights.ckpt": state}))  # fmt: skip
    assert any("not the layers of classifier.intent_mlp and classifier.slot_mlp" in note for note in read.notes)
    path, *_ = task_archive(tmp_path / "y.nemo", MARKS[0], 1, heads=MARKS[1], more=b"capit_label_ids: {O: 0}\n")
    with pytest.raises(ValueError, match="tells 1 case labels, but the head has 2 outputs"):
        nemo.read(path)


def test_labels_that_do_not_fit_are_refused(tmp_path):
    more = b"label_ids: {O: 0, B: 1, I: 2}\n"
    path, _, _ = task_archive(tmp_path / "x.nemo", "TokenClassificationModel", 2, classes=2, more=more)
    with pytest.raises(ValueError, match="3 labels, but the head has 2 outputs"):
        nemo.read(path)


def test_the_run_of_the_documents_is_found_by_any_of_its_paths(tmp_path):
    """`checkpoints/mp_rank_0X/mp_autoresume-last.ckpt`, with the hyper-parameters of the log folder beside."""
    tensors = made.weights(parts=("tokentypes",))
    log = tmp_path / "text_class"
    for rank in range(2):
        folder = log / "checkpoints" / f"mp_rank_{rank:02d}"
        folder.mkdir(parents=True)
        state = legacy_state(_share(tensors, rank), 2, "v0")
        state |= {"classifier.mlp.layer0.weight": torch.ones(3, 16), "classifier.mlp.layer0.bias": torch.ones(3)}
        content = {"state_dict": state, "pytorch-lightning_version": "1.2.10", "checkpoint_version": 0}
        torch.save(content, folder / "mp_autoresume-last.ckpt")
        for loss, epoch in (("0.35", 0), ("0.38", 1)):
            torch.save(content, folder / f"mp_autoresume---val_loss={loss}-epoch={epoch}.ckpt")
    (log / "hparams.yaml").write_text(
        "cfg:\n  language_model: {config: {hidden_size: 16, num_attention_heads: 4, num_layers: 2}}\n"
        "  classifier_head: {num_output_layers: 1, fc_dropout: 0.1}\n  dataset: {num_classes: 3, max_seq_length: 9}\n"
    )
    named = [log, log / "checkpoints", log / "checkpoints" / "mp_rank_01" / "mp_autoresume-last.ckpt"]
    for path in (*named, log / "checkpoints" / "mp_rank_00" / "mp_autoresume---val_loss=0.38-epoch=1.ckpt"):
        read = checkpoints.open_checkpoint(path)
        made.assert_equal({name: tensor for name, tensor in read.tensors.items() if name in tensors}, tensors)
        assert read.config["num_attention_heads"] == 4
        kept = read.config["fine_tuned"]
        assert kept["labels"] == ["0", "1", "2"] and kept["max_seq_length"] == 9
    (log / "checkpoints" / "mp_rank_01" / "mp_autoresume-last.ckpt").unlink()
    with pytest.raises(ValueError, match="tensor rank 1"):
        checkpoints.open_checkpoint(log / "checkpoints" / "mp_rank_00" / "mp_autoresume-last.ckpt")


def test_what_is_wrong_is_named(tmp_path):
    tensors = made.weights(parts=("tokentypes",))
    weights = legacy_state(tensors, 4, "v2", "model.")
    good = {"model_config.yaml": b"num_attention_heads: 4\nnemo_version: 1.8.0\n", "model_weights.ckpt": weights}

    def fails(message, **change):
        members = {name.replace("__", "."): content for name, content in {**good, **change}.items()}
        members = {name: content for name, content in members.items() if content is not None}
        with pytest.raises(ValueError, match=message) as raised:
            nemo.read(archive_of(tmp_path / "x.nemo", members))
        assert "x.nemo" in str(raised.value) or "transformer_block_type" in str(raised.value)
        assert "\n" not in str(raised.value)

    fails("model_config.yaml is not YAML", model_config__yaml=b"a: [1,\n b: }")
    fails("model_config.yaml is no configuration", model_config__yaml=b"- 1\n")
    fails("is not YAML", model_config__yaml=b"a: !!python/object/apply:os.system ['true']\n")
    fails("too large", model_config__yaml=b"#" * (2 << 20))
    fails("holds no model_weights.ckpt", model_weights__ckpt=None)
    fails(
        "tensor rank 0 of stage 0 is missing", **{"model_weights.ckpt": None, "mp_rank_01/model_weights.ckpt": weights}
    )
    fails("called other.weight", model_weights__ckpt={"other.weight": torch.ones(2)})
    fails("is no file of torch", model_weights__ckpt=b"nothing")
    fails("transformer_block_type post_ln", model_config__yaml=b"transformer_block_type: post_ln\n")
    (tmp_path / "not.nemo").write_bytes(b"hello" * 1000)
    with pytest.raises(ValueError, match=r"not\.nemo is called \.nemo, but is no tar"):
        nemo.look(tmp_path / "not.nemo")
    assert nemo.look(tmp_path) is None and nemo.look(tmp_path / "gone") is None


def test_deep_and_repeating_yaml_costs_nothing(tmp_path):
    laughs = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))
    tensors = made.weights(parts=("tokentypes",))
    members = {
        "model_config.yaml": laughs.encode() + b"nemo_version: 1.8.0\n",
        "model_weights.ckpt": legacy_state(tensors, 4, "v2", "model."),
    }
    path = archive_of(tmp_path / "x.nemo", members)
    made.assert_equal(nemo.read(path, heads=4).tensors, tensors)
    members["model_config.yaml"] = b"a: " + b"[" * 5000 + b"]" * 5000
    with pytest.raises(ValueError, match="not YAML"):
        nemo.read(archive_of(path, members))


def test_hostile_weights_run_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "pwned"),)

    for hostile in (pickle.dumps(Evil()), {"x": Evil()}):
        path = archive_of(tmp_path / "x.nemo", {"model_config.yaml": b"a: 1\n", "model_weights.ckpt": hostile})
        with pytest.raises(ValueError, match=r"refused|no file of torch"):
            nemo.read(path)
    assert not (tmp_path / "pwned").exists()


def test_what_cannot_be_written(tmp_path):
    checkpoint = made.checkpoint(made.weights())
    with pytest.raises(ValueError, match=r"NeMo 1\.0 had no pipeline"):
        write(checkpoint, tmp_path / "out.nemo", generation="1.0", pipeline=2)
    with pytest.raises(ValueError, match="shared by 3"):
        write(checkpoint, tmp_path / "out.nemo", tensor=3)
    assert not any(tmp_path.iterdir())
    write(checkpoint, tmp_path / "out.nemo")
    with pytest.raises(ValueError, match="--overwrite"):
        write(checkpoint, tmp_path / "out.nemo")


def test_biomegatrons_bare_module_file(tmp_path):
    """`MegatronBERT.pt` of NeMo 0.x: the encoder's own state, no version, its vocabulary beside it."""
    tensors = made.weights(parts=("tokentypes",), dtype=torch.float16)
    torch.save(legacy_state(tensors, 4, "v0", prefix=""), tmp_path / "MegatronBERT.pt")
    (tmp_path / "vocab.txt").write_bytes(VOCABULARY)
    read = checkpoints.open_checkpoint(tmp_path / "MegatronBERT.pt", heads=4)
    made.assert_equal(read.tensors, tensors)
    assert read.vocabulary == {"vocab.txt": VOCABULARY}
    assert any("not in the checkpoint: lm_head, binary_head, pooler" in note for note in read.notes)


@pytest.mark.parametrize("layout", [{}, {"generation": "1.0", "tensor": 2}, {"folder": True}])
def test_open_and_save_go_through_the_front_door(tmp_path, layout):
    tensors = made.weights()
    made_checkpoint = made.checkpoint(tensors, vocabulary={"vocab.txt": VOCABULARY})
    checkpoints.save_checkpoint(made_checkpoint, tmp_path / "x.nemo", layout=Layout(**{"divisible_by": 1, **layout}))
    assert checkpoints.find_format(tmp_path / "x.nemo") == "nemo"
    made.assert_equal(checkpoints.open_checkpoint(tmp_path / "x.nemo").tensors, tensors)
