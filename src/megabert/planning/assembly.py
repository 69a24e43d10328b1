"""The step of one rank, made of the same parts as `pretrain`'s; weights are not drawn."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from megabert.models.bert import plan
from megabert.models.bert.config import make_config
from megabert.models.bert.pretraining import MegatronBertForPreTraining
from megabert.models.bert.recompute import recomputation_of, set_recomputation
from megabert.models.losses import PretrainingObjective
from megabert.parallel import vocabulary
from megabert.parallel.saved import in_parts
from megabert.planning.subject import Subject
from megabert.training.assembly import Parallel, make_parallel_step
from megabert.training.step import TrainingStep

CPU = torch.device("cpu")


def bare_model(subject: Subject) -> MegatronBertForPreTraining:
    """The whole model on the meta device."""
    options = subject.options
    config = make_config(options, subject.vocabulary, add_binary_head=options.pairs != "none")
    with torch.device("meta"):
        return MegatronBertForPreTraining(config)


def assemble(subject: Subject, mesh: DeviceMesh) -> TrainingStep:
    """The step of the rank that this process is in the layout's mesh."""
    model, layout = bare_model(subject), subject.layout
    size = model.config.vocab_size
    functions = {}
    if layout.tensor > 1:
        group = mesh.get_group("tensor")
        functions = {
            "word_loss": functools.partial(vocabulary.summed_cross_entropy, group=group, vocabulary=size),
            "word_hits": functools.partial(vocabulary.right_guesses, group=group, vocabulary=size),
        }
    objective = PretrainingObjective(subject.pair_task, **functions)
    cut: Any = plan  # a module, with all that a plan has
    parallel = Parallel(layout, mesh, cut, subject.options.num_layers, subject.options.overlap_grad_reduce)
    chosen = recomputation_of(subject.options, subject.options.num_layers)
    prepare = functools.partial(set_recomputation, chosen=chosen)
    if subject.options.distribute_saved_activations:
        prepare = functools.partial(prepare, saving=in_parts(mesh.get_group("tensor")))
    step, _ = make_parallel_step(
        model, objective, subject.options, parallel, device=CPU, initialise=_leave,
        prepare=prepare,
    )  # fmt: skip
    return step


def _leave(module: nn.Module) -> None:
    """Draw nothing."""
