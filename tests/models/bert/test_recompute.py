"""Recomputation changes what is kept, and nothing else."""

from __future__ import annotations

import pytest
import torch
from transformers import MegatronBertConfig

from megabert import MegatronBertForPreTraining
from megabert.models.bert.recompute import Recomputation, recomputation_of, set_recomputation
from megabert.models.options import RecomputeOptions

LAYERS, LENGTH = 5, 32

WAYS = {
    "nothing": None,
    "each layer": Recomputation("full"),
    "groups of two": Recomputation("full", "uniform", 2),
    "one group": Recomputation("full", "uniform", LAYERS),
    "the first two": Recomputation("full", "block", 2),
    "attention": Recomputation("selective"),
}


def network(dropout: float = 0.1) -> MegatronBertForPreTraining:
    torch.manual_seed(0)
    config = MegatronBertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=LAYERS, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=LENGTH, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    return MegatronBertForPreTraining(config).train()


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 64, (3, LENGTH), generator=generator)
    ids[1, 20:] = 0
    return {
        "input_ids": ids, "attention_mask": (ids != 0).long(), "labels": ids.masked_fill(ids % 5 != 0, -100),
        "next_sentence_label": torch.tensor([0, 1, 0]),
    }  # fmt: skip


def gradients_and_kept_bytes(way: Recomputation | None, **inputs) -> tuple[dict[str, torch.Tensor], int]:
    """The gradients of one pass with dropout, and the bytes that its forward pass kept for the backward one."""
    model = network()
    set_recomputation(model, way)
    parameters = {parameter.data_ptr() for parameter in model.parameters()}
    storages: dict[int, int] = {}
    kept = []  # alive, so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)
        return tensor

    torch.manual_seed(7)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**batch(), **inputs).loss
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}, sum(storages.values())


@pytest.fixture(scope="module")
def results() -> dict[str, tuple[dict[str, torch.Tensor], int]]:
    return {name: gradients_and_kept_bytes(way) for name, way in WAYS.items()}


@pytest.mark.parametrize("way", [name for name in WAYS if name != "nothing"])
def test_gradients_are_the_same_bit_for_bit(results, way):
    expected, _ = results["nothing"]
    for name, gradient in results[way][0].items():
        assert torch.equal(gradient, expected[name]), name


def test_less_is_kept(results):
    kept = {name: size for name, (_, size) in results.items()}
    assert kept["each layer"] < kept["the first two"] < kept["nothing"]
    assert kept["one group"] < kept["groups of two"] < kept["each layer"] < kept["attention"] < kept["nothing"]
    # three of five layers remain, and what is outside the layers
    assert kept["the first two"] == pytest.approx(
        kept["each layer"] + 0.6 * (kept["nothing"] - kept["each layer"]), rel=0.1
    )
    # a layer's weights and their dropout mask: [batch, heads, seq, seq] float32 and one bit each
    spared = kept["nothing"] - kept["attention"]
    assert spared == pytest.approx(LAYERS * 3 * 4 * LENGTH * LENGTH * (4 + 1 / 8), rel=0.01)


@pytest.mark.parametrize("way", ["groups of two", "the first two", "attention"])
def test_all_outputs_are_there(way):
    model = network(dropout=0.0)
    inputs = {**batch(), "output_hidden_states": True, "output_attentions": True}
    expected = model(**inputs)
    set_recomputation(model, WAYS[way])
    found = model(**inputs)
    assert len(found.hidden_states) == LAYERS + 1 and len(found.attentions) == LAYERS
    for name in ("hidden_states", "attentions"):
        for ours, theirs in zip(found[name], expected[name], strict=True):
            assert torch.equal(ours, theirs)
    set_recomputation(model, None)
    assert not model.bert.encoder.recomputed and not model.bert.encoder.layer[0].attention.self.recompute_core


def test_wanted_positions_go_through_a_group():
    grouped, plain = network(dropout=0.0), network(dropout=0.0)
    set_recomputation(grouped, WAYS["groups of two"])
    inputs = {key: value for key, value in batch().items() if "label" not in key}
    positions = torch.tensor([[1, 5], [2, 3], [0, 9]])
    for model in (grouped, plain):
        model(**inputs, masked_positions=positions).prediction_logits.sum().backward()
    for (name, ours), theirs in zip(grouped.named_parameters(), plain.parameters(), strict=True):
        assert ours.grad is None if theirs.grad is None else torch.equal(ours.grad, theirs.grad), name


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, None),
        ({"checkpoint_activations": True}, Recomputation("full", "uniform", 1)),
        ({"checkpoint_activations": True, "recompute_num_layers": 3}, Recomputation("full", "uniform", 3)),
        ({"recompute_method": "block", "recompute_num_layers": 2}, Recomputation("full", "block", 2)),
        ({"recompute_granularity": "full"}, Recomputation("full", "uniform", 1)),
        ({"recompute_granularity": "selective"}, Recomputation("selective")),
        ({"recompute_activations": True}, Recomputation("selective")),
    ],
)
def test_what_the_flags_mean(flags, expected):
    assert recomputation_of(RecomputeOptions(**flags), LAYERS) == expected


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"recompute_num_layers": 2}, "needs --recompute-granularity full"),
        ({"recompute_granularity": "full", "recompute_num_layers": 6}, "6 is over --num-layers 5"),
        ({"recompute_granularity": "selective", "recompute_method": "block"}, "--recompute-method goes with"),
        ({"recompute_granularity": "selective", "recompute_num_layers": 2}, "--recompute-num-layers goes with"),
        ({"recompute_granularity": "selective", "checkpoint_activations": True}, "contradicts"),
        ({"recompute_activations": True, "checkpoint_activations": True}, "is selective"),
    ],
)
def test_what_contradicts_itself(flags, message):
    with pytest.raises(ValueError, match=message):
        recomputation_of(RecomputeOptions(**flags), LAYERS)
