"""Training checkpoints that many processes wrote (`training/sharded.py`), read without any process group.

`index.json` says of each tensor `[type, shape, [[shard, offsets, sizes], ...]]`; the piece lies in that shard under
`NAME@OFFSETS`. A tensor is put together when it is asked for.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megabert.formats import safetensors_file
from megabert.formats.checkpoint import LazyTensor
from megabert.formats.megatron_core_chunks import collide

INDEX = "index.json"
_LARGEST_INDEX = 1 << 30
_DTYPES = {
    "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64, "I64": torch.int64,
    "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip

Piece = tuple[tuple[int, ...], LazyTensor]
"""Where it begins in the whole, and its numbers."""


def read(folder: Path) -> dict[str, dict[str, LazyTensor]]:
    """`model` and `optimizer` -> tensors by name.

    Raises:
        ValueError: the index is damaged, a shard is missing or cut short, or pieces leave gaps.
    """
    path = folder / INDEX
    if path.stat().st_size > _LARGEST_INDEX:
        raise ValueError(f"{path} is too large for what it should be")
    shards: dict[str, dict[str, LazyTensor]] = {}
    parts: dict[str, dict[str, LazyTensor]] = {"model": {}, "optimizer": {}}
    try:
        for name, (kind, shape, places) in json.loads(path.read_bytes())["tensors"].items():
            part, _, own = name.partition("/")
            if part in parts:
                pieces = [_piece(folder, shards, name, *place) for place in places]
                parts[part][own] = _joined(f"{folder}: {name}", _DTYPES[kind], _numbers(shape), pieces)
    except (KeyError, TypeError, RecursionError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error!r:.100})") from None
    return parts


def _numbers(values: Any) -> tuple[int, ...]:
    numbers = tuple(values)
    if len(numbers) > 16 or any(type(number) is not int or not 0 <= number < 1 << 48 for number in numbers):
        raise TypeError("an impossible shape")
    return numbers


def _piece(
    folder: Path, shards: dict[str, dict[str, LazyTensor]], name: str, rank: int, offsets: Any, sizes: Any
) -> Piece:
    shard = f"shard-{int(rank):05d}.safetensors"
    if shard not in shards:
        if not (folder / shard).is_file():
            raise ValueError(f"{folder} is not whole: {shard} is missing")
        shards[shard] = safetensors_file.read(folder / shard)
    key = f"{name}@{'.'.join(map(str, _numbers(offsets)))}"
    piece = shards[shard].get(key)
    if piece is None or piece.shape != _numbers(sizes):
        raise ValueError(f"{folder / shard} does not hold {key[:200]} of {sizes}, as {INDEX} says")
    return _numbers(offsets), piece


def _joined(origin: str, dtype: torch.dtype, shape: tuple[int, ...], pieces: Sequence[Piece]) -> LazyTensor:
    for offsets, piece in pieces:
        ends = [at + size for at, size in zip(offsets, piece.shape, strict=True)]
        if len(ends) != len(shape) or piece.dtype != dtype or any(e > s for e, s in zip(ends, shape, strict=True)):
            raise ValueError(f"{origin}: the piece at {list(offsets)} does not lie in {list(shape)} {dtype}")
    boxes = [(offsets, piece.shape) for offsets, piece in pieces]
    if sum(piece.numbers for _, piece in pieces) != math.prod(shape) or collide(boxes, origin):
        raise ValueError(f"{origin}: its pieces do not make up {list(shape)}; the checkpoint is not whole")

    def load() -> Tensor:
        if len(pieces) == 1:
            return pieces[0][1].load()
        whole = torch.empty(shape, dtype=dtype)
        for offsets, piece in pieces:
            whole[tuple(slice(at, at + size) for at, size in zip(offsets, piece.shape, strict=True))] = piece.load()
        return whole

    return LazyTensor(shape, dtype, load, origin)
