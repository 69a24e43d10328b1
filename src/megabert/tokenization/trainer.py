"""Training a WordPiece vocabulary: the same text gives the same entries in the same order, on any machine.

The library's trainer numbers single characters in the order of a hash table and breaks ties by these numbers, so that
its vocabularies differ from run to run. Here the characters are counted first and numbered in their own order.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from megabert.tokenization import word_piece
from megabert.tokenization.fast import SPECIAL_TOKENS
from megabert.tokenization.word_piece import WordPiece

# A longer word is [UNK] to a WordPiece tokenizer whatever its vocabulary.
_LONGEST_WORD = 100
# Characters are entries until this share of the text is covered; ideographs may take a quarter of the vocabulary.
_COVERAGE = 0.9999
_MAXIMUM_ALPHABET_SHARE = 0.25
# Memory must not follow the corpus: beyond this many words, the rarest are forgotten until half remain.
_MAXIMUM_WORDS = 2_000_000
_BATCH_CHARACTERS = 1 << 20


def train(
    texts: Iterable[str],
    vocabulary_size: int,
    *,
    lower_case: bool = True,
    on_progress: Callable[[int], None] | None = None,
) -> WordPiece:
    """Learn a vocabulary from texts, which are read once, as a stream.

    Args:
        vocabulary_size: entries wanted, special tokens included; a small corpus gives fewer. [PAD] is 0, then follow
            [UNK] [CLS] [SEP] [MASK], single characters, and pieces by the order in which they were merged.
        lower_case: lower letters and drop accents.
        on_progress: called now and then with the number of characters read so far.

    Raises:
        ValueError: there was no word in the texts, or the size has no room for the characters of the corpus.
    """
    words = _count_words(texts, lower_case, on_progress)
    if not words:
        raise ValueError("no vocabulary can be trained: the corpus holds no word")
    first, inner = _alphabet(words, lower_case, int(vocabulary_size * _MAXIMUM_ALPHABET_SHARE))
    start = [*SPECIAL_TOKENS.values(), *first, *(f"##{character}" for character in inner)]
    if len(start) > vocabulary_size:
        raise ValueError(
            f"--vocab-size {vocabulary_size} is too small: special tokens and single characters take {len(start)} "
            "entries already"
        )
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token=SPECIAL_TOKENS["unk"]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # Called special, the characters keep the ids that their order gives them.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary_size, special_tokens=start, initial_alphabet=sorted({*first, *inner}),
        limit_alphabet=len({*first, *inner}), show_progress=False,
    )  # fmt: skip
    backend.train_from_iterator(_repeated(words), trainer)
    vocabulary = backend.get_vocab()
    return word_piece.from_tokens(sorted(vocabulary, key=vocabulary.__getitem__), lower_case=lower_case)


def _count_words(texts: Iterable[str], lower_case: bool, on_progress: Callable[[int], None] | None) -> Counter[str]:
    """How often each word occurs, cleaned and split as the tokenizer will do it."""
    blocks: Counter[str] = Counter()
    read = 0
    for text in texts:
        blocks.update(text.split())
        read += len(text)
        if on_progress is not None:
            on_progress(read)
        if len(blocks) > _MAXIMUM_WORDS:
            rare = 0
            while len(blocks) > _MAXIMUM_WORDS // 2:
                rare += 1
                blocks = Counter({block: count for block, count in blocks.items() if count > rare})
    # Cleaning looks at characters one by one, so it can wait until equal blocks are one, and is done once for each.
    normalizer = word_piece.make_normalizer(lower_case)
    splitter = pre_tokenizers.BertPreTokenizer()
    words: Counter[str] = Counter()
    while blocks:
        block, count = blocks.popitem()
        clean = normalizer.normalize_str(block)
        if clean.isalnum():
            words[clean] += count
        else:
            for word, _ in splitter.pre_tokenize_str(clean):
                words[word] += count
    return Counter({word: count for word, count in sorted(words.items()) if len(word) <= _LONGEST_WORD})


def _alphabet(words: Counter[str], lower_case: bool, maximum: int) -> tuple[list[str], list[str]]:
    """(characters that begin words, characters inside words), each in the order of their code points."""
    counts: Counter[str] = Counter()
    inner: set[str] = set()
    for word, count in words.items():
        for character in word:
            counts[character] += count
        inner.update(word[1:])
    basic = {*string.ascii_lowercase, *string.digits, *string.punctuation}
    letters = {*string.ascii_lowercase, *string.digits}
    if not lower_case:
        basic.update(string.ascii_uppercase)
        letters.update(string.ascii_uppercase)
    wanted = _COVERAGE * counts.total()
    covered = 0
    kept: set[str] = set()
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if covered >= wanted or len(kept) >= maximum:
            break
        covered += count
        kept.add(character)
    return sorted(kept | basic), sorted((kept & inner) | letters)


def _repeated(words: Counter[str]) -> Iterator[str]:
    """Texts in which every word stands as often as it was counted; the trainer takes no counts."""
    batch: list[str] = []
    size = 0
    for word, count in words.items():
        while count:
            part = min(count, _BATCH_CHARACTERS // (len(word) + 1))
            batch.append(" ".join([word] * part))
            size += part * (len(word) + 1)
            count -= part
            if size >= _BATCH_CHARACTERS:
                yield " ".join(batch)
                batch, size = [], 0
    if batch:
        yield " ".join(batch)
