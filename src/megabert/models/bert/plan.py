"""How a Megatron BERT may be cut over processes: plain data beside the model, which itself knows nothing of it.

Names are patterns for `re.fullmatch` on module names; the first that fits counts. What the words do is told in
`parallel/styles.py`.
"""

from __future__ import annotations

_ATTENTION = r"(bert\.)?encoder\.layer\.\d+\.(attention|crossattention)"
_LAYER = r"(bert\.)?encoder\.layer\.\d+"

TENSOR = {
    r"(bert\.)?embeddings\.word_embeddings": "vocabulary",
    rf"{_ATTENTION}\.self": "enter",
    rf"{_ATTENTION}\.self\.(query|key|value)": "column",
    rf"{_ATTENTION}\.output\.dense": "row",
    rf"{_LAYER}\.intermediate": "enter",
    rf"{_LAYER}\.intermediate\.dense": "column",
    rf"{_LAYER}\.output\.dense": "row",
    r"cls\.predictions": "vocabulary_bias",
    r"cls\.predictions\.transform": "leave",
    r"cls\.predictions\.decoder": "vocabulary",
    r"cls\.predictions\.loss": "vocabulary_loss",
}
"""Module -> how the tensor-parallel processes share it; all others are whole on each of them.

Words: `column` and `row` (a matrix cut by its outputs or its inputs; the sum over processes follows a `row`),
`enter` and `leave` (the input, or the result, goes on into cut matrices), `vocabulary` (an embedding or a matrix cut by
the entries of the vocabulary), `vocabulary_bias` (the module's own `bias` is cut like it), `vocabulary_loss` (a cross
entropy over logits that are cut).
"""

SHARDED_DROPOUT = {
    rf"{_ATTENTION}\.self": "always",
    rf"{_ATTENTION}\.output": "sequence",
    rf"{_LAYER}\.output": "sequence",
}
"""Module -> when its dropout draws another mask on each tensor-parallel process: the heads are always cut, the hidden
states only where the sequence is."""

SEQUENCE = (_LAYER, r"\.ln|\.attention\.ln|\.crossattention\.ln", r"\.output\.dense|\.(cross)?attention\.output\.dense")
"""With sequence parallelism the hidden states are cut over the sequence from the input of the first layer to that of the
last: (a layer, modules in it whose weights, modules in it whose bias, see only a part of the sequence). The last layer
runs uncut, since its places may be picked (`wanted_positions`) before it ends."""

BLOCKS = _LAYER
"""The units that weights are gathered, compiled and recomputed by."""
