import pytest

from megabert.tokenization import word_piece


@pytest.fixture(scope="session")
def tokenizer():
    """Letters, a few words, and their pieces."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    entries += ["paris", "london", "capital", "city", "is", "the", "of", "and", ".", ",", "?", "1", "2", "##1", "##2"]
    return word_piece.from_tokens(entries, lower_case=True)


@pytest.fixture
def write(tmp_path):
    """Write a file and give its path."""

    def make(name, text, encoding="utf-8"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode(encoding))
        return path

    return make
