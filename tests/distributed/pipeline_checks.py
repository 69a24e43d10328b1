"""What the processes of the pipeline tests run: each compares its stages with the whole model, which it also trains."""

from __future__ import annotations

import copy
import itertools

import torch
import torch.distributed as dist
from transformers import MegatronBertConfig

from megabert import MegatronBertForPreTraining
from megabert.models.bert import stages
from megabert.models.losses import PretrainingObjective
from megabert.parallel.pipeline import PipelineEngine, cut_model, places_of
from megabert.parallel.tied import Tie
from megabert.training.objective import inputs_of

VOCABULARY, LENGTH, PLACES, SAMPLES = 64, 16, 4, 2


def config(**changes) -> MegatronBertConfig:
    sizes = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
        "intermediate_size": 64, "max_position_embeddings": LENGTH, "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0, "initializer_range": 0.05,
    }  # fmt: skip
    return MegatronBertConfig(**{**sizes, **changes})


def packed_batch(seed: int, rows: int = 2) -> dict[str, torch.Tensor]:
    """Rows of two samples and some padding, as `data` makes them."""
    draw = torch.Generator().manual_seed(seed)
    first = torch.randint(4, 8, (rows, 1), generator=draw)
    second = torch.randint(4, 8, (rows, 1), generator=draw)
    places = torch.arange(LENGTH).expand(rows, LENGTH)
    samples = (places < first).long() + (places < first + second).long()
    samples = torch.where(samples > 0, 3 - samples, 0)
    ids = torch.randint(5, VOCABULARY, (rows, LENGTH), generator=draw) * (samples > 0)
    masked = torch.rand(rows, LENGTH, generator=draw).masked_fill(samples == 0, 2).argsort(1)[:, :PLACES].sort(1)[0]
    labels = ids.gather(1, masked)
    labels[:, int(torch.randint(1, PLACES, (), generator=draw)) :] = -100
    return {
        "input_ids": ids,
        "token_type_ids": torch.randint(0, 2, (rows, LENGTH), generator=draw),
        "position_ids": torch.where(samples == 2, places - first, places) * (samples > 0),
        "sample_ids": samples,
        "masked_positions": masked,
        "masked_labels": labels,
        "sample_starts": torch.cat([torch.zeros_like(first), first], 1),
        "next_sentence_label": torch.randint(0, 2, (rows, SAMPLES), generator=draw),
    }


def compare(name: str, found: torch.Tensor, wanted: torch.Tensor, tolerance: float = 1e-5, least: float = 1e-8) -> None:
    """Equal to `tolerance` of the largest entry; of `least` where all are smaller, and rounding is all there is."""
    scale = wanted.abs().max().clamp_min(least)
    error = float((found - wanted).abs().max() / scale)
    assert error <= tolerance, f"{name}: differs by {error:.1e} of its largest entry"


def pipelined(model, pieces, group, targets, terms):
    pairs = stages.tied(model)
    places = places_of(model.config.num_hidden_layers, group.size(), group.rank(), pieces)
    modules = [cut_model(copy.deepcopy(model), place, stages) for place in places]
    engine = PipelineEngine(places, modules, stages, targets, terms, group, torch.device("cpu"))
    return engine, Tie(pairs, group)


def check_steps(pieces, micro_batches: int, steps: int = 20) -> None:
    """Losses, gradients and weights of `steps` updates."""
    torch.manual_seed(3)
    model = MegatronBertForPreTraining(config())
    objective = PretrainingObjective("sop")
    engine, tie = pipelined(model, pieces, dist.group.WORLD, objective.targets, ("lm", "sop"))
    own = dict(itertools.chain.from_iterable(module.named_parameters() for module in engine.modules))
    sides = [dict(model.named_parameters()), own]
    optimizers = [torch.optim.AdamW(side.values(), lr=1e-3) for side in sides]
    for step in range(steps):
        batches = [packed_batch(1000 * step + i) for i in range(micro_batches)]
        totals = {
            key: sum(objective.counts(batch)[key] for batch in batches).clamp_min(1) for key in ("lm", "sop")
        }

        def share(outputs, batch, totals=totals):
            return {key: value / totals[key] for key, value in objective.sums(outputs, batch).items()}

        wanted = {"lm": 0.0, "sop": 0.0}
        for batch in batches:
            shares = share(model(**inputs_of(objective, batch)), batch)
            sum(shares.values()).backward()
            wanted = {key: wanted[key] + value.item() for key, value in shares.items()}
        seen = []
        sums = engine.forward_backward(batches, share, 1.0, seen.append)
        tie.add_gradients(own)
        assert seen == [True] + [False] * (len(engine.modules) * micro_batches - 1)
        if engine.places[-1].last:
            for key, value in wanted.items():
                compare(f"step {step} {key}", sums[key], torch.tensor(value))
        else:
            assert sums == {"lm": 0, "sop": 0}
        whole = dict(model.named_parameters(remove_duplicate=False))
        largest = max(float(parameter.grad.abs().max()) for parameter in model.parameters())
        for name, parameter in own.items():
            compare(f"step {step} gradient of {name}", parameter.grad, whole[name].grad, least=largest / 100)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for name, parameter in own.items():
        if not name.endswith("key.bias"):  # has no influence, hence no gradient but noise, which Adam blows up
            compare(f"weight {name}", parameter, whole[name], 1e-4)
