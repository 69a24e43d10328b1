"""What one rank does in a step: every operation, every collective, every byte that lives.

`Recorder` watches a program run; it neither runs nor changes anything. It works on real tensors (a gloo run in a test)
and on tensors without memory (`planning.rehearsal`) alike, so the two can be compared.
"""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode  # private, but the only way to see what backward runs
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class Operation(NamedTuple):
    """One kernel.

    Attributes:
        kind: `matrix`, `attention` or `memory` (all that is bound by what it reads and writes).
        flops: multiplications and additions of matrices; 0 for `memory`.
        size: bytes that are read and written.
        contraction: length of the sums of a matrix product; 0 for the others.
        half: whether it computes in a 16 bit format.
    """

    kind: str
    flops: int
    size: int
    contraction: int
    half: bool


class Collective(NamedTuple):
    """One collective of this rank.

    Attributes:
        kind: `all-reduce`, `all-gather`, `reduce-scatter`, `broadcast`, `all-to-all`, `send` or `receive`.
        ranks: all ranks of its group, ascending; of `send` and `receive` this rank and the other.
        size: bytes of the whole tensor: what is reduced, or the gathered result, or the message.
    """

    kind: str
    ranks: tuple[int, ...]
    size: int

    @property
    def wire(self) -> float:
        """Bytes that this rank sends by the ring algorithm (of NCCL and gloo)."""
        count = len(self.ranks)
        if self.kind == "all-reduce":
            return 2 * (count - 1) / count * self.size
        if self.kind in ("all-gather", "reduce-scatter", "all-to-all"):
            return (count - 1) / count * self.size
        return 0.0 if self.kind == "receive" else float(self.size)


# operator -> kind, and which of its arguments holds the whole tensor; None: its result does
_COLLECTIVES = {
    "c10d::allreduce_": ("all-reduce", 0),
    "c10d::allreduce_coalesced_": ("all-reduce", 0),
    "c10d::broadcast_": ("broadcast", 0),
    "c10d::allgather_": ("all-gather", 0),
    "c10d::_allgather_base_": ("all-gather", 0),
    "c10d::allgather_into_tensor_coalesced_": ("all-gather", 0),
    "c10d::reduce_scatter_": ("reduce-scatter", 1),
    "c10d::_reduce_scatter_base_": ("reduce-scatter", 1),
    "c10d::reduce_scatter_tensor_coalesced_": ("reduce-scatter", 1),
    "c10d::alltoall_base_": ("all-to-all", 0),
    "c10d::alltoall_": ("all-to-all", 0),
    "c10d::send": ("send", 0),
    "c10d::recv_": ("receive", 0),
    "_c10d_functional::all_reduce": ("all-reduce", 0),
    "_c10d_functional::all_reduce_": ("all-reduce", 0),
    "_c10d_functional::all_reduce_coalesced": ("all-reduce", 0),
    "_c10d_functional::all_gather_into_tensor": ("all-gather", None),
    "_c10d_functional::all_gather_into_tensor_coalesced": ("all-gather", None),
    "_c10d_functional::reduce_scatter_tensor": ("reduce-scatter", 0),
    "_c10d_functional::reduce_scatter_tensor_coalesced": ("reduce-scatter", 0),
    "_c10d_functional::all_to_all_single": ("all-to-all", 0),
    "_c10d_functional::broadcast": ("broadcast", 0),
}

_FREE = {
    "aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided",
    "aten::_local_scalar_dense", "aten::is_same_size", "aten::detach",
}  # fmt: skip
_FILLS = {"aten::zeros", "aten::zeros_like", "aten::new_zeros", "aten::ones_like", "aten::full"}


class Recorder(TorchDispatchMode):
    """Records operations, collectives and storages while it is entered.

    Attributes:
        phase: under which name operations and collectives are counted from now on.
        operations, collectives: phase -> how often each was seen.
        events: (number of a storage, bytes by which it grows or, negative, shrinks), in order of time.
    """

    def __init__(self, phase: str = "step") -> None:
        super().__init__()
        self.phase = phase
        self.operations: dict[str, Counter[Operation]] = {}
        self.collectives: dict[str, Counter[Collective]] = {}
        self.events: list[tuple[int, int]] = []
        self._known: dict[int, tuple[int, int]] = {}  # id of a storage -> its number and bytes
        self._first_fills: dict[int, tuple[str, Operation]] = {}  # number -> the operation that filled it
        self._next = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run `func` and write down what it was."""
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # DTensor calls the operators of the local tensors, which come back here
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        if name == "prim::device":
            return result
        if name in _COLLECTIVES:
            self._collective(name, args, result)
        elif name not in _FREE and not name.startswith(("_c10d_functional", "c10d", "prim")):
            self._operation(func, name, args, kwargs or {}, result)
        self._live(result)
        return result

    def known(self, tensors: Iterable[Tensor]) -> None:
        """Do not count the storages of these tensors as new."""
        for tensor in tensors:
            self._known[id(tensor.untyped_storage())] = (-1, 0)

    def add(self, operation: Operation) -> None:
        """Count an operation that stands for others (see `kernels`)."""
        self.operations.setdefault(self.phase, Counter())[operation] += 1

    def _collective(self, name: str, args: tuple, result: Any) -> None:
        kind, whole = _COLLECTIVES[name]
        tensors = [leaf for leaf in tree_leaves(result if whole is None else args[whole]) if isinstance(leaf, Tensor)]
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        group = _group(args)
        ranks = tuple(sorted(dist.get_process_group_ranks(group)))
        if kind in ("send", "receive"):
            if all(tensor.dtype == torch.int32 for tensor in tensors):
                return  # torch's pipeline stages asking each other, in the first step only, whether shapes are known
            # The peer is a rank of the group.
            peer = next(value for value in args[1:] if isinstance(value, int) and not isinstance(value, bool))
            ranks = tuple(sorted({dist.get_rank(), dist.get_global_rank(group, peer)}))
        if len(ranks) > 1:
            self.collectives.setdefault(self.phase, Counter())[Collective(kind, ranks, size)] += 1

    def _operation(self, func: Any, name: str, args: tuple, kwargs: dict, result: Any) -> None:
        if all(_is_view(returned) for returned in func._schema.returns) and func._schema.returns:
            return
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        storages = {id(tensor.untyped_storage()) for tensor in inputs}
        written = _written(func._schema, args, kwargs)
        if not written and outputs and all(id(tensor.untyped_storage()) in storages for tensor in outputs):
            return  # a view that its schema does not declare
        size = sum(map(_touched, inputs)) + sum(map(_touched, written or outputs))
        if name in _FILLS:
            size = sum(map(_touched, outputs))
        flops, contraction, kind = 0, 0, "memory"
        packet = func.overloadpacket
        if packet in flop_registry and outputs:
            flops = int(flop_registry[packet](*args, **kwargs, out_val=result))
            contraction = round(flops / 2 / max(math.prod(outputs[0].shape), 1))
            kind = "matrix"
        half = any(tensor.dtype in (torch.float16, torch.bfloat16) for tensor in inputs)
        operation = Operation(kind, flops, size, contraction, half)
        self.add(operation)
        if name in _FILLS and id(outputs[0].untyped_storage()) not in self._known:
            self._first_fills[self._next] = (self.phase, operation)

    def _live(self, result: Any) -> None:
        for leaf in tree_leaves(result):
            if not isinstance(leaf, Tensor) or isinstance(leaf, DTensor):
                continue
            storage = leaf.untyped_storage()
            key = id(storage)
            if key in self._known:
                continue
            number, size = self._next, storage.nbytes()
            self._next += 1
            self._known[key] = (number, size)
            self.events.append((number, size))
            weakref.finalize(storage, self._freed, key)

    def resized(self, storage: torch.UntypedStorage, size: int) -> None:
        """A storage is about to have another size: sharded weights come and go in this way."""
        if id(storage) in self._known:
            number, before = self._known[id(storage)]
            self._known[id(storage)] = (number, size)
            if number >= 0:
                self.events.append((number, size - before))

    def _freed(self, key: int) -> None:
        number, size = self._known.pop(key, (-1, 0))
        if number >= 0:
            self.events.append((number, -size))
            self._first_fills.pop(number, None)

    def close(self) -> int:
        """End the recording of a step, while all that outlives it is still alive.

        Fills of storages that are still alive are forgotten: the second step does not make them again.

        Returns:
            The most bytes that lived at once beyond those that stay.
        """
        for phase, operation in self._first_fills.values():
            self.operations[phase][operation] -= 1
        staying = dict(self._known.values())
        sizes: dict[int, int] = {}
        live = most = 0
        for number, change in self.events:
            before = sizes.get(number, 0)
            after = sizes[number] = before + change
            rest = staying.get(number, 0)
            live += max(after - rest, 0) - max(before - rest, 0)
            most = max(most, live)
        self._first_fills.clear()
        self._known.clear()
        return most


def _group(args: tuple) -> dist.ProcessGroup:
    for value in args[1:]:
        if isinstance(value, torch.ScriptObject) and "ProcessGroup" in str(value._type()):  # type: ignore[attr-defined]
            return dist.ProcessGroup.unbox(value)  # type: ignore[attr-defined]
    names = [value for value in args[1:] if isinstance(value, str)]
    # Functional collectives name their group; nothing public finds it by name.
    return dist.distributed_c10d._resolve_process_group(names[-1])  # type: ignore[arg-type]


def _written(schema: Any, args: tuple, kwargs: dict) -> list[Tensor]:
    """The tensors that an operator changes in place."""
    given = list(zip(schema.arguments, args, strict=False))
    given += [(argument, kwargs[argument.name]) for argument in schema.arguments if argument.name in kwargs]
    changed = [value for argument, value in given if argument.alias_info is not None and argument.alias_info.is_write]
    return [leaf for leaf in tree_leaves(changed) if isinstance(leaf, Tensor)]


def _is_view(returned: Any) -> bool:
    return returned.alias_info is not None and not returned.alias_info.is_write


def _touched(tensor: Tensor) -> int:
    """Bytes that a kernel reads or writes of a tensor: an expanded one is small in memory."""
    if isinstance(tensor, DTensor):
        return 0
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
