"""Files as `torch.save` writes them, one tensor in memory at a time.

The container is written by torch's own `PyTorchFileWriter`; the pickle names tensors as torch's does, so `torch.load`
of any version since 1.6 reads the result.
"""

from __future__ import annotations

import io
import math
import pickle
import sys
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any

import torch
from torch._utils import _rebuild_tensor_v2

from megabert.formats.checkpoint import LazyTensor
from megabert.formats.unpickle_globals import STORAGES, contiguous

_STORAGE_NAMES = {dtype: name for name, dtype in STORAGES.items() if name != "UntypedStorage"}


class _Reference:
    """The storage of one tensor: what the pickle names instead of holding it."""

    def __init__(self, key: str, tensor: LazyTensor):
        self.key = key
        self.tensor = tensor


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO):
        super().__init__(file, protocol=2)
        self.references: list[_Reference] = []

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, _Reference):
            return None
        storage = getattr(torch, _STORAGE_NAMES[obj.tensor.dtype])
        return ("storage", storage, obj.key, "cpu", obj.tensor.numbers)

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, LazyTensor):
            return NotImplemented
        if obj.dtype not in _STORAGE_NAMES:
            raise ValueError(f"{obj.origin}: torch's file format has no place for {obj.dtype}")
        reference = _Reference(str(len(self.references)), obj)
        self.references.append(reference)
        arguments = (reference, 0, obj.shape, contiguous(obj.shape), False, OrderedDict())
        return _rebuild_tensor_v2, arguments


def save(data: Any, target: Path | IO[bytes]) -> None:
    """Write plain data with `LazyTensor`s in it, as `torch.save(data, path)` would with tensors.

    A `LazyTensor` that occurs twice is stored once.

    Args:
        target: a new file, or an open one, in which the container begins where it stands.

    Raises:
        ValueError: a source tensor is damaged.
        OSError: the disk is full or not writable.
    """
    text = io.BytesIO()
    pickler = _Pickler(text)
    pickler.dump(data)
    try:
        writer = torch._C.PyTorchFileWriter(str(target) if isinstance(target, Path) else target)
        _record(writer, "data.pkl", text.getvalue())
        _record(writer, "byteorder", sys.byteorder.encode())
        for reference in pickler.references:
            tensor = reference.tensor.load().contiguous()
            length = math.prod(tensor.shape) * tensor.dtype.itemsize
            if tensor.storage_offset() or tensor.untyped_storage().nbytes() != length:
                tensor = tensor.clone()
            writer.write_record(f"data/{reference.key}", tensor.untyped_storage(), length)  # type: ignore[arg-type]
            del tensor
        writer.write_end_of_file()
    except RuntimeError as error:
        name = target if isinstance(target, Path) else target.name
        raise OSError(f"cannot write {name}: {' '.join(str(error).split())[:200]}") from None


def _record(writer: Any, name: str, data: bytes) -> None:
    writer.write_record(name, data, len(data))
