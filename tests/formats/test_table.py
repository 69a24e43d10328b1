import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megabert.formats import bert_names, table
from megabert.formats.checkpoint import LazyTensor

# Of the specification: 2 heads of size 2, one column, the value is 100 x {1 query, 2 key, 3 value} + 10 x head + dim.
ROWS = {
    "v0": [100, 101, 110, 111, 200, 201, 210, 211, 300, 301, 310, 311],
    "v1": [100, 200, 300, 101, 201, 301, 110, 210, 310, 111, 211, 311],
    "v2": [100, 101, 200, 201, 300, 301, 110, 111, 210, 211, 310, 311],
}


def lazy(values, **options):
    return LazyTensor.of(torch.tensor(values, **options), "file: key")


@pytest.mark.parametrize("order", list(ROWS))
@pytest.mark.parametrize("columns", [True, False])
def test_orders_of_the_fused_rows(order, columns):
    fused = lazy([[value] for value in ROWS[order]] if columns else ROWS[order])
    parts = table.unfuse(fused, 2, order)
    for part, base in zip(parts, (100, 200, 300), strict=True):
        assert part.load().flatten().tolist() == [base, base + 1, base + 10, base + 11]
    assert torch.equal(table.fuse(parts, 2, order).load(), fused.load())


def test_which_version_means_which_order():
    found = [table.order_of(version) for version in (0, 1, 1.0, 2.0, 3, 3.0)]
    assert found == ["v0", "v1", "v1", "v2", "v2", "v2"]


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([1, 2, 4]), st.integers(1, 3), st.sampled_from(["v0", "v1", "v2"]), st.integers(0, 99))
def test_split_and_join_are_opposites(ranks, per_rank, order, seed):
    heads, layers = ranks * per_rank, 2
    hidden = heads * 2
    generator = torch.Generator().manual_seed(seed)
    rows = bert_names.legacy(layers)
    tensors = {}
    for row in rows:
        for name in row.ours:
            shape = (4 * ranks, hidden) if row.cut == 0 and not row.fused else (hidden, 4 * ranks)
            shape = (hidden, hidden) if row.fused else shape
            shape = shape[:1] if name.endswith("bias") else shape
            tensors[name] = LazyTensor.of(torch.randn(*shape, generator=generator), name)
    shares = table.split(rows, tensors, ranks, heads=heads, order=order)
    joined = table.join(rows, shares, heads=heads, order=order)
    assert set(joined) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(joined[name].load(), tensor.load()), name


def test_the_oldest_order_is_undone_on_each_rank():
    query, key, value = (lazy([[base + row] for row in range(4)]) for base in (100, 200, 300))
    row = table.Row(("q", "k", "v"), "qkv", 0)
    ranks = table.split([row], {"q": query, "k": key, "v": value}, 2, heads=2, order="v0")
    assert ranks[0]["qkv"].load().flatten().tolist() == [100, 101, 200, 201, 300, 301]
    assert table.join([row], ranks, heads=2, order="v0")["k"].load().tolist() == key.load().tolist()


def test_ranks_that_do_not_go_together_are_named():
    row, whole = table.Row(("w",), "w", 0), table.Row(("n",), "n", None)
    one, other = LazyTensor.of(torch.ones(2, 3), "a.pt: w"), LazyTensor.of(torch.ones(2, 4), "b.pt: w")
    with pytest.raises(ValueError, match=r"b\.pt: w: .*not of one run"):
        table.join([row], [{"w": one}, {"w": other}], heads=2, order="v2")
    with pytest.raises(ValueError, match=r"a\.pt: w: rank 1 of 2 lacks w"):
        table.join([row], [{"w": one}, {}], heads=2, order="v2")
    with pytest.raises(ValueError, match="heads cannot be shared by 2 ranks"):
        table.join([row], [{"w": one}, {"w": one}], heads=3, order="v2")
    norms = [LazyTensor.of(torch.ones(3) * factor, f"{factor}.pt: n") for factor in (1.0, 2.0)]
    joined = table.join([whole], [{"n": norm} for norm in norms], heads=2, order="v2")
    with pytest.raises(ValueError, match=r"2\.0\.pt: n: each rank must hold the same"):
        joined["n"].load()


def test_padding_of_the_vocabulary():
    sizes = {(30522, 1): 30592, (30522, 8): 30720, (28996, 1): 29056, (28996, 8): 29696, (28996, 16): 30720}
    for (entries, ranks), padded in sizes.items():
        assert table.padded_vocabulary(entries, 128, ranks) == padded


def test_added_entries_get_no_probability_and_real_ones_stay():
    tensors = {"bert.embeddings.word_embeddings.weight": lazy([[1.0, 2.0]] * 3),
               "cls.predictions.bias": lazy([5.0] * 3),
               "exp_avg/cls.predictions.bias": lazy([7.0] * 3), "bert.encoder.ln.bias": lazy([1.0] * 3)}  # fmt: skip
    grown = table.resize_vocabulary(tensors, 5)
    assert grown["cls.predictions.bias"].load().tolist() == [5.0, 5.0, 5.0, -10_000.0, -10_000.0]
    assert grown["exp_avg/cls.predictions.bias"].load().tolist() == [7.0, 7.0, 7.0, 0.0, 0.0]
    assert grown["bert.embeddings.word_embeddings.weight"].load()[3:].abs().sum() == 0
    assert grown["bert.encoder.ln.bias"].shape == (3,)
    cut = table.resize_vocabulary(grown, 3)
    assert all(torch.equal(cut[name].load(), tensor.load()) for name, tensor in tensors.items())


def test_names_of_all_generations_are_one():
    for row in bert_names.legacy(2):
        for era in ("v1", "v2", "v4"):
            for prefix in ("", "model.", "bert_model.", "module.model."):
                assert bert_names.canonical(prefix + bert_names.dress(row.theirs, era)) == row.theirs
    assert bert_names.canonical("language_model.encoder.layers.3.self_attention.layernorm_qkv.layer_norm_weight") == (
        "language_model.encoder.layers.3.input_layernorm.weight"
    )
    assert bert_names.canonical("language_model.encoder.layers.3.layernorm_mlp.fc2_bias") == (
        "language_model.encoder.layers.3.mlp.dense_4h_to_h.bias"
    )
    assert bert_names.canonical("language_model.transformer.layers.0.post_attention_norm.bias") == (
        "language_model.encoder.layers.0.post_attention_layernorm.bias"
    )
    assert bert_names.canonical("decoder.step") is None


def test_each_generation_has_its_own_spelling():
    name = "language_model.encoder.layers.1.self_attention.query_key_value.weight"
    assert bert_names.dress(name, "v1") == "language_model.transformer.layers.1.attention.query_key_value.weight"
    assert bert_names.dress("lm_head.layernorm.bias", "v4") == "lm_head.norm.bias"
    assert (
        bert_names.dress("language_model.encoder.final_layernorm.bias", "v4")
        == "language_model.encoder.final_norm.bias"
    )
