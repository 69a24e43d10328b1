"""What a model must beat: the guess that knows how often each token occurs and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from megabert.data.blend import RowSet, Source
from megabert.data.indexed import IndexedData
from megabert.data.samples import NO_LABEL

_COUNTED_TOKENS = 1 << 24  # of each source; more would not change which token is the most frequent


def commonest_token(sources: Sequence[Source]) -> int:
    """The id that occurs most often in the data, sources weighted as they are mixed."""
    shares = np.zeros(1)
    for source in sources:
        data = IndexedData(source.path, check=False)
        counts = np.bincount(data.tokens(0, len(data))[:_COUNTED_TOKENS].astype(np.int64))
        wide = np.zeros(max(len(shares), len(counts)))
        wide[: len(shares)] += shares
        wide[: len(counts)] += source.weight * counts / max(counts.sum(), 1)
        shares = wide
    return int(shares.argmax())


def unigram_accuracy(token: int, rows: RowSet, limit: int) -> float:
    """Share of the masked places of the first `limit` rows where `token` stood: what always guessing it gets right."""
    labels = np.concatenate([rows[index]["masked_labels"] for index in range(min(limit, len(rows)))])
    labels = labels[labels != NO_LABEL]
    return float((labels == token).mean()) if len(labels) else 0.0
