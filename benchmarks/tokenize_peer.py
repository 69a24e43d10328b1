"""Megatron-LM's tokenization of a corpus as its versions up to 3 do it, written anew: the peer of `tokenizing.py`.

Each line of loose JSON goes through a `multiprocessing.Pool`: nltk's Punkt splits it into sentences, BERT's reference
tokenizer, in Python, makes ids of each, and the first process appends them to an indexed data set sentence by sentence.
Needs nltk and numpy; knows nothing of megabert.

  python tokenize_peer.py train TEXT.jsonl punkt.pickle        Punkt's parameters, learned from the text by nltk
  python tokenize_peer.py run TEXT.jsonl VOCAB PREFIX --punkt punkt.pickle --workers 2 [--cased]
  python tokenize_peer.py split TEXT.jsonl OUT.jsonl --punkt punkt.pickle
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import pickle
import struct
import unicodedata
from pathlib import Path

import numpy as np

LINES_OF_A_TASK = 25
TRAINED_ON = 4_000_000  # characters
PUNCTUATION = {chr(code) for code in (*range(33, 48), *range(58, 65), *range(91, 97), *range(123, 127))}
IDEOGRAPHS = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip


def is_white(character: str) -> bool:
    """White space, by BERT's rule."""
    return character in " \t\n\r" or unicodedata.category(character) == "Zs"


def is_control(character: str) -> bool:
    """A control character, by BERT's rule."""
    return character not in "\t\n\r" and unicodedata.category(character).startswith("C")


def is_punctuation(character: str) -> bool:
    """A punctuation mark, by BERT's rule."""
    return character in PUNCTUATION or unicodedata.category(character).startswith("P")


def is_ideograph(character: str) -> bool:
    """An ideograph, by BERT's rule."""
    code = ord(character)
    return any(low <= code <= high for low, high in IDEOGRAPHS)


class ReferenceTokenizer:
    """Devlin et al. 2018's tokenizer, character by character."""

    def __init__(self, vocabulary: Path, lower_case: bool) -> None:
        """Read the entries."""
        self.ids = {token: index for index, token in enumerate(vocabulary.read_text("utf-8").splitlines())}
        self.lower_case = lower_case

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        return [self.ids[piece] for word in self.words(text) for piece in self.pieces(word)]

    def words(self, text: str) -> list[str]:
        """Words and punctuation marks."""
        kept = []
        for character in text:
            if ord(character) in (0, 0xFFFD) or is_control(character):
                continue
            kept.append(" " if is_white(character) else character)
        spaced = []
        for character in kept:
            spaced.append(f" {character} " if is_ideograph(character) else character)
        words: list[str] = []
        for word in "".join(spaced).split():
            if self.lower_case:
                decomposed = unicodedata.normalize("NFD", word.lower())
                word = "".join(character for character in decomposed if unicodedata.category(character) != "Mn")
            words.extend(self.parts(word))
        return " ".join(words).split()

    def parts(self, word: str) -> list[str]:
        """A word cut at its punctuation marks."""
        parts: list[list[str]] = []
        begins = True
        for character in word:
            if is_punctuation(character):
                parts.append([character])
                begins = True
            else:
                if begins:
                    parts.append([])
                begins = False
                parts[-1].append(character)
        return ["".join(part) for part in parts]

    def pieces(self, word: str) -> list[str]:
        """The longest entries from the left."""
        if len(word) > 100:
            return ["[UNK]"]
        found, start = [], 0
        while start < len(word):
            end = len(word)
            while start < end:
                piece = word[start:end] if start == 0 else "##" + word[start:end]
                if piece in self.ids:
                    break
                end -= 1
            if start == end:
                return ["[UNK]"]
            found.append(piece)
            start = end
        return found


class Encoder:
    """What a process of the pool does with a line."""

    tokenizer: ReferenceTokenizer
    splitter: object

    def __init__(self, vocabulary: Path, punkt: Path, lower_case: bool) -> None:
        """Only paths travel to the pool."""
        self.vocabulary, self.punkt, self.lower_case = vocabulary, punkt, lower_case

    def begin(self) -> None:
        """Once in each process."""
        Encoder.tokenizer = ReferenceTokenizer(self.vocabulary, self.lower_case)
        Encoder.splitter = load_splitter(self.punkt)

    def encode(self, line: str) -> tuple[list[list[int]], int]:
        """The ids of a document's sentences, and the line's length."""
        sentences = Encoder.splitter.tokenize(json.loads(line)["text"])  # type: ignore[attr-defined]
        document = [ids for sentence in sentences if (ids := Encoder.tokenizer.encode(sentence))]
        return document, len(line)


def load_splitter(path: Path) -> object:
    """nltk's sentence splitter."""
    from nltk.tokenize.punkt import PunktSentenceTokenizer

    return PunktSentenceTokenizer(pickle.loads(path.read_bytes()))


def train(source: Path, target: Path) -> None:
    """Learn Punkt's parameters."""
    from nltk.tokenize.punkt import PunktTrainer

    texts, size = [], 0
    with source.open(encoding="utf-8") as file:
        for line in file:
            texts.append(json.loads(line)["text"])
            size += len(texts[-1])
            if size > TRAINED_ON:
                break
    trainer = PunktTrainer()
    trainer.train("\n".join(texts), finalize=True)
    target.write_bytes(pickle.dumps(trainer.get_params()))


def split(source: Path, target: Path, punkt: Path) -> None:
    """Write the corpus with one sentence a line, as nltk splits it."""
    splitter = load_splitter(punkt)
    with source.open(encoding="utf-8") as file, target.open("w", encoding="utf-8") as out:
        for line in file:
            sentences = splitter.tokenize(json.loads(line)["text"])  # type: ignore[attr-defined]
            out.write(json.dumps({"text": "\n".join(" ".join(each.split("\n")) for each in sentences)}) + "\n")


def run(source: Path, vocabulary: Path, prefix: Path, punkt: Path, workers: int, lower_case: bool) -> None:
    """Tokenize a corpus."""
    encoder = Encoder(vocabulary, punkt, lower_case)
    dtype = np.uint16 if len(vocabulary.read_text("utf-8").splitlines()) < 65500 else np.int32
    sizes: list[int] = []
    borders = [0]
    with (
        source.open(encoding="utf-8") as file,
        Path(f"{prefix}.bin").open("wb") as out,
        multiprocessing.Pool(workers, initializer=encoder.begin) as pool,
    ):
        for document, _ in pool.imap(encoder.encode, file, LINES_OF_A_TASK):
            for ids in document:
                tokens = np.array(ids, dtype)
                out.write(tokens.tobytes(order="C"))
                sizes.append(len(tokens))
            if document:
                borders.append(len(sizes))
    lengths = np.array(sizes, np.int32)
    places = (np.cumsum(lengths, dtype=np.int64) - lengths) * np.dtype(dtype).itemsize
    code = 8 if dtype is np.uint16 else 4
    with Path(f"{prefix}.idx").open("wb") as index:
        index.write(struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, code, len(sizes), len(borders)))
        index.write(lengths.tobytes() + places.tobytes() + np.array(borders, np.int64).tobytes())


def main() -> None:
    """Do one of the three."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("action", choices=["train", "run", "split"])
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--punkt", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cased", action="store_true")
    options = parser.parse_args()
    if options.action == "train":
        train(*options.paths)
    elif options.action == "split":
        split(*options.paths, options.punkt)
    else:
        run(*options.paths, options.punkt, options.workers, not options.cased)


if __name__ == "__main__":
    main()
