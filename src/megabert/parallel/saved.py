"""What recomputed layers keep, shared among tensor-parallel processes.

The input of a recomputed layer is the same on all of them. Each keeps one part of it, and they gather the whole when
the layer is computed again. Source: Megatron-LM, `--distribute-checkpointed-activations`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed import ProcessGroup

from megabert.parallel.options import ParallelOptions
from megabert.parallel.regions import gathered

Saving = Callable[[], AbstractContextManager]
"""Makes what is entered around the call of a recomputed part, whose arguments are then kept in its way."""


def check_distributed_saving(options: ParallelOptions, *, full: bool) -> None:
    """Refuse --distribute-saved-activations where nothing whole is kept that could be shared.

    Args:
        full: the layers are recomputed from their inputs.

    Raises:
        ValueError: the flag that is missing or does not go with it.
    """
    if not options.distribute_saved_activations:
        return
    if options.tensor_model_parallel_size == 1:
        reason = "shares among tensor-parallel processes: say --tensor-model-parallel-size 2 or more"
    elif not full:
        reason = "is about the inputs of recomputed layers: say --recompute-granularity full"
    elif options.sequence_parallel:
        reason = "does not go with --sequence-parallel, which shares these inputs already: leave it out"
    else:
        return
    raise ValueError(f"--distribute-saved-activations (--distribute-checkpointed-activations) {reason}")


def in_parts(group: ProcessGroup) -> Saving:
    """Keep of each hidden state [batch, seq, hidden] the part of this process."""
    return lambda: saved_tensors_hooks(lambda tensor: _cut(tensor, group), lambda kept: _whole(kept, group))


def _cut(tensor: Tensor, group: ProcessGroup) -> Tensor | tuple[Tensor, torch.Size]:
    # Masks and ids are small, and not all of them are alike: only what has a gradient is surely a hidden state.
    if tensor.dim() != 3 or not tensor.requires_grad or tensor.numel() % group.size():
        return tensor
    return tensor.detach().flatten().chunk(group.size())[group.rank()].clone(), tensor.shape


def _whole(kept: Tensor | tuple[Tensor, torch.Size], group: ProcessGroup) -> Tensor:
    if isinstance(kept, Tensor):
        return kept
    part, shape = kept
    return gathered(part, group).view(shape)
