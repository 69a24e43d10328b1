"""Precision, random streams, heads and messages of tensor- and data-parallel layouts."""

from __future__ import annotations

from megabert.parallel.mesh import Layout

from .jobs import succeed
from .layout_checks import in_world

TENSOR = Layout(world=2, tensor=2)
SEQUENCE = Layout(world=2, tensor=2, sequence_parallel=True)
DATA = Layout(world=2, data=2)
OPTIMIZER = Layout(world=2, data=2, sharding="optimizer")
FULL = Layout(world=2, data=2, sharding="full")
PRODUCT = Layout(world=4, tensor=2, data=2, sequence_parallel=True, sharding="full")
REPLICAS = Layout(world=4, tensor=2, data=2)


def test_streams_heads_and_messages():
    checks = [(name, layout) for name in ("masks_and_recomputation", "replicated_is_equal", "heads_losses")
              for layout in (TENSOR, SEQUENCE)]  # fmt: skip
    checks += [
        ("saved_in_parts", TENSOR),
        ("messages", TENSOR),
        ("learns_with_dropout", SEQUENCE),
        ("any_micro_batch", DATA),
    ]
    succeed(in_world, 2, checks, seconds=200)


def test_half_precision_and_overflow():
    checks = []
    for layout in (TENSOR, SEQUENCE, DATA, OPTIMIZER, FULL):
        checks += [
            ("half_precision", layout, {"bf16": True}),
            ("half_precision", layout, {"fp16": True, "initial_loss_scale": 256.0}),
            ("overflow_on_one_rank", layout, {}),
            ("same_updates", layout, {"optimizer": "lamb"}),
        ]
    exact = {"bf16": True, "fp32_layernorm": True, "fp32_embedding": True}
    checks += [("half_precision", layout, exact) for layout in (TENSOR, OPTIMIZER, FULL)]
    succeed(in_world, 2, checks, seconds=200)


def test_recomputation():
    layouts = (TENSOR, SEQUENCE, OPTIMIZER, FULL)
    succeed(in_world, 2, [("recomputed", layout) for layout in layouts], seconds=200)


def test_compiled_layers():
    checks = [("compiled", SEQUENCE, {}), ("compiled", FULL, {}), ("one_row_is_cut_in_captured_code", SEQUENCE)]
    succeed(in_world, 2, checks, seconds=200)


def test_products():
    checks = [
        ("half_precision", PRODUCT, {"bf16": True}),
        ("half_precision", PRODUCT, {"bf16": True, "vocabulary": 71, "fp32_tokentypes": True}),
        ("overflow_on_one_rank", PRODUCT, {}),
        ("overflow_on_one_rank", REPLICAS, {}),
        ("same_updates", PRODUCT, {"optimizer": "lamb"}),
        ("same_updates", REPLICAS, {"optimizer": "sgd"}),
        ("cut_vocabularies", Layout(world=4, tensor=4)),
    ]
    succeed(in_world, 4, checks, seconds=200)
