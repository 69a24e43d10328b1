"""Rows to one batch without the columns that are padding in every row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from megabert.data.samples import NO_LABEL, Row

_OF_POSITIONS: tuple[str, ...] = ("input_ids", "token_type_ids", "position_ids", "sample_ids")


def trimmed(rows: Sequence[Row], multiple: int = 8) -> Row:
    """Stack rows of one data set, each key [batch, ...], and cut off what no row uses.

    Positions are cut to the longest row, rounded up to `multiple` (kernels like such lengths), places to predict to the
    row that has most. Losses and gradients stay the same; shapes differ from batch to batch.
    """
    whole = rows[0]["input_ids"].shape[0]
    used = max(int(np.count_nonzero(row["sample_ids"])) for row in rows)
    positions = min(-(-used // multiple) * multiple, whole)
    predicted = max(int(np.count_nonzero(row["masked_labels"] != NO_LABEL)) for row in rows)
    widths: dict[str, int] = dict.fromkeys(_OF_POSITIONS, positions)
    widths |= dict.fromkeys(("masked_positions", "masked_labels"), max(predicted, 1))
    return {key: np.stack([row[key][: widths.get(key)] for row in rows]) for key in rows[0]}
