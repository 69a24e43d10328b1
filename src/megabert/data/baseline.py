"""What a model must beat: the guess that knows how often each token occurs and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from megabert.data.blend import RowSet, Source
from megabert.data.lazy import LazyData, open_data
from megabert.data.samples import NO_LABEL
from megabert.data.stored import holds_samples

_COUNTED_TOKENS = 1 << 24  # of each source; more would not change which token is the most frequent
_COUNTED_ROWS = 4096


def commonest_token(sources: Sequence[Source], rows: RowSet) -> int:
    """The id that occurs most often in the data, sources weighted as they are mixed.

    Args:
        rows: made of the sources; their hidden tokens are counted where a source is not just tokens.
    """
    opened = [open_data(source.path, None, check=False) for source in sources]
    if any(isinstance(data, LazyData) or holds_samples(data) for data in opened):
        labels = np.concatenate([rows[index]["masked_labels"] for index in range(min(_COUNTED_ROWS, len(rows)))])
        return int(np.bincount(labels[labels != NO_LABEL], minlength=1).argmax())
    shares = np.zeros(1)
    for source, data in zip(sources, opened, strict=True):
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
