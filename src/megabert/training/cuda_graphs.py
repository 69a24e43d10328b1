"""A model's forward and backward pass as two CUDA graphs: the host starts each with one call, not kernel by kernel.

Batches are copied to the memory that the graphs were captured with, so all must have the shapes of the first one.
Between the two the loss is computed as usual; and after them gradients are exchanged, clipped and used as usual.
Source: PyTorch's notes on CUDA graphs, "Partial-network capture".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils import _pytree as pytree

from megabert.models.masks import numbers_unasked
from megabert.training.options import AcceleratorOptions

WARM_UP = 3
"""Passes before the capture, in which libraries and compilers do what they do only at first."""

Replay = Callable[[], None]
Gradients = list[Tensor | None]


def check_cuda_graphs(
    options: AcceleratorOptions, device: torch.device, *, processes: int, packed: bool, recomputed: bool
) -> None:
    """Refuse --cuda-graphs where a step cannot be captured.

    Raises:
        ValueError: no GPU, more than one process, rows of several lengths, or recomputation.
    """
    if not options.cuda_graphs:
        return
    if device.type != "cuda":
        raise ValueError(f"--cuda-graphs needs a GPU of NVIDIA's, and this run is on {device.type}")
    if processes > 1:
        raise ValueError(f"--cuda-graphs works in one process, and this run has {processes}; leave it out")
    if not packed:
        raise ValueError(
            "--cuda-graphs needs batches of one shape, and unpacked rows are cut to the longest: add --pack"
        )
    if recomputed:
        raise ValueError("--cuda-graphs does not go with recomputation, whose random state the host puts back")


class Recorder(Protocol):
    """What captures work on a device."""

    def prepared(self, work: Callable[[], object]) -> None:
        """Do `work` several times, so that it can be captured."""
        ...

    def record(self, work: Callable[[], Any]) -> tuple[Any, Replay]:
        """Capture `work`: its result, and what does it again, writing the result into the same memory."""
        ...


class CudaRecorder:
    """CUDA's own capture. Graphs of one recorder share their memory: they are replayed in the order of capture."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pool = torch.cuda.graph_pool_handle()

    def prepared(self, work: Callable[[], object]) -> None:
        """As `Recorder.prepared`, on a stream aside, as capture demands."""
        current, aside = torch.cuda.current_stream(self.device), torch.cuda.Stream(self.device)
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                work()
        current.wait_stream(aside)

    def record(self, work: Callable[[], Any]) -> tuple[Any, Replay]:
        """As `Recorder.record`."""
        graph = torch.cuda.CUDAGraph()
        # Other threads, one that writes a checkpoint for example, may go on meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = work()
        return result, graph.replay


@contextmanager
def _same_random_state(device: torch.device) -> Iterator[None]:
    """Numbers drawn inside are drawn again: a run that was resumed captures at another step."""
    if device.type != "cuda":
        yield
        return
    state = torch.cuda.get_rng_state(device)
    yield
    torch.cuda.set_rng_state(state, device)


class _Passes(torch.autograd.Function):
    """The two graphs as one node."""

    @staticmethod
    def forward(ctx, owner: GraphedForward, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.owner = owner
        owner.replay_forward()
        return tuple(output.detach() for output in owner.outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        owner = ctx.owner
        for kept, gradient in zip(owner.upper, gradients, strict=True):
            kept.copy_(gradient)
        owner.replay_backward()
        return (None, *(None if gradient is None else gradient.detach() for gradient in owner.gradients))


class GraphedForward:
    """To be called in place of a model in training: captures at the first batch, replays from then on.

    Args:
        model: its trainable parameters stay where they are in memory.
        forward: what is captured: the model, or the compiled model.
        recorder: captures; left out, CUDA does.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: Callable[..., Any],
        device: torch.device,
        *,
        recorder: Recorder | None = None,
    ) -> None:
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.forward = forward
        self.device = device
        self.recorder = recorder or CudaRecorder(device)
        self.inputs: dict[str, Tensor] = {}
        self.outputs: Sequence[Tensor] = ()
        self.upper: Sequence[Tensor] = ()
        self.gradients: Gradients = []
        self.replay_forward: Replay
        self.replay_backward: Replay
        self._live: list[Tensor] = []
        self._form: Any = None

    def __call__(self, **inputs: Tensor) -> Any:
        """The outputs for a batch, in memory that the next call overwrites.

        Raises:
            ValueError: another shape or type than the first batch had.
        """
        if not self.inputs:
            self._capture(inputs)
        self._check(inputs)
        for name, kept in self.inputs.items():
            kept.copy_(inputs[name], non_blocking=True)
        outputs = _Passes.apply(self, *self.parameters)
        return pytree.tree_unflatten(list(outputs), self._form)  # type: ignore[call-overload]

    def arm(self, last: bool) -> None:
        """Before each micro-batch: gradients so far leave the memory that the backward pass will write to."""
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad = parameter.grad.clone()

    def _check(self, inputs: dict[str, Tensor]) -> None:
        for name in self.inputs.keys() | inputs.keys():
            kept, given = (
                None if one is None else (list(one.shape), one.dtype)
                for one in (self.inputs.get(name), inputs.get(name))
            )
            if kept != given:
                raise ValueError(
                    f"--cuda-graphs: {name} of a batch is {given}, and was {kept} in the first one; "
                    "all batches must have one shape"
                )

    def _capture(self, inputs: dict[str, Tensor]) -> None:
        self.inputs = {name: value.detach().clone() for name, value in inputs.items()}
        with _same_random_state(self.device), numbers_unasked():
            self.recorder.prepared(self._both)
            self._live = []
            self.outputs, self.replay_forward = self.recorder.record(self._run_forward)
            self.gradients, self.replay_backward = self.recorder.record(self._run_backward)

    def _both(self) -> None:
        outputs = self._run_forward()
        self.upper = [torch.zeros_like(output) for output in outputs]
        self._run_backward()

    def _run_forward(self) -> list[Tensor]:
        leaves, self._form = pytree.tree_flatten(self.forward(**self.inputs))
        self._live = leaves
        return [leaf.detach() for leaf in leaves]

    def _run_backward(self) -> Gradients:
        found = torch.autograd.grad(self._live, self.parameters, self.upper, allow_unused=True)
        self._live = []
        seen: set[int] = set()
        gradients: Gradients = []
        for gradient in found:
            # One tensor may be the gradient of two weights, and what is done to one of them must not be to the other.
            place = None if gradient is None else gradient.untyped_storage().data_ptr()
            gradients.append(gradient.clone() if gradient is not None and place in seen else gradient)
            if place is not None:
                seen.add(place)
        return gradients
