import io
import json
import os
import pickle
import shutil

import made
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint import load as dcp_load
from torch.distributed.checkpoint import save as dcp_save

from megabert.formats import megatron_core, megatron_core_write
from megabert.formats.megatron_core_write import Layout

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def write(checkpoint, path, **layout):
    return megatron_core_write.write(checkpoint, path, layout=Layout(**{"divisible_by": 1, **layout}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "layout",
    [
        {"kind": "torch_dist"},
        {"kind": "torch_dist", "common": False},
        {"kind": "torch"},
        {"kind": "torch", "spec": "local", "tensor": 2},
        {"kind": "torch", "pipeline": 2},
        {"kind": "torch", "tensor": 4, "pipeline": 2, "spec": "local"},
    ],
)
def test_round_trip_is_bit_equal(tmp_path, layout, dtype):
    tensors = made.weights(dtype=dtype)
    made_checkpoint = made.checkpoint(tensors, training={"iteration": 12}, vocabulary={"vocab.txt": b"[PAD]\n"})
    assert write(made_checkpoint, tmp_path / "out", **layout) == []
    assert (tmp_path / "out" / "latest_checkpointed_iteration.txt").read_text() == "12"
    facts = megatron_core.look(tmp_path / "out")
    assert facts is not None and facts.kind == layout["kind"]
    for path in (tmp_path / "out", tmp_path / "out" / "iter_0000012"):
        read = megatron_core.read(path)
        made.assert_equal(read.tensors, tensors)
        assert read.config == made_checkpoint.config
        assert read.training["iteration"] == 12
    assert read.vocabulary == {"vocab.txt": b"[PAD]\n"}


@settings(max_examples=25, deadline=None)
@given(
    st.data(),
    st.sampled_from(["torch", "torch_dist"]),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    st.sets(st.sampled_from(["lm_head", "pooler", "tokentypes", "binary_head"])),
    st.booleans(),
)
def test_any_shape_and_parts_round_trip(tmp_path_factory, data, kind, dtype, parts, untied):
    tensor = data.draw(st.sampled_from([1, 2, 3]))
    pipeline = data.draw(st.sampled_from([1, 2])) if kind == "torch" else 1
    heads, layers = tensor * data.draw(st.integers(1, 3)), pipeline * data.draw(st.integers(1, 3))
    hidden = heads * data.draw(st.sampled_from([1, 2, 4]))
    tensors = made.weights(
        layers=layers, hidden=hidden, inner=tensor * data.draw(st.integers(1, 9)), dtype=dtype,
        vocabulary=data.draw(st.integers(5, 40)), positions=data.draw(st.integers(1, 9)),
        parts=(*parts, *(("untied",) if untied and "lm_head" in parts else ())),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("core")
    layout = Layout(
        kind=kind, tensor=tensor, pipeline=pipeline, spec=data.draw(st.sampled_from(["te", "local"])),
        common=data.draw(st.booleans()), divisible_by=data.draw(st.sampled_from([1, 8])),
    )  # fmt: skip
    megatron_core_write.write(made.checkpoint(tensors, heads=heads), folder / "out", layout=layout)
    made.assert_equal(megatron_core.read(folder / "out").tensors, tensors)


def test_pytorch_reads_what_is_written(tmp_path):
    tensors = made.weights(layers=3)
    write(made.checkpoint(tensors, optimizer=True), tmp_path / "out")
    folder = tmp_path / "out" / "release"
    target = {
        "encoder.layers.self_attention.linear_qkv.weight": torch.zeros(3, 48, 16),
        "encoder.layers.mlp.linear_fc1.layer_norm_weight": torch.zeros(3, 16),
        "embedding.word_embeddings.weight": torch.zeros(40, 16),
        "output_layer.bias": torch.zeros(40),
        "optimizer.state.exp_avg.encoder.layers.mlp.linear_fc1.weight": torch.zeros(3, 32, 16),
    }
    dcp_load(target, storage_reader=FileSystemReader(folder), no_dist=True)
    assert torch.equal(target["embedding.word_embeddings.weight"], tensors["bert.embeddings.word_embeddings.weight"])
    assert torch.equal(target["output_layer.bias"], tensors["cls.predictions.bias"])
    for layer in range(3):
        start = f"bert.encoder.layer.{layer}."
        fused = target["encoder.layers.self_attention.linear_qkv.weight"][layer].reshape(4, 3, 4, 16)
        for index, name in enumerate(("query", "key", "value")):
            assert torch.equal(fused[:, index].reshape(16, 16), tensors[f"{start}attention.self.{name}.weight"])
        norm = target["encoder.layers.mlp.linear_fc1.layer_norm_weight"][layer]
        assert torch.equal(norm, tensors[f"{start}ln.weight"])
        moment = target["optimizer.state.exp_avg.encoder.layers.mlp.linear_fc1.weight"][layer]
        assert torch.equal(moment, 2 * tensors[f"{start}intermediate.dense.weight"])
    assert json.loads((folder / "metadata.json").read_text()) == {
        "sharded_backend": "torch_dist", "sharded_backend_version": 1, "common_backend": "torch",
        "common_backend_version": 1,
    }  # fmt: skip
    common = torch.load(folder / "common.pt", weights_only=False)
    assert common["args"].num_attention_heads == 4 and common["checkpoint_version"] == 3.0


def test_pytorch_reads_ranks(tmp_path):
    tensors = made.weights()
    write(made.checkpoint(tensors), tmp_path / "out", kind="torch", tensor=2, pipeline=2)
    read = torch.load(tmp_path / "out" / "release" / "mp_rank_01_001" / "model_optim_rng.pt", weights_only=False)
    assert read["args"].tensor_model_parallel_size == 2 and read["checkpoint_version"] == 3.0
    model = read["model"]
    assert torch.equal(
        model["encoder.layers.0.mlp.linear_fc2.weight"], tensors["bert.encoder.layer.1.output.dense.weight"][:, 16:]
    )
    assert torch.equal(model["output_layer.weight"], tensors["bert.embeddings.word_embeddings.weight"][20:])
    assert "embedding.word_embeddings.weight" not in model and "pooler.dense.bias" in model


def test_reads_what_pytorch_writes(tmp_path):
    """Chunks as two tensor ranks would have written them, numbered layers, local names, a wrapper's prefix."""
    tensors = made.weights()
    write(made.checkpoint(tensors), tmp_path / "out", kind="torch", spec="local")
    flat = torch.load(tmp_path / "out" / "release" / "mp_rank_00" / "model_optim_rng.pt", weights_only=False)["model"]
    state = {f"module.{name}": tensor for name, tensor in flat.items()}
    state["module.encoder.layers.0.self_attention.core_attention._extra_state"] = io.BytesIO(b"")
    dcp_save(state, storage_writer=FileSystemWriter(tmp_path / "dcp"), no_dist=True)
    facts = megatron_core.look(tmp_path / "dcp")
    assert facts is not None and facts.kind == "torch_dcp"
    read = megatron_core.read(tmp_path / "dcp", heads=4)
    made.assert_equal(read.tensors, tensors)
    assert not any("left out" in note for note in read.notes)
    with pytest.raises(ValueError, match="no multiple of 64; give --num-attention-heads"):
        megatron_core.read(tmp_path / "dcp")


def test_chunks_of_several_ranks_are_joined_lazily(tmp_path):
    from torch.distributed.checkpoint.metadata import MetadataIndex

    from megabert.formats import megatron_core_chunks
    from megabert.formats.checkpoint import LazyTensor

    whole = torch.randn(4, 6, 8)
    chunks = [
        ((first, row, 0), LazyTensor.of(whole[first : first + 2, row : row + 3].clone()))
        for first in (0, 2)
        for row in (0, 3)
    ]
    piece = megatron_core_write._Piece((4, 6, 8), torch.float32, chunks)
    with (tmp_path / "__0_0.distcp").open("wb") as file:
        megatron_core_write._write_chunks(file, {"x": piece}, {}, tmp_path)
    stored = megatron_core_chunks.read(tmp_path).tensors["x"]
    assert torch.equal(stored.lazy().load(), whole)
    for layer in range(4):
        assert torch.equal(stored.layer(layer).load(), whole[layer])
    metadata = pickle.loads((tmp_path / ".metadata").read_bytes())
    assert MetadataIndex("x", torch.Size((2, 3, 0))) in metadata.storage_data
    metadata.state_dict_metadata["x"].chunks[3] = metadata.state_dict_metadata["x"].chunks[2]
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(ValueError, match=r"chunks of x do not make up its \[4, 6, 8\]"):
        megatron_core_chunks.read(tmp_path)


@pytest.mark.parametrize("common", [True, False])
def test_optimizer_round_trip(tmp_path, common):
    tensors = made.weights(dtype=torch.bfloat16)
    source = made.checkpoint(tensors, optimizer=True)
    write(source, tmp_path / "out", common=common, divisible_by=64)
    read = megatron_core.read(tmp_path / "out")
    made.assert_equal(read.tensors, tensors)
    made.assert_equal(read.optimizer, made.loaded(source.optimizer))
    assert megatron_core.read(tmp_path / "out", optimizer=False).optimizer == {}
    del source.optimizer["exp_avg/bert.encoder.ln.bias"]
    for kind in ("torch", "torch_dist"):
        notes = write(source, tmp_path / f"{kind}{common}", kind=kind)
        assert notes == ["the optimizer's state is left out: it lacks exp_avg of bert.encoder.ln.bias"]
        assert megatron_core.read(tmp_path / f"{kind}{common}").optimizer == {}


def test_padding_is_added_and_taken_away(tmp_path):
    tensors = made.weights(vocabulary=37)
    notes = write(made.checkpoint(tensors), tmp_path / "out", kind="torch", tensor=2, divisible_by=8)
    assert any("11 rows of padding added" in note and "48 are needed for 2 tensor ranks" in note for note in notes)
    held = torch.load(tmp_path / "out" / "release" / "mp_rank_01" / "model_optim_rng.pt", weights_only=False)
    assert held["model"]["output_layer.bias"].tolist()[-11:] == [-10_000.0] * 11
    made.assert_equal(megatron_core.read(tmp_path / "out").tensors, tensors)


def _dist(tmp_path):
    write(made.checkpoint(made.weights()), tmp_path / "out", divisible_by=1)
    return tmp_path / "out" / "release"


def test_damage_is_named(tmp_path):
    folder = _dist(tmp_path)
    data = folder / "__0_0.distcp"
    whole = data.read_bytes()
    data.write_bytes(whole[:-500])
    with pytest.raises(ValueError, match=r"__0_0\.distcp is damaged: .* ends behind its end"):
        megatron_core.read(folder)
    data.unlink()
    with pytest.raises(ValueError, match=r"not whole: __0_0\.distcp is missing"):
        megatron_core.read(folder)
    data.write_bytes(bytes(len(whole)))
    read = megatron_core.read(folder)
    with pytest.raises(ValueError, match=r"__0_0\.distcp!.* is no file of torch\.save"):
        read.tensors["bert.encoder.ln.weight"].load()
    data.write_bytes(whole)
    metadata = (folder / ".metadata").read_bytes()
    for broken in (metadata[:100], b"", b"\x80\x04N.", metadata.replace(b"storage_data", b"storage_date")):
        (folder / ".metadata").write_bytes(broken)
        with pytest.raises(ValueError, match=r"\.metadata"):
            megatron_core.read(folder)


def test_hostile_metadata_runs_nothing(tmp_path):
    folder = _dist(tmp_path)
    metadata = (folder / ".metadata").read_bytes()

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "pwned"),)

    for hostile in (pickle.dumps(Evil()), pickle.dumps({"a": [Evil()]})):
        (folder / ".metadata").write_bytes(hostile)
        with pytest.raises(ValueError, match="refused"):
            megatron_core.read(folder)
    outside = metadata.replace(b"\x8c\x0c__0_0.distcp", b"\x8c\x0c../../secret")
    assert outside != metadata
    (folder / ".metadata").write_bytes(outside)
    with pytest.raises(ValueError, match="no file of this folder"):
        megatron_core.read(folder)
    (folder / ".metadata").write_bytes(metadata)
    (folder / "common.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match="refused"):
        megatron_core.read(folder)
    assert not (tmp_path / "pwned").exists()


def test_other_kinds_are_refused_by_name(tmp_path):
    folder = _dist(tmp_path)
    (folder / "metadata.json").write_text('{"sharded_backend": "zarr"}')
    with pytest.raises(ValueError, match="kind 'zarr' is not read"):
        megatron_core.read(folder)
    assert megatron_core.look(tmp_path) is None
    with pytest.raises(ValueError, match="holds no checkpoint of Megatron-core"):
        megatron_core.read(tmp_path)
    (tmp_path / "two").mkdir()
    (folder / "metadata.json").unlink()
    for name in ("iter_0000001", "iter_0000002"):
        shutil.copytree(folder, tmp_path / "two" / name)
    with pytest.raises(ValueError, match=r"2 checkpoints .* name one of them: iter_0000001, iter_0000002"):
        megatron_core.read(tmp_path / "two")


def test_what_has_no_place_is_refused(tmp_path):
    classifier = made.checkpoint(made.weights(parts=("pooler", "classification")))
    for layout in ({}, {"kind": "torch"}):
        with pytest.raises(ValueError, match=r"no place for classifier\.bias"):
            write(classifier, tmp_path / "out", **layout)
    checkpoint = made.checkpoint(made.weights())
    with pytest.raises(ValueError, match="cannot be cut into 3 equal stages"):
        write(checkpoint, tmp_path / "out", kind="torch", pipeline=3)
    with pytest.raises(ValueError, match="cannot be shared by 3 tensor ranks"):
        write(checkpoint, tmp_path / "out", kind="torch", tensor=3)
    assert not any(tmp_path.iterdir())
    write(checkpoint, tmp_path / "out")
    with pytest.raises(ValueError, match="--overwrite"):
        write(checkpoint, tmp_path / "out")


def test_a_missing_layer_and_missing_parts(tmp_path):
    tensors = made.weights(parts=("lm_head",))
    write(made.checkpoint(tensors), tmp_path / "out")
    read = megatron_core.read(tmp_path / "out")
    assert any("not in the checkpoint: binary_head, pooler, tokentypes" in note for note in read.notes)
    assert read.config["architectures"] == ["MegatronBertForMaskedLM"]
