"""Tensor and sequence parallelism: what the words of a plan do to a module.

A module keeps its class and its names. Its parameters become this process's parts (`placement`), and its `forward` is
wrapped where values cross a border between whole and cut (`regions`). Everything in between is the module's own code
on local tensors.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from megabert.parallel import regions, streams, vocabulary
from megabert.parallel.placement import Placed

if TYPE_CHECKING:
    from megabert.parallel.stages import Cut

ENTERING = ("hidden_states", "encoder_hidden_states", "input", "input_tensor")
"""Names of arguments that `enter` converts."""


class Plan(Protocol):
    """What a model's plan says; see `models/bert/plan.py`."""

    @property
    def LAYER(self) -> str: ...  # noqa: D102
    @property
    def TENSOR(self) -> Mapping[str, str]: ...  # noqa: D102
    @property
    def DROPOUT(self) -> Mapping[str, str]: ...  # noqa: D102
    @property
    def SEQUENCE(self) -> str: ...  # noqa: D102
    @property
    def STAGES(self) -> Cut: ...  # noqa: D102


def word_for(name: str, table: Mapping[str, str]) -> str | None:
    """The value of the first pattern in `table` that is the whole name."""
    return next((word for pattern, word in table.items() if re.fullmatch(pattern, name)), None)


def placements(
    model: nn.Module, plan: Plan, *, tensor: int, sharded: bool, whole: Collection[str] = ()
) -> dict[str, Placed]:
    """Each parameter's place, by the first of its names; the model's parameters are still whole.

    Where the weights are sharded, those that are named in `whole` are not, and neither is one whose tensor-parallel
    parts are of several lengths: a `DTensor` cannot say where the data-parallel parts of such parts lie.

    Raises:
        ValueError: a matrix does not divide.
    """
    modules = dict(model.named_modules())
    cuts: dict[int, int] = {}
    uneven: set[int] = set()
    for name, module in modules.items():
        word = word_for(name, plan.TENSOR) if tensor > 1 else None
        for own, parameter in module.named_parameters(recurse=False):
            cut = _cut(word, own)
            if cut is None:
                continue
            if word in ("column", "row") and parameter.shape[cut] % tensor:
                raise ValueError(f"{name}.{own} {list(parameter.shape)} does not divide among {tensor} processes")
            if parameter.shape[cut] % tensor:
                uneven.add(id(parameter))
            cuts[id(parameter)] = cut
    return {
        name: Placed(
            tuple(parameter.shape),
            cuts.get(id(parameter)),
            sharded and name not in whole and id(parameter) not in uneven,
        )
        for name, parameter in model.named_parameters()
    }


def _cut(word: str | None, parameter: str) -> int | None:
    if word in ("column", "vocabulary") or (word == "vocabulary_bias" and parameter == "bias"):
        return 0
    return 1 if word == "row" and parameter == "weight" else None


def sequence_parameters(model: nn.Module, plan: Plan, layers: int) -> set[str]:
    """Names of the weights that see only a part of the sequence: their gradients are summands."""
    found = ((name, re.fullmatch(plan.SEQUENCE, name)) for name, _ in model.named_parameters())
    return {name for name, match in found if match and int(match[1]) < layers - 1}


def install(
    model: nn.Module, plan: Plan, group: ProcessGroup, *, sequence_parallel: bool, layers: int, device: torch.device
) -> None:
    """Wrap the modules that the plan names.

    Args:
        model: the model, or a part of it with the whole's names; shapes do not matter yet.
        group: the tensor-parallel processes.
        layers: transformer layers in the whole model.
        device: where the model will run.
    """
    for name, module in list(model.named_modules()):
        layer = re.match(plan.LAYER, name)
        # The last layer runs on the whole sequence.
        cut = sequence_parallel and layer is not None and int(layer[1]) < layers - 1
        dropped = word_for(name, plan.DROPOUT)
        if dropped == "heads" or (dropped == "sequence" and cut):
            _wrap(module, functools.partial(_with_own_stream, module=module, rank=group.rank(), device=device))
        word = word_for(name, plan.TENSOR)
        if word is not None and word not in ("column", "vocabulary_bias"):
            _wrap(module, functools.partial(_STYLES[word], module=module, group=group, cut=cut))
        if sequence_parallel and layers > 1 and layer is not None and layer[0] == name:
            if int(layer[1]) == 0:
                _wrap(module, functools.partial(_converted, module=module, convert=regions.cut_sequence, group=group))
            elif int(layer[1]) == layers - 1:
                _wrap(module, functools.partial(_converted, module=module, convert=regions.join_sequence, group=group))


Forward = Callable[..., Any]


def _wrap(module: nn.Module, wrapper: Callable[..., Forward]) -> None:
    module.forward = wrapper(module.forward)


def _with_own_stream(forward: Forward, *, module: nn.Module, rank: int, device: torch.device) -> Forward:
    drops = [child for child in module.modules() if isinstance(child, nn.Dropout)]

    def run(*args: Any, **kwargs: Any) -> Any:
        if not module.training or not any(drop.p > 0 for drop in drops):
            return forward(*args, **kwargs)
        with streams.own_stream(rank, device):
            return forward(*args, **kwargs)

    return run


def _converted(
    forward: Forward, *, module: nn.Module, convert: Callable[[Tensor, ProcessGroup], Tensor], group: ProcessGroup
) -> Forward:
    """The first argument converted."""

    def run(first: Tensor, *args: Any, **kwargs: Any) -> Any:
        return forward(convert(first, group), *args, **kwargs)

    return run


def _enter(forward: Forward, *, module: nn.Module, group: ProcessGroup, cut: bool) -> Forward:
    names = list(inspect.signature(type(module).forward).parameters)[1:]
    entering = {name: place for place, name in enumerate(names) if name in ENTERING}

    def convert(value: Any, name: str) -> Any:
        if not isinstance(value, Tensor):
            return value
        whole = not cut or name == "encoder_hidden_states"
        return (regions.enter if whole else regions.enter_from_sequence)(value, group)

    def run(*args: Any, **kwargs: Any) -> Any:
        given = list(args)
        for name, place in entering.items():
            if place < len(given):
                given[place] = convert(given[place], name)
            elif name in kwargs:
                kwargs[name] = convert(kwargs[name], name)
        return forward(*given, **kwargs)

    return run


def _then_enter(forward: Forward, *, module: nn.Module, group: ProcessGroup, cut: bool) -> Forward:
    def run(*args: Any, **kwargs: Any) -> Any:
        return regions.enter(forward(*args, **kwargs), group)

    return run


def _row(forward: Forward, *, module: nn.Module, group: ProcessGroup, cut: bool) -> Forward:
    assert isinstance(module, nn.Linear)
    finish = regions.leave_to_sequence if cut else regions.leave

    def run(input: Tensor) -> Tensor:
        result = finish(nn.functional.linear(input, module.weight), group)
        return result if module.bias is None else result + module.bias.to(result.dtype)

    return run


def _vocabulary(forward: Forward, *, module: nn.Module, group: ProcessGroup, cut: bool) -> Forward:
    if not isinstance(module, nn.Embedding):
        return forward
    size, padding = module.num_embeddings, module.padding_idx

    def run(input: Tensor) -> Tensor:
        return vocabulary.embedded(input, module.weight, group, vocabulary=size, padding_index=padding)

    return run


def _vocabulary_loss(forward: Forward, *, module: nn.Module, group: ProcessGroup, cut: bool) -> Forward:
    size = module.vocabulary_size
    assert isinstance(size, int)

    def run(logits: Tensor, labels: Tensor) -> Tensor:
        return vocabulary.summed_cross_entropy(logits, labels, group, size)

    return run


_STYLES: Mapping[str, Callable[..., Forward]] = {
    "enter": _enter,
    "then_enter": _then_enter,
    "row": _row,
    "vocabulary": _vocabulary,
    "vocabulary_loss": _vocabulary_loss,
}
