"""Megatron-LM's first BERT (2019-03 to 2019-10), which is post-LayerNorm: Transformers' `BertForPreTraining`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from megabert.formats import bert_names, fields, megatron_arguments, sizes
from megabert.formats.checkpoint import POST_LAYERNORM, Checkpoint, LazyTensor, with_heads
from megabert.formats.megatron_layout import Layout
from megabert.formats.megatron_shard import Shard, training_of, vocabulary_of
from megabert.formats.table import Order, join

_TYPES_OF_2019 = 11  # with SentencePiece and character tokenizers: function, command, str0, str1, ...


def applies(names: Iterable[str]) -> bool:
    """Whether the names are those of a post-LayerNorm BERT."""
    return any(name.endswith(".attention.output.LayerNorm.weight") for name in names)


def read(
    layout: Layout, first: Shard, ranks: Sequence[Mapping[str, LazyTensor]], heads: int | None, order: Order | None
) -> Checkpoint:
    """Read it; never taken for a Megatron BERT.

    Raises:
        ValueError: the ranks do not fit together, or a part is missing.
    """
    ranks = [{bert_names.without_wrapper(name): tensor for name, tensor in rank.items()} for rank in ranks]
    heads = megatron_arguments.heads_of(first.arguments, heads, first.name)
    words = ranks[0].get("bert.embeddings.word_embeddings.weight")
    if words is None or len(words.shape) != 2:
        raise ValueError(f"{first.name} holds no word embedding: it is no BERT, or not whole")
    heads = heads or sizes.supposed_heads(words.shape[1])
    rows = bert_names.first_generation(bert_names.count_checked(ranks[0]))
    tensors = join(rows, ranks, heads=heads, order=order or "v0")
    told, notes = sizes.infer(tensors, heads)
    config = {
        **told, "model_type": "bert", "hidden_act": "gelu",
        "layer_norm_eps": 1e-12, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02, "pad_token_id": 0, "tie_word_embeddings": True,
    }  # fmt: skip
    if any("query_key_value" in name for name in ranks[0]):
        said = first.arguments.get("layernorm_epsilon", 1e-5)
        config["layer_norm_eps"] = fields.field("layer_norm_eps", said, f"{first.name}: args.layernorm_epsilon")
    megatron_arguments.check_sizes(first.arguments, told, first.name)
    kind = (
        "a post-LayerNorm BERT, as Megatron-LM trained before 2019-10: it is Transformers' BertForPreTraining, not a "
        "Megatron BERT",
        f"numerics: LayerNorm eps {config['layer_norm_eps']:g}, GELU erf",
    )
    types = ()
    if told.get("type_vocab_size") == _TYPES_OF_2019:
        types = ("its token types are the eleven of 2019: those of a pair's two texts are 2 and 3, not 0 and 1",)
    optimizer = () if "optimizer" not in first.content else ("the optimizer's state of this generation is not carried",)
    checkpoint = with_heads(Checkpoint(
        family=POST_LAYERNORM, config=config, tensors=tensors, training=training_of(first),
        vocabulary=vocabulary_of(layout), notes=(*layout.notes, *kind, *types, *notes, *optimizer),
    ))  # fmt: skip
    sizes.check_named(first.name, checkpoint.config, tensors, POST_LAYERNORM)
    return checkpoint
