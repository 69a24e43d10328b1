"""One checkpoint, whatever files it came from: every format reads into `Checkpoint` and writes from it.

Tensors stay on disk until somebody asks for one, so a conversion needs the memory of a few tensors, not of the model.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PRE_LAYERNORM = "megatron-bert"
POST_LAYERNORM = "bert"

KEPT_AS = "fine_tuned"
"""The field of a config that holds the task that a model was taught, and its settings."""

_PARTS = {
    "lm_head": "cls.predictions.bias",
    "binary_head": "cls.seq_relationship.weight",
    "pooler": "bert.pooler.dense.weight",
    "tokentypes": "bert.embeddings.token_type_embeddings.weight",
    "question_answering": "qa_outputs.weight",
}
_LAYERED = ".mlp.layer0.weight"
"""How the first matrix of a head of several layers is called."""


class LazyTensor:
    """A tensor that is read when it is asked for; nothing is kept.

    Args:
        shape: of the tensor.
        dtype: of the tensor.
        read: makes the tensor, of just that shape and type; it may be a view of a mapped file.
        origin: where it comes from, for error texts (`FILE: KEY`).
    """

    __slots__ = ("_read", "dtype", "origin", "shape")

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, read: Callable[[], Tensor], origin: str = ""):
        self.shape = tuple(shape)
        self.dtype = dtype
        self.origin = origin
        self._read = read

    @classmethod
    def of(cls, tensor: Tensor, origin: str = "memory") -> LazyTensor:
        """A tensor in memory as one on disk."""
        return cls(tuple(tensor.shape), tensor.dtype, lambda: tensor, origin)

    def load(self) -> Tensor:
        """Read it.

        Raises:
            ValueError: the source is damaged; file and key are named.
        """
        tensor = self._read()
        assert tuple(tensor.shape) == self.shape and tensor.dtype == self.dtype, f"{self.origin}: {tensor.shape}"
        return tensor

    def derived(self, shape: tuple[int, ...], change: Callable[[Tensor], Tensor]) -> LazyTensor:
        """What `change` makes of this tensor, when it is asked for; `shape` is that of the result."""
        return LazyTensor(shape, self.dtype, lambda: change(self.load()), self.origin)

    @property
    def numbers(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """How many bytes they take."""
        return self.numbers * self.dtype.itemsize

    def __repr__(self) -> str:
        return f"LazyTensor({list(self.shape)}, {self.dtype}, {self.origin!r})"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model and what belongs to it, under our names.

    Attributes:
        family: `megatron-bert` (pre-LayerNorm), or `bert` (post-LayerNorm: Megatron's first BERT of 2019).
        config: fields of Transformers' `MegatronBertConfig` (`BertConfig` for `bert`) and ours; plain values.
        tensors: by Transformers' key of the pretraining model (`bert.encoder.layer.0....`); the matrix to the
            vocabulary is left out when it is the word embedding.
        vocabulary: file name -> content (`vocab.txt`, `tokenizer.json`, ...).
        optimizer: `exp_avg/<name>`, `exp_avg_sq/<name>`, `master/<name>` and `step`; empty when there is none.
        training: iteration, consumed samples, learning rate schedule, ...; plain values.
        notes: what is odd or missing, to be said aloud.
        sources: the path that was opened, then every file that its tensors may lie in; nothing is written over them.
    """

    family: str
    config: dict[str, Any]
    tensors: Mapping[str, LazyTensor]
    vocabulary: Mapping[str, bytes] = field(default_factory=dict)
    optimizer: Mapping[str, LazyTensor] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    sources: tuple[Path, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """Which of lm_head, binary_head, pooler, tokentypes, question_answering, classification, multiple_choice,
        token_classification are there."""
        found = [part for part, name in _PARTS.items() if name in self.tensors]
        if f"qa_outputs{_LAYERED}" in self.tensors:
            found.append("question_answering")
        if "classifier.weight" in self.tensors or f"classifier{_LAYERED}" in self.tensors:
            found.append(self._classifier())
        return tuple(found)

    def _classifier(self) -> str:
        architecture = " ".join(self.config.get("architectures") or ())
        if "MultipleChoice" in architecture:
            return "multiple_choice"
        layered = f"classifier{_LAYERED}" in self.tensors
        if "TokenClassification" in architecture or ("pooler" not in _names_of(self.tensors) and not layered):
            return "token_classification"
        return "classification"

    @property
    def parameters(self) -> int:
        """How many numbers the weights are."""
        return sum(tensor.numbers for tensor in self.tensors.values())

    @property
    def bytes(self) -> int:
        """How many bytes the weights take."""
        return sum(tensor.bytes for tensor in self.tensors.values())


def _names_of(tensors: Mapping[str, LazyTensor]) -> set[str]:
    return {part for part, name in _PARTS.items() if name in tensors}


def architecture(checkpoint: Checkpoint, *, multiple_choice: bool = False) -> str:
    """The class of Transformers that has the parts that are there."""
    parts = checkpoint.parts
    if "classifier.weight" in checkpoint.tensors:
        name = "ForMultipleChoice" if multiple_choice else "ForSequenceClassification"
    elif "question_answering" in parts:
        name = "ForQuestionAnswering"
    elif "lm_head" in parts:
        name = "ForPreTraining" if {"binary_head", "pooler"} <= set(parts) else "ForMaskedLM"
    elif "binary_head" in parts:
        name = "ForNextSentencePrediction"
    else:
        name = "Model"
    return ("MegatronBert" if checkpoint.family == PRE_LAYERNORM else "Bert") + name


def with_heads(checkpoint: Checkpoint, *, multiple_choice: bool = False) -> Checkpoint:
    """The checkpoint with `architectures`, `add_binary_head` and `num_labels` of its config by the parts that are
    there, and a note for each part that is not."""
    parts = checkpoint.parts
    classifier = checkpoint.tensors.get("classifier.weight")
    name = architecture(checkpoint, multiple_choice=multiple_choice)
    config = {**checkpoint.config, "architectures": [name]}
    if classifier is not None and not multiple_choice and classifier.shape:
        config["num_labels"] = classifier.shape[0]
    if "lm_head" in parts and checkpoint.family == PRE_LAYERNORM:
        config["add_binary_head"] = name.endswith("ForPreTraining")
    wanted = ("pooler", "tokentypes") if classifier is not None else ("lm_head", "binary_head", "pooler", "tokentypes")
    absent = [part for part in wanted if part not in parts]
    notes = checkpoint.notes
    if absent:
        notes = (*notes, f"not in the checkpoint: {', '.join(absent)}")
    return dataclasses.replace(checkpoint, config=config, notes=notes)
