"""A fine-tuned model as one file for other programs: ONNX or TorchScript, for any number of rows of any length.

Inputs are `input_ids`, `token_type_ids` and `attention_mask`, int64 [batch, seq] ([batch, choices, seq] for several
choices); what comes out is `Exported.outputs`. The tokenizer and the names of labels are not part of the file.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from megabert import runtime

INPUTS = ("input_ids", "token_type_ids", "attention_mask")
SUFFIXES = (".onnx", ".ts", ".pt")
OPSET = 17
"""Of ONNX, since 2022: LayerNorm is one operator."""
_OPSETS = range(14, 19)
"""Versions whose operators suffice: below, attention cannot be written."""

_TOLERANCE = 1e-3
_LARGEST = 2**31
"""Bytes: what a file of Protocol Buffers may have."""


class Exported(nn.Module):
    """A model with three tensors in and a tuple of tensors out, without what training and caches need.

    Args:
        model: with a head of one of the tasks.
        parts: the outputs of each of its classifiers, where several share the encoder.
        names: of these classifiers, as many; `[CLS]` behind a name: it answers for the whole text.
    """

    def __init__(self, model: PreTrainedModel, parts: Sequence[int] = (), names: Sequence[str] = ()):
        super().__init__()
        self.model, self.parts = model, tuple(parts)
        self.whole = [name.endswith("[CLS]") for name in names]
        self.outputs = tuple(name.removesuffix("[CLS]") for name in names) if parts else ("logits",)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """[batch, seq] each -> logits: [batch, classes], [batch, seq, classes], for answers [batch, seq, 2]."""
        out = self.model(
            input_ids=input_ids, token_type_ids=token_type_ids, attention_mask=attention_mask, return_dict=True
        )
        if "start_logits" in out:
            return (torch.stack([out.start_logits, out.end_logits], dim=-1),)
        if not self.parts:
            return (out.logits,)
        shares = out.logits.split(self.parts, dim=-1)
        return tuple(one[:, 0] if whole else one for one, whole in zip(shares, self.whole, strict=True))


def write(module: Exported, path: Path, *, opset: int = OPSET) -> None:
    """Write a model, by the file's suffix: `.onnx`, else (`.ts`, `.pt`) TorchScript.

    Args:
        module: float32, on a CPU, its matrices not packed; it answers afterwards as before.
        opset: version of ONNX's operators.

    Raises:
        ValueError: another suffix, the `onnx` package is missing, the model is larger than such a file can be, or
            what was recorded does not answer as the model does.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} is needed as the end of the name")
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent}")
    module.eval()
    with torch.no_grad(), warnings.catch_warnings():
        # Of shapes that are compared in passing, and of the age of both ways: what is recorded is checked below.
        warnings.simplefilter("ignore")
        recorded = torch.jit.trace(module, example_of(module.model, 2, 8), check_trace=False)
        _check(module, recorded, path)
        content = io.BytesIO()
        if path.suffix == ".onnx":
            _write_onnx(module, content, opset)
        else:
            torch.jit.save(recorded, content)
    with runtime.atomic_write(path, "wb") as file:
        file.write(content.getbuffer())


def example_of(model: PreTrainedModel, rows: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows to record a model with: ids, token types, and a mask in which each row is one token shorter than the last.

    With a head for several choices each row has three.
    """
    choices = (3,) if type(model).__name__.endswith("MultipleChoice") else ()
    shape = (rows, *choices, length)
    ids = torch.arange(rows * length * (choices[0] if choices else 1)).view(shape) % model.config.vocab_size
    mask = torch.ones(shape, dtype=torch.long)
    for row in range(rows):
        mask[row, ..., length - row :] = 0
    types = torch.zeros(shape, dtype=torch.long)
    types[..., length // 2 :] = 1
    return ids, types, mask


def _check(module: Exported, recorded: Any, path: Path) -> None:
    """Ask both the same, in a shape that was not recorded."""
    rows = example_of(module.model, 5, 13)
    for name, ours, theirs in zip(module.outputs, module(*rows), recorded(*rows), strict=True):
        difference = (ours - theirs).abs().max().item()
        if not difference <= _TOLERANCE:
            raise ValueError(f"{path} is not written: {name} would differ by {difference:.2g} from the model's")


def _write_onnx(module: Exported, content: io.BytesIO, opset: int) -> None:
    try:
        import onnx  # noqa: F401  # PyTorch asks for it at the end
    except ImportError:
        raise ValueError("a .onnx file needs the package onnx: pip install 'megabert[onnx]'") from None
    if opset not in _OPSETS:
        raise ValueError(f"version {opset} of ONNX's operators is not written; {_OPSETS[0]} to {_OPSETS[-1]} are")
    size = sum(weight.numel() * weight.element_size() for weight in module.parameters())
    if size >= _LARGEST:
        raise ValueError(f"the model has {size / 2**30:.1f} GiB, and a .onnx file at most 2: write .ts")
    rows = example_of(module.model, 2, 8)
    inner = [f"axis {number}" for number in range(1, rows[0].dim() - 1)]
    axes = dict(enumerate(["batch", *inner, "sequence"]))
    answers = {name: {0: "batch", 1: "sequence"} if one.dim() == 3 else {0: "batch"}
               for name, one in zip(module.outputs, module(*rows), strict=True)}  # fmt: skip
    torch.onnx.export(
        module, rows, content, input_names=list(INPUTS), output_names=list(module.outputs), opset_version=opset,  # type: ignore[arg-type]
        dynamic_axes={**dict.fromkeys(INPUTS, axes), **answers}, dynamo=False,
    )  # fmt: skip
