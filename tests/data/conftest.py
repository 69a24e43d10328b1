import pytest
from made_data import Vocabulary, natural_documents

from megabert.data.indexed import IndexedData
from megabert.data.indexed_writer import IndexedWriter


@pytest.fixture
def vocabulary():
    return Vocabulary()


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


@pytest.fixture
def small_chunks(monkeypatch):
    """Corpora are read in so small pieces that little data has many."""
    monkeypatch.setattr("megabert.corpora.chunks._READ_BYTES", 1000)
    monkeypatch.setattr("megabert.data.preprocess.CHUNK_BYTES", 2000)
