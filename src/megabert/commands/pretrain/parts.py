"""The model of a pretraining run, whole in one process or cut over many, and what trains it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from megabert import MegatronBertForPreTraining
    from megabert.commands.pretrain.command import Config
    from megabert.models.losses import PretrainingObjective
    from megabert.parallel.mesh import Layout
    from megabert.parallel.weights import Given
    from megabert.tokenization.base import Tokenizer
    from megabert.training.distributed import World
    from megabert.training.step import TrainingStep
    from megabert.training.team import Team


def layout_for(config: Config, world: World | None) -> Layout:
    """How the processes of the run share it.

    Raises:
        ValueError: they cannot.
    """
    from megabert.models.bert.recompute import recomputation_of
    from megabert.parallel.mesh import Sizes, layout_of
    from megabert.parallel.saved import check_distributed_saving

    sizes = partial(
        Sizes, layers=config.num_layers, heads=config.num_attention_heads, hidden=config.hidden_size,
        intermediate=config.intermediate_size or 4 * config.hidden_size,
    )  # fmt: skip
    processes = world.size if world else 1
    recomputed = recomputation_of(config, config.num_layers)
    check_distributed_saving(config, full=recomputed is not None and recomputed.granularity == "full")
    layout_of(config, processes, sizes(sequence=config.eval_seq_length or config.seq_length))
    return layout_of(config, processes, sizes(sequence=config.seq_length))


def bare_model(config: Config, tokenizer: Tokenizer) -> MegatronBertForPreTraining:
    """The model on the meta device: it takes no memory yet."""
    import torch

    from megabert import MegatronBertForPreTraining
    from megabert.models.bert.config import make_config
    from megabert.models.bert.recompute import recomputation_of, set_recomputation

    paired = config.pairs != "none"
    with torch.device("meta"):
        model = MegatronBertForPreTraining(
            make_config(config, tokenizer.vocabulary_size, pad_token_id=tokenizer.pad_id, add_binary_head=paired)
        )
    model.config.pair_task = config.pairs  # what the sentence-pair head was asked; `predict` says it
    set_recomputation(model, recomputation_of(config, config.num_layers))
    return model


def alone(
    model: MegatronBertForPreTraining, config: Config, given: Given, *, device: torch.device
) -> tuple[PretrainingObjective, TrainingStep | None, Team | None]:
    """What the trainer needs when this process has the whole model; the trainer makes the usual step itself.

    Args:
        given: weights that are not drawn.
    """
    import torch

    from megabert.models.bert import plan
    from megabert.models.losses import PretrainingObjective
    from megabert.parallel import weights
    from megabert.training.fp8 import multiply_in_fp8
    from megabert.training.step import make_step

    weights.fill(model, model._init_weights, seed=config.seed, device=device, given=given)
    torch.manual_seed(config.seed)
    objective = PretrainingObjective(config.pairs)
    if config.fp8:
        multiply_in_fp8(model, plan.LAYER)
    step = make_step(model, objective, config, device=device, cuda_graphs=True) if config.cuda_graphs else None
    return objective, step, None


def check_accelerator(config: Config, device: torch.device, processes: int) -> None:
    """Refuse what is asked of a GPU where it cannot be, before any work is done.

    Raises:
        ValueError: --fp8 or --cuda-graphs cannot be here.
    """
    from megabert.models.bert.recompute import recomputation_of
    from megabert.training.cuda_graphs import check_cuda_graphs
    from megabert.training.fp8 import check_fp8

    sizes = {"--hidden-size": config.hidden_size}
    if config.intermediate_size:
        sizes["--intermediate-size"] = config.intermediate_size
    check_fp8(config, device, bf16=config.bf16, processes=processes, sizes=sizes)
    recomputed = recomputation_of(config, config.num_layers) is not None
    check_cuda_graphs(config, device, processes=processes, packed=config.pack, recomputed=recomputed)


def together(
    layout: Layout,
    world: World,
    model: MegatronBertForPreTraining,
    config: Config,
    given: Given,
    *,
    device: torch.device,
) -> tuple[PretrainingObjective, TrainingStep | None, Team | None]:
    """What the trainer needs when this process has a part of the model."""
    from megabert.models.bert import plan
    from megabert.models.bert.recompute import recomputation_of, set_recomputation
    from megabert.models.losses import PretrainingObjective
    from megabert.parallel import vocabulary
    from megabert.parallel.mesh import make_mesh
    from megabert.parallel.saved import in_parts
    from megabert.training.assembly import Parallel, make_parallel_step, seed_streams
    from megabert.training.team import ManyProcesses, sharing_of

    mesh = make_mesh(layout, device.type)
    objective = PretrainingObjective(config.pairs)
    if layout.tensor > 1:
        cut = {"group": mesh.get_group("tensor"), "vocabulary": int(model.config.vocab_size)}
        objective = PretrainingObjective(
            config.pairs, word_loss=partial(vocabulary.summed_cross_entropy, **cut),
            word_hits=partial(vocabulary.right_guesses, **cut),
        )  # fmt: skip
    recomputed = recomputation_of(config, config.num_layers // (layout.pipeline * layout.virtual))
    prepare = partial(set_recomputation, chosen=recomputed)
    if config.distribute_saved_activations:
        prepare = partial(prepare, saving=in_parts(mesh.get_group("tensor")))
    tied = plan.STAGES.tied(model) if layout.pipeline > 1 else {}
    step, applied = make_parallel_step(
        model, objective, config, Parallel(layout, mesh, plan, config.num_layers, config.overlap_grad_reduce),
        device=device, initialise=model._init_weights, prepare=prepare, given=given,
    )  # fmt: skip
    seed_streams(config.seed, mesh)
    copies = {copy: name for copy, name in tied.items() if copy in applied.places}
    return objective, step, ManyProcesses(world, sharing_of(layout, world.rank, mesh, applied.places, copies))
