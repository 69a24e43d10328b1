from dataclasses import dataclass, field

import numpy as np
import pytest

from megabert.data.indexed import IndexedData
from megabert.data.indexed_writer import IndexedWriter


@dataclass
class Vocabulary:
    """The facts of a tokenizer that samples use; ids from 500 on continue a word."""

    vocabulary_size: int = 1000
    pad_id: int = 0
    unknown_id: int = 1
    cls_id: int = 2
    sep_id: int = 3
    mask_id: int = 4
    continuation: np.ndarray = field(default_factory=lambda: np.arange(1000) >= 500)


@pytest.fixture
def vocabulary():
    return Vocabulary()


def natural_documents(count, seed=0, mean_sentences=12.0, mean_tokens=22.0):
    """Documents with lengths as text has them: sentences log-normal, counts geometric. Ids from 10 on."""
    generator = np.random.default_rng(seed)
    documents = []
    for _ in range(count):
        lengths = np.clip(
            generator.lognormal(np.log(mean_tokens), 0.5, generator.geometric(1 / mean_sentences)), 2, 200
        )
        documents.append([generator.integers(10, 1000, int(length)) for length in lengths])
    return documents


@pytest.fixture
def make_data(tmp_path):
    def make(documents, name="data"):
        with IndexedWriter(tmp_path / name, 1000) as writer:
            for document in documents:
                writer.add_document(document)
        return IndexedData(tmp_path / name)

    return make


@pytest.fixture
def data(make_data):
    return make_data(natural_documents(60))
