"""Safetensors files as mappings of `LazyTensor`s, and written one tensor in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from megabert.formats import safetensors_header
from megabert.formats.checkpoint import LazyTensor
from megabert.formats.regions import Region

_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_ALIGNMENT = 8


def read(path: Path) -> dict[str, LazyTensor]:
    """The tensors of a file by name.

    Raises:
        ValueError: the file is cut short or damaged, or holds numbers of a type that torch has not.
    """
    region = Region.whole(path)
    return {name: _lazy(region, path, name, stored, begin)
            for name, (stored, begin) in safetensors_header.read_places(path).items()}  # fmt: skip


def _lazy(region: Region, path: Path, name: str, stored: safetensors_header.Stored, begin: int) -> LazyTensor:
    dtype = _DTYPES.get(stored.dtype)
    if dtype is None:
        raise ValueError(f"{path}: {name} holds numbers of type {stored.dtype}, which is not read")
    shape = stored.shape
    return LazyTensor(shape, dtype, lambda: region.tensor(dtype, shape, offset=begin), f"{path}: {name}")


def write(tensors: Mapping[str, LazyTensor], path: Path) -> None:
    """Write a file, tensors in the order given.

    Raises:
        ValueError: a source tensor is damaged.
        OSError: the disk is full or not writable.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise ValueError(f"{tensor.origin}: safetensors has no place for {tensor.dtype}")
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [end, end + tensor.bytes]}  # fmt: skip
        end += tensor.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb", buffering=0) as file:
        _write_all(file, len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            if tensor.numbers:
                flat = tensor.load().contiguous().reshape(-1)
                _write_all(file, flat.view(torch.uint8).numpy().data)


def _write_all(file: object, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        written = file.write(view)  # type: ignore[attr-defined]
        view = view[written:]
