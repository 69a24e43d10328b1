"""A plan applied to a model: one call from the whole model on the meta device to this process's filled part of it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from megabert.parallel import styles, weights
from megabert.parallel.mesh import Layout
from megabert.parallel.placement import Placed
from megabert.parallel.styles import Plan


@dataclass(frozen=True)
class Applied:
    """A model as this process holds it: one object, or some of its stages.

    Attributes:
        models: the same objects that were given, changed in place.
        places: where each of their parameters lies in the whole, by name.
        summands: names of parameters whose gradient each tensor rank has a summand of.
        gives_back: sharded weights are gathered anew for each use.
    """

    models: list[nn.Module]
    places: dict[str, Placed]
    summands: set[str]
    gives_back: bool

    def add(self, other: Applied) -> None:
        """One more stage."""
        self.models.extend(other.models)
        self.places.update(other.places)
        self.summands.update(other.summands)

    def arm(self, model: nn.Module, last: bool) -> None:
        """Before a model's next backward pass: sharded gradients are exchanged in the last one of a step only.

        Until then the gathered weights stay, unless each layer's are given back after every use. After it they go, for
        the update changes them.
        """
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(last)
            model.set_is_last_backward(last)
            model.set_reshard_after_backward(last or self.gives_back)


def apply(
    model: nn.Module,
    plan: Plan,
    layout: Layout,
    mesh: DeviceMesh,
    *,
    layers: int,
    device: torch.device,
    half: torch.dtype | None = None,
    exact: Collection[str] = (),
) -> Applied:
    """Cut a model on the meta device (or one that has its whole weights) as the layout says.

    Args:
        model: the whole model or a stage of it, with the whole's parameter names. Changed in place; on the meta device
            it is to be filled by `weights.fill`.
        layers: transformer layers of the whole model.
        device: where it will run.
        half: what sharded weights are computed with; None: float32. Weights that are not sharded are left to
            `training.precision`.
        exact: names of weights that stay float32 beside half ones. `fully_shard` gathers in one format, so these are
            not sharded, and are left to `training.precision` too.

    Raises:
        ValueError: a matrix does not divide.
    """
    whole = exact if half is not None else ()
    places = styles.placements(model, plan, tensor=layout.tensor, sharded=_is_sharded(layout), whole=whole)
    summands: set[str] = set()
    coordinate = mesh.get_coordinate() or (0, 0, 0)
    rank = (coordinate[0] * layout.data + coordinate[1]) * layout.tensor + coordinate[2]
    if layout.tensor > 1:
        weights.take_parts(model, places, layout, rank)
        group = mesh.get_group("tensor")
        styles.install(
            model, plan, group, sequence_parallel=layout.sequence_parallel, layers=layers, device=device
        )  # fmt: skip
        if layout.sequence_parallel:
            summands = styles.sequence_parameters(model, plan, layers)
    if _is_sharded(layout):
        _shard(model, plan, layout, mesh, half, places)
    return Applied([model], places, summands, layout.sharding == "full")


def _is_sharded(layout: Layout) -> bool:
    return layout.sharding != "none" and layout.data > 1


def _shard(
    model: nn.Module,
    plan: Plan,
    layout: Layout,
    mesh: DeviceMesh,
    half: torch.dtype | None,
    places: Mapping[str, Placed],
) -> None:
    """Let data-parallel processes share the weights, layer by layer; what is in no layer is one more unit."""
    # What the model returns are views; nothing here changes them in place, which is what the warning is about.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32)
    give_back = layout.sharding == "full"
    shared: dict[str, Any] = {
        "mesh": mesh["data"],
        "mp_policy": policy,
        "ignored_params": {one for name, one in model.named_parameters() if not places[name].sharded},
    }
    for name, module in list(model.named_modules()):
        if re.fullmatch(plan.LAYER, name):
            fully_shard(module, reshard_after_forward=give_back, **shared)
    fully_shard(model, reshard_after_forward=False, **shared)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # Shares of the loss are parts of the whole batch's mean: their gradients are added up, not averaged.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
        if half is not None and hasattr(module, "compute_dtype"):
            module.compute_dtype = half  # type: ignore[assignment]
