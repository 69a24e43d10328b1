"""Going on from a checkpoint: what a trainer takes of it, and what it asks for when something is not there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megabert.training import resume, snapshot
from megabert.training.schedule import Schedule, WeightDecay
from megabert.training.snapshot import Progress, Snapshot

if TYPE_CHECKING:
    from megabert.training.loop import Trainer


def restore(trainer: Trainer) -> None:
    """Go on from the run folder's newest checkpoint, else from --load, else from the beginning.

    Raises:
        ValueError: the checkpoint is damaged, or of another model, tokenizer or data.
    """
    path, own = resume.beginning(trainer.checkpoints, trainer.options.load, trainer.say)
    trainer.team.agree({"checkpoint to go on from": str(path)})
    if path is None:
        return
    load = trainer.options.load
    if own and load is not None and not path.resolve().is_relative_to(load.resolve()):
        trainer.say(f"{trainer.folder} already holds checkpoints: going on from them, not from {load}")
    _load(trainer, path, whole=own or not trainer.options.finetune, own=own)


def _load(trainer: Trainer, path: Path, *, whole: bool, own: bool) -> None:
    """Take a checkpoint: all of it when `whole`, else the weights. `own`: it lies in this run's folder."""
    weights = trainer.train_step.weights
    with trainer.checkpoints.advising(own):
        found = trainer.checkpoints.read(path, weights.outline(), weights.masters)
    snapshot.check_weights(weights.outline(), found.weights, path)
    weights.load(found.weights)
    if not whole:
        trainer.say(f"starting from the weights of {path}")
        return
    snapshot.check_identity(trainer.identity, found.identity, path, own=own)
    _take_state(trainer, found, path)
    options = trainer.options
    # Until the first update that was made (the loss scale may skip several) an optimizer has no state.
    if options.load_optim and (found.optimizer or trainer.progress.learned):
        _need(found.optimizer, "optimizer state", "--no-load-optim", path)
        optimizer = weights.parts(found.optimizer)
        snapshot.load_optimizer(trainer.train_step.optimizer, weights.masters, optimizer, path)
    if options.load_rng:
        _need(found.random, "random state", "--no-load-rng", path)
        snapshot.set_random_state(found.random, trainer.device)
    if own:
        trainer.saved = trainer.progress.step
        trainer.checkpoints.point("latest", trainer.progress.step)
    trainer.say(f"going on from {path}, step {trainer.progress.step}/{trainer.steps}")


def _take_state(trainer: Trainer, found: Snapshot, path: Path) -> None:
    """Counters, the window of metrics, the loss scale, and the schedules if asked for."""
    try:
        trainer.progress = Progress(**found.state["progress"])
        snapshot.check_length(trainer.progress.step, trainer.steps, path)
        trainer.meter.load(found.state["meter"])
        _load_scale(trainer, found.state["scaler"])
        if trainer.options.use_checkpoint_lr_scheduler:
            trainer.schedule = Schedule(**found.state["schedule"])
            trainer.weight_decay = WeightDecay(**found.state["weight_decay"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path / 'state.json'} does not fit this run: {error!r}") from None


def _load_scale(trainer: Trainer, state: dict[str, float]) -> None:
    """Take the loss scale up again, unless the precision was changed in between."""
    scaler = trainer.train_step.scaler
    if set(state) == set(scaler.state()):
        scaler.load(state)
    else:
        trainer.say(f"the checkpoint's kind of loss scale is another one; it starts anew at {scaler.scale:.0f}")


def _need(tensors: Mapping[str, Any], what: str, flag: str, path: Path) -> None:
    if not tensors:
        raise ValueError(f"{path} was saved without its {what}; {flag} goes on without it")
