"""Matrix products in 8-bit floating point, by torchao: layers' matrices, forward and backward.

Each tensor is scaled by its largest number when it is cast. Weights stay what they were (bfloat16, with float32
masters), and so do their names; what is not a product of a layer, the head and embeddings among it, stays bfloat16.
Source: Micikevicius et al. 2022, "FP8 formats for deep learning".
"""

from __future__ import annotations

import importlib.util
import re

import torch
from torch import nn

from megabert.training.options import AcceleratorOptions

MULTIPLE = 16
"""What the sizes of a matrix must be multiples of, by the hardware's products."""


def check_fp8(
    options: AcceleratorOptions, device: torch.device, *, bf16: bool, processes: int, sizes: dict[str, int]
) -> None:
    """Refuse --fp8 where it cannot be.

    Args:
        sizes: flag -> size of the layers' matrices that it sets.

    Raises:
        ValueError: not with --bf16, more than one process, no such hardware, no torchao, or sizes that do not divide.
    """
    if not options.fp8:
        return
    if not bf16:
        raise ValueError("--fp8 replaces the products of --bf16: give both")
    if processes > 1:
        raise ValueError(f"--fp8 works in one process, and this run has {processes}; leave it out")
    for flag, size in sizes.items():
        if size % MULTIPLE:
            raise ValueError(f"--fp8 needs sizes that {MULTIPLE} divides, and {flag} is {size}")
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        here = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        raise ValueError(
            f"--fp8 needs an NVIDIA GPU that multiplies in 8 bits (H100, H200, L40), and this run is on {here}"
        )
    if importlib.util.find_spec("torchao") is None:
        raise ValueError("--fp8 is of the package torchao, which is not installed: pip install 'megabert[fp8]'")


def multiply_in_fp8(model: nn.Module, layer: str, *, emulated: bool = False) -> list[str]:
    """Let the matrices of the layers of `model` multiply in 8 bits; in place, parameters stay the same objects.

    Args:
        layer: pattern of a layer's name.
        emulated: by products of the numbers rounded to 8 bits, which every device can; to test with.

    Returns:
        Names of the changed modules.

    Raises:
        ValueError: a matrix whose sizes do not divide.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training  # type: ignore[import-not-found]

    pattern, chosen = re.compile(rf"{layer}\..+"), []

    def wanted(module: nn.Module, name: str) -> bool:
        if not isinstance(module, nn.Linear) or not pattern.fullmatch(name):
            return False
        sizes = (module.in_features, module.out_features)
        if any(size % MULTIPLE for size in sizes):
            raise ValueError(
                f"--fp8 needs sizes that {MULTIPLE} divides: {name} is a matrix of {sizes[0]} x {sizes[1]}"
            )
        chosen.append(name)
        return True

    # The gradient of a matrix is a sum over tokens; their number is padded where it does not divide.
    config = Float8LinearConfig(pad_inner_dim=True, emulate=emulated)
    convert_to_float8_training(model, module_filter_fn=wanted, config=config)
    return chosen
