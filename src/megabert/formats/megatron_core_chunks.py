"""PyTorch's distributed checkpoints (DCP): a `.metadata` pickle that tells where each piece of each tensor lies.

    .metadata           sizes, types and chunks of every tensor; file, offset and length of every chunk
    __0_0.distcp        the chunks, each a whole file of `torch.save`, one behind the other

The metadata is read as inert data, and a tensor, or a slice of its first dim, only when it is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megabert.formats import unpickle
from megabert.formats.bounds import Budget
from megabert.formats.checkpoint import LazyTensor
from megabert.formats.fields import shown
from megabert.formats.regions import Region
from megabert.formats.unpickle_globals import Placeholder

METADATA = ".metadata"
_LARGEST_METADATA = 1 << 28
_MOST_CHUNKS = 5_000_000


@dataclass(frozen=True)
class Chunk:
    """A box of a tensor: where it begins and how large it is in each dim, and the bytes that hold it."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    region: Region

    def load(self, name: str, dtype: torch.dtype) -> Tensor:
        """Read it.

        Raises:
            ValueError: it is damaged, or another tensor than the metadata says.
        """
        held = unpickle.load(self.region).data
        if not isinstance(held, LazyTensor) or held.shape != self.sizes or held.dtype != dtype:
            found = f"{list(held.shape)} {held.dtype}" if isinstance(held, LazyTensor) else type(held).__name__
            raise ValueError(
                f"{self.region.name}: {name} is {found} there, but {list(self.sizes)} {dtype} by {METADATA}"
            )
        return held.load()


@dataclass(frozen=True)
class Stored:
    """A tensor in chunks."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: tuple[Chunk, ...]
    folder: Path

    @property
    def origin(self) -> str:
        """Folder and name, for error texts."""
        return f"{self.folder}: {self.name}"

    def lazy(self) -> LazyTensor:
        """The whole tensor."""
        return LazyTensor(
            self.shape, self.dtype, lambda: self._read(0, self.shape[0] if self.shape else 1), self.origin
        )

    def layer(self, index: int) -> LazyTensor:
        """One of the tensors that are stacked along the first dim; reads only the chunks that hold it."""
        shape = self.shape[1:]
        return LazyTensor(
            shape, self.dtype, lambda: self._read(index, index + 1).reshape(shape), f"{self.origin}[{index}]"
        )

    def _read(self, begin: int, end: int) -> Tensor:
        """Rows `begin` to `end` of the first dim."""
        shape = (end - begin, *self.shape[1:]) if self.shape else ()
        needed = [chunk for chunk in self.chunks if not self.shape or _overlap(chunk, begin, end)]
        if len(needed) == 1 and needed[0].sizes == shape:
            return needed[0].load(self.name, self.dtype)
        whole = torch.empty(shape, dtype=self.dtype)
        for chunk in needed:
            first, last = max(begin, chunk.offsets[0]), min(end, chunk.offsets[0] + chunk.sizes[0])
            piece = chunk.load(self.name, self.dtype)[first - chunk.offsets[0] : last - chunk.offsets[0]]
            inner = zip(chunk.offsets[1:], chunk.sizes[1:], strict=True)
            whole[(slice(first - begin, last - begin), *(slice(at, at + size) for at, size in inner))] = piece
        return whole


def _overlap(chunk: Chunk, begin: int, end: int) -> bool:
    return chunk.offsets[0] < end and chunk.offsets[0] + chunk.sizes[0] > begin


@dataclass(frozen=True)
class Contents:
    """What a folder holds.

    Attributes:
        tensors: by name.
        objects: name -> bytes of a file of `torch.save`.
        foreign: classes in the metadata that no distributed checkpoint has.
        members: its files.
    """

    folder: Path
    tensors: Mapping[str, Stored]
    objects: Mapping[str, Region]
    foreign: tuple[str, ...]
    members: Mapping[str, Region]


_EXPECTED = ("torch.distributed.", "pathlib.", "torch.serialization.")


def read(folder: Path) -> Contents:
    """Read the `.metadata` of a folder and check that every chunk is there; no tensor is read.

    Raises:
        ValueError: the metadata is damaged or hostile, a file is missing or too short, chunks leave gaps.
    """
    return read_members(folder, {entry.name: Region.whole(entry) for entry in folder.iterdir() if entry.is_file()})


def read_members(folder: Path, members: Mapping[str, Region]) -> Contents:
    """As `read`, of files that lie in an archive.

    Args:
        folder: the folder or the archive, for error texts.
        members: its files.
    """
    path, metadata = folder / METADATA, members[METADATA]
    if metadata.length > _LARGEST_METADATA:
        raise ValueError(f"{path} is too large for what it should be")
    loaded = unpickle.loads(metadata.read(), str(path))
    budget = Budget(str(path), _MOST_CHUNKS, "chunks")
    try:
        state = loaded.data.state
        places = _places(folder, members, state["storage_data"])
        tensors, objects = {}, {}
        for name, entry in state["state_dict_metadata"].items():
            if not isinstance(name, str) or not isinstance(entry, Placeholder):
                raise TypeError(f"an entry {shown(name)}")
            if entry.name.endswith(".TensorStorageMetadata"):
                budget.spend(len(entry.state["chunks"]))
                tensors[name] = _stored(folder, name, entry.state, places)
            elif (name, None) in places:
                objects[name] = places[name, None]
    except (AttributeError, KeyError, TypeError, IndexError, OverflowError) as error:
        raise ValueError(
            f"{path} is damaged, or of a version that is not known ({type(error).__name__}: {error!s:.100})"
        ) from None
    foreign = tuple(name for name in loaded.foreign if not name.startswith(_EXPECTED))
    return Contents(folder, tensors, objects, foreign, members)


def _places(
    folder: Path, members: Mapping[str, Region], storage: Mapping[Any, Any]
) -> dict[tuple[str, tuple[int, ...] | None], Region]:
    """(name, offsets of the chunk, or None for an object) -> its bytes."""
    places: dict[tuple[str, tuple[int, ...] | None], Region] = {}
    for index, info in storage.items():
        file, offset, length = (info.state[key] for key in ("relative_path", "offset", "length"))
        if not isinstance(file, str) or Path(file).name != file or file in (".", ".."):
            raise ValueError(f"{folder / METADATA} names {shown(file)}, which is no file of this folder")
        if info.state.get("transform_descriptors"):
            raise ValueError(f"{folder}: chunks that are compressed or changed otherwise ({file}) are not read")
        if file not in members:
            raise ValueError(f"{folder} is not whole: {file} is missing")
        if type(offset) is not int or type(length) is not int or min(offset, length) < 0:
            raise TypeError(f"{file} at {shown(offset)}")
        name = index.state["fqn"]
        if not isinstance(name, str):
            raise TypeError("a chunk without a name")
        if offset + length > members[file].length:
            raise ValueError(f"{folder / file} is damaged: {name} ends behind its end (cut short)")
        at = index.state.get("offset")
        places[name, None if at is None else _numbers(at)] = members[file].part(offset, length, name)
    return places


def _stored(
    folder: Path, name: str, state: Mapping[str, Any], places: Mapping[tuple[str, tuple[int, ...] | None], Region]
) -> Stored:
    shape = _numbers(state["size"])
    dtype = _dtype(state["properties"])
    chunks = []
    for entry in state["chunks"]:
        offsets, sizes = _numbers(entry.state["offsets"]), _numbers(entry.state["sizes"])
        ends = [at + size for at, size in zip(offsets, sizes, strict=True)]
        if len(offsets) != len(shape) or any(end > size for end, size in zip(ends, shape, strict=True)):
            raise ValueError(f"{folder / METADATA}: a chunk of {name} lies outside of {list(shape)}")
        region = places.get((name, offsets))
        if region is None and len(state["chunks"]) == 1:
            region = places.get((name, None))
        if region is None:
            raise ValueError(f"{folder / METADATA} does not say where the chunk of {name} at {list(offsets)} lies")
        chunks.append(Chunk(offsets, sizes, region))
    if sum(math.prod(chunk.sizes) for chunk in chunks) != math.prod(shape) or _collide(chunks, str(folder / METADATA)):
        raise ValueError(f"{folder}: the chunks of {name} do not make up its {list(shape)}; it is not whole")
    return Stored(name, shape, dtype, tuple(chunks), folder)


def _collide(chunks: list[Chunk], where: str) -> bool:
    """Whether two chunks overlap; with sizes that add up and no overlap, there is no gap either."""
    boxes = sorted((chunk for chunk in chunks if math.prod(chunk.sizes)), key=lambda chunk: chunk.offsets)
    budget = Budget(where, _MOST_CHUNKS, "neighbours of chunks")
    for index, box in enumerate(boxes):
        for other in boxes[index + 1 :]:
            if other.offsets and other.offsets[0] >= box.offsets[0] + box.sizes[0]:
                break  # sorted: all further ones begin behind it
            budget.spend()
            apart = any(
                first + size <= second or second + length <= first
                for first, size, second, length in zip(box.offsets, box.sizes, other.offsets, other.sizes, strict=True)
            )
            if not apart:
                return True
    return False


def _numbers(value: Any) -> tuple[int, ...]:
    numbers = tuple(value)
    if len(numbers) > 16 or any(type(number) is not int or not 0 <= number < 1 << 48 for number in numbers):
        raise TypeError("an impossible shape")
    return numbers


def _dtype(properties: Placeholder) -> torch.dtype:
    """`TensorProperties`, whose state is a tuple that begins with the type, or (older) a dict."""
    state = properties.state
    dtype = state["state"][0] if isinstance(state.get("state"), tuple) else state["dtype"]
    if not isinstance(dtype, torch.dtype):
        raise TypeError("a tensor without a type")
    return dtype
