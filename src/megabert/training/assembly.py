"""A training step over many processes: the model cut, filled, and given its engine and exchange."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from megabert.parallel import streams, weights
from megabert.parallel.apply import Applied, apply
from megabert.parallel.mesh import Layout
from megabert.parallel.pipeline import PipelineEngine, check_interleaving
from megabert.parallel.reduce import MeshExchange
from megabert.parallel.stages import Place, places_of
from megabert.parallel.styles import Plan
from megabert.parallel.tied import Tie
from megabert.parallel.weights import Given, Initialise
from megabert.training.batch_sizes import sizes_of
from megabert.training.engine import Engine, LocalEngine
from megabert.training.objective import Objective
from megabert.training.optim import Rates, make_optimizer
from megabert.training.options import BatchOptions, TrainingOptions
from megabert.training.precision import Weights, exact_weights, half_of
from megabert.training.scaler import make_scaler
from megabert.training.step import TrainingStep


@dataclass(frozen=True)
class Parallel:
    """How a run is spread, and how its model is cut.

    Attributes:
        layout, mesh: of the running process group.
        plan: the model's.
        layers: transformer layers of the whole model.
        overlap: add gradients up while the backward pass still runs.
    """

    layout: Layout
    mesh: DeviceMesh
    plan: Plan
    layers: int
    overlap: bool = True


def check_rounds(options: BatchOptions, layout: Layout) -> None:
    """Refuse batches that interleaved stages cannot take in equal rounds.

    Raises:
        ValueError: one of the sizes of a batch is such.
    """
    if layout.virtual > 1:
        sizes = sizes_of(options)
        for rows in range(sizes.first, sizes.last + 1, sizes.increment):
            check_interleaving(rows // (options.batch_size * layout.data), layout.pipeline)


def make_parallel_step(
    model: nn.Module,
    objective: Objective,
    options: TrainingOptions,
    parallel: Parallel,
    *,
    device: torch.device,
    initialise: Initialise | None,
    prepare: Callable[[nn.Module], None] | None = None,
    rates: Rates = lambda _: 1.0,
    given: Given | None = None,
) -> tuple[TrainingStep, Applied]:
    """`training.step.make_step` for a model that many processes share.

    Args:
        model: on the meta device; or with its whole weights, which are kept, and no `initialise`.
        initialise: draws a module's own weights; see `parallel.weights.fill`.
        prepare: called with the model as it is here, or with each of its stages: sets recomputation, for example.
        rates: of weights that learn faster or slower than others.
        given: weights that are not drawn; see `parallel.weights.fill`.

    Raises:
        ValueError: options that exclude each other, or a matrix that does not divide.
    """
    layout, mesh = parallel.layout, parallel.mesh
    check_rounds(options, layout)
    if initialise is None:
        model.to(device)
    parts, tie = _parts(model, parallel)
    tables = tie.copies if tie is not None else ()
    applied = Applied([], {}, set(), layout.sharding == "full")
    for _, part in parts:
        applied.add(
            apply(
                part, parallel.plan, layout, mesh, layers=parallel.layers, device=device, half=half_of(options),
                exact=exact_weights(part, options, tables),
            )
        )  # fmt: skip
        if initialise is not None:
            weights.fill(
                part, initialise, seed=options.seed, device=device, places=applied.places, layout=layout,
                rank=dist.get_rank(), given=given,
            )  # fmt: skip
        if prepare is not None:
            prepare(part)
        part.train()
    trained = Weights(applied.models, options, tables=tables)
    if tie is not None:
        tie.start_equal(trained.masters)
        trained.publish()
    exchange = MeshExchange(
        trained, mesh, layout, places=applied.places, summands=applied.summands, tie=tie, overlap=parallel.overlap
    )
    if options.compile:
        for part in applied.models:
            compile_blocks(part, parallel.plan)

    def arm(module: nn.Module, last: bool) -> None:
        applied.arm(module, last)
        exchange.arm(last)

    step = TrainingStep(
        trained,
        objective,
        make_optimizer(trained, options, lengths=exchange.lengths, rates=rates),
        make_scaler(options),
        engine=_engine(parts, objective, parallel, arm, device),
        exchange=exchange,
        clip_grad=options.clip_grad,
        count_zeros=options.log_num_zeros_in_grad,
        device=device,
    )
    return step, applied


def make_answering_engine(
    model: nn.Module, objective: Objective, parallel: Parallel, *, device: torch.device
) -> Engine:
    """An engine that only evaluates: the model cut over the processes, and nothing kept for an update.

    Args:
        model: with its whole weights; changed in place.

    Raises:
        ValueError: a matrix that does not divide.
    """
    model.to(device).eval()
    parts, _ = _parts(model, parallel)
    for _, part in parts:
        apply(part, parallel.plan, parallel.layout, parallel.mesh, layers=parallel.layers, device=device)
    return _engine(parts, objective, parallel, lambda *_: None, device)


def _parts(model: nn.Module, parallel: Parallel) -> tuple[list[tuple[Place, nn.Module]], Tie | None]:
    """The model, or this process's stages of it, each made of a copy; and what ties stages."""
    layout, cut = parallel.layout, parallel.plan.STAGES
    group = parallel.mesh.get_group("pipeline")
    places = places_of(parallel.layers, layout.pipeline, group.rank(), layout.virtual)
    if layout.pipeline == 1:
        return [(places[0], model)], None
    tie = Tie(cut.tied(model), group)
    parts = []
    for place in places:
        part = copy.deepcopy(model)
        cut.keep(part, place.layers, first=place.first, last=place.last)
        parts.append((place, part))
    return parts, tie


def _engine(
    parts: list[tuple[Place, nn.Module]],
    objective: Objective,
    parallel: Parallel,
    arm: Callable[[nn.Module, bool], None],
    device: torch.device,
) -> Engine:
    places, models = [place for place, _ in parts], [model for _, model in parts]
    if parallel.layout.pipeline == 1:
        return LocalEngine(models[0], objective.targets, device, arm=partial(arm, models[0]))
    shared = parallel.layout.sequence_parallel and parallel.layers > 1
    return PipelineEngine(
        places, models, parallel.plan.STAGES, objective.targets, objective.counts, parallel.mesh.get_group("pipeline"),
        device, sequence_shards=parallel.layout.tensor if shared else 1, arm=arm,
    )  # fmt: skip


def compile_blocks(model: nn.Module, plan: Plan) -> None:
    """Compile each transformer layer in place: what goes between processes stays at their borders."""
    for name, module in model.named_modules():
        if re.fullmatch(plan.LAYER, name):
            module.compile()


def seed_streams(seed: int, mesh: DeviceMesh) -> None:
    """Start this process's random stream, which dropout draws from."""
    pipeline, data, _ = mesh.get_coordinate() or (0, 0, 0)
    torch.manual_seed(streams.common_seed(seed, pipeline=pipeline, data=data))
