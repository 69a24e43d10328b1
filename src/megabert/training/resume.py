"""Checkpoints of a run: folders that appear whole or not at all, and are checked before they are believed.

```
checkpoints/
  step-00001000/
    model.safetensors      weights by name; float32 masters where the run keeps them
    optimizer.safetensors  `exp_avg/NAME`, `exp_avg_sq/NAME`, `step/NAME`, ...
    random.safetensors     states of torch's generators: `cpu`, `cuda`
    state.json             counters, schedule, loss scale, metrics window, and what the run was made of
    checksums.json         size and SHA-256 of each file above
  latest                   the name of the newest whole checkpoint
  best                     the name of the one with the lowest validation loss
```

Nothing here is a pickle: reading a checkpoint runs no code.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from megabert import runtime

_STEP = re.compile(r"step-(\d{8,})")
_FILES = ("model.safetensors", "optimizer.safetensors", "random.safetensors", "state.json")
_LARGEST_JSON = 64 * 2**20


@dataclass
class Snapshot:
    """Everything that a run is, between two steps.

    Attributes:
        weights: float32 weights and buffers by name.
        optimizer: `<state>/<weight name>` -> tensor; empty when not stored.
        random: generator states (uint8); empty when not stored.
        state: counters and small states; plain JSON.
        identity: what the run was made of, as short strings: the data's and the tokenizer's digests, ...
    """

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    random: dict[str, Tensor] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    identity: dict[str, str] = field(default_factory=dict)


def folder_name(step: int) -> str:
    """`step-00001000`."""
    return f"step-{step:08d}"


class Checkpoints:
    """The `checkpoints/` folder of one run.

    Args:
        folder: made when first saved to.
        keep_last: newest checkpoints to keep besides the best; 0 keeps all.
    """

    def __init__(self, folder: Path, keep_last: int = 2):
        self.folder = folder
        self.keep_last = keep_last

    def prepare(self) -> None:
        """Make the folder, and remove what a killed save has left.

        Raises:
            OSError: the folder cannot be made.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob(".step-*.replaced"):
            # Killed between the two renames of a replacement: the old one is whole, so it comes back.
            whole = self.folder / path.name.split(".")[1]
            if not whole.exists():
                path.rename(whole)
        for path in self.folder.glob(".step-*"):
            shutil.rmtree(path, ignore_errors=True)
        for path in self.folder.glob(".*.part"):
            if path.is_file():
                path.unlink(missing_ok=True)

    def save(self, step: int, snapshot: Snapshot, *, best: bool = False) -> Path:
        """Write a checkpoint, point `latest` (and `best`) to it, and remove old ones.

        Raises:
            OSError: the disk is full or not writable; the checkpoints from before stay as they were.
        """
        final = self.folder / folder_name(step)
        temporary = self.folder / f".{final.name}.{os.getpid()}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(temporary, snapshot)
            if final.exists():
                replaced = self.folder / f".{final.name}.{os.getpid()}.replaced"
                final.rename(replaced)
                temporary.rename(final)
                shutil.rmtree(replaced)
            else:
                temporary.rename(final)
            runtime.sync_folder(self.folder)
            self.point("latest", step)
            if best:
                self.point("best", step)
        except (OSError, safetensors.SafetensorError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise OSError(
                f"cannot write the checkpoint {final}: {reason}; nothing half-written was left, and earlier "
                "checkpoints are whole"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._remove_old()
        return final

    def point(self, name: str, step: int) -> None:
        """Let `latest` or `best` name the checkpoint of `step`."""
        with runtime.atomic_write(self.folder / name) as file:
            file.write(folder_name(step) + "\n")

    def named(self, name: str) -> Path | None:
        """The checkpoint that `latest` or `best` names; None when there is no such file.

        Raises:
            ValueError: it names something that is not there.
        """
        return _follow(self.folder / name)

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending."""
        if not self.folder.is_dir():
            return []
        found = (_STEP.fullmatch(path.name) for path in self.folder.iterdir() if path.is_dir())
        return sorted(int(match[1]) for match in found if match)

    def _remove_old(self) -> None:
        if not self.keep_last:
            return
        pointed = {path.name for path in (self.named("latest"), self.named("best")) if path is not None}
        for step in self.steps()[: -self.keep_last]:
            if folder_name(step) not in pointed:
                # Out of sight first, so that a kill in the middle leaves no half checkpoint behind.
                doomed = self.folder / f".{folder_name(step)}.{os.getpid()}.old"
                (self.folder / folder_name(step)).rename(doomed)
                shutil.rmtree(doomed, ignore_errors=True)


def _follow(pointer: Path) -> Path | None:
    try:
        name = pointer.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        name = "(not text)"
    if not _STEP.fullmatch(name) or not (pointer.parent / name).is_dir():
        raise ValueError(
            f"{pointer} names {name[:80]!r}, which is no checkpoint there; write the name of a whole one into it"
        )
    return pointer.parent / name


def find(path: Path) -> Path:
    """The checkpoint folder that a user's path means: itself, or the newest one of a run folder.

    Raises:
        ValueError: there is none.
    """
    if not path.is_dir():
        raise ValueError(f"--load: there is no folder {path}")
    if (path / "checksums.json").is_file():
        return path
    for folder in (path, path / "checkpoints"):
        found = _follow(folder / "latest")
        if found is not None:
            return found
    raise ValueError(f"--load: {path} holds no checkpoint (neither checksums.json nor checkpoints/latest)")


def _write(folder: Path, snapshot: Snapshot) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    tensors = {"model": snapshot.weights, "optimizer": snapshot.optimizer, "random": snapshot.random}
    for name, part in tensors.items():
        plain = {key: tensor.detach().contiguous() for key, tensor in part.items()}
        safetensors.torch.save_file(plain, folder / f"{name}.safetensors", metadata={"format": "pt"})
    state = {"version": 1, "identity": snapshot.identity, "state": snapshot.state}
    (folder / "state.json").write_text(json.dumps(state, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    sums = {name: _digest(folder / name, sync=True) for name in _FILES}
    with runtime.atomic_write(folder / "checksums.json") as file:
        json.dump(sums, file, indent=1)


def _digest(path: Path, *, sync: bool = False) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if sync:
            os.fsync(file.fileno())
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": digest}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise ValueError(f"{path} is damaged: {path.stat().st_size:,} bytes are too many for this file")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path.parent} is not a whole checkpoint: {path.name} is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: a JSON object is needed")
    return value


def verify(folder: Path) -> None:
    """Compare each file of a checkpoint with its size and SHA-256.

    Raises:
        ValueError: a file is missing, cut off or changed; it is named.
    """
    sums = _read_json(folder / "checksums.json")
    if set(sums) != set(_FILES):
        raise ValueError(f"{folder / 'checksums.json'} is damaged: it must name {', '.join(_FILES)} and nothing else")
    for name in _FILES:
        path, expected = folder / name, sums[name]
        if not path.is_file():
            raise ValueError(f"{folder} is not a whole checkpoint: {name} is missing")
        if not isinstance(expected, dict) or path.stat().st_size != expected.get("bytes"):
            raise ValueError(f"{path} is damaged: its size is not the one in checksums.json; load another checkpoint")
        if _digest(path) != expected:
            raise ValueError(
                f"{path} is damaged: its SHA-256 is not the one in checksums.json; load another checkpoint"
            )


def read(folder: Path) -> Snapshot:
    """Read a checkpoint, verified.

    Raises:
        ValueError: it is not whole, damaged, or of a version that is not known here.
    """
    verify(folder)
    content = _read_json(folder / "state.json")
    if content.get("version") != 1:
        raise ValueError(f"{folder}: version {content.get('version')!r} of the checkpoint is not known; 1 is")
    parts = []
    for name in ("model", "optimizer", "random"):
        try:
            parts.append(safetensors.torch.load_file(folder / f"{name}.safetensors"))
        except safetensors.SafetensorError as error:
            raise ValueError(f"{folder / name}.safetensors is damaged: {error}") from None
    return Snapshot(*parts, state=content["state"], identity=content["identity"])


def check_weights(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], folder: Path) -> None:
    """Refuse the weights of another model.

    Raises:
        ValueError: names or shapes differ; the first few are named.
    """
    differences = [f"{name} is missing" for name in expected if name not in found]
    differences += [f"{name} is not in this model" for name in found if name not in expected]
    differences += [
        f"{name} is {list(found[name].shape)} there and {list(tensor.shape)} here"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    if differences:
        more = f", and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise ValueError(f"{folder} belongs to another model: {', '.join(differences[:3])}{more}")


def check_identity(expected: Mapping[str, str], found: Mapping[str, str], folder: Path) -> None:
    """Refuse to go on with other data or another tokenizer.

    Raises:
        ValueError: a value that both know differs; the first one is named.
    """
    for name, value in expected.items():
        if name in found and found[name] != value:
            raise ValueError(
                f"{folder} was trained with another {name}: {found[name]} there, {value} here; "
                "give the same, or --finetune to take only the weights"
            )


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The states of the generators that dropout draws from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_state(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Put the generators back to states given by `random_state`."""
    if "cpu" in states:
        torch.set_rng_state(states["cpu"])
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)


def optimizer_tensors(optimizer: torch.optim.Optimizer, masters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The optimizer's state as `<state>/<weight name>` -> tensor."""
    tensors = {}
    for name, master in masters.items():
        for key, value in optimizer.state.get(master, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{key}/{name}"] = value
    return tensors


def load_optimizer(
    optimizer: torch.optim.Optimizer, masters: Mapping[str, Tensor], tensors: Mapping[str, Tensor], folder: Path
) -> None:
    """Put a state given by `optimizer_tensors` into a fresh optimizer.

    Raises:
        ValueError: it belongs to another optimizer or model.
    """
    for key, value in tensors.items():
        kind, _, name = key.partition("/")
        master = masters.get(name)
        if master is None or (kind != "step" and value.shape != master.shape):
            raise ValueError(f"{folder}/optimizer.safetensors does not fit this model at {key}")
        # AdamW's fused kernel wants its step counter beside the weight; LAMB's counter lies on the CPU.
        place = master.device if kind != "step" or isinstance(optimizer, torch.optim.AdamW) else torch.device("cpu")
        optimizer.state[master][kind] = value.to(place)
