"""A device called `aside`, for machines that have none but the CPU: what a GPU would refuse or wait for is seen there.

Its tensors hold CPU tensors, which are computed with. As on a GPU, they do not meet tensors of the CPU, and a program
that asks one for a number waits for it: who does is kept in `waits`. Registers the device with PyTorch for good, so
it needs a process of its own: `python -m tests.training.aside`.
"""

from __future__ import annotations

import os
import traceback
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend  # private; there is no other way

NAME = "aside"
waits: list[str] = []

_aten = torch.ops.aten
_CROSSES = {_aten.copy_.default, _aten._to_copy.default}
_TAKES_INDICES_OF_THE_CPU = {
    _aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default
}  # fmt: skip
_COUNTS = {_aten._local_scalar_dense.default, _aten.nonzero.default, _aten.equal.default}


class Aside(torch.Tensor):
    """A tensor of that device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor):
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=f"{NAME}:0",
        )  # fmt: skip
        made.held = held
        return made

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func == torch.Tensor.data.__get__:
            return Aside(args[0].held.detach())
        if func == torch.Tensor.tolist:
            return args[0].detach().cpu().tolist()
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        if func == torch.Tensor.data.__set__:
            args[0].held = args[1].held
        return result

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _compute(func, args, kwargs or {})


class _MadeThere(TorchDispatchMode):
    """Tensors that are made on the device, or brought to it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        there = _is_there((kwargs or {}).get("device"))
        return (_compute if there else lambda run, a, k: run(*a, **k))(func, args, kwargs or {})


def _is_there(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _caller() -> str:
    package = f"{os.sep}megabert{os.sep}"
    frames = [frame for frame in traceback.extract_stack() if package in frame.filename]
    return f"{frames[-1].filename.rpartition(package)[2]}: {frames[-1].name}" if frames else "outside"


def _compute(func: Any, args: Any, kwargs: Any) -> Any:
    tensors = [item for item in pytree.tree_leaves((args, kwargs)) if isinstance(item, Tensor)]
    there = [one for one in tensors if isinstance(one, Aside)]
    strangers = [one for one in tensors if not isinstance(one, Aside) and one.dim() > 0]
    if there and strangers and func not in _CROSSES | _TAKES_INDICES_OF_THE_CPU:
        raise RuntimeError(f"{func} in {_caller()}: tensors of {NAME} and of the CPU")
    device = kwargs.get("device")
    if func in _CROSSES | _TAKES_INDICES_OF_THE_CPU and device is None:
        stays = isinstance(args[0], Aside)
    else:
        stays = bool(there) if device is None else _is_there(device)
    if there and (func in _COUNTS or not stays):
        waits.append(_caller())
    plain, options = pytree.tree_map_only(Aside, lambda one: one.held, (args, dict(kwargs)))
    if device is not None:
        options["device"] = torch.device("cpu")
    result = func(*plain, **options)
    if func is _aten.copy_.default:
        return args[0]
    if func is _aten._to_copy.default and bool(there) != stays:
        result = result.clone()  # the CPU's own copy may be none
    if not stays:
        return result
    made = pytree.tree_map_only(Tensor, Aside, result)
    return return_and_correct_aliasing(func, args, kwargs, made) if there else made


@contextmanager
def watched():
    """Yields who waits for the device in the block."""
    waits.clear()
    yield waits


def bring(model: torch.nn.Module) -> None:
    """Bring a model to the device. `Module.to` cannot: it would leave tensors of a class of their own behind."""
    known: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = known.setdefault(id(weight), torch.nn.Parameter(Aside(weight.detach())))
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else Aside(buffer)


def train(device: str, **changes: Any) -> tuple[list[float], list[list[str]]]:
    """Losses of three updates and of an evaluation, and who waited for the device in each update."""
    from megabert.models.losses import PretrainingObjective
    from megabert.training.loader import collate
    from megabert.training.step import make_step

    from .test_with_model import PackedRows, network
    from .toy import options

    rows = PackedRows()
    model = network(dropout=0.0)
    if device == NAME:
        bring(model)
    step = make_step(model, PretrainingObjective("sop"), options(lr=1e-4, **changes))
    losses, waited = [], []
    for update in range(3):
        batches = [collate([rows[8 * update + 4 * half + row] for row in range(4)]) for half in range(2)]
        with watched() as found:
            report = step(batches, 1e-4)
        losses += [*report.losses.values(), report.grad_norm]
        waited.append(list(found))
    step.weights.model.eval()
    found = step.engine.evaluate(collate([rows[50], rows[51]]), step.objective.sums)
    return losses + [float(value) for value in found.values()], waited


def compare(**changes: Any) -> None:
    """The device gives the CPU's numbers, and no update waits for it but where it is said to."""
    here, _ = train("cpu", **changes)
    there, waited = train(NAME, **changes)
    tolerance = 2e-2 if changes.get("bf16") else 1e-5
    torch.testing.assert_close(torch.tensor(there), torch.tensor(here), rtol=tolerance, atol=0)
    # Each of two micro-batches asks whether its mask hides anything; at the end, all numbers of the step at once.
    expected = ["models/masks.py: _all_true"] * 2 + ["training/engine.py: numbers"]
    assert waited == [expected] * 3, waited


def refuses() -> None:
    """It is as strict as it is meant to be."""
    tensor = torch.ones(3, device=NAME)
    try:
        tensor + torch.ones(3)
    except RuntimeError as error:
        assert "of aside and of the CPU" in str(error), error
    else:
        raise AssertionError("tensors of two devices met")
    with watched() as found:
        assert (tensor + 1).sum().item() == 6
    assert found == ["outside"]


def main() -> None:
    """All comparisons."""
    _setup_privateuseone_for_python_backend(NAME)
    with _MadeThere():
        refuses()
        compare()
        compare(bf16=True)
        compare(bf16=True, fp32_layernorm=True, clip_grad=0.0)
    print("equal")


if __name__ == "__main__":
    main()
