"""An encoder and data for benchmarks of fine-tuning and prediction, made here: nothing is downloaded.

Lengths are like those of the data sets they stand for; what is right can be learned by a network with random weights.
"""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import torch

import megabert
from megabert.formats import huggingface
from megabert.tokenization import word_piece

VOCABULARY = 30522
_SYLLABLES = ["".join(pair) for pair in itertools.product("bcdfghjklmnprstvz", "aeiou")]
WORDS = ["".join(word) for word in itertools.islice(itertools.product(_SYLLABLES, repeat=3), VOCABULARY - 7)]
GOOD, BAD, CITIES = WORDS[:40], WORDS[40:80], WORDS[80:160]
_PLAIN = WORDS[160:]


def make_encoder(folder: Path, *, layers: int, hidden: int, heads: int, seed: int) -> Path:
    """A pretraining model with random weights and 30,522 whole words, with dropout 0.1: the folder."""
    torch.manual_seed(seed)
    config = megabert.MegatronBertConfig(
        vocab_size=VOCABULARY, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=4 * hidden, max_position_embeddings=512,
    )  # fmt: skip
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", *WORDS]
    huggingface.write(
        megabert.MegatronBertForPreTraining(config), word_piece.from_tokens(tokens, lower_case=True), folder
    )
    return folder


def _words(generator: random.Random, middle: float, spread: float, most: int) -> list[str]:
    count = min(most, max(2, round(generator.lognormvariate(0, spread) * middle)))
    return [_PLAIN[min(len(_PLAIN) - 1, int(generator.expovariate(1 / 2000)))] for _ in range(count)]


def sentences(
    count: int, seed: int, *, middle: float = 9, spread: float = 0.7, most: int = 60
) -> list[tuple[str, str]]:
    """Texts and their labels, 0 or 1, told by one word of each; as long as SST-2's: 9 words in the middle, up to 60."""
    generator = random.Random(seed)
    made = []
    for _ in range(count):
        words, label = _words(generator, middle, spread, most), generator.randrange(2)
        words[generator.randrange(len(words))] = generator.choice((BAD, GOOD)[label])
        made.append((" ".join(words), str(label)))
    return made


def write_sentences(path: Path, count: int, seed: int) -> None:
    """A file of SST-2's form."""
    lines = [f"{text}\t{label}\n" for text, label in sentences(count, seed)]
    path.write_text("sentence\tlabel\n" + "".join(lines), encoding="utf-8")


def write_questions(path: Path, count: int, seed: int) -> None:
    """A file of SQuAD 1.1's form: 11 words ask which city stands in about 117 others, as long as SQuAD's texts are."""
    generator = random.Random(seed)
    made = []
    for number in range(count):
        words = _words(generator, 110, 0.4, 320)
        place, city = generator.randrange(len(words)), generator.choice(CITIES)
        words[place] = city
        start = sum(len(word) + 1 for word in words[:place])
        question = " ".join([*_words(generator, 10, 0.3, 30), "?"])
        answers = [{"text": city, "answer_start": start}]
        made.append(
            {"context": " ".join(words), "qas": [{"id": str(number), "question": question, "answers": answers}]}
        )
    path.write_text(json.dumps({"data": [{"title": "made", "paragraphs": made}]}), encoding="utf-8")
