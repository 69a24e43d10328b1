"""What a pretraining run tells its user: a description, a test at the end, the model as a folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from megabert.commands.pretrain.rows import CUTTING

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from megabert import MegatronBertForPreTraining
    from megabert.commands.pretrain.command import Config
    from megabert.data.blend import DataSets, Source
    from megabert.parallel.mesh import Layout
    from megabert.tokenization.base import Tokenizer
    from megabert.training.distributed import World
    from megabert.training.loop import Trainer


def describe(
    model: MegatronBertForPreTraining,
    tokenizer: Tokenizer,
    sets: DataSets,
    config: Config,
    device: torch.device,
    layout: Layout,
) -> Iterator[str]:
    """Lines about what is going to be trained."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    precision = "fp16" if config.fp16 else "bf16" if config.bf16 else "fp32"
    yield (
        f"model: {config.num_layers} layers x {config.hidden_size}, {parameters / 1e6:.1f} M parameters, {precision} "
        f"on {device}, vocabulary of {tokenizer.vocabulary_size:,}"
    )
    if layout.world > 1:
        yield f"{layout.world} processes: {layout}"
    counts = [f"{name} {len(rows):,}" for name, rows in zip(("train", "valid", "test"), sets, strict=False) if rows]
    yield f"rows in one pass of {config.seq_length} tokens: {', '.join(counts)}"
    fill = getattr(sets.train, "fill", None)
    if fill is not None:
        yield f"packed rows hold tokens in {fill:.1%} of their places"
    yield from sets.notes
    yield f"run folder: {config.save}"


def test(trainer: Trainer, sets: DataSets, sources: dict[str, list[Source]], config: Config, folder: Path) -> None:
    """Measure the finished model on the documents that training never saw, beside the guess that knows no context."""
    from megabert.data import baseline
    from megabert.training.options import evaluation_rows_of
    from megabert.training.sinks import JsonLines, read_lines

    rows = sets.test if sets.test is not None else sets.valid
    leads = trainer.team.leads
    step, identity = trainer.progress.step, _identity_of_test(config, sources)
    measured = leads and any(
        line["step"] == step and line.get("test_identity") == identity for line in read_lines(folder / "metrics.jsonl")
    )
    if trainer.team.add([measured])[0]:
        return  # the run was finished before, and asks for the same test
    evaluation = trainer.evaluate(rows) if rows is not None and config.eval_iters else None
    if rows is None or evaluation is None or not leads:
        return
    record = evaluation.record("test")
    limit, common = evaluation_rows_of(config), baseline.commonest_token(sources["train_data"], sets.train)
    record["test_lm_unigram_accuracy"] = baseline.unigram_accuracy(common, rows, limit)
    metrics = JsonLines(folder / "metrics.jsonl", after=step)
    metrics.write({"step": step, **record, "test_identity": identity})
    metrics.close()
    if "test_lm_loss" not in record:
        print(f"test: none of the {min(limit, len(rows))} rows has a masked token", flush=True)
        return
    print(
        f"{'test' if sets.test is not None else 'validation, for want of test data'}: "
        f"lm loss {record['test_lm_loss']:.4f}, perplexity {record['test_perplexity']:.2f}, "
        f"masked tokens right: {record['test_lm_accuracy']:.1%} "
        f"(by guessing the commonest one: {record['test_lm_unigram_accuracy']:.1%})",
        flush=True,
    )


def _identity_of_test(config: Config, sources: dict[str, list[Source]]) -> str:
    """A short name for what is asked in a test: the same model gives the same result to it."""
    from megabert.data import sources as data
    from megabert.training.options import evaluation_rows_of

    options = config.of("test_data")
    cutting = [getattr(options, name) for name in CUTTING]
    digests = [data.digest(part) for part in sources.values()]
    asked = [digests, evaluation_rows_of(config), config.seed, config.pairs, cutting]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:12]


def whole_weights(trainer: Trainer, world: World | None) -> dict[str, torch.Tensor]:
    """The trained float32 weights: this process's, or those of all from the checkpoint that they wrote at the end."""
    if world is None:
        return trainer.train_step.weights.state_dict()

    from megabert.formats import native

    checkpoint = trainer.checkpoints.named("latest")
    assert checkpoint is not None
    return {name: tensor.load() for name, tensor in native.tensors_of(checkpoint)["model"].items()}


def export(
    model: MegatronBertForPreTraining,
    weights: dict[str, torch.Tensor],
    tokenizer: Tokenizer,
    paired: bool,
    folder: Path,
) -> None:
    """Write the weights in fp32, as training keeps them, as a Transformers folder."""
    from megabert import MegatronBertForMaskedLM, MegatronBertForPreTraining
    from megabert.formats import huggingface

    # Without the pair head the weights are those of the masked-word model: the folder says so.
    exported = (MegatronBertForPreTraining if paired else MegatronBertForMaskedLM)(model.config)
    found = exported.load_state_dict(weights, strict=False)
    # A checkpoint has a tied weight once.
    missing = set(found.missing_keys) - set(exported.all_tied_weights_keys)
    assert not missing and not found.unexpected_keys, (missing, found.unexpected_keys)
    huggingface.write(exported, tokenizer, folder / "model")
    for setting in huggingface.foreign_settings(exported.config):
        print(f"warning: {folder / 'model'} is for megabert; plain Transformers computes other numbers: {setting}")
    print(
        f"model: {folder / 'model'} (a Transformers folder); metrics.jsonl, loss.png, checkpoints: {folder}", flush=True
    )
