"""Training a SentencePiece model on a sample of a corpus, with Google's own library."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

from megabert import runtime
from megabert.tokenization import sentence_piece
from megabert.tokenization.fast import SPECIAL_TOKENS, FastTokenizer

ModelType = Literal["bpe", "unigram", "char", "word"]

SAMPLE_CHARACTERS = 1 << 27
"""So many characters are kept of a corpus; more would cost memory and hardly change the pieces."""
_SAMPLE_FOR_UNIGRAM = 1 << 25  # its table of all endings takes sixteen times the memory of the text
_LONGEST_LINE = 1000  # characters; the library leaves out lines of over 4,192 bytes
_SEED = 1234
_COVERAGE = 0.9999  # of the characters of the sample; the rest are unknown
_THREADS = 4  # the sums of unigram training depend on how many there are


def train(
    texts: Iterable[str],
    vocabulary_size: int,
    model_type: ModelType = "bpe",
    *,
    lower_case: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> FastTokenizer:
    """Learn a model from texts, which are read once, as a stream; equal texts give an equal model.

    Args:
        vocabulary_size: entries wanted, special tokens included; a small corpus gives fewer. [PAD] is 0, then follow
            [UNK] [CLS] [SEP] [MASK], then the pieces.
        lower_case: fold case; text is normalized by NFKC either way.
        on_progress: called now and then with the number of characters read so far.

    Raises:
        ValueError: there was no word in the texts, or the size does not fit them.
    """
    most = _SAMPLE_FOR_UNIGRAM if model_type == "unigram" else SAMPLE_CHARACTERS
    lines = sample(texts, most, on_progress)
    if not any(line.strip() for text in lines for line in text.split("\n")):
        raise ValueError("no vocabulary can be trained: the corpus holds no word")
    import sentencepiece

    content = io.BytesIO()
    sentencepiece.set_random_generator_seed(_SEED)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_cut(lines), model_writer=content, model_type=model_type, vocab_size=vocabulary_size,
            character_coverage=_COVERAGE, hard_vocab_limit=False,
            normalization_rule_name="nmt_nfkc_cf" if lower_case else "nmt_nfkc", pad_id=0, unk_id=1, bos_id=-1,
            eos_id=-1, control_symbols=[SPECIAL_TOKENS[role] for role in ("cls", "sep", "mask")],
            num_threads=_THREADS, minloglevel=2, pad_piece=SPECIAL_TOKENS["pad"],
            unk_piece=SPECIAL_TOKENS["unk"],
        )  # fmt: skip
    except RuntimeError as error:
        reason = str(error).rpartition("] ")[2].strip() or "it gives no reason"
        raise ValueError(
            f"no SentencePiece model of {vocabulary_size:,} entries can be trained on this text: {reason}"
        ) from None
    return sentence_piece.from_bytes(content.getvalue(), "the trained SentencePiece model")


def write(tokenizer: FastTokenizer, path: Path) -> None:
    """Write `X.model` and `X.vocab` where `path` is `X` or `X.model`, each in one step; that is its place then."""
    stem = path.with_name(path.name.removesuffix(".model"))
    stem.parent.mkdir(parents=True, exist_ok=True)
    for suffix in (".vocab", ".model"):  # whoever sees the model sees the other file, too
        with runtime.atomic_write(stem.with_name(stem.name + suffix), "wb") as file:
            file.write(tokenizer.own_files()[f"tokenizer{suffix}"])
    tokenizer.place = stem.with_name(stem.name + ".model")


def sample(texts: Iterable[str], most: int, on_progress: Callable[[int], None] | None = None) -> list[str]:
    """Texts from all over a stream, evenly: at most `most` characters, and half of that if the stream is longer.

    Where they grow too many, every second one that was kept is let go, and from then on half as many are taken.
    """
    kept: list[str] = []
    held = read = 0
    stride = 1
    for number, text in enumerate(texts):
        read += len(text)
        if on_progress is not None:
            on_progress(read)
        if number % stride:
            continue
        kept.append(text)
        held += len(text)
        while held > most and len(kept) > 1:
            kept = kept[::2]
            held = sum(map(len, kept))
            stride *= 2
    return kept


def _cut(texts: Iterable[str]) -> Iterator[str]:
    """Lines, the long ones cut at a space."""
    for text in texts:
        for line in text.replace("\0", " ").split("\n"):
            while len(line) > _LONGEST_LINE:
                place = line.rfind(" ", 1, _LONGEST_LINE)
                place = place if place > 0 else _LONGEST_LINE
                yield line[:place]
                line = line[place:]
            if line.strip():
                yield line
