"""Reading NeMo 1's checkpoints of Megatron BERT: archives of every generation, their folders, Lightning's files.

    model_config.yaml
    model_weights.ckpt, or mp_rank_XX/model_weights.ckpt, or tp_rank_XX_pp_rank_XXX/model_weights.ckpt
    [<hash>_]<name>_encoder_config.json, [<hash>_]megatron_checkpoint_version.json      (until 1.4)
    [<hash>_]tokenizer.vocab_file, [<hash>_]tokenizer_vocab_dict[.json], <hash>_vocab.txt, ...

Members are found by the end of their names. Weights are Megatron-LM's (`bert_model.language_model...`,
`model.language_model...`) or Megatron-core's (`model.encoder.layers.N.self_attention.linear_qkv...`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megabert.formats import (
    bert_names,
    megatron,
    megatron_core,
    megatron_core_chunks,
    megatron_core_names,
    megatron_optimizer,
    nemo_config,
    nemo_heads,
    nemo_tasks,
    sizes,
    unpickle,
)
from megabert.formats.checkpoint import Checkpoint, LazyTensor
from megabert.formats.megatron_layout import Layout
from megabert.formats.megatron_shard import Shard, read_shard
from megabert.formats.nemo_layout import CONFIG, HYPERPARAMETERS, WEIGHTS, Facts, look
from megabert.formats.regions import Region
from megabert.formats.table import ORDERS, Order, order_of

_LARGEST_VOCABULARY = 64 << 20
_COPY = re.compile(r"(?:state_dict\.)?(?:(?:bert_model|model|module)\.)*word_embeddings\.weight")


def read(path: Path, *, heads: int | None = None, order: Order | None = None) -> Checkpoint:
    """Read a checkpoint; of a fine-tuned model also its head, where our network has it.

    Args:
        heads: attention heads; needed only where no configuration is there and they are not of size 64.
        order: of the fused rows, where what the checkpoint says is known to be wrong.

    Raises:
        ValueError: nothing of the kind is there, or it is damaged, not whole or hostile; file and key are named.
    """
    facts = look(path)
    if facts is None:
        raise ValueError(f"{path} holds no checkpoint of NeMo (no {CONFIG}, no {WEIGHTS})")
    if facts.distributed:
        return _distributed(facts, heads, order)
    layout = Layout(path, facts.ranks)
    shards = {place: read_shard(layout, place) for place in sorted(facts.ranks)}
    first = shards[0, 0]
    trees = _configs(facts, first)
    config = next(filter(nemo_tasks.class_of, trees), trees[0] if trees else {})
    chosen, said = _order(facts, first, trees, order)
    told = nemo_config.arguments(*trees)
    if not nemo_config.is_recent(config):
        told = {"bias_gelu_fusion": False, **told}  # NeMo 1.0 ran Megatron's network with the exact GELU
    elif "bias_gelu_fusion" not in told:
        told["bias_gelu_fusion"] = True
    content = {"checkpoint_version": _VERSIONS[chosen]}
    shards = {
        place: dataclasses.replace(shard, arguments=told, version=_VERSIONS[chosen], content=content)
        for place, shard in shards.items()
    }
    ranks = [_with_copy(megatron.whole_rank(layout, shards, rank)) for rank in range(layout.tensor_ranks)]
    held = {name: ranks[0][name] for name in nemo_heads.names(ranks[0])}
    ranks = [{name: tensor for name, tensor in rank.items() if name not in held} for rank in ranks]
    if megatron_core_names.is_core(ranks[0]):
        checkpoint = _core(facts, ranks, told, heads, order, shards)
    elif any(bert_names.canonical(name) for name in ranks[0]):
        checkpoint = megatron.assemble(layout, shards, ranks, heads, chosen, False)
    else:
        shown = ", ".join(sorted(ranks[0])[:2])
        raise ValueError(f"{path} holds no Megatron BERT: its weights are called {shown} ...")
    if "optimizer_states" in first.content:
        said.append("the optimizer's states of Lightning, which number their parameters in an order that no file "
                    "tells, are not carried")  # fmt: skip
    return _finished(facts, checkpoint, held, config, said)


def _distributed(facts: Facts, heads: int | None, order: Order | None) -> Checkpoint:
    """Megatron-core's distributed weights, read where they lie."""
    config = nemo_config.read_yaml(facts.members[CONFIG]) if CONFIG in facts.members else {}
    told = {"bias_gelu_fusion": True, **nemo_config.arguments(config)}
    contents = megatron_core_chunks.read_members(facts.path, facts.distributed)
    checkpoint = megatron_core.read_contents(contents, heads, order, False, told)
    return _finished(facts, checkpoint, {}, config, [])


_VERSIONS: dict[str, float] = {"v0": 0.0, "v1": 1.0, "v2": 3.0}


def _configs(facts: Facts, first: Shard) -> list[dict[str, Any]]:
    """Every configuration there is, the model's own first."""
    trees = []
    if CONFIG in facts.members:
        trees.append(nemo_config.read_yaml(facts.members[CONFIG]))
    hyper = first.content.get("hyper_parameters")
    if hyper is not None:
        plain = unpickle.plain(hyper, first.name)
        trees += [plain] if isinstance(plain, dict) else []
    if HYPERPARAMETERS in facts.members:
        trees.append(nemo_config.read_yaml(facts.members[HYPERPARAMETERS]))
    for name, region in sorted(facts.members.items()):
        if name.endswith("_encoder_config.json") or name == "config.json":
            trees.append(nemo_config.read_json(region))
    return trees


def _order(facts: Facts, first: Shard, trees: list[dict[str, Any]], given: Order | None) -> tuple[Order, list[str]]:
    """The order of the fused rows, and why."""
    version = first.content.get("checkpoint_version")
    for name, region in facts.members.items():
        if name.endswith("megatron_checkpoint_version.json"):
            version = nemo_config.read_json(region).get("checkpoint_version")
            if version is None:
                raise ValueError(f"{region.name} does not say the checkpoint_version")
    if any(nemo_config.find(tree, "megatron_legacy") is True for tree in trees):
        found: Order = "v0"
        why = "megatron_legacy is set"
    elif isinstance(version, int | float):
        found = order_of(float(version))
        why = f"checkpoint_version {version:g}"
    elif any(map(nemo_config.is_recent, trees)) or any(name.startswith("model.") for name in first.chunks[0]):
        found = "v2"
        why = "written by NeMo 1.6 or later"
    else:
        found = "v0"
        why = (
            "no checkpoint_version, which NeMo 1.0 took for 0; if a later Megatron-LM trained the model, give "
            "--assume-qkv-layout v2"
        )
    notes = [f"rows of the fused query-key-value are {ORDERS[found]} ({why})"]
    if given is not None and given != found:
        notes.append(f"taken as {ORDERS[given]} instead, as was asked for")
    return given or found, notes


def _with_copy(rank: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The last stage's copy of the word embedding, which NeMo calls like the original, under Megatron's name for it."""
    return {bert_names.WORD_EMBEDDING_COPY if _COPY.fullmatch(name) else name: tensor for name, tensor in rank.items()}


def _core(
    facts: Facts, ranks: list[dict[str, LazyTensor]], told: dict[str, Any], heads: int | None, order: Order | None,
    shards: Mapping[tuple[int, int], Shard],
) -> Checkpoint:  # fmt: skip
    renamed = [megatron_core_names.renamed(rank) for rank in ranks]
    parts = megatron_core.Parts(renamed, megatron_optimizer.State({}, None, []), told, [])
    foreign = megatron.foreign_note(shards)
    return megatron_core.assemble(facts.path, parts, heads, order, {}, [foreign] if foreign else [])


def _finished(
    facts: Facts, checkpoint: Checkpoint, held: Mapping[str, LazyTensor], config: Mapping[str, Any], said: list[str]
) -> Checkpoint:
    """With the task's head, vocabulary and what is said about them."""
    target = nemo_config.node(config, "target")
    target = target if isinstance(target, str) else ""
    task = nemo_tasks.class_of(config)
    head = nemo_heads.head(held, task, nemo_tasks.activation(config))
    tensors, fields = {**checkpoint.tensors, **head.tensors}, {**checkpoint.config, **head.fields}
    if head.tensors and (probability := nemo_tasks.dropout(config)) is not None:
        fields["head_dropout"] = probability
    if head.tensors or nemo_config.node(config, nemo_tasks.OURS) is not None:
        fields |= nemo_tasks.taught(task, config, facts.members, head.parts or [sizes.labels(fields)])
    notes = [facts.said, *([f"its class was {target}"] if target else []), *said, *head.notes]
    vocabulary = _vocabulary(facts.members) or dict(checkpoint.vocabulary)
    lines = vocabulary.get("vocab.txt", b"").count(b"\n")
    if lines > fields["vocab_size"]:
        notes.append(f"the vocabulary has {lines:,} entries, but the word embedding {fields['vocab_size']:,} rows")
    training = {**checkpoint.training, **({"nemo_target": target} if target else {})}
    training.pop("checkpoint_version", None)
    training.pop("arguments", None)
    return dataclasses.replace(
        checkpoint, tensors=tensors, config=fields, vocabulary=vocabulary, training=training,
        notes=(*notes, *(note for note in checkpoint.notes if not note.startswith("checkpoint_version"))),
    )  # fmt: skip


def _vocabulary(members: Mapping[str, Region]) -> dict[str, bytes]:
    """`vocab.txt`, from the list of tokens or, without one, from the mapping of tokens to ids."""
    for name, region in sorted(members.items()):
        plain = re.sub(r"^[0-9a-f]{32}_", "", name)
        if plain.endswith(("tokenizer.vocab_file", "vocab.txt")) or plain in ("vocab_file", "vocab"):
            if region.length > _LARGEST_VOCABULARY:
                raise ValueError(f"{region.name} is too large for a vocabulary")
            return {"vocab.txt": region.read()}
    for name, region in sorted(members.items()):
        if re.search(r"tokenizer_vocab_dict(\.json)?$", name):
            return {"vocab.txt": _from_mapping(region)}
    return {}


def _from_mapping(region: Region) -> bytes:
    ids = nemo_config.read_json(region)
    by_id = {number: token for token, number in ids.items() if type(number) is int}
    if sorted(by_id) != list(range(len(ids))):
        raise ValueError(f"{region.name} is no vocabulary: its ids are not 0 to {len(ids) - 1}")
    return "".join(f"{by_id[number]}\n" for number in range(len(by_id))).encode()
