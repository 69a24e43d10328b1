import os
import subprocess
import sys

import pytest

from megabert.tokenization import trainer

SCRIPT = """
import random
from megabert.tokenization import trainer
generator = random.Random(1)
words = ["".join(generator.choices("abcdefghij", k=generator.randint(2, 9))) for _ in range(3000)]
tokens = trainer.train([" ".join(words[i : i + 10]) for i in range(0, 3000, 10)], 1500).tokens
print("\\n".join(tokens))
"""


def test_same_text_gives_same_vocabulary_in_any_process():
    # Ties abound in random words; hash seeds and threads must not decide them.
    results = set()
    for seed, parallel in (("0", "false"), ("1", "true"), ("2", "true")):
        environment = os.environ | {"PYTHONHASHSEED": seed, "TOKENIZERS_PARALLELISM": parallel}
        run = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
        )
        results.add(run.stdout)
    assert len(results) == 1
    assert results.pop().count("\n") == 1500


def test_frequent_words_become_entries_and_specials_come_first():
    progress = []
    texts = ["The network learns the masked words of a sentence."] * 50 + ["rare things happen"]
    tokenizer = trainer.train(texts, 160, on_progress=progress.append)
    assert tokenizer.tokens[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert {"the", "network", "masked", "sentence"} <= set(tokenizer.tokens)
    assert tokenizer.encode_batch(["THE masked network"])[0] == [
        tokenizer.tokens.index(word) for word in ("the", "masked", "network")
    ]
    assert progress[-1] == sum(map(len, texts))


def test_any_ascii_word_can_be_spelled():
    tokenizer = trainer.train(["aaa"], 200)
    ids = tokenizer.encode_batch(["Zebra-9 q~x"])[0]
    assert tokenizer.unknown_id not in ids


def test_cased_keeps_case():
    tokenizer = trainer.train(["Berlin Berlin berlin Zürich Zürich"] * 20, 260, lower_case=False)
    assert {"Berlin", "berlin", "Zürich"} <= set(tokenizer.tokens)


def test_characters_beyond_a_quarter_are_left_out():
    ideographs = [chr(0x4E00 + index) for index in range(2000)]
    tokenizer = trainer.train([" ".join(ideographs[: index + 1]) for index in range(0, 2000, 20)], 1000)
    assert ideographs[0] in tokenizer.tokens and ideographs[-1] not in tokenizer.tokens
    assert tokenizer.encode_batch([ideographs[-1]]) == [[tokenizer.unknown_id]]
    assert tokenizer.vocabulary_size <= 1000


@pytest.mark.parametrize(
    ("texts", "size", "message"), [([], 200, "no word"), ([" "], 200, "no word"), (["a"], 20, "20 is too small")]
)
def test_what_cannot_be_trained(texts, size, message):
    with pytest.raises(ValueError, match=message):
        trainer.train(texts, size)


def test_memory_is_bounded_by_forgetting_rare_words(monkeypatch):
    monkeypatch.setattr(trainer, "_MAXIMUM_WORDS", 100)
    tokenizer = trainer.train([f"common word{index}" for index in range(1000)], 200)
    assert "common" in tokenizer.tokens
    # Words that are all seen several times must go, too.
    counted = trainer._count_words([f"common word{index // 3}" for index in range(1000)], True, None)
    assert counted["common"] == 1000 and len(counted) <= 101
