from __future__ import annotations

import torch

from megabert.models.bert import plan
from megabert.parallel import styles, weights
from megabert.parallel.mesh import Layout
from megabert.parallel.placement import chunk

from .small import CPU, bare


def filled(seed=1, **changes):
    model = bare(**changes)
    weights.fill(model, model._init_weights, seed=seed, device=CPU)
    return model


def test_weights_are_a_function_of_seed_and_name_only():
    torch.manual_seed(0)
    first = filled().state_dict()
    state = torch.get_rng_state()
    torch.manual_seed(99)
    again = filled(num_hidden_layers=2).state_dict()
    for name, tensor in again.items():
        assert torch.equal(tensor, first[name]), name
    assert not torch.equal(filled(seed=2).state_dict()["bert.pooler.dense.weight"], first["bert.pooler.dense.weight"])
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state), "drawing weights must not move the stream of dropout"


def test_weights_follow_the_configs_distribution_and_ties():
    model = filled(initializer_range=0.05, hidden_size=64, vocab_size=512)
    words = model.bert.embeddings.word_embeddings.weight
    assert model.cls.predictions.decoder.weight is words
    assert model.cls.predictions.decoder.bias is model.cls.predictions.bias
    assert abs(words[1:].std().item() - 0.05) < 0.002 and not words[0].any(), "padding starts as zeros"
    layer = model.bert.encoder.layer[0]
    assert layer.ln.weight.eq(1).all() and not layer.ln.bias.any()
    assert not layer.intermediate.dense.bias.any()
    assert torch.equal(model.bert.embeddings.position_ids[0], torch.arange(24))


def test_parts_of_four_processes_are_the_whole():
    whole = dict(filled().named_parameters())
    layout = Layout(world=4, tensor=4)
    parts = []
    for rank in range(4):
        model = bare()
        places = styles.placements(model, plan, tensor=4, sharded=False)
        weights.take_parts(model, places, layout, rank)
        weights.fill(model, model._init_weights, seed=1, device=CPU, places=places, layout=layout, rank=rank)
        assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
        parts.append((dict(model.named_parameters()), places))
    for name, tensor in whole.items():
        cut = parts[0][1][name].cut
        joined = parts[0][0][name] if cut is None else torch.cat([part[name] for part, _ in parts], dim=cut)
        assert torch.equal(joined, tensor), name
    cuts = {name: place.cut for name, place in parts[0][1].items() if place.cut is not None}
    assert cuts["bert.encoder.layer.3.attention.self.key.bias"] == 0
    assert cuts["bert.encoder.layer.0.output.dense.weight"] == 1
    assert "bert.encoder.layer.0.output.dense.bias" not in cuts


def test_uneven_parts():
    assert [chunk(70, 4, index) for index in range(4)] == [(0, 18), (18, 36), (36, 54), (54, 70)]
    assert [chunk(3, 4, index) for index in range(4)] == [(0, 1), (1, 2), (2, 3), (3, 3)]
