"""Whether two checkpoints are the same function: both run on fixed inputs, and the logits are compared."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import BertConfig, MegatronBertConfig, PreTrainedModel

from megabert.formats.checkpoint import POST_LAYERNORM, Checkpoint, architecture
from megabert.models.auto import CLASSES

LIMIT = 1e-5
_SEED = 1234
_ROWS, _LENGTH = 2, 24
_POST_LAYERNORM = ("BertModel", "BertForPreTraining", "BertForMaskedLM", "BertForNextSentencePrediction",
                   "BertForSequenceClassification", "BertForMultipleChoice", "BertForTokenClassification",
                   "BertForQuestionAnswering")  # fmt: skip


def make_model(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The checkpoint's model in memory, in eval mode.

    Raises:
        ValueError: weights are missing or left over; the first few are named.
    """
    config = dict(checkpoint.config)
    post = checkpoint.family == POST_LAYERNORM
    name = (config.get("architectures") or [architecture(checkpoint)])[0]
    for key in ("architectures", "dtype", "model_type"):
        config.pop(key, None)
    theirs = {kind: getattr(transformers, kind) for kind in _POST_LAYERNORM}
    classes = theirs if post else {model.__name__: model for model in CLASSES.values()}
    if name not in classes:
        raise ValueError(f"{name} is no model that can be run here; one of {', '.join(classes)} is needed")
    if "tokentypes" not in checkpoint.parts:
        config["type_vocab_size"] = 2
    made_of = BertConfig(**config) if post else MegatronBertConfig(**config)
    alone = {"add_pooling_layer": "pooler" in checkpoint.parts} if name in ("BertModel", "MegatronBertModel") else {}
    made: PreTrainedModel = classes[name](made_of, **alone)
    _fill(made, checkpoint, dtype)
    return made.to(dtype=dtype).eval()  # type: ignore[call-arg]


@torch.no_grad()
def _fill(model: PreTrainedModel, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    base = not any(name.startswith("bert.") for name in parameters)
    filled: set[int] = set()
    unknown = []
    for name, tensor in checkpoint.tensors.items():
        own = name.removeprefix("bert.") if base else name
        if own == "cls.predictions.bias" and own not in parameters:
            own = "cls.predictions.decoder.bias"
        parameter = parameters.get(own)
        if parameter is None:
            unknown.append(name)
        elif parameter.shape != tensor.shape:
            raise ValueError(f"{tensor.origin}: {name} is {list(tensor.shape)}, but the model's is "
                             f"{list(parameter.shape)}")  # fmt: skip
        else:
            parameter.copy_(tensor.load().to(dtype))
            filled.add(id(parameter))
    missing = [name for name, parameter in parameters.items() if id(parameter) not in filled]
    types = "embeddings.token_type_embeddings.weight"
    for name in [name for name in missing if name.endswith(types)]:
        parameters[name].zero_()
        missing.remove(name)
    unknown = [name for name in unknown if not name.startswith("bert.pooler.")]
    if missing or unknown:
        raise ValueError(f"{type(model).__name__}: weights missing: {', '.join(missing[:3]) or 'none'}; left over: "
                         f"{', '.join(unknown[:3]) or 'none'}")  # fmt: skip


def fixed_inputs(config: dict[str, Any], entries: int) -> dict[str, Tensor]:
    """Two rows [2, seq] of seeded tokens below `entries`, the second one padded, with two segments."""
    generator = torch.Generator().manual_seed(_SEED)
    length = min(_LENGTH, config["max_position_embeddings"])
    ids = torch.randint(0, entries, (_ROWS, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, length - length // 4 :] = 0
    types = torch.zeros_like(ids)
    types[:, length // 2 :] = 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


@torch.no_grad()
def logits(checkpoint: Checkpoint, entries: int) -> dict[str, Tensor]:
    """What the model answers to the fixed inputs, at real tokens: name of the output -> tensor.

    Args:
        entries: ids to draw from, and scores of the vocabulary to keep.
    """
    model = make_model(checkpoint)
    inputs = fixed_inputs(checkpoint.config, entries)
    if "tokentypes" not in checkpoint.parts:
        inputs["token_type_ids"] = torch.zeros_like(inputs["token_type_ids"])
    multiple = type(model).__name__.endswith("ForMultipleChoice")
    given = {name: tensor.unsqueeze(0) for name, tensor in inputs.items()} if multiple else inputs
    output = model(**given)
    real = inputs["attention_mask"].bool()
    answers = {}
    for name in ("prediction_logits", "logits", "seq_relationship_logits", "start_logits", "end_logits",
                 "last_hidden_state", "pooler_output"):  # fmt: skip
        value = output.get(name)
        if value is None:
            continue
        if value.dim() >= 2 and value.shape[:2] == real.shape:
            value = value[real]
        answers[name] = value[..., :entries] if value.shape[-1] > entries and "logits" in name else value
    return answers


def largest_difference(first: Checkpoint, second: Checkpoint) -> tuple[float, dict[str, float]]:
    """The largest difference of any output, and that of each; one model is in memory at a time.

    Raises:
        ValueError: the two are not comparable: other sizes, other heads, or answers that are no numbers.
    """
    entries = min(first.config["vocab_size"], second.config["vocab_size"])
    one = logits(first, entries)
    two = logits(second, entries)
    if set(one) != set(two):
        raise ValueError(f"the two have different heads: {', '.join(sorted(one))} and {', '.join(sorted(two))}")
    differences = {}
    for answers, whose in ((one, "the source"), (two, "what was written")):
        for name, value in answers.items():
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"{name} of {whose} are not finite (NaN or infinity): its weights are damaged, or too "
                                 "large for these inputs, and there is nothing to compare")  # fmt: skip
    for name, value in one.items():
        if value.shape != two[name].shape:
            raise ValueError(f"{name} is {list(value.shape)} of one and {list(two[name].shape)} of the other")
        differences[name] = float((value - two[name]).abs().max())
    return max(differences.values(), default=0.0), differences
