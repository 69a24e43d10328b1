"""What the processes of the pipeline tests run: each compares its stages with the whole model, which it also trains."""

from __future__ import annotations

import copy
import itertools

import torch
import torch.distributed as dist
from transformers import MegatronBertConfig

import megabert
from megabert import MegatronBertForPreTraining
from megabert.models.bert import stages
from megabert.models.bert.recompute import Recomputation, set_recomputation
from megabert.models.losses import PretrainingObjective
from megabert.parallel.pipeline import PipelineEngine
from megabert.parallel.stages import places_of
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
    error = float((found.detach() - wanted.detach()).abs().max() / scale)
    assert error <= tolerance, f"{name}: differs by {error:.1e} of its largest entry"


def pipelined(model, pieces, group, targets, terms):
    pairs = stages.tied(model)
    places = places_of(model.config.num_hidden_layers, group.size(), group.rank(), pieces)
    modules = [copy.deepcopy(model) for _ in places]
    for place, module in zip(places, modules, strict=True):
        stages.keep(module, place.layers, first=place.first, last=place.last)
    engine = PipelineEngine(places, modules, stages, targets, terms, group, torch.device("cpu"))
    return engine, Tie(pairs, group)


def engine_weights(engine) -> dict[str, torch.nn.Parameter]:
    return dict(itertools.chain.from_iterable(module.named_parameters() for module in engine.modules))


def compare_gradients(where: str, own: dict, model: torch.nn.Module) -> None:
    whole = dict(model.named_parameters(remove_duplicate=False))
    largest = max(float(weight.grad.abs().max()) for weight in model.parameters() if weight.grad is not None)
    for name, parameter in own.items():
        if whole[name].grad is None:
            assert parameter.grad is None, f"{where}: {name} has a gradient"
        else:
            compare(f"{where}: gradient of {name}", parameter.grad, whole[name].grad, least=largest / 100)


def check_steps(pieces, micro_batches: int, steps: int = 20, layers: int = 4) -> None:
    """Losses, gradients and weights of `steps` updates."""
    torch.manual_seed(3)
    model = MegatronBertForPreTraining(config(num_hidden_layers=layers))
    objective = PretrainingObjective("sop")
    engine, tie = pipelined(model, pieces, dist.group.WORLD, objective.targets, lambda batch: ("lm", "sop"))
    armed = {id(module): [] for module in engine.modules}
    engine.arm = lambda module, last: armed[id(module)].append(last)
    own = engine_weights(engine)
    sides = [dict(model.named_parameters()), own]
    optimizers = [torch.optim.AdamW(side.values(), lr=1e-3) for side in sides]
    for step in range(steps):
        batches = [packed_batch(1000 * step + i) for i in range(micro_batches)]
        totals = {key: sum(objective.counts(batch)[key] for batch in batches).clamp_min(1) for key in ("lm", "sop")}

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
        for calls in armed.values():
            assert calls == [False] * (micro_batches - 1) + [True]
            calls.clear()
        assert seen == [True] + [False] * (len(engine.modules) * micro_batches - 1)
        if engine.places[-1].last:
            for key, value in wanted.items():
                compare(f"step {step} {key}", sums[key], torch.tensor(value))
        else:
            assert sums == {"lm": 0, "sop": 0}
        compare_gradients(f"step {step}", own, model)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    whole = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in own.items():
        if not name.endswith("key.bias"):  # has no influence, hence no gradient but noise, which Adam blows up
            compare(f"weight {name}", parameter, whole[name], 1e-4)


def head_batch(head: str, seed: int = 5) -> dict[str, torch.Tensor]:
    """A batch with labels for a head, by Transformers' names."""
    draw = torch.Generator().manual_seed(seed)

    def numbers(least, most, *shape):
        return torch.randint(least, most, shape, generator=draw)

    lead = (2, 3) if head == "MultipleChoice" else (4,)
    mask = torch.ones(*lead, LENGTH, dtype=torch.long)
    mask[..., LENGTH - 3 :] = numbers(0, 2, *lead, 1)
    batch = {
        "input_ids": numbers(5, VOCABULARY, *lead, LENGTH),
        "attention_mask": mask,
        "token_type_ids": numbers(0, 2, *lead, LENGTH),
    }
    if head in ("PreTraining", "MaskedLM", "CausalLM", "TokenClassification"):
        most = 3 if head == "TokenClassification" else VOCABULARY
        labels = numbers(0, most, *lead, LENGTH)
        batch["labels"] = torch.where(numbers(0, 4, *lead, LENGTH) == 0, labels, -100)
    if head == "PreTraining":
        batch["next_sentence_label"] = numbers(0, 2, *lead)
    if head in ("NextSentencePrediction", "SequenceClassification", "MultipleChoice"):
        batch["labels"] = numbers(0, 2, lead[0])
    if head == "QuestionAnswering":
        batch |= {"start_positions": numbers(0, LENGTH, *lead), "end_positions": numbers(0, LENGTH, *lead)}
    return batch


HEADS = (
    "Model", "PreTraining", "MaskedLM", "CausalLM", "NextSentencePrediction", "SequenceClassification",
    "MultipleChoice", "TokenClassification", "QuestionAnswering",
)  # fmt: skip


def check_heads(pieces: int) -> None:
    """One step of each of the nine classes: loss and gradients."""
    for head in HEADS:
        torch.manual_seed(4)
        made = megabert.MegatronBertModel if head == "Model" else getattr(megabert, f"MegatronBertFor{head}")
        labels = 2 if head in ("QuestionAnswering", "SequenceClassification") else 3
        model = made(config(is_decoder=head == "CausalLM", num_labels=labels)).train()
        engine, tie = pipelined(model, pieces, dist.group.WORLD, frozenset(), lambda batch: ("loss",))
        own = engine_weights(engine)
        batches = [head_batch(head, seed) for seed in (5, 6)]

        def share(outputs, batch, head=head):
            return {"loss": outputs.pooler_output.square().sum() if head == "Model" else outputs.loss / 2}

        wanted = [share(model(**batch), batch)["loss"] for batch in batches]
        sum(wanted).backward()
        sums = engine.forward_backward(batches, share, 1.0, lambda first: None)
        tie.add_gradients(own)
        if engine.places[-1].last:
            compare(f"{head}: loss", sums["loss"], sum(wanted).detach())
        compare_gradients(head, own, model)
        assert bool(tie.names) == (
            head in ("PreTraining", "MaskedLM", "CausalLM") and dist.get_rank() in (0, dist.get_world_size() - 1)
        )


def check_evaluation(pieces: int) -> None:
    """Sums over batches of several sizes, and training between them."""
    torch.manual_seed(5)
    model = MegatronBertForPreTraining(config()).eval()
    objective = PretrainingObjective("sop")
    engine, _ = pipelined(model, pieces, dist.group.WORLD, objective.targets, lambda batch: ("lm", "sop"))

    def read(outputs, batch):
        return objective.sums(outputs, batch) | {f"{k} hits": v for k, v in objective.hits(outputs, batch).items()}

    for seed, rows in enumerate((2, 5, 1, 1, 3)):
        batch = packed_batch(seed, rows)
        found = engine.evaluate(batch, read)
        if engine.places[-1].last:
            with torch.no_grad():
                wanted = read(model(**inputs_of(objective, batch)), batch)
            assert found.keys() == wanted.keys()
            for name, value in wanted.items():
                compare(f"{rows} rows: {name}", found[name], value)
        if seed == 2:
            engine.forward_backward([batch, batch], objective.sums, 1.0, lambda first: None)


def check_dropout(pieces: int) -> None:
    """Masks repeat with the seed, and recomputation draws those of the forward pass again."""
    gradients, sums = [], []
    ways = (None, None, Recomputation("full", "block", 1), Recomputation("full"), Recomputation("selective"))
    for way in ways:
        torch.manual_seed(6)
        dropping = config(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2)
        model = MegatronBertForPreTraining(dropping).train()
        objective = PretrainingObjective("sop")
        engine, _ = pipelined(model, pieces, dist.group.WORLD, objective.targets, lambda batch: ("lm", "sop"))
        for module in engine.modules:
            set_recomputation(module, way)
        torch.manual_seed(1234 + 100 * dist.get_rank())
        batches = [packed_batch(i) for i in range(4)]
        sums.append(engine.forward_backward(batches, objective.sums, 1.0, lambda first: None))
        gradients.append({name: weight.grad for name, weight in engine_weights(engine).items()})
    assert all(each == sums[0] for each in sums)
    for found in gradients[1:]:
        for name, gradient in gradients[0].items():
            assert torch.equal(gradient, found[name]), name


def check_refusals() -> None:
    torch.manual_seed(7)
    model = MegatronBertForPreTraining(config())
    objective = PretrainingObjective("sop")
    engine, _ = pipelined(model, 2, dist.group.WORLD, objective.targets, lambda batch: ("lm", "sop"))
    for batches, words in (
        ([packed_batch(i) for i in range(5)], "multiple of 2 micro-batches, such as 4"),
        ([packed_batch(0), packed_batch(1, rows=3)], "must have one shape"),
    ):
        try:
            engine.forward_backward(batches, objective.sums, 1.0, lambda first: None)
        except ValueError as error:
            assert words in str(error), error
        else:
            raise AssertionError(f"not refused: {words}")
