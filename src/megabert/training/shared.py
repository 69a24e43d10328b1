"""The `checkpoints/` folder of a run of many processes: each writes and reads its part, rank 0 keeps the order."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from megabert.training import sharded, stored
from megabert.training.distributed import World
from megabert.training.resume import Checkpoints, folder_name
from megabert.training.snapshot import Snapshot, check_weights, derived_random
from megabert.training.team import Sharing


class SharedCheckpoints(Checkpoints):
    """As `Checkpoints`; each method but `point` is called by all processes. The folder must be one that all see.

    Args:
        group: carries the messages of saves.
    """

    def __init__(self, folder: Path, keep_last: int, world: World, sharing: Sharing, group: ProcessGroup):
        super().__init__(folder, keep_last)
        self.world = world
        self.sharing = sharing
        self.group = group

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Rank 0 holds the folder for the run."""
        with super().alone() if self.world.rank == 0 else nullcontext():
            yield

    def prepare(self) -> None:
        """As `Checkpoints.prepare`, by rank 0."""
        with self.world.first():
            if self.world.rank == 0:
                super().prepare()
        self._see_one_folder()

    def _see_one_folder(self) -> None:
        marker = self.folder / ".seen"
        token = self.world.gather(f"{self.world.size}-{id(self)}")[0]
        with self.world.first():
            if self.world.rank == 0:
                marker.write_text(token)
        found = marker.read_text() if marker.is_file() else "nothing"
        self.world.agree({f"folder {self.folder} (it must be one that all machines share)": found})
        if self.world.rank == 0:
            marker.unlink(missing_ok=True)

    def point(self, name: str, step: int) -> None:
        """As `Checkpoints.point`, by rank 0; the others do nothing."""
        if self.world.rank == 0:
            super().point(name, step)

    def save(self, step: int, snapshot: Snapshot, *, best: bool = False) -> Path:
        """As `Checkpoints.save`: each process writes its part, then rank 0 lets the checkpoint appear."""
        final = self.folder / folder_name(step)
        temporary = self.folder / f".{final.name}.shared"

        def finish(sums: dict[str, dict[str, Any]]) -> None:
            stored.finish(temporary, snapshot, sums, layout=self.sharing.layout)
            self.publish(temporary, step, best=best)
            self.remove_old()

        tensors, copies = self._named(snapshot)
        writer = sharded.Writer(temporary, lambda path: stored.digest(path, sync=True), finish)
        with self.tidy(final, temporary):
            sharded.save(tensors, copies, writer, self.group)
        return final

    def _named(self, snapshot: Snapshot) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Everything by its name in the checkpoint: as parts of whole tensors, and as this process's numbers.

        The parts have no numbers: those of a background save lie on the host, and would be brought back to the GPU.
        """
        tensors, copies = {}, {}
        for name, tensor in snapshot.weights.items():
            key = f"model/{self._stored_name(name)}"
            tensors[key], copies[key] = self.sharing.whole(name, tensor.to("meta")), tensor
        for entry, tensor in snapshot.optimizer.items():
            kind, _, name = entry.partition("/")
            key = f"optimizer/{kind}/{self._stored_name(name)}"
            like = tensor.shape == snapshot.weights[name].shape
            tensors[key], copies[key] = self.sharing.whole(name, tensor.to("meta")) if like else tensor, tensor
        for name, tensor in snapshot.random.items():
            key = f"random/{self.world.rank:05d}/{name}"
            tensors[key] = copies[key] = tensor
        return tensors, copies

    def _stored_name(self, name: str) -> str:
        return self.sharing.aliases.get(name, name)

    def read(self, path: Path, weights: Mapping[str, Tensor], masters: Mapping[str, Tensor]) -> Snapshot:
        """This process's part of a checkpoint of any layout, or of one process."""
        stored.verify(path, part=self.world.rank, parts=self.world.size)
        content = stored.read_state(path)
        pieces = sharded.Pieces(path)
        self._check_names(path, pieces, weights)
        wanted = {f"model/{self._stored_name(name)}": (name, part) for name, part in weights.items()}
        kinds = {name.split("/")[1] for name in pieces.tensors if name.startswith("optimizer/")}
        for kind in kinds:
            for name, part in masters.items():
                key = f"optimizer/{kind}/{self._stored_name(name)}"
                if key in pieces.tensors:
                    counter = not pieces.tensors[key][1] and part.ndim > 0
                    wanted[key] = (f"{kind}/{name}", torch.zeros(()) if counter else part)
        parts = {key: torch.empty_like(part) for key, (_, part) in wanted.items()}
        wholes = {}
        for key, (entry, part) in wanted.items():
            name = entry.rpartition("/")[2]
            like = part.shape == weights[name].shape
            wholes[key] = self.sharing.whole(name, parts[key]) if like else parts[key]
        sharded.load(wholes, pieces, self.group)
        found = Snapshot({}, state=content["state"], identity=content["identity"])
        for key, (name, _) in wanted.items():
            (found.weights if key.startswith("model/") else found.optimizer)[name] = parts[key]
        found.random = self._random(pieces, content)
        return found

    def _check_names(self, path: Path, pieces: sharded.Pieces, weights: Mapping[str, Tensor]) -> None:
        """Refuse the weights of another model, by the names and shapes of all processes together."""
        mine = {
            self._stored_name(name): list(self.sharing.whole(name, part.to("meta")).shape)
            for name, part in weights.items()
        }
        expected: dict[str, Tensor] = {}
        for text in self.world.gather(json.dumps(mine)):
            expected |= {name: torch.empty(shape, device="meta") for name, shape in json.loads(text).items()}
        there = {
            name.removeprefix("model/"): torch.empty(shape, device="meta")
            for name, (_, shape, _) in pieces.tensors.items()
            if name.startswith("model/")
        }
        check_weights(expected, there, path)

    def _random(self, pieces: sharded.Pieces, content: dict[str, Any]) -> dict[str, Tensor]:
        """The generators' states: this rank's own, or in another layout new ones that follow from those stored."""
        if content.get("layout") == self.sharing.layout:
            return dict(pieces.whole(f"random/{self.world.rank:05d}/"))
        stream = self.sharing.pipeline_rank * self.sharing.data_ranks + self.sharing.data_rank
        return derived_random(dict(pieces.whole("random/")), stream)
