"""Files as `torch.save` writes them, one tensor in memory at a time.

The container is a zip without compression and the pickle names tensors as torch's does, so `torch.load` of any version
since 1.6 reads the result. torch's own writer is not used: it was measured at 0.3 GB/s, most of it its checksum.
"""

from __future__ import annotations

import io
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any

import torch
from torch._utils import _rebuild_tensor_v2

from megabert.formats.checkpoint import LazyTensor
from megabert.formats.unpickle_globals import STORAGES, contiguous

_EPOCH = (1980, 1, 1, 0, 0, 0)
_HEADER, _WIDE_EXTRA = 30, 20  # bytes of a member's header before its name; of what a member over 2 GB adds
_ALIGNMENT, _PADDING_TAG = 64, 0x4246
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
    if isinstance(target, Path):
        with target.open("wb") as file:
            _write(file, text.getvalue(), pickler.references)
    else:
        _write(target, text.getvalue(), pickler.references)


def _write(file: IO[bytes], text: bytes, references: list[_Reference]) -> None:
    with zipfile.ZipFile(_Placed(file), "w", zipfile.ZIP_STORED) as archive:  # type: ignore[call-overload]
        _record(archive, "data.pkl", text)
        _record(archive, "byteorder", sys.byteorder.encode())
        _record(archive, "version", b"3\n")
        for reference in references:
            tensor = reference.tensor.load()
            if tensor.numel():
                _record(
                    archive, f"data/{reference.key}", tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
                )
            else:
                _record(archive, f"data/{reference.key}", b"")
            del tensor


def _record(archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    """One member, its bytes at a multiple of 64 as torch places them, so that a reader can map them."""
    size = len(data)
    entry = zipfile.ZipInfo(f"archive/{name}", _EPOCH)
    entry.file_size = size
    wide = size * 1.05 > zipfile.ZIP64_LIMIT
    begin = archive.fp.tell() + _HEADER + len(entry.filename) + (_WIDE_EXTRA if wide else 0) + 4  # type: ignore[union-attr]
    padding = -begin % _ALIGNMENT
    entry.extra = struct.pack("<HH", _PADDING_TAG, padding) + b"Z" * padding
    with archive.open(entry, "w", force_zip64=wide) as member:
        member.write(data)


class _Placed:
    """An open file whose places count from where it stood, so that a container may lie inside another."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._begin = file.tell()

    def write(self, data: bytes | memoryview) -> int:
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell() - self._begin

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset + self._begin if whence == io.SEEK_SET else offset, whence) - self._begin

    def flush(self) -> None:
        self._file.flush()

    def truncate(self, size: int | None = None) -> int:
        return self._file.truncate(None if size is None else size + self._begin)

    def seekable(self) -> bool:
        return True
