"""Who teaches and asks a fine-tuned model: this process alone, or several that share the model and the rows.

```python
with joined(config, os.environ) as (world, device):
    crew = crew_for(config, world, model_config, longest=128, device=device)
    answers = FineTuned(task, model, tokenizer, crew=crew).answer(examples)     # the same on every process
```
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from megabert.parallel.options import ParallelOptions
from megabert.training.embedding_rows import LookedUp
from megabert.training.engine import Engine, LocalEngine
from megabert.training.launch import chosen_device, launched
from megabert.training.objective import Objective
from megabert.training.options import TrainingOptions
from megabert.training.step import TrainingStep, make_step

if TYPE_CHECKING:
    from megabert.parallel.mesh import Layout
    from megabert.training.distributed import World
    from megabert.training.team import Team

GPU_MULTIPLE = 8
"""A GPU's kernels want rows padded to a multiple of this; a processor takes any length as gladly."""


def multiple_on(device: torch.device | None) -> int:
    """What lengths of rows are a multiple of on a device; None: the processor."""
    return 1 if device is None or device.type == "cpu" else GPU_MULTIPLE


Rates = Callable[[str], float]
Prepare = Callable[[nn.Module], None]


class Crew(Protocol):
    """Those that work on one model, from the inside of one process.

    Attributes:
        share: which batches this process takes, (number, of so many).
        keeps: of those that see the same outputs, this is the one that hands them on.
        leads: this process writes files.
        multiple: lengths of rows are multiples of it.
        whole: this process holds the whole model.
        stages: pieces of the model that are run one after the other; with several, all batches of an update must have
            one shape.
        data: processes that read different rows.
        described: in words; empty for one process.
    """

    share: tuple[int, int]
    keeps: bool
    leads: bool
    multiple: int
    whole: bool
    stages: int
    data: int
    described: str

    def step(
        self, model: nn.Module, objective: Objective, options: TrainingOptions, *, rates: Rates, prepare: Prepare,
        looked_up: LookedUp | None = None,
    ) -> tuple[TrainingStep, Team | None]:  # fmt: skip
        """What trains a model that has its whole weights, which is changed in place; who does it, if not one alone."""
        ...

    def engine(self, model: nn.Module, objective: Objective) -> Engine:
        """What asks a model that has its whole weights, which is changed in place."""
        ...

    def gather(self, found: Any) -> list[Any]:
        """Plain values of each process, in their order, on all."""
        ...


class Solo:
    """One process that has everything.

    Args:
        device: where it trains.
    """

    def __init__(self, device: torch.device | None = None):
        self.device = device
        self.share, self.data = (0, 1), 1
        self.keeps = self.leads = True
        self.multiple, self.whole, self.stages = multiple_on(device), True, 1
        self.described = ""

    def step(
        self, model: nn.Module, objective: Objective, options: TrainingOptions, *, rates: Rates, prepare: Prepare,
        looked_up: LookedUp | None = None,
    ) -> tuple[TrainingStep, Team | None]:  # fmt: skip
        """As `Crew.step`."""
        prepare(model)
        return make_step(model, objective, options, device=self.device, rates=rates, looked_up=looked_up), None

    def engine(self, model: nn.Module, objective: Objective) -> Engine:
        """As `Crew.engine`."""
        return LocalEngine(model, objective.targets, next(model.parameters()).device)

    def gather(self, found: Any) -> list[Any]:
        """There is nobody else."""
        return [found]


class Together:
    """Several processes.

    Args:
        layers: of the whole model.
        overlap: add gradients up while the backward pass still runs.
    """

    def __init__(self, world: World, layout: Layout, device: torch.device, *, layers: int, overlap: bool = True):
        from megabert.models.bert import plan
        from megabert.parallel.mesh import make_mesh
        from megabert.training.assembly import Parallel

        self.world, self.layout, self.device = world, layout, device
        self.parallel = Parallel(layout, make_mesh(layout, device.type), plan, layers, overlap)
        pipeline, data, tensor = layout.place(world.rank)
        self.share, self.data = (data, layout.data), layout.data
        self.keeps = tensor == 0 and pipeline == layout.pipeline - 1
        self.leads = world.rank == 0
        self.multiple = math.lcm(multiple_on(device), layout.tensor)
        self.whole = layout.tensor == layout.pipeline == 1 and layout.sharding == "none"
        self.stages = layout.pipeline * layout.virtual
        self.described = f"{layout.world} processes: {layout}"

    def step(
        self, model: nn.Module, objective: Objective, options: TrainingOptions, *, rates: Rates, prepare: Prepare,
        looked_up: LookedUp | None = None,
    ) -> tuple[TrainingStep, Team | None]:  # fmt: skip
        """As `Crew.step`; all rows of an embedding are trained."""
        from megabert.training.assembly import make_parallel_step, seed_streams
        from megabert.training.team import ManyProcesses, sharing_of

        step, applied = make_parallel_step(
            model, objective, options, self.parallel, device=self.device, initialise=None, prepare=prepare, rates=rates
        )
        seed_streams(options.seed, self.parallel.mesh)
        sharing = sharing_of(self.layout, self.world.rank, self.parallel.mesh, applied.places)
        return step, ManyProcesses(self.world, sharing)

    def engine(self, model: nn.Module, objective: Objective) -> Engine:
        """As `Crew.engine`."""
        from megabert.training.assembly import make_answering_engine

        return make_answering_engine(model, objective, self.parallel, device=self.device)

    def gather(self, found: Any) -> list[Any]:
        """As `Crew.gather`."""
        everybody: list[Any] = [None] * self.world.size
        torch.distributed.all_gather_object(everybody, found, group=self.world.control)
        return everybody


@contextmanager
def joined(
    options: ParallelOptions, environment: Mapping[str, str], device: str
) -> Iterator[tuple[World | None, torch.device]]:
    """The processes that a launcher has started, once they have met, and this one's device; no world for one alone.

    Args:
        device: `auto`, `cpu` or `cuda`.

    Raises:
        ValueError: there is no such device, or not all processes arrived.
    """
    launch = launched(environment)
    if launch is None:
        yield None, chosen_device(device)
        return
    from megabert.training.distributed import backend_of, started

    place = chosen_device(device, launch.local_rank)
    timeout = timedelta(minutes=options.distributed_timeout_minutes)
    with started(launch, backend=backend_of(options.distributed_backend, place), timeout=timeout) as world:
        yield world, place


def crew_for(options: ParallelOptions, world: World | None, config: Any, *, longest: int, device: torch.device) -> Crew:
    """Those that share the model of `config` as the flags say.

    Args:
        config: the model's.
        longest: tokens of the longest row.

    Raises:
        ValueError: the model does not divide so.
    """
    from megabert.parallel.mesh import Sizes, layout_of

    tensor = options.tensor_model_parallel_size
    sizes = Sizes(
        layers=config.num_hidden_layers, heads=config.num_attention_heads, hidden=config.hidden_size,
        intermediate=config.intermediate_size, sequence=-(-longest // tensor) * tensor,
    )  # fmt: skip
    layout = layout_of(options, world.size if world else 1, sizes)
    if world is None:
        return Solo(device)
    return Together(world, layout, device, layers=config.num_hidden_layers, overlap=options.overlap_grad_reduce)
