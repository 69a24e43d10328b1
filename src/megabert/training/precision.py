"""Weights in half precision with float32 masters beside them; in float32 there are no copies.

The model computes with its own weights (bfloat16 or float16, or float32 where a flag keeps them so). The optimizer
only ever sees the masters: for a half weight a float32 copy (which may be split: `training.split`), for a float32
weight the weight itself. Gradients are added up in float32, whatever the weights are.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from megabert.training.options import PrecisionOptions, check_precision
from megabert.training.split import Halves, splits, stand_in

_NORM = re.compile(r"layernorm|layer_norm|rmsnorm", re.IGNORECASE)


def is_norm(module: nn.Module) -> bool:
    """Whether the module is a normalisation layer, by its class or its class's name."""
    return isinstance(module, nn.LayerNorm) or _NORM.search(type(module).__name__) is not None


def half_of(options: PrecisionOptions) -> torch.dtype | None:
    """The half format that --fp16 or --bf16 asks for; None for float32.

    Raises:
        ValueError: both flags, or limits of the loss scale that are not in order.
    """
    check_precision(options)
    return torch.float16 if options.fp16 else torch.bfloat16 if options.bf16 else None


class Weights:
    """The trainable weights of a model by name, each with the float32 tensor that the optimizer changes.

    Making one converts the model in place (parameter objects stay, so ties stay tied). Tied weights occur once, under
    the first of their names.

    Where data-parallel processes share the weights (`fully_shard`), a parameter is this process's float32 part, and its
    master a view of it: the sharded module itself makes the half weights that it computes with.

    Args:
        model: the model, or the parts of one that a process holds; names do not repeat among them.
        tables: names of weights that are copies of an embedding that another process has: they keep its format.
        split: of large bfloat16 weights on a CPU keep no master but what they lack to it; `masters` then has
            stand-ins, whose values `exact` knows, and the optimizer must be one that can (`split.SplitAdamW`).
    """

    def __init__(
        self,
        model: nn.Module | Sequence[nn.Module],
        options: PrecisionOptions,
        *,
        tables: Collection[str] = (),
        split: bool = False,
    ):
        self.modules = [model] if isinstance(model, nn.Module) else list(model)
        self.half = half_of(options)
        self.masters: dict[str, nn.Parameter] = {}
        self.halves: dict[nn.Parameter, Halves] = {}
        self._split = split and self.half == torch.bfloat16
        self._half_weights: list[Tensor] = []
        self._half_masters: list[Tensor] = []
        self._shards: list[tuple[DTensor, nn.Parameter]] = []
        for module in self.modules:
            self._convert(module, options, tables)
        self.publish()

    @property
    def model(self) -> nn.Module:
        """The model, or this process's first part of it."""
        return self.modules[0]

    def _convert(self, model: nn.Module, options: PrecisionOptions, tables: Collection[str]) -> None:
        kept = _kept_modules(model, options, tables) if self.half is not None else []
        exact = _exact_parameters(model, kept)
        for name, parameter in model.named_parameters():
            assert name not in self.masters, f"two parts of the model hold {name}"
            if isinstance(parameter, DTensor):
                self._add_shard(name, parameter)
            else:
                self._add(name, parameter, exact)
        if self.half is not None:
            self._cast_buffers(model, kept)
            _bridge(model, self.half)

    def _add_shard(self, name: str, parameter: DTensor) -> None:
        assert parameter.dtype == torch.float32, f"{name} is {parameter.dtype}"
        if parameter.requires_grad:
            master = nn.Parameter(parameter.to_local().detach())
            self.masters[name] = master
            self._shards.append((parameter, master))

    def _add(self, name: str, parameter: nn.Parameter, exact: set[int]) -> None:
        if not parameter.is_floating_point():
            return
        target = torch.float32 if self.half is None or id(parameter) in exact else self.half
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(target)
            return
        numbers = parameter.data.to(torch.float32)
        if target == torch.float32:
            parameter.data = numbers
            self.masters[name] = parameter
            return
        if self._split and splits(numbers):
            master = stand_in(numbers)
            self.halves[master] = Halves(parameter, numbers)
        else:
            parameter.data = parameter.data.to(target)
            master = nn.Parameter(numbers)
        self.masters[name] = master
        self._half_weights.append(parameter)
        self._half_masters.append(master)

    def _cast_buffers(self, model: nn.Module, kept: list[nn.Module]) -> None:
        exempt = {id(module) for module in kept}
        for module in model.modules():
            if id(module) in exempt:
                continue
            for name, buffer in module.named_buffers(recurse=False):
                if buffer.is_floating_point():
                    module._buffers[name] = buffer.to(self.half)

    @torch.no_grad()
    def collect(self, *, first: bool) -> None:
        """Move the gradients of half weights into their masters' (float32): set them when `first`, else add them."""
        sources: list[Tensor] = []
        targets: list[Tensor] = []
        for weight, master in zip(self._half_weights, self._half_masters, strict=True):
            if weight.grad is None:
                if first:
                    # Unused in this batch: the gradient of the last step must not be taken again.
                    master.grad = None
                continue
            gradient, weight.grad = weight.grad, None
            if master.grad is None:
                # At once, so that the two gradients of all weights are not there together. One that nothing is added
                # to stays as it is where the master is split, and becomes float32 as it is used.
                master.grad = gradient if master in self.halves else gradient.to(master.dtype)
                continue
            if master.grad.dtype != master.dtype:
                master.grad = master.grad.to(master.dtype)
            sources.append(gradient)
            targets.append(master.grad)
        if not sources:
            return
        if first:
            torch._foreach_copy_(targets, sources)
        else:
            torch._foreach_add_(targets, sources)

    def pairs(self) -> list[tuple[Tensor, nn.Parameter]]:
        """Each trainable weight as the model computes with it, and its master (the same tensor in float32)."""
        computed = {id(master): weight for weight, master in zip(self._half_weights, self._half_masters, strict=True)}
        computed |= {id(master): weight for weight, master in self._shards}
        return [(computed.get(id(master), master), master) for master in self.masters.values()]

    def take_shards(self) -> None:
        """Let the masters of sharded weights hold the gradients that `fully_shard` has left; for others, nothing."""
        for weight, master in self._shards:
            local = weight.to_local().detach()
            if master.data_ptr() != local.data_ptr():
                # A part shorter than the others is moved into padded memory by the first forward pass.
                master.data = local
            master.grad = None if weight.grad is None else weight.grad.to_local()  # type: ignore[attr-defined]

    def clear(self, *, keep: bool = True) -> None:
        """Forget all gradients; with `keep` the masters' have the same memory again in the next step."""
        for weight, _ in self._shards:
            weight.grad = None
        for weight in self._half_weights:
            weight.grad = None
        kept = {id(master) for master in self._half_masters} if keep else set()
        for master in self.masters.values():
            if id(master) not in kept:
                master.grad = None

    def gradients(self) -> list[Tensor]:
        """The gradients that the last backward passes left; float32, or of a split master the only one, as it came."""
        return [master.grad for master in self.masters.values() if master.grad is not None]

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters into the half weights; split ones are."""
        pairs = zip(self._half_weights, self._half_masters, strict=True)
        whole = [(weight, master) for weight, master in pairs if master not in self.halves]
        if whole:
            weights, masters = zip(*whole, strict=True)
            torch._foreach_copy_(weights, masters)

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Know of an optimizer's updates, where not all weights have a master."""

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """An optimizer's state by `<state>/<weight>` as that of the whole weights, to store."""
        return dict(tensors)

    def parts(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What `whole` gave as a state of the masters."""
        return dict(tensors)

    def buffers(self) -> Iterator[tuple[str, Tensor]]:
        """The buffers that belong to the model's state, by name."""
        for module in self.modules:
            persistent = module.state_dict(keep_vars=True)
            yield from ((name, buffer) for name, buffer in module.named_buffers() if name in persistent)

    def exact(self, master: Tensor) -> Tensor:
        """The float32 numbers of a master: a copy where it is split. Any other tensor is its own."""
        return self.halves[master].whole() if master in self.halves else master.detach()  # type: ignore[index]

    def _stored(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = dict(item for module in self.modules for item in module.named_parameters())
        return tensors | dict(self.buffers()) | self.masters

    def outline(self) -> dict[str, Tensor]:
        """`state`, of split masters their shapes only."""
        return {name: tensor.detach() for name, tensor in self._stored().items()}

    def state(self) -> dict[str, Tensor]:
        """Everything to store of the model: float32 trainable weights, other weights and buffers as they are."""
        return {name: self.exact(tensor) for name, tensor in self._stored().items()}

    def state_dict(self) -> dict[str, Tensor]:
        """The model's state dict, tied names included, with the exact float32 weights: to load into a fresh model."""
        exact = {
            id(weight): name
            for module in self.modules
            for name, weight in module.named_parameters()
            if name in self.masters
        }
        return {
            name: self.exact(self.masters[exact[id(tensor)]] if id(tensor) in exact else tensor)
            for module in self.modules
            for name, tensor in module.state_dict(keep_vars=True).items()
        }

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take the tensors of `state` (names and shapes checked by the caller), and publish them."""
        for name, tensor in self._stored().items():
            if tensor in self.halves:
                self.halves[tensor].take(tensors[name])  # type: ignore[index]
            else:
                tensor.copy_(tensors[name])
        self.publish()


def exact_weights(model: nn.Module, options: PrecisionOptions, tables: Collection[str] = ()) -> set[str]:
    """Names of the weights that stay float32 in a half model; empty for a float32 one. Arguments as `Weights`'."""
    if half_of(options) is None:
        return set()
    exact = _exact_parameters(model, _kept_modules(model, options, tables))
    return {name for name, parameter in model.named_parameters() if id(parameter) in exact}


def _exact_parameters(model: nn.Module, kept: list[nn.Module]) -> set[int]:
    """The parameters (by `id`) that stay float32 when the own weights of the modules `kept` do."""
    exact = {id(parameter) for module in kept for parameter in module.parameters(recurse=False)}
    for module in model.modules():
        if isinstance(module, nn.Linear) and id(module.weight) in exact:
            # The vocabulary's head, tied to a float32 table: its bias must be of the same format.
            exact.add(id(module.bias))
    return exact


def _kept_modules(model: nn.Module, options: PrecisionOptions, tables: Collection[str]) -> list[nn.Module]:
    """The modules whose own weights stay float32."""
    kept = []
    owners = {name.rpartition(".")[0] for name in tables} if options.fp32_embedding else set()
    for name, module in model.named_modules():
        token_types = isinstance(module, nn.Embedding) and re.search(r"token_?type", name, re.IGNORECASE)
        if (
            (options.fp32_layernorm and is_norm(module))
            or (options.fp32_embedding and isinstance(module, nn.Embedding))
            or (options.fp32_tokentypes and token_types)
            or name in owners
        ):
            kept.append(module)
    return kept


def _bridge(model: nn.Module, half: torch.dtype) -> None:
    """Join float32 modules to their half neighbours: they read float32 and give the half format.

    As 2019's --fp32-layernorm and --fp32-embedding do. A model that casts by itself is not disturbed.
    """

    def widen(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(_cast(item, torch.float32) for item in inputs)

    def narrow(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        return _cast(output, half)

    narrowed: dict[int, nn.Module] = {}
    for name, module in model.named_modules():
        # A sharded weight is float32 at rest, and of the half format where it is computed with.
        held = [parameter for parameter in module.parameters(recurse=False) if not isinstance(parameter, DTensor)]
        own = [parameter for parameter in held if parameter.is_floating_point()]
        joined = is_norm(module) or isinstance(module, nn.Embedding | nn.Linear)
        if not joined or not any(parameter.dtype == torch.float32 for parameter in own):
            continue
        if isinstance(module, nn.LayerNorm) and own[0].device.type == "cpu":
            # Here layer_norm takes half activations and float32 weights as they are, and rounds once: no casts.
            continue
        if isinstance(module, nn.Embedding):
            place = _sum_of_embeddings(model, name) or module
            narrowed[id(place)] = place
            continue
        module.register_forward_pre_hook(widen)
        if not isinstance(module, nn.Linear):
            # A linear layer in float32 is the vocabulary's, tied to its table: its logits stay as exact as they are.
            narrowed[id(module)] = module
    for module in narrowed.values():
        module.register_forward_hook(narrow)


def _sum_of_embeddings(model: nn.Module, name: str) -> nn.Module | None:
    """The module that adds up the embedding `name` and others, so that the sum is rounded and not its parts."""
    parent_name = name.rpartition(".")[0]
    if not parent_name:
        return None
    parent = model.get_submodule(parent_name)
    weighted = [module for module in parent.modules() if next(module.parameters(recurse=False), None) is not None]
    return parent if all(isinstance(module, nn.Embedding) for module in weighted) else None


def _cast(item: Any, dtype: torch.dtype) -> Any:
    return item.to(dtype) if isinstance(item, Tensor) and item.is_floating_point() else item
