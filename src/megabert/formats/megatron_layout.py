"""Where Megatron-LM's checkpoints of format `torch` keep their ranks: folders, tracker files and zips.

    latest_checkpointed_iteration.txt        a number, or `release`
    iter_0001000/mp_rank_00[_000]/model_optim_rng.pt     tensor rank, and stage of the pipeline

A folder of a distributed optimizer (`mp_rank_00_000` with only `optim.pt` in it) is no rank of the model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from megabert.formats.regions import Region
from megabert.formats.unpickle import zip_members

TRACKER = "latest_checkpointed_iteration.txt"
_RANK = re.compile(r"mp_rank_(\d{2,})(?:_(\d{3,}))?(?:_(\d{3,}))?")
_STEP = re.compile(r"iter_(\d{7,})")
_FILES = ("model_optim_rng.pt", "model_rng.pt")
_IN_ZIP = re.compile(r"(?:^|/)(mp_rank_\d{2,}(?:_\d{3,})?)/model(?:_optim)?_rng\.pt$")


@dataclass(frozen=True)
class Layout:
    """The files of one checkpoint.

    Attributes:
        path: the folder of the ranks, or the one file.
        ranks: (tensor rank, stage) -> the file.
        notes: what was chosen, to be said aloud.
        optimizer_apart: the optimizer lies in files of a distributed optimizer, which are not read.
        vocabulary: a `vocab.txt` that lies in the same zip.
    """

    path: Path
    ranks: dict[tuple[int, int], Region]
    notes: tuple[str, ...] = ()
    optimizer_apart: bool = False
    vocabulary: Region | None = None

    @property
    def tensor_ranks(self) -> int:
        """How many ranks share a tensor."""
        return max(rank for rank, _ in self.ranks) + 1

    @property
    def stages(self) -> int:
        """Stages of the pipeline."""
        return max(stage for _, stage in self.ranks) + 1


def find(path: Path) -> Layout | None:
    """The ranks at a path: a `.pt`, a zip of ranks, a rank's folder, a folder of ranks or that of the tracker.

    Returns:
        None: nothing of the kind lies there.

    Raises:
        ValueError: it is such a checkpoint, but not whole; what is missing is named.
    """
    if path.is_file():
        return _of_file(path)
    if not path.is_dir():
        return None
    if _RANK.fullmatch(path.resolve().name) and any((path / name).is_file() for name in _FILES):
        return _of_folder(path.resolve().parent, ())
    if any(_RANK.fullmatch(entry.name) for entry in path.iterdir()):
        return _of_folder(path, ())
    return _of_root(path)


def _of_file(path: Path) -> Layout | None:
    folder = path.resolve().parent
    if path.name in _FILES and _RANK.fullmatch(folder.name):
        return _of_folder(folder.parent, ())
    region = Region.whole(path)
    begin = region.read(0, 4)
    if begin[:1] == b"\x80":
        return Layout(path, {(0, 0): region})
    if begin != b"PK\x03\x04":
        return None
    members = zip_members(region)
    if any(name == "data.pkl" or name.endswith("/data.pkl") for name in members):
        return Layout(path, {(0, 0): region})
    return _of_zip(path, members)


def _of_zip(path: Path, members: dict[str, Region]) -> Layout | None:
    folders: dict[str, dict[tuple[int, int], Region]] = {}
    for name, region in members.items():
        found = _IN_ZIP.search(name)
        if found:
            rank = _RANK.fullmatch(found[1])
            assert rank is not None
            folders.setdefault(name[: found.start(1)], {})[int(rank[1]), int(rank[2] or 0)] = region
    if not folders:
        return None
    if len(folders) > 1:
        raise ValueError(f"{path} holds {len(folders)} checkpoints ({', '.join(sorted(folders)[:3])}); unpack it and "
                         "name one of them")  # fmt: skip
    vocabulary = next((region for name, region in members.items() if name.split("/")[-1] == "vocab.txt"), None)
    return _whole(Layout(path, next(iter(folders.values())), vocabulary=vocabulary))


def _of_root(path: Path) -> Layout | None:
    tracker = path / TRACKER
    if tracker.is_file():
        text = tracker.read_bytes()[:64].decode("utf-8", "replace").strip()
        if text != "release" and not (text.isdecimal() and int(text) > 0):
            raise ValueError(f"{tracker} holds {text!r}; a number of iterations or the word release is needed")
        name = text if text == "release" else f"iter_{int(text):07d}"
        folder = path / name
        if not folder.is_dir():
            raise ValueError(f"{tracker} names {name}, which is not there; name the folder of another iteration")
        inside = [entry.name for entry in folder.iterdir()]
        if not any(_RANK.fullmatch(entry) for entry in inside):
            return None
        return _of_folder(folder, (f"the newest checkpoint by {TRACKER}: {name}",))
    saved = sorted(entry for entry in path.iterdir()
                   if entry.is_dir() and (_STEP.fullmatch(entry.name) or entry.name == "release"))  # fmt: skip
    saved = [entry for entry in saved if any(_RANK.fullmatch(rank.name) for rank in entry.iterdir())]
    if len(saved) > 1:
        names = ", ".join(entry.name for entry in saved[:5])
        raise ValueError(f"{path} holds {len(saved)} checkpoints and no {TRACKER}; name one of them: {names}")
    return _of_folder(saved[0], (f"no {TRACKER}; the only checkpoint there is {saved[0].name}",)) if saved else None


def _of_folder(folder: Path, notes: tuple[str, ...]) -> Layout | None:
    ranks: dict[tuple[int, int], Region] = {}
    apart = False
    for entry in sorted(folder.iterdir()):
        match = _RANK.fullmatch(entry.name)
        if not match or not entry.is_dir():
            continue
        file = next((entry / name for name in _FILES if (entry / name).is_file()), None)
        apart = apart or (entry / "distrib_optim.pt").is_file() or (file is None and (entry / "optim.pt").is_file())
        if file is None:
            if (entry / "optim.pt").is_file():
                continue
            raise ValueError(f"{entry} holds no {_FILES[0]}: the rank is missing")
        if match[3]:
            raise ValueError(f"{entry}: ranks of expert parallelism are no part of a BERT")
        ranks[int(match[1]), int(match[2] or 0)] = Region.whole(file)
    return _whole(Layout(folder, ranks, notes, apart)) if ranks else None


def _whole(layout: Layout) -> Layout:
    for stage in range(layout.stages):
        for rank in range(layout.tensor_ranks):
            if (rank, stage) not in layout.ranks:
                raise ValueError(f"{layout.path}: tensor rank {rank} of stage {stage} is missing (mp_rank_{rank:02d}"
                                 f"{f'_{stage:03d}' if layout.stages > 1 else ''})")  # fmt: skip
    return layout
