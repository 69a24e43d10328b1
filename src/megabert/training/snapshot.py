"""What a checkpoint holds: taking it from a run, checking that it fits, and giving it back to one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass
class Snapshot:
    """Everything that a run is, between two steps.

    Attributes:
        weights: float32 weights and buffers by name.
        optimizer: `<state>/<weight name>` -> tensor; empty when not stored.
        random: generator states (uint8); empty when not stored.
        state: counters and small states; plain JSON.
        identity: what the run was made of, as short strings: the data's and the tokenizer's digests, ...
    """

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    random: dict[str, Tensor] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    identity: dict[str, str] = field(default_factory=dict)


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        step: updates tried, skipped ones included.
        samples: rows read.
        learned: rows of updates that were made: the schedule's clock.
        evaluated: the step of the last evaluation.
        best: lowest validation loss so far.
    """

    step: int = 0
    samples: int = 0
    learned: int = 0
    evaluated: int = 0
    best: float | None = None


def check_weights(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], folder: Path) -> None:
    """Refuse the weights of another model.

    Raises:
        ValueError: names or shapes differ; the first few are named.
    """
    differences = [f"{name} is missing" for name in expected if name not in found]
    differences += [f"{name} is not in this model" for name in found if name not in expected]
    differences += [
        f"{name} is {list(found[name].shape)} there and {list(tensor.shape)} here"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    if differences:
        more = f", and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise ValueError(f"{folder} belongs to another model: {', '.join(differences[:3])}{more}")


def check_identity(expected: Mapping[str, str], found: Mapping[str, str], folder: Path, *, own: bool) -> None:
    """Refuse to go on with other data or another tokenizer.

    Args:
        own: the checkpoint lies in the folder of the run that would go on.

    Raises:
        ValueError: a value that both know differs; the first one is named.
    """
    for name, value in expected.items():
        if name in found and found[name] != value:
            weights_only = "--finetune to take only the weights"
            if own:
                weights_only = f"another --save folder with --load {folder} --finetune to take only the weights"
            raise ValueError(
                f"{folder} was trained with another {name}: {found[name]} there, {value} here; "
                f"give the same, or {weights_only}"
            )


def check_length(step: int, steps: int, folder: Path) -> None:
    """Refuse to go on with a run that is over.

    Args:
        step: updates that were made.
        steps: updates of the whole run as it is asked for now.

    Raises:
        ValueError: more were made than are asked for.
    """
    if step > steps:
        raise ValueError(
            f"{folder} is at step {step}, past the {steps} steps that are asked for now; ask for {step} or more "
            "(--train-iters), or --load an earlier checkpoint"
        )


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The states of the generators that dropout draws from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_state(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Put the generators back to states given by `random_state`."""
    if "cpu" in states:
        torch.set_rng_state(states["cpu"])
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)


def derived_random(states: Mapping[str, Tensor], stream: int) -> dict[str, Tensor]:
    """Generator states for a run that goes on in another layout than the one which stored these.

    A function of what was stored and of `stream`, which tells apart processes that must draw differently; nothing where
    nothing was stored.
    """
    if not states:
        return {}
    content = b"".join(states[name].numpy().tobytes() for name in sorted(states))
    seed = int.from_bytes(hashlib.sha256(content + stream.to_bytes(8, "little")).digest()[:8], "little") >> 1
    found = {"cpu": torch.Generator().manual_seed(seed).get_state()}
    if torch.cuda.is_available():
        found["cuda"] = torch.Generator("cuda").manual_seed(seed).get_state()
    return found


def optimizer_tensors(optimizer: torch.optim.Optimizer, masters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The optimizer's state as `<state>/<weight name>` -> tensor, of weights that it has changed."""
    tensors = {}
    for name, master in masters.items():
        state = optimizer.state.get(master, {})
        if not state or state.get("step") == 0:  # on a GPU the question waits for it
            continue
        tensors.update({f"{key}/{name}": value for key, value in state.items() if isinstance(value, Tensor)})
    return tensors


def load_optimizer(
    optimizer: torch.optim.Optimizer, masters: Mapping[str, Tensor], tensors: Mapping[str, Tensor], folder: Path
) -> None:
    """Put a state given by `optimizer_tensors` into a fresh optimizer.

    Raises:
        ValueError: it belongs to another optimizer or model.
    """
    for key, value in tensors.items():
        kind, _, name = key.partition("/")
        master = masters.get(name)
        if master is None or (kind != "step" and value.shape != master.shape):
            raise ValueError(f"{folder}/optimizer.safetensors does not fit this model at {key}")
        # AdamW's fused kernel wants its step counter beside the weight; LAMB's counter lies on the CPU.
        place = master.device if kind != "step" or isinstance(optimizer, torch.optim.AdamW) else torch.device("cpu")
        # A copy: what was read may still lie in the checkpoint's file, which will be removed in time.
        there = optimizer.state[master].get(kind)
        if there is None:
            optimizer.state[master][kind] = value.to(place, copy=True)
        else:
            there.copy_(value)
