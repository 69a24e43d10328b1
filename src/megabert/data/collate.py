"""Rows to a batch of tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from megabert.data.samples import NO_LABEL, Row

_OF_POSITIONS: tuple[str, ...] = ("input_ids", "token_type_ids", "position_ids", "sample_ids")
_OF_PREDICTIONS: tuple[str, ...] = ("masked_positions", "masked_labels")


def collate(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    """Stack rows of one data set: each key [batch, ...] int64."""
    return {key: torch.from_numpy(np.stack([row[key] for row in rows])) for key in rows[0]}


def collate_trimmed(rows: Sequence[Row], multiple: int = 8) -> dict[str, torch.Tensor]:
    """`collate`, without the columns that are padding in every row.

    Positions are cut to the longest sample, rounded up to `multiple` (kernels like such lengths), places to predict
    to the row that has most. Losses and gradients stay the same; shapes differ from batch to batch.
    """
    whole = rows[0]["input_ids"].shape[0]
    used = max(int(np.count_nonzero(row["sample_ids"])) for row in rows)
    positions = min(-(-used // multiple) * multiple, whole)
    predicted = max(int(np.count_nonzero(row["masked_labels"] != NO_LABEL)) for row in rows)
    widths: dict[str, int] = dict.fromkeys(_OF_POSITIONS, positions) | dict.fromkeys(_OF_PREDICTIONS, max(predicted, 1))
    return {key: torch.from_numpy(np.stack([row[key][: widths.get(key)] for row in rows])) for key in rows[0]}
