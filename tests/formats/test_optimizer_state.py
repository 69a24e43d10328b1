"""The optimizer's state in format `torch`: moments go with their weights through every cut, in every order of rows."""

import made
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megabert.formats import megatron, megatron_core, megatron_core_write, megatron_write

CUTS = st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([(1, 1), (2, 1), (4, 1), (2, 2)]))
DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])
QUIET = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


def flat(model, prefix=""):
    for name, value in model.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def in_the_optimizers_order(chunks):
    """The weights of Megatron-LM's chunks as its optimizer counts them, said in another way than in the package: by
    the place of a name in a list of beginnings, all that decay first."""
    begins = ["embedding.word", "embedding.position", "embedding.tokentype", "layers.", "final_", "pooler",
              "word_embeddings_for_head", "lm_head.bias", "lm_head.dense", "lm_head.", "binary_head"]  # fmt: skip
    within = ["input_", "query_key_value", "attention.dense", "post_attention_", "h_to_4h", "4h_to_h"]

    def key(name):
        begin = next(index for index, begin in enumerate(begins) if begin in name)
        if begins[begin] != "layers.":
            return begin, 0, 0, name.endswith("bias")
        layer = int(name.split("layers.")[1].split(".")[0])
        return begin, layer, next(i for i, part in enumerate(within) if part in name), name.endswith("bias")

    ordered = [tensor for chunk in chunks for _, tensor in sorted(flat(chunk), key=lambda item: key(item[0]))]
    return [tensor for tensor in ordered if tensor.dim() > 1], [tensor for tensor in ordered if tensor.dim() == 1]


def assert_twice_the_weights(content, groups):
    optimizer = content["optimizer"]
    state = optimizer["optimizer"]["state"]
    listed = optimizer["optimizer"]["param_groups"]
    assert [group["params"] for group in listed] == [
        list(range(len(groups[0]))), list(range(len(groups[0]), len(state)))
    ]  # fmt: skip
    weights = [tensor for group in groups for tensor in group]
    assert len(weights) == len(state)
    padding = torch.tensor(-10_000.0)  # of a bias that was added: its moments are zeros
    for index, weight in enumerate(weights):
        weight = torch.where(weight.float() <= padding / 2, 0.0, weight.float())
        assert torch.equal(state[index]["exp_avg"], 2 * weight), index
        assert torch.equal(state[index]["exp_avg_sq"], 3 * weight), index
    for masters, group in zip(optimizer["fp32_from_fp16_params"], groups, strict=True):
        for master, weight in zip(masters, group, strict=True):
            assert master.dtype == torch.float32 and torch.equal(master.to(weight.dtype), weight)


@settings(max_examples=8, **QUIET)
@given(CUTS, st.sampled_from(["v1", "v2", "v4"]), DTYPES, st.integers(3, 40))
def test_every_file_holds_the_moments_of_its_own_weights(tmp_path, cut, era, dtype, vocabulary):
    tensor, (pipeline, chunks) = cut
    era = "v2" if pipeline > 1 and era == "v1" else era
    source = made.checkpoint(made.weights(layers=4, vocabulary=vocabulary, dtype=dtype), optimizer=True)
    layout = megatron_write.Layout(tensor=tensor, pipeline=pipeline, chunks=chunks, era=era, divisible_by=8)
    notes = megatron_write.write(source, tmp_path / "x", layout=layout, overwrite=True)
    assert not any("optimizer" in note for note in notes)
    for file in (tmp_path / "x").glob("release/*/*.pt"):
        content = torch.load(file, weights_only=False)
        models = [content[name] for name in ("model", *(f"model{number}" for number in range(4))) if name in content]
        assert len(models) == chunks
        assert_twice_the_weights(content, in_the_optimizers_order(models))


@settings(max_examples=6, **QUIET)
@given(CUTS, st.sampled_from(["v0", "v1", "v2"]), DTYPES)
def test_moments_are_permuted_as_their_weights_whatever_the_order(tmp_path, cut, order, dtype):
    tensor, (pipeline, chunks) = cut
    source = made.checkpoint(made.weights(layers=4, dtype=dtype), optimizer=True)
    layout = megatron_write.Layout(tensor=tensor, pipeline=pipeline, chunks=chunks, divisible_by=1)
    megatron_write.write(source, tmp_path / "x", layout=layout, overwrite=True)
    found = megatron.read(tmp_path / "x", order=order)
    made.assert_equal(found.optimizer, {
        **{f"{kind}/{name}": weight.load().float() * factor for name, weight in found.tensors.items()
           for kind, factor in (("exp_avg", 2), ("exp_avg_sq", 3), ("master", 1))},
        "step": torch.tensor(7.0),
    })  # fmt: skip


@settings(max_examples=6, **QUIET)
@given(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4]), st.sampled_from(["te", "local"]), DTYPES, st.booleans())
def test_megatron_cores_ranks(tmp_path, tensor, pipeline, spec, dtype, untied):
    parts = ("lm_head", "binary_head", "pooler", "tokentypes", *(("untied",) if untied else ()))
    source = made.checkpoint(made.weights(layers=4, dtype=dtype, parts=parts), optimizer=True)
    layout = megatron_core_write.Layout(kind="torch", tensor=tensor, pipeline=pipeline, spec=spec, divisible_by=8)
    megatron_core_write.write(source, tmp_path / "x", layout=layout, overwrite=True)
    for file in (tmp_path / "x").glob("release/*/*.pt"):
        content = torch.load(file, weights_only=False)
        weights = list(content["model"].values())
        assert_twice_the_weights(content, ([weight for weight in weights if weight.dim() > 1],
                                           [weight for weight in weights if weight.dim() == 1]))  # fmt: skip
    found = megatron_core.read(tmp_path / "x")
    made.assert_equal(found.optimizer, made.loaded(source.optimizer))


def test_megatron_cores_files_hold_weights_in_the_order_of_its_modules(tmp_path):
    source = made.checkpoint(made.weights(layers=1), optimizer=True)
    for spec in ("te", "local"):
        layout = megatron_core_write.Layout(kind="torch", spec=spec, divisible_by=8)
        megatron_core_write.write(source, tmp_path / spec, layout=layout)
    te, local = (
        list(torch.load(tmp_path / spec / "release/mp_rank_00/model_optim_rng.pt", weights_only=False)["model"])
        for spec in ("te", "local")
    )
    assert te[:3] == [f"embedding.{name}_embeddings.weight" for name in ("word", "position", "tokentype")]
    assert [name.removeprefix("encoder.layers.0.") for name in te[3:9]] == [
        "self_attention.linear_proj.weight", "self_attention.linear_proj.bias",
        "self_attention.linear_qkv.layer_norm_weight", "self_attention.linear_qkv.layer_norm_bias",
        "self_attention.linear_qkv.weight", "self_attention.linear_qkv.bias",
    ]  # fmt: skip
    assert [name.removeprefix("encoder.layers.0.") for name in local[3:7]] == [
        "input_layernorm.weight", "input_layernorm.bias", "self_attention.linear_proj.weight",
        "self_attention.linear_proj.bias",
    ]  # fmt: skip
    assert te[-9:] == ["lm_head.dense.weight", "lm_head.dense.bias", "lm_head.layer_norm.weight",
                       "lm_head.layer_norm.bias", "output_layer.bias", "binary_head.weight", "binary_head.bias",
                       "pooler.dense.weight", "pooler.dense.bias"]  # fmt: skip


@pytest.fixture
def file(tmp_path):
    source = made.checkpoint(made.weights(dtype=torch.float16), optimizer=True)
    megatron_write.write(source, tmp_path / "x", layout=megatron_write.Layout(divisible_by=8))
    return tmp_path / "x" / "release" / "mp_rank_00" / "model_optim_rng.pt"


def changed(file, change):
    content = torch.load(file, weights_only=False)
    change(content["optimizer"])
    torch.save(content, file)
    return megatron.read(file)


def test_groups_in_the_other_order_are_known_by_what_they_decay(file):
    """Stages that begin with a LayerNorm met the group without decay first."""
    before = made.loaded(megatron.read(file).optimizer)

    def reverse(optimizer):
        inner, masters = optimizer["optimizer"], optimizer["fp32_from_fp16_params"]
        first, second = inner["param_groups"]
        numbers = [*second["params"], *first["params"]]
        inner["state"] = {index: inner["state"][number] for index, number in enumerate(numbers)}
        count = len(second["params"])
        second["params"], first["params"] = list(range(count)), list(range(count, len(numbers)))
        inner["param_groups"] = [second, first]
        masters.reverse()

    made.assert_equal(changed(file, reverse).optimizer, before)


def test_what_is_odd_is_said(file):
    def fewer_masters(optimizer):
        optimizer["fp32_from_fp16_params"][1].pop()

    found = changed(file, fewer_masters)
    assert any("only its moments are carried" in note for note in found.notes)
    assert {name.split("/")[0] for name in found.optimizer} == {"exp_avg", "exp_avg_sq", "step"}

    def other_groups(optimizer):
        groups = optimizer["optimizer"]["param_groups"]
        groups[1]["params"].append(groups[0]["params"].pop())

    with pytest.raises(ValueError, match=r"groups of \[13, 25\] parameters, where .* \[14, 24\]; give --no-optimizer"):
        changed(file, other_groups)

    def no_moments(optimizer):
        optimizer["optimizer"]["state"] = {}

    assert any("no moments of Adam" in note for note in changed(file, no_moments).notes)
