"""Initial weights by name: the same whole weights in every layout, and no process ever holds the whole model.

A model is made on torch's meta device, cut there, and filled one module at a time: a module's whole weights are drawn
from a stream that is a function of (seed, the module's name), and the part that belongs here is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from megabert.parallel.mesh import Layout
from megabert.parallel.placement import Placed
from megabert.parallel.streams import mixed

Initialise = Callable[[nn.Module], None]
"""Draws a module's own parameters and buffers in place, from torch's default generator of the CPU."""

Given = Mapping[str, Callable[[Tensor], None]]
"""Of weights by name, what writes a whole weight over the numbers that were drawn for it."""


@torch.no_grad()
def fill(
    model: nn.Module,
    initialise: Initialise,
    *,
    seed: int,
    device: torch.device,
    places: Mapping[str, Placed] | None = None,
    layout: Layout | None = None,
    rank: int = 0,
    given: Given | None = None,
) -> None:
    """Give a model on the meta device memory on `device`, and its initial weights.

    Args:
        model: the model or a part of it, with the whole's names; its parameters have their local shapes (or are
            `fully_shard`'s).
        places: of each parameter; left out, all are whole.
        rank: of this process, where there are places.
        given: weights that are not drawn, of a checkpoint, say; asked for one at a time.
    """
    layout = layout or Layout()
    _give_memory(model, device)
    by_parameter = {id(parameter): places[name] for name, parameter in model.named_parameters()} if places else {}
    before = torch.get_rng_state()
    done: set[int] = set()
    try:
        for name, module in _children_first(model):
            torch.manual_seed(mixed("weights", seed, name))
            drawn = partial(_draw, initialise, given or {}, name)
            _fill_module(module, drawn, by_parameter, done, layout.place(rank), layout)
    finally:
        torch.set_rng_state(before)


def _draw(initialise: Initialise, given: Given, prefix: str, module: nn.Module) -> None:
    """Draw a module's own parameters, and write over those that are given."""
    initialise(module)
    for name, parameter in module._parameters.items():
        write = given.get(f"{prefix}.{name}" if prefix else name)
        if parameter is not None and write is not None:
            write(parameter.data)


def _give_memory(model: nn.Module, device: torch.device) -> None:
    """`Module.to_empty`, but tied parameters stay tied."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in made:
                    memory = torch.empty_like(parameter, device=device)
                    made[id(parameter)] = nn.Parameter(memory, requires_grad=parameter.requires_grad)
                module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device=device)


def _children_first(model: nn.Module) -> Sequence[tuple[str, nn.Module]]:
    """As Transformers goes: a module may change what its children have drawn."""
    found: list[tuple[str, nn.Module]] = []

    def visit(prefix: str, module: nn.Module) -> None:
        for name, child in module.named_children():
            visit(f"{prefix}.{name}" if prefix else name, child)
        found.append((prefix, module))

    visit("", model)
    return found


def _fill_module(
    module: nn.Module,
    initialise: Initialise,
    places: Mapping[int, Placed],
    done: set[int],
    place: tuple[int, int, int],
    layout: Layout,
) -> None:
    """Draw the module's own whole weights, aside, and keep the part that belongs here."""
    own = {name: parameter for name, parameter in module._parameters.items() if parameter is not None}
    for name, parameter in own.items():
        placed = places.get(id(parameter))
        whole = nn.Parameter(torch.empty(placed.shape if placed else parameter.shape), requires_grad=False)
        # Tied to one that has its weights: Transformers' initialisation passes over what is marked so.
        whole._is_hf_initialized = id(parameter) in done  # type: ignore[attr-defined]
        module._parameters[name] = whole
    try:
        initialise(module)
    finally:
        drawn = {name: module._parameters[name] for name in own}
        module._parameters.update(own)
    for name, parameter in own.items():
        if id(parameter) in done:
            continue
        done.add(id(parameter))
        source: Tensor = drawn[name]  # type: ignore[assignment]
        placed = places.get(id(parameter))
        if placed is not None:
            source = placed.within_data(placed.within_tensor(source, layout.tensor, place[2]), layout.data, place[1])
        target = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        target.copy_(source)


def take_parts(model: nn.Module, places: Mapping[str, Placed], layout: Layout, rank: int) -> None:
    """Let each parameter be the tensor cut that belongs to `rank`; parameter objects change, ties stay tied.

    Works on the meta device too, where it is how a model gets its local shapes.
    """
    tensor = layout.place(rank)[2]
    parts: dict[int, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        if places[name].cut is not None:
            local = places[name].within_tensor(parameter.detach(), layout.tensor, tensor).clone()
            parts[id(parameter)] = nn.Parameter(local, requires_grad=parameter.requires_grad)
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in parts:
                module._parameters[name] = parts[id(parameter)]
