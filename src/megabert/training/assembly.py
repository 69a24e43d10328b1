"""A training step over many processes: the model cut, filled, and given its engine and exchange."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from megabert.parallel import streams, weights
from megabert.parallel.apply import Applied, apply
from megabert.parallel.mesh import Layout
from megabert.parallel.reduce import MeshExchange
from megabert.parallel.styles import Plan
from megabert.parallel.weights import Initialise
from megabert.training.engine import LocalEngine
from megabert.training.objective import Objective
from megabert.training.optim import make_optimizer
from megabert.training.options import TrainingOptions
from megabert.training.precision import Weights, half_of
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


def check_precision(options: TrainingOptions, layout: Layout) -> None:
    """Refuse number formats that a layout cannot have.

    Raises:
        ValueError: parts kept in float32 under sharded weights, which are gathered in one format.
    """
    kept = [name for name in ("fp32_layernorm", "fp32_embedding", "fp32_tokentypes") if getattr(options, name)]
    if kept and layout.sharding != "none" and (options.fp16 or options.bf16):
        flag = "--" + kept[0].replace("_", "-")
        raise ValueError(f"{flag} does not go with --data-parallel-sharding {layout.sharding}: leave one of them out")


def make_parallel_step(
    model: nn.Module,
    objective: Objective,
    options: TrainingOptions,
    parallel: Parallel,
    *,
    device: torch.device,
    initialise: Initialise | None,
    names: dict[str, str] | None = None,
) -> tuple[TrainingStep, Applied]:
    """`training.step.make_step` for a model that many processes share.

    Args:
        model: on the meta device; or with its whole weights, which are kept, and no `initialise`.
        initialise: draws a module's own weights; see `parallel.weights.fill`.
        names: module name -> its name in the whole model, where they differ.

    Raises:
        ValueError: options that exclude each other, or a matrix that does not divide.
    """
    layout, mesh = parallel.layout, parallel.mesh
    check_precision(options, layout)
    if initialise is None:
        model.to(device)
    applied = apply(model, parallel.plan, layout, mesh, layers=parallel.layers, device=device, half=half_of(options))
    if initialise is not None:
        weights.fill(
            model, initialise, seed=options.seed, device=device, places=applied.places, layout=layout,
            rank=dist.get_rank(), names=names,
        )  # fmt: skip
    model.train()
    trained = Weights(model, options)
    exchange = MeshExchange(
        trained, mesh, layout, places=applied.places, summands=applied.summands, overlap=parallel.overlap
    )
    if options.compile:
        compile_blocks(model, parallel.plan)

    def arm(last: bool) -> None:
        applied.arm(last)
        exchange.arm(last)

    step = TrainingStep(
        trained,
        objective,
        make_optimizer(trained, options, lengths=exchange.lengths),
        make_scaler(options),
        engine=LocalEngine(model, objective.targets, device, arm=arm),
        exchange=exchange,
        clip_grad=options.clip_grad,
        device=device,
    )
    return step, applied


def compile_blocks(model: nn.Module, plan: Plan) -> None:
    """Compile each transformer layer in place: what goes between processes stays at their borders."""
    for name, module in model.named_modules():
        if re.fullmatch(plan.LAYER, name):
            module.compile()


def seed_streams(seed: int, mesh: DeviceMesh) -> None:
    """Start this process's random stream, which dropout draws from."""
    pipeline, data, _ = mesh.get_coordinate() or (0, 0, 0)
    torch.manual_seed(streams.common_seed(seed, pipeline=pipeline, data=data))
