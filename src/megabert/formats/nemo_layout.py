"""What lies at a path of NeMo's: archives, their folders, Lightning's files, and which member is whose weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from megabert.formats import archive, megatron_core_chunks, unpickle
from megabert.formats.regions import Region

CONFIG = "model_config.yaml"
WEIGHTS = "model_weights.ckpt"
DISTRIBUTED = "model_weights/"
_RANK = re.compile(r"(?:mp_rank_(\d{2,})(?:_(\d{3,}))?|tp_rank_(\d{2,})_pp_rank_(\d{3,}))")
HYPERPARAMETERS = "hparams.yaml"
_NEWEST = ("last.ckpt", "end.ckpt")
_LIGHTNING = ("pytorch-lightning_version", "state_dict")


@dataclass(frozen=True)
class Facts:
    """What lies at a path; an archive is gone through only when its members are asked for.

    Attributes:
        path: an archive, a folder or one of Lightning's files.
        lightning: it is one of Lightning's files.
        file: the name of each rank's file, where one of them was named.
    """

    path: Path
    lightning: bool = False
    file: str = ""

    @cached_property
    def members(self) -> dict[str, Region]:
        """Name -> bytes, without the folder that all of them lie in.

        Raises:
            ValueError: the archive is damaged, or could do harm.
        """
        beside = self.path.parent / HYPERPARAMETERS
        if self.lightning or self.path.name == "checkpoints":
            found = {HYPERPARAMETERS: Region.whole(beside)} if beside.is_file() else {}
            return found if self.lightning else {**archive.members(self.path), **found}
        found = archive.members(self.path)
        config = min((name for name in found if name.split("/")[-1] == CONFIG), key=len, default="")
        root = config.removesuffix(CONFIG)
        return {name.removeprefix(root): region for name, region in found.items() if name.startswith(root)}

    @cached_property
    def ranks(self) -> dict[tuple[int, int], Region]:
        """(tensor rank, stage) -> weights.

        Raises:
            ValueError: one is missing, or a rank has several.
        """
        if self.lightning:
            return {(0, 0): Region.whole(self.path)}
        wanted = {name: region for name, region in self.members.items()
                  if not self.file or name.rpartition("/")[2] == self.file}  # fmt: skip
        ranks = _weights(self.path, wanted)
        _check_whole(self.path, self.members, ranks)
        return ranks

    @property
    def distributed(self) -> dict[str, Region]:
        """The files of a distributed checkpoint, as NeMo 1.21 and later keep Megatron-core's models; else empty."""
        found = {name.removeprefix(DISTRIBUTED): region for name, region in self.members.items()
                 if name.startswith(DISTRIBUTED)}  # fmt: skip
        return found if megatron_core_chunks.METADATA in found else {}

    @property
    def said(self) -> str:
        """In words."""
        if self.distributed:
            return "a NeMo checkpoint with distributed weights"
        kind = "a NeMo checkpoint" if CONFIG in self.members else "weights of NeMo without their model_config.yaml"
        return f"{kind} of {len(self.ranks)} rank{'s' if len(self.ranks) > 1 else ''}"


def look(path: Path) -> Facts | None:
    """Whether a checkpoint of NeMo lies at a path: an archive, an unpacked one, a folder of ranks, a Lightning file.

    Every tar archive is taken for NeMo's: no other checkpoint comes in one.

    Raises:
        ValueError: a `.nemo` is no archive.
    """
    if path.is_dir():
        found = next((folder for folder in (path, path / "checkpoints") if _is_folder(folder)), None)
        return Facts(found) if found else None
    if not path.is_file():
        return None
    if archive.is_archive(path):
        return Facts(path)
    if path.suffix == ".nemo":
        raise ValueError(f"{path} is called .nemo, but is no tar archive: it is damaged, or something else")
    if not _is_lightning(path):
        return None
    rank = _RANK.fullmatch(path.absolute().parent.name)
    return Facts(path.absolute().parent.parent, file=path.name) if rank else Facts(path, lightning=True)


def _is_folder(path: Path) -> bool:
    if not path.is_dir():
        return False
    entries = [entry.name for entry in path.iterdir()]
    if CONFIG in entries or any(name.startswith("tp_rank_") or name.endswith(_NEWEST) for name in entries):
        return True
    # mp_rank_* alone is Megatron's own, unless Lightning's files lie in it.
    return any(_RANK.fullmatch(name) for name in entries) and any(path.glob("mp_rank_*/*.ckpt"))


def _is_lightning(path: Path) -> bool:
    if path.suffix not in (".ckpt", ".pt"):
        return False
    try:
        content = unpickle.load(path).data
    except ValueError:
        return False  # another format's file, which says itself what is wrong with it
    return isinstance(content, dict) and all(name in content for name in _LIGHTNING)


def _weights(path: Path, members: Mapping[str, Region]) -> dict[tuple[int, int], Region]:
    """The file of each rank; where a rank has several, `model_weights.ckpt`, else the last that Lightning wrote."""
    candidates: dict[tuple[int, int], list[str]] = {}
    for name in members:
        folder, _, file = name.rpartition("/")
        if not file.endswith((".ckpt", ".pt")):
            continue
        place = _place(folder)
        if place:
            candidates.setdefault(place, []).append(name)
        elif not folder:
            candidates.setdefault((-1, 0), []).append(name)
    alone = candidates.pop((-1, 0), None)
    if not candidates and alone:
        candidates = {(0, 0): alone}
    return {place: members[_choose(path, names)] for place, names in candidates.items()}


def _place(folder: str) -> tuple[int, int] | None:
    """(tensor rank, stage) of a rank's folder."""
    rank = _RANK.fullmatch(folder)
    return (int(rank[1] or rank[3] or 0), int(rank[2] or rank[4] or 0)) if rank else None


def _choose(path: Path, names: list[str]) -> str:
    for good in (lambda name: name.endswith(WEIGHTS), lambda name: name.endswith(_NEWEST)):
        found = [name for name in names if good(name)]
        if len(found) == 1:
            return found[0]
    if len(names) == 1:
        return names[0]
    shown = ", ".join(sorted(names)[:4])
    raise ValueError(f"{path} holds several checkpoints ({shown}{' ...' if len(names) > 4 else ''}); name one file")


def _check_whole(path: Path, members: Mapping[str, Region], ranks: Mapping[tuple[int, int], Region]) -> None:
    if not ranks:
        if any(name.startswith(DISTRIBUTED) for name in members):
            raise ValueError(f"{path} keeps its weights as a distributed checkpoint of a kind that is not read (zarr): "
                             f"{DISTRIBUTED}{megatron_core_chunks.METADATA} is not there")  # fmt: skip
        raise ValueError(f"{path} is not whole, or not NeMo's: it holds no {WEIGHTS}")
    folders = {place for name in members if name.endswith(".ckpt") and (place := _place(name.rpartition("/")[0]))}
    every = folders | set(ranks)
    for rank in range(1 + max(rank for rank, _ in every)):
        for stage in range(1 + max(stage for _, stage in every)):
            if (rank, stage) not in ranks:
                raise ValueError(f"{path} is not whole: tensor rank {rank} of stage {stage} is missing")
