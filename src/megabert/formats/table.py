"""One weight in two dresses, and the arithmetic between them: rename, fuse and cut, split and join.

A format is a list of `Row`s. `join` makes our tensors of what the ranks of a checkpoint hold, `split` does the
opposite; both are lazy, and both go row by row, so that the order of the fused rows is undone on each rank before
ranks are joined (in the oldest order a plain concatenation of ranks is wrong).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from megabert.formats.checkpoint import LazyTensor

Order = Literal["v0", "v1", "v2"]
Place = Literal["first", "layer", "last"]

ORDERS: dict[Order, str] = {"v0": "[3, heads, size]", "v1": "[heads, size, 3]", "v2": "[heads, 3, size]"}
"""What the rows of a fused query-key-value weight are, by the checkpoint version that brought the order."""

WORD_ROWS = ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight")
VOCABULARY = (*WORD_ROWS, "cls.predictions.bias")
"""Our names whose first dimension is the vocabulary."""

_PADDING_BIAS = -10_000.0


@dataclass(frozen=True)
class Row:
    """One weight in two dresses.

    Attributes:
        ours: one name, or (query, key, value) when theirs is fused.
        theirs: the name there, with the number of the layer counted over the whole model.
        cut: the dim that tensor-parallel ranks share; None: each holds it whole.
        place: where it lives in a pipeline.
        layer: its layer, from 0; None outside the layers.
    """

    ours: tuple[str, ...]
    theirs: str
    cut: int | None = None
    place: Place = "layer"
    layer: int | None = None

    @property
    def fused(self) -> bool:
        """Whether theirs is query, key and value in one."""
        return len(self.ours) == 3


def order_of(version: float) -> Order:
    """The order of the fused rows that a `checkpoint_version` means (absent counts as 0)."""
    return "v0" if version < 1 else "v1" if version < 2 else "v2"


def unfuse(fused: LazyTensor, heads: int, order: Order) -> tuple[LazyTensor, LazyTensor, LazyTensor]:
    """Query, key and value of one rank.

    Args:
        fused: [3 x heads x size, ...] of one rank.
        heads: attention heads on that rank.

    Raises:
        ValueError: the rows are no multiple of three times the heads.
    """
    rows, rest = fused.shape[0], fused.shape[1:]
    if rows % (3 * heads):
        raise ValueError(f"{fused.origin}: {rows} rows are not query, key and value of {heads} heads")
    size = rows // (3 * heads)
    shape = (heads * size, *rest)

    def part(index: int) -> Callable[[Tensor], Tensor]:
        def take(tensor: Tensor) -> Tensor:
            if order == "v0":
                return tensor.reshape(3, *shape)[index]
            if order == "v1":
                return tensor.reshape(heads, size, 3, *rest)[:, :, index].reshape(shape)
            return tensor.reshape(heads, 3, size, *rest)[:, index].reshape(shape)

        return take

    query, key, value = (fused.derived(shape, part(index)) for index in range(3))
    return query, key, value


def fuse(parts: Sequence[LazyTensor], heads: int, order: Order) -> LazyTensor:
    """Query, key and value of one rank ([heads x size, ...] each) as one tensor [3 x heads x size, ...]."""
    shape = parts[0].shape
    for part in parts[1:]:
        if part.shape != shape or part.dtype != parts[0].dtype:
            raise ValueError(f"{part.origin}: {list(part.shape)} {part.dtype}, but its query is {list(shape)}")
    if shape[0] % heads:
        raise ValueError(f"{parts[0].origin}: {shape[0]} rows do not fit {heads} heads")
    size, rest = shape[0] // heads, shape[1:]
    dim = {"v0": 0, "v1": 2, "v2": 1}[order]
    fused_shape = (3 * shape[0], *rest)

    def read() -> Tensor:
        loaded = [part.load().reshape(heads, size, *rest) for part in parts]
        return torch.stack(loaded, dim).reshape(fused_shape)

    return LazyTensor(fused_shape, parts[0].dtype, read, parts[0].origin)


def concatenate(parts: Sequence[LazyTensor], dim: int) -> LazyTensor:
    """The shares of all ranks, as one.

    Raises:
        ValueError: they differ in another dim or in type; file and key are named.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    for part in parts[1:]:
        if _without(part.shape, dim) != _without(first.shape, dim) or part.dtype != first.dtype:
            raise ValueError(
                f"{part.origin}: {list(part.shape)} {part.dtype} does not go with {list(first.shape)} {first.dtype} "
                f"of {first.origin}; the ranks are not of one run"
            )
    shape = (*first.shape[:dim], sum(part.shape[dim] for part in parts), *first.shape[dim + 1 :])
    return LazyTensor(shape, first.dtype, lambda: torch.cat([part.load() for part in parts], dim), first.origin)


def share(tensor: LazyTensor, dim: int, rank: int, size: int) -> LazyTensor:
    """What one of `size` ranks holds of a tensor that is cut along `dim`.

    Raises:
        ValueError: the dim cannot be cut in so many equal parts.
    """
    if size == 1:
        return tensor
    length = tensor.shape[dim]
    if length % size:
        raise ValueError(f"{tensor.origin}: dim {dim} of {list(tensor.shape)} cannot be shared by {size} ranks")
    part = length // size
    shape = (*tensor.shape[:dim], part, *tensor.shape[dim + 1 :])
    return tensor.derived(shape, lambda loaded: loaded.narrow(dim, rank * part, part))


def same(parts: Sequence[LazyTensor]) -> LazyTensor:
    """A tensor that each rank holds whole: that of the first rank, compared with the others when it is read.

    Raises:
        ValueError: shapes differ; on `load`, when the numbers are those of another run.
    """
    first = parts[0]
    for part in parts[1:]:
        if part.shape != first.shape or part.dtype != first.dtype:
            raise ValueError(
                f"{part.origin}: {list(part.shape)} {part.dtype}, but {list(first.shape)} {first.dtype} in "
                f"{first.origin}; the ranks are not of one run"
            )
    if len(parts) == 1:
        return first

    def read() -> Tensor:
        kept = first.load()
        for part in parts[1:]:
            other = part.load()
            if not torch.equal(kept, other) and not torch.allclose(
                kept.float(), other.float(), rtol=1e-2, atol=1e-3, equal_nan=True
            ):
                raise ValueError(
                    f"{part.origin}: each rank must hold the same, but it differs from {first.origin}; "
                    "the ranks are not of one run"
                )
        return kept

    return LazyTensor(first.shape, first.dtype, read, first.origin)


def join(
    rows: Iterable[Row], ranks: Sequence[Mapping[str, LazyTensor]], *, heads: int, order: Order
) -> dict[str, LazyTensor]:
    """Our tensors, of those that all tensor-parallel ranks hold; rows that no rank has are left out.

    Args:
        ranks: of each rank, its tensors by their names, layers counted over the whole model.
        heads: attention heads of the whole model.

    Raises:
        ValueError: a rank lacks what others have, or shapes do not fit; file and key are named.
    """
    size = len(ranks)
    if heads < 1 or heads % size:
        raise ValueError(f"{heads} attention heads cannot be shared by {size} ranks; the number of heads is wrong")
    tensors: dict[str, LazyTensor] = {}
    for row in rows:
        shares = [rank[row.theirs] for rank in ranks if row.theirs in rank]
        if not shares:
            continue
        if len(shares) != size:
            lacking = next(index for index, rank in enumerate(ranks) if row.theirs not in rank)
            raise ValueError(f"{shares[0].origin}: rank {lacking} of {size} lacks {row.theirs}")
        if row.fused:
            split_shares = [unfuse(share, heads // size, order) for share in shares]
            for index, name in enumerate(row.ours):
                tensors[name] = concatenate([parts[index] for parts in split_shares], 0)
        elif row.cut is None:
            tensors[row.ours[0]] = same(shares)
        else:
            tensors[row.ours[0]] = concatenate(shares, row.cut)
    return tensors


def split(
    rows: Iterable[Row], tensors: Mapping[str, LazyTensor], size: int, *, heads: int, order: Order
) -> list[dict[str, LazyTensor]]:
    """What each of `size` tensor-parallel ranks holds, by their names; rows whose tensors we lack are left out.

    Raises:
        ValueError: heads or a dim cannot be cut so, or one of query, key and value is missing.
    """
    if heads % size:
        raise ValueError(f"{heads} attention heads cannot be shared by {size} tensor-parallel ranks")
    ranks: list[dict[str, LazyTensor]] = [{} for _ in range(size)]
    for row in rows:
        held = [name for name in row.ours if name in tensors]
        if not held:
            continue
        if len(held) != len(row.ours):
            absent = next(name for name in row.ours if name not in tensors)
            raise ValueError(f"{tensors[held[0]].origin}: {absent} is missing beside {held[0]}")
        for index, rank in enumerate(ranks):
            if row.fused:
                shares = [share(tensors[name], 0, index, size) for name in row.ours]
                rank[row.theirs] = fuse(shares, heads // size, order)
            elif row.cut is None:
                rank[row.theirs] = tensors[row.ours[0]]
            else:
                rank[row.theirs] = share(tensors[row.ours[0]], row.cut, index, size)
    return ranks


def resize_vocabulary(tensors: Mapping[str, LazyTensor], size: int, *, moments: bool = False) -> dict[str, LazyTensor]:
    """Cut or grow everything that has a row for each entry of the vocabulary.

    Added rows of the embedding are zeros, and their bias in the masked-word head is -10,000: they get no probability,
    so the function on real entries stays what it was.

    Args:
        tensors: by our names; a beginning such as `exp_avg/` is allowed.
        moments: the tensors are moments of an optimizer: added rows are zeros everywhere.
    """
    changed = dict(tensors)
    for name, tensor in tensors.items():
        plain = name.rpartition("/")[2]
        if plain in VOCABULARY and tensor.shape and tensor.shape[0] != size:
            bias = plain == "cls.predictions.bias" and not moments and not name.startswith("exp_avg")
            changed[name] = _resized(tensor, size, _PADDING_BIAS if bias else 0.0)
    return changed


def _resized(tensor: LazyTensor, size: int, filling: float) -> LazyTensor:
    shape = (size, *tensor.shape[1:])
    missing = size - tensor.shape[0]

    def change(loaded: Tensor) -> Tensor:
        if missing <= 0:
            return loaded[:size]
        return torch.cat([loaded, loaded.new_full((missing, *shape[1:]), filling)])

    return tensor.derived(shape, change)


def padded_vocabulary(size: int, divisible_by: int, tensor_ranks: int) -> int:
    """Megatron's size of the table: the next multiple of `divisible_by` x ranks."""
    multiple = divisible_by * tensor_ranks
    return -(-size // multiple) * multiple


def _without(shape: tuple[int, ...], dim: int) -> tuple[int, ...]:
    return (len(shape), *shape[:dim], *shape[dim + 1 :])
