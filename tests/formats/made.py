"""Small checkpoints made of random numbers, for tests of formats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from megabert.formats.checkpoint import Checkpoint, LazyTensor, with_heads


def weights(
    *, layers: int = 2, hidden: int = 16, inner: int = 32, vocabulary: int = 40, positions: int = 12,
    dtype: torch.dtype = torch.float32, parts: tuple[str, ...] = ("lm_head", "binary_head", "pooler", "tokentypes"),
    seed: int = 0,
) -> dict[str, torch.Tensor]:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)

    def new(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    found = {
        "bert.embeddings.word_embeddings.weight": new(vocabulary, hidden),
        "bert.embeddings.position_embeddings.weight": new(positions, hidden),
        "bert.encoder.ln.weight": new(hidden),
        "bert.encoder.ln.bias": new(hidden),
    }
    if "tokentypes" in parts:
        found["bert.embeddings.token_type_embeddings.weight"] = new(2, hidden)
    for layer in range(layers):
        start = f"bert.encoder.layer.{layer}."
        for name in ("query", "key", "value"):
            found[f"{start}attention.self.{name}.weight"] = new(hidden, hidden)
            found[f"{start}attention.self.{name}.bias"] = new(hidden)
        for name, shape in {
            "attention.output.dense": (hidden, hidden), "intermediate.dense": (inner, hidden),
            "output.dense": (hidden, inner),
        }.items():  # fmt: skip
            found[f"{start}{name}.weight"] = new(*shape)
            found[f"{start}{name}.bias"] = new(shape[0])
        for name in ("attention.ln", "ln"):
            found[f"{start}{name}.weight"] = new(hidden)
            found[f"{start}{name}.bias"] = new(hidden)
    if "pooler" in parts:
        found |= {"bert.pooler.dense.weight": new(hidden, hidden), "bert.pooler.dense.bias": new(hidden)}
    if "lm_head" in parts:
        found |= {
            "cls.predictions.bias": new(vocabulary),
            "cls.predictions.transform.dense.weight": new(hidden, hidden),
            "cls.predictions.transform.dense.bias": new(hidden),
            "cls.predictions.transform.LayerNorm.weight": new(hidden),
            "cls.predictions.transform.LayerNorm.bias": new(hidden),
        }
    if "binary_head" in parts:
        found |= {"cls.seq_relationship.weight": new(2, hidden), "cls.seq_relationship.bias": new(2)}
    if "untied" in parts:
        found["cls.predictions.decoder.weight"] = new(vocabulary, hidden)
    for part, classes in (("classification", 3), ("multiple_choice", 1)):
        if part in parts:
            found |= {"classifier.weight": new(classes, hidden), "classifier.bias": new(classes)}
    return found


def checkpoint(
    tensors: Mapping[str, torch.Tensor], *, heads: int = 4, optimizer: bool = False, **more: Any
) -> Checkpoint:
    words = tensors["bert.embeddings.word_embeddings.weight"]
    layers = sum(name.endswith(".intermediate.dense.weight") for name in tensors)
    config = {
        "vocab_size": words.shape[0], "hidden_size": words.shape[1], "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": tensors["bert.encoder.layer.0.intermediate.dense.weight"].shape[0],
        "max_position_embeddings": tensors["bert.embeddings.position_embeddings.weight"].shape[0],
        "layer_norm_eps": 1e-5, "hidden_act": "gelu_pytorch_tanh", "head_act": "gelu",
        "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.02,
        "pad_token_id": 0, "dtype": str(words.dtype).removeprefix("torch."),
        "tie_word_embeddings": "cls.predictions.decoder.weight" not in tensors,
        "apply_residual_connection_post_layernorm": False,
    }  # fmt: skip
    if "bert.embeddings.token_type_embeddings.weight" in tensors:
        config["type_vocab_size"] = 2
    state = {}
    if optimizer:
        for kind, factor in (("exp_avg", 2.0), ("exp_avg_sq", 3.0), ("master", 1.0)):
            state |= {f"{kind}/{name}": LazyTensor.of(tensor.float() * factor) for name, tensor in tensors.items()}
        state["step"] = LazyTensor.of(torch.tensor(7.0))
    lazy = {name: LazyTensor.of(tensor, name) for name, tensor in tensors.items()}
    return with_heads(Checkpoint(family="megatron-bert", config=config, tensors=lazy, optimizer=state, **more))


def loaded(tensors: Mapping[str, LazyTensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.load() for name, tensor in tensors.items()}


def assert_equal(found: Mapping[str, LazyTensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        read = found[name].load()
        assert read.dtype == tensor.dtype and torch.equal(read, tensor), name
