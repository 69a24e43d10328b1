"""The loop with the network that it is for: dropout, packed rows, recomputation, half precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import MegatronBertConfig

from megabert import MegatronBertForPreTraining
from megabert.models.losses import PretrainingObjective
from megabert.training.loader import collate
from megabert.training.loop import Trainer
from megabert.training.resume import find, read
from megabert.training.step import make_step

from .test_loop import assert_same_run
from .toy import options

VOCABULARY, LENGTH, PLACES, SAMPLES = 64, 24, 4, 2


class PackedRows:
    """Rows of two samples and some padding."""

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        generator = np.random.default_rng(index)
        first, second = int(generator.integers(6, 12)), int(generator.integers(6, 12))
        samples = np.repeat([1, 2, 0], [first, second, LENGTH - first - second])
        ids = np.where(samples > 0, generator.integers(5, VOCABULARY, LENGTH), 0)
        places = np.sort(generator.choice(np.arange(1, first + second), PLACES, replace=False))
        labels = ids[places].copy()
        places[3:], labels[3:] = 0, -100
        return {
            "input_ids": ids,
            "token_type_ids": np.zeros(LENGTH, np.int64),
            "position_ids": np.concatenate([np.arange(n) for n in (first, second, LENGTH - first - second)]),
            "sample_ids": samples,
            "masked_positions": places,
            "masked_labels": labels,
            "sample_starts": np.array([0, first]),
            "next_sentence_label": generator.integers(0, 2, SAMPLES),
        }


def network(seed: int = 0, dropout: float = 0.1) -> MegatronBertForPreTraining:
    torch.manual_seed(seed)
    return MegatronBertForPreTraining(
        MegatronBertConfig(
            vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
            max_position_embeddings=LENGTH, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
        )
    )  # fmt: skip


def run(folder, model, **changes):
    chosen = options(train_iters=9, eval_interval=4, **changes)
    return Trainer(
        model, PretrainingObjective("sop"), PackedRows(), PackedRows(), chosen, folder=folder, say=lambda line: None
    )


@pytest.mark.parametrize("mode", [{}, {"bf16": True, "fp32_layernorm": True, "fp32_embedding": True}])
def test_nine_steps_are_five_and_four(tmp_path, mode):
    run(tmp_path / "whole", network(), **mode).fit()
    run(tmp_path / "parts", network(), exit_interval=5, **mode).fit()
    run(tmp_path / "parts", network(seed=9), **mode).fit()
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("size", [4, 1])
def test_gradient_does_not_depend_on_the_cut(size):
    def gradients(size):
        step = make_step(network(dropout=0.0), PretrainingObjective("sop"), options(batch_size=size))
        rows = PackedRows()
        step.accumulate([collate([rows[i] for i in range(at, at + size)]) for at in range(0, 16, size)])
        return dict(zip(step.weights.masters, step.weights.gradients(), strict=True))

    whole, parts = gradients(16), gradients(size)
    for name, gradient in whole.items():
        assert torch.allclose(parts[name], gradient, rtol=0, atol=1e-6), name


def test_recomputation_gives_the_same_run(tmp_path):
    run(tmp_path / "kept", network()).fit()
    recomputing = network()
    recomputing.gradient_checkpointing_enable()
    run(tmp_path / "recomputed", recomputing).fit()
    weights = [read(find(tmp_path / name)).weights for name in ("kept", "recomputed")]
    for name, tensor in weights[0].items():
        assert torch.allclose(tensor, weights[1][name], atol=1e-6), name


def test_the_trained_weights_go_into_a_fresh_model(tmp_path):
    trainer = run(tmp_path, network(), bf16=True)
    trainer.fit()
    fresh = network(seed=5)
    fresh.load_state_dict(trainer.train_step.weights.state_dict())
    assert fresh.dtype == torch.float32
    assert torch.equal(fresh.bert.embeddings.word_embeddings.weight, fresh.cls.predictions.decoder.weight)
