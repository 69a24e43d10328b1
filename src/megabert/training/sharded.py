"""Checkpoints that many processes write and read together, on torch's distributed checkpoint engine.

```
step-00001000/
  shard-00000.safetensors   what rank 0 wrote: pieces of tensors, each under `NAME@OFFSETS`
  shard-00001.safetensors   ...
  index.json                each tensor's type, shape and pieces: [shard, offsets, sizes]
  state.json                as in a checkpoint of one process, and the layout
  checksums.json            size and SHA-256 of each file above
```

Names are those of the checkpoint of one process behind its file's name: `model/NAME`, `optimizer/exp_avg/NAME`, and
`random/RANK/cpu`. The engine plans who writes what and which pieces a process of any other layout reads; how they lie
on the disk is ours, so that nothing is a pickle.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from megabert import runtime
from megabert.training.stored import INDEX

_DTYPES = {
    "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64, "I64": torch.int64,
    "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def shard_name(rank: int) -> str:
    """`shard-00003.safetensors`."""
    return f"shard-{rank:05d}.safetensors"


def piece_key(name: str, offsets: tuple[int, ...]) -> str:
    """Under what a shard holds the piece of tensor `name` that begins at `offsets`."""
    return f"{name}@{'.'.join(map(str, offsets))}"


class Planner(DefaultSavePlanner):
    """Plans by the tensors' places, and takes their numbers from copies.

    Args:
        copies: this process's part of each tensor.
    """

    def __init__(self, copies: Mapping[str, Tensor]):
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.copies = copies

    def create_local_plan(self) -> SavePlan:
        """Without pieces that hold nothing, which a process has when there are fewer rows than processes."""
        plan = super().create_local_plan()
        items = [item for item in plan.items if item.tensor_data is None or 0 not in item.tensor_data.chunk.sizes]
        self.plan = SavePlan(items, plan.storage_data, plan.planner_data)
        return self.plan

    def lookup_object(self, index: MetadataIndex) -> Any:
        """The copy; a process has one piece of each tensor."""
        return self.copies[index.fqn]


class Writer(StorageWriter):
    """Writes the pieces of one process into one file; the coordinator writes the index.

    Args:
        folder: where to; made by the coordinator.
        digest: size and SHA-256 of a file, made durable.
        finish: called by the coordinator with the digests of all files, when they are there.
    """

    def __init__(
        self,
        folder: Path,
        digest: Callable[[Path], dict[str, Any]],
        finish: Callable[[dict[str, dict[str, Any]]], None],
    ):
        self.folder = folder
        self._digest = digest
        self._finish = finish
        self._rank = 0

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing is kept."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Learn the rank."""
        self._rank = kwargs.get("rank", 0)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """As it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Make the folder: this is run by the coordinator alone, before anybody writes."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this process's pieces."""
        path = self.folder / shard_name(self._rank)
        pieces = {piece_key(*_place(item)): planner.resolve_data(item) for item in plan.items}
        safetensors.torch.save_file(
            {key: piece.contiguous() for key, piece in pieces.items()},  # type: ignore[union-attr]
            path,
            metadata={"format": "pt"},
        )
        runtime.usual_permissions(path)
        digest = self._digest(path)
        done: Future[list[WriteResult]] = Future()
        done.set_result([WriteResult(item.index, 0, (path.name, digest)) for item in plan.items])
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the index and hand the digests on."""
        tensors: dict[str, Any] = {}
        digests: dict[str, dict[str, Any]] = {}
        for rank, result in enumerate(results):
            for one in result:
                name, digest = one.storage_data
                digests[name] = digest
                stored = metadata.state_dict_metadata[one.index.fqn]
                assert isinstance(stored, TensorStorageMetadata)
                entry = tensors.setdefault(one.index.fqn, [_NAMES[stored.properties.dtype], list(stored.size), []])
                offsets = tuple(one.index.offset or ())
                sizes = next(chunk.sizes for chunk in stored.chunks if tuple(chunk.offsets) == offsets)
                entry[2].append([rank, list(offsets), list(sizes)])
        path = self.folder / INDEX
        path.write_text(json.dumps({"version": 1, "tensors": tensors}, separators=(",", ":")), encoding="utf-8")
        digests[INDEX] = self._digest(path)
        self._finish(dict(sorted(digests.items())))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Paths only."""
        return isinstance(checkpoint_id, str | Path)


def _place(item: WriteItem) -> tuple[str, tuple[int, ...]]:
    assert item.tensor_data is not None, f"{item.index.fqn} is no tensor"
    return item.index.fqn, tuple(item.tensor_data.chunk.offsets)


def save(
    tensors: Mapping[str, Tensor],
    copies: Mapping[str, Tensor],
    writer: Writer,
    group: torch.distributed.ProcessGroup,
) -> None:
    """Write the tensors of all processes; called by all, on a thread of its own if need be.

    Args:
        tensors: name -> `DTensor`, or a plain tensor that all processes that have it hold alike.
        copies: name -> the numbers of this process's part.
        group: for the CPU; used by nothing else at the time.

    Raises:
        OSError: a process could not write; all of them raise.
    """
    try:
        dcp.save(dict(tensors), storage_writer=writer, planner=Planner(copies), process_group=group)
    except dcp.CheckpointException as error:
        rank, (reason, _) = min(error.failures.items())
        text = reason.strerror if isinstance(reason, OSError) and reason.strerror else str(reason)
        raise OSError(f"rank {rank}: {text.removeprefix('Error while serializing: I/O error: ')}") from error


class Pieces:
    """Where each tensor of a checkpoint lies, whether one process wrote it or many.

    Attributes:
        tensors: name -> (type, shape, [(file, key, offsets, sizes), ...]).
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.tensors: dict[str, tuple[torch.dtype, tuple[int, ...], list[Any]]] = {}
        if (folder / INDEX).is_file():
            self._read_index()
        else:
            self._read_headers()

    def _read_index(self) -> None:
        try:
            content = json.loads((self.folder / INDEX).read_bytes())
            for name, (dtype, shape, pieces) in content["tensors"].items():
                found = [
                    (shard_name(rank), piece_key(name, tuple(offsets)), tuple(offsets), tuple(sizes))
                    for rank, offsets, sizes in pieces
                ]
                self.tensors[name] = (_DTYPES[dtype], tuple(shape), found)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{self.folder / INDEX} is damaged: {error!r}"[:300]) from None

    def _read_headers(self) -> None:
        for part in ("model", "optimizer", "random"):
            with _open(self.folder / f"{part}.safetensors") as file:
                for key in list(file.keys()):
                    view = file.get_slice(key)
                    shape = tuple(view.get_shape())
                    piece = (f"{part}.safetensors", key, (0,) * len(shape), shape)
                    self.tensors[f"{part}/{key}"] = (_DTYPES[view.get_dtype()], shape, [piece])

    def metadata(self) -> Metadata:
        """As torch's engine wants it."""
        return Metadata(
            {
                name: TensorStorageMetadata(
                    TensorProperties(dtype=dtype),
                    torch.Size(shape),
                    [ChunkStorageMetadata(torch.Size(at), torch.Size(sizes)) for _, _, at, sizes in pieces],
                )
                for name, (dtype, shape, pieces) in self.tensors.items()
            }
        )

    def whole(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        """The tensors under a prefix, put together; names without it."""
        for name, (dtype, shape, pieces) in self.tensors.items():
            if not name.startswith(prefix):
                continue
            tensor = torch.empty(shape, dtype=dtype)
            for file_name, key, offsets, sizes in pieces:
                with _open(self.folder / file_name) as file:
                    place = tuple(slice(at, at + size) for at, size in zip(offsets, sizes, strict=True))
                    tensor[place] = file.get_tensor(key)
            yield name.removeprefix(prefix), tensor


def _open(path: Path) -> Any:
    try:
        return safetensors.safe_open(path, framework="pt")
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from None


class Reader(StorageReader):
    """Reads what each process needs of a checkpoint."""

    def __init__(self, pieces: Pieces):
        self.pieces = pieces

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing is kept."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Of `pieces`."""
        return self.pieces.metadata()

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to do."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """As it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """As they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read the pieces, file by file; of each only the part that is asked for."""
        by_file = defaultdict(list)
        for item in plan.items:
            offsets = tuple(item.storage_index.offset or ())
            pieces = self.pieces.tensors[item.storage_index.fqn][2]
            file_name, key = next((file, key) for file, key, at, _ in pieces if at == offsets)
            by_file[file_name].append((key, item))
        for file_name, wanted in by_file.items():
            with _open(self.pieces.folder / file_name) as file:
                for key, item in wanted:
                    begin, lengths = item.storage_offsets, item.lengths
                    place = tuple(slice(at, at + size) for at, size in zip(begin, lengths, strict=True))
                    piece = file.get_slice(key)[place] if place else file.get_tensor(key)
                    target = planner.resolve_tensor(item).detach()
                    target.copy_(piece)
                    planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Paths only."""
        return isinstance(checkpoint_id, str | Path)


def load(tensors: Mapping[str, Tensor], pieces: Pieces, group: torch.distributed.ProcessGroup) -> None:
    """Fill the tensors, whatever the layout was that wrote them; called by all processes.

    Args:
        tensors: name -> `DTensor` or plain tensor, of the whole tensor's stored shape.

    Raises:
        ValueError: the checkpoint is damaged; all processes raise.
    """
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    try:
        dcp.load(dict(tensors), storage_reader=Reader(pieces), planner=planner, process_group=group)
    except dcp.CheckpointException as error:
        rank, (reason, _) = min(error.failures.items())
        raise ValueError(f"{pieces.folder} cannot be read (rank {rank}): {reason}") from error
