"""How a Megatron BERT may be cut over processes: plain data beside the model, which itself knows nothing of it.

Keys are patterns for `re.fullmatch` on names; the first that fits counts. `parallel/styles.py` does what the words say.
"""

from __future__ import annotations

from megabert.models.bert import stages

LAYER = r"(?:bert\.)?encoder\.layer\.(\d+)"
"""A transformer layer: the unit that weights are gathered, compiled and recomputed by. The group is its number."""

_ATTENTION = rf"{LAYER}\.(?:cross)?attention"

TENSOR = {
    r"(bert\.)?embeddings\.word_embeddings": "vocabulary",
    rf"{_ATTENTION}\.self": "enter",
    rf"{_ATTENTION}\.self\.(query|key|value)": "column",
    rf"{_ATTENTION}\.output\.dense": "row",
    rf"{LAYER}\.intermediate": "enter",
    rf"{LAYER}\.intermediate\.dense": "column",
    rf"{LAYER}\.output\.dense": "row",
    r"cls\.predictions": "vocabulary_bias",
    r"cls\.predictions\.transform": "then_enter",
    r"cls\.predictions\.decoder": "vocabulary",
    r"cls\.predictions\.loss": "vocabulary_loss",
}
"""Module -> how the processes of a tensor-parallel group share it; all others are whole on each of them.

`column`, `row`: a matrix cut by its outputs, or by its inputs, after which the processes' results are added up.
`enter`: its input goes into cut matrices (one conversion, however many there are); `then_enter`: its result does.
`vocabulary`: an embedding or a matrix cut by the entries of the vocabulary; `vocabulary_bias`: the module's own `bias`
is cut in the same way; `vocabulary_loss`: its forward is a summed cross entropy of (logits, labels), the logits cut.
"""

DROPOUT = {
    rf"{_ATTENTION}\.self": "heads",
    rf"{_ATTENTION}\.output": "sequence",
    rf"{LAYER}\.output": "sequence",
}
"""Module -> what its dropout falls on. Heads are cut in every tensor-parallel group, so their masks differ within it;
hidden states only where the sequence is cut."""

SEQUENCE = rf"{LAYER}\.(?:(?:cross)?attention\.)?(?:ln\.weight|ln\.bias|output\.dense\.bias)"
"""Sequence parallelism: hidden states are cut over the sequence from the input of the first layer to the input of the
last, and these weights then see only a part of it. The last layer runs uncut, since places may be picked in it
(`wanted_positions`)."""

STAGES = stages
"""Pipeline: four functions that say what each stage keeps of the model and how it runs; a stage has some of the layers,
the first one the embeddings too, the last one the LayerNorm, pooler and head behind them."""
