"""Files of `torch.save`, read without running anything: the zip container and the stream of torch before 1.6.

Tensors become `LazyTensor`s that read their stretch of the file when asked; plain data is plain; every other object is
a `Placeholder`. Sources: the layouts that torch's `serialization.py` reads (zip: `data.pkl` and one record for each
storage; stream: five pickles, then the storages one behind the other).
"""

from __future__ import annotations

import dataclasses
import io
import struct
import tempfile
import zipfile
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch

from megabert.formats import unpickle_machine
from megabert.formats.bounds import LONGEST_NAME, Budget
from megabert.formats.checkpoint import LazyTensor
from megabert.formats.fields import shown
from megabert.formats.regions import Region
from megabert.formats.unpickle_globals import DTYPES, STORAGES, Placeholder, Storage

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_LARGEST_RATIO = 200  # of a compressed member; weights compress by less than 2, pickles by less than 20
_MOST_RECORDS = 1_000_000
_DEEPEST, _SHOWN_ARGUMENTS = 50, 16


class Loaded(NamedTuple):
    """What a file holds, and the names of the classes that became placeholders."""

    data: Any
    foreign: tuple[str, ...]


def load(source: Path | Region) -> Loaded:
    """Read a file of `torch.save`, or a region that holds one.

    Raises:
        ValueError: it is none, damaged or hostile; the file is named.
        OSError: it cannot be read.
    """
    region = Region.whole(source) if isinstance(source, Path) else source
    begin = region.read(0, 4)
    if begin[:4] == b"PK\x03\x04":
        return _load_zip(region)
    if begin[:1] == b"\x80":
        return _load_stream(region)
    raise ValueError(f"{region.name} is no file of torch.save (neither a zip nor a pickle)")


def loads(data: bytes, where: str) -> Loaded:
    """Read a bare pickle without tensors (such as the `.metadata` of a distributed checkpoint).

    Raises:
        ValueError: it is damaged or hostile.
    """
    value, foreign = unpickle_machine.run(io.BytesIO(data), where)
    return Loaded(value, tuple(sorted(foreign)))


def plain(value: Any, where: str = "the pickle") -> Any:
    """Plain values only: dtypes and placeholders as text, tensors of one number as the number, other tensors left out.

    Dicts get text as keys; what is nested more than 50 deep is left out.

    Args:
        where: the file, for the error.

    Raises:
        ValueError: shared parts, counted each time, are more values than a checkpoint's arguments have.
    """
    return _plain(value, 0, Budget(where))


def _plain(value: Any, depth: int, budget: Budget) -> Any:
    budget.spend()
    if isinstance(value, str | int | float | bool | type(None)):
        return value
    if depth > _DEEPEST:
        return None
    if isinstance(value, dict):
        return _plain_items(value, depth, budget)
    if isinstance(value, Placeholder):
        if value.name.endswith(("Namespace", "SimpleNamespace")) or value.state:
            return _plain_items(value.state, depth, budget)
        scalars = (_shown(item) for item in (value.arguments or ())[:_SHOWN_ARGUMENTS])
        return f"{value.name}({', '.join(scalars)})" if value.arguments else value.name
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item, depth + 1, budget) for item in value]
    if isinstance(value, LazyTensor):
        return value.load().item() if value.numbers == 1 else None
    if isinstance(value, bytes | bytearray):
        return None
    return str(value)


def _plain_items(items: dict[Any, Any], depth: int, budget: Budget) -> dict[str, Any]:
    return {_shown(name): _plain(item, depth + 1, budget) for name, item in items.items()}


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value[:LONGEST_NAME]
    return str(value) if isinstance(value, torch.dtype) else shown(value)


def _load_zip(region: Region) -> Loaded:
    records = zip_members(region)
    pickles = [name for name in records if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError(f"{region.name} is a zip, but no file of torch.save: it holds {len(pickles)} data.pkl")
    root = pickles[0].removesuffix("data.pkl")
    order = records.get(f"{root}byteorder")
    if order is not None and order.read(0, 8).strip() == b"big":
        raise ValueError(f"{region.name} was written on a big-endian machine, which is not read")
    storages: dict[str, Storage] = {}

    def persistent(identifier: Any) -> Any:
        key, dtype, numbers = _identify(identifier)
        if key not in storages:
            record = records.get(f"{root}data/{key}")
            if record is None:
                raise ValueError(f"{region.name} is damaged: its tensor data/{key[:80]} is missing")
            if numbers * dtype.itemsize > record.length:
                raise ValueError(
                    f"{region.name} is damaged: data/{key[:80]} has {record.length:,} bytes, but its tensor needs "
                    f"{numbers * dtype.itemsize:,}"
                )
            storages[key] = Storage(dtype, numbers, record.name, record)
        return storages[key]

    records[pickles[0]].check()
    with records[pickles[0]].open() as file:
        data, foreign = unpickle_machine.run(file, region.name, persistent)
    return Loaded(data, tuple(sorted(foreign)))


def zip_members(region: Region) -> dict[str, Region]:
    """The members of a zip, read in place; compressed ones are unpacked into a nameless file when they are no bomb.

    Raises:
        ValueError: the zip is damaged or hostile.
    """
    members: dict[str, Region] = {}
    with region.open() as file:
        try:
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
                if len(entries) > _MOST_RECORDS:
                    raise ValueError(f"{region.name} holds {len(entries):,} members, more than a checkpoint has")
                for entry in entries:
                    if entry.is_dir():
                        continue
                    if entry.filename in members:
                        raise ValueError(f"{region.name} is damaged: {entry.filename[:80]!r} occurs twice in it")
                    members[entry.filename] = _member(region, archive, entry)
        except (
            zipfile.BadZipFile, struct.error, LookupError, NotImplementedError, RuntimeError, EOFError, OSError,
        ) as error:  # fmt: skip
            raise ValueError(f"{region.name} is damaged: {error}") from None
    return members


def _member(region: Region, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Region:
    if entry.flag_bits & 1:
        raise ValueError(f"{region.name}: {entry.filename[:80]!r} is encrypted")
    if entry.compress_type != zipfile.ZIP_STORED:
        return _unpacked(region, archive, entry)
    header = region.read(entry.header_offset, 30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise ValueError(f"{region.name} is damaged: the member {entry.filename[:80]!r} is not where its list says")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    offset = entry.header_offset + 30 + name_length + extra_length
    if offset + entry.file_size > region.length or entry.file_size != entry.compress_size:
        raise ValueError(f"{region.name} is damaged: it ends before {entry.filename[:80]!r} does (cut short)")
    # torch writes 0 where it was told to leave checksums out.
    return dataclasses.replace(region.part(offset, entry.file_size, entry.filename), checksum=entry.CRC or None)


def _unpacked(region: Region, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Region:
    if entry.file_size > _LARGEST_RATIO * max(1, entry.compress_size):
        raise ValueError(
            f"{region.name}: {entry.filename[:80]!r} would unpack to {entry.file_size:,} bytes from "
            f"{entry.compress_size:,}: no checkpoint compresses so well, and the file is refused"
        )
    target: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the region
    size = 0
    with archive.open(entry) as source:
        while piece := source.read(1 << 22):
            size += len(piece)
            if size > entry.file_size:
                raise ValueError(f"{region.name}: {entry.filename[:80]!r} unpacks to more than it says")
            target.write(piece)
    target.flush()
    return Region(region.path, 0, size, target, entry.filename)


def _identify(identifier: Any) -> tuple[str, torch.dtype, int]:
    """(key, dtype, numbers) of a persistent id `("storage", type, key, place, numbers, ...)`."""
    if not isinstance(identifier, tuple) or len(identifier) < 5 or identifier[0] != "storage":
        raise ValueError("a reference that is no tensor")
    kind, key, numbers = identifier[1], identifier[2], identifier[4]
    name = kind.name.rpartition(".")[2] if isinstance(kind, Placeholder) else ""
    dtype = STORAGES.get(name) or (kind if isinstance(kind, torch.dtype) else DTYPES.get(name))
    if dtype is None or type(numbers) is not int or numbers < 0 or not isinstance(key, str | int):
        raise ValueError(f"a tensor of a type that is not known: {name[:80] or type(kind).__name__}")
    return str(key), dtype, numbers


def _load_stream(region: Region) -> Loaded:
    storages: dict[str, Storage] = {}

    def persistent(identifier: Any) -> Any:
        if isinstance(identifier, tuple) and len(identifier) > 1 and identifier[0] == "module":
            return identifier[1]
        key, dtype, numbers = _identify(identifier)
        storage = storages.setdefault(key, Storage(dtype, numbers, f"{region.name}: storage {key[:80]}"))
        if storage.dtype != dtype or storage.numbers != numbers:
            raise ValueError(f"storage {key[:80]!r} is described in two ways")
        if len(identifier) > 5 and identifier[5] is not None:
            raise ValueError("a view of a storage, which torch before 0.4 wrote, is not read")
        return storage

    with region.open() as file:
        head, _ = unpickle_machine.run(file, region.name)
        if head != _MAGIC:
            raise ValueError(f"{region.name} is a pickle, but no file of torch.save")
        protocol, _ = unpickle_machine.run(file, region.name)
        system, _ = unpickle_machine.run(file, region.name)
        if protocol != _PROTOCOL or not isinstance(system, dict) or system.get("little_endian") is False:
            raise ValueError(
                f"{region.name}: a file of torch.save of a kind that is not read (protocol {shown(protocol)})"
            )
        data, foreign = unpickle_machine.run(file, region.name, persistent)
        keys, _ = unpickle_machine.run(file, region.name)
        _place(region, file.tell(), keys, storages)
    return Loaded(data, tuple(sorted(foreign)))


def _place(region: Region, offset: int, keys: Any, storages: dict[str, Storage]) -> None:
    """Tell storages where they lie: behind the pickles, each with its count of numbers (int64) before it."""
    if not isinstance(keys, list):
        raise ValueError(f"{region.name} is damaged: the list of its tensors is missing")
    for key in map(str, keys):
        storage = storages.get(key)
        count = region.read(offset, 8)
        if storage is None or len(count) < 8 or int.from_bytes(count, "little") != storage.numbers:
            raise ValueError(
                f"{region.name} is damaged: storage {key[:80]} is not as long as its tensor says, or missing"
            )
        offset += 8
        storage.region = region.part(offset, storage.numbers * storage.dtype.itemsize)
        offset += storage.region.length
    absent = next((storage for storage in storages.values() if storage.region is None), None)
    if absent is not None:
        raise ValueError(f"{absent.where} is not in the file")
