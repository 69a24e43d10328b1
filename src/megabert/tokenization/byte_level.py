"""Byte-level BPE: GPT-2's `vocab.json` and `merges.txt`, which Megatron calls GPT2BPETokenizer.

Source of the method: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".
"""

from __future__ import annotations

from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from megabert.tokenization import fast
from megabert.tokenization.fast import SPECIAL_TOKENS, FastTokenizer

_END_OF_TEXT = "<|endoftext|>"
_ROBERTA = {"pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"}


def load(vocabulary: Path, merges: Path, lower_case: bool | None = None) -> FastTokenizer:
    """Read the two files.

    RoBERTa's special tokens play BERT's roles where the vocabulary has them. Otherwise `[PAD]`, `[CLS]`, `[SEP]` and
    `[MASK]` come behind the last entry, and `<|endoftext|>` stands for the unknown, which bytes leave no room for.

    Raises:
        ValueError: a file is missing or damaged, or `lower_case` is wanted.
    """
    if lower_case:
        raise ValueError(f"{vocabulary} keeps case: leave --no-cased out")
    if not merges.is_file():
        raise ValueError(f"there is no file {merges}: byte-level BPE needs its merges; name them with --merge-file")
    entries = fast.read_json(vocabulary)
    if not all(type(index) is int for index in entries.values()):
        raise ValueError(f"{vocabulary} is no vocabulary: a JSON object of entries and their ids is needed")
    try:
        lines = fast.read_bytes(merges).decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{merges} is not UTF-8 text: {error.reason}") from None
    pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    try:
        backend = tokenizers.Tokenizer(models.BPE(entries, pairs))  # type: ignore[arg-type]  (pairs, or it raises)
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{merges} does not fit {vocabulary.name}: {error}") from None
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = _ROBERTA
    if not set(_ROBERTA.values()) <= set(entries):
        special = {**SPECIAL_TOKENS, "unk": _END_OF_TEXT if _END_OF_TEXT in entries else SPECIAL_TOKENS["unk"]}
    backend.add_special_tokens(list(special.values()))
    fast.add_frame(backend, special)
    files = {"vocab.json": vocabulary, "merges.txt": merges}
    return FastTokenizer(
        backend, special, source=str(vocabulary), files={name: fast.read_bytes(path) for name, path in files.items()}
    )
