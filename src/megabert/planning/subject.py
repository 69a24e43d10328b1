"""What is planned: a model, its rows and its precision in a layout."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from megabert.data.masking import most_predictions
from megabert.data.options import DataOptions
from megabert.models.bert.config import padded_vocabulary_size
from megabert.models.options import ModelOptions
from megabert.parallel.mesh import Layout, layout_of
from megabert.parallel.options import ParallelOptions
from megabert.training.options import TrainingOptions


PACKED_SAMPLES = 8
"""Samples in a packed row: only the pooler and the pair head see how many there are."""


@dataclass(frozen=True, kw_only=True)
class RunOptions(TrainingOptions, DataOptions, ModelOptions, ParallelOptions):
    """All options of a run that a plan depends on."""


@dataclass(frozen=True)
class Subject:
    """A run, seen by its planner.

    Attributes:
        options: of the run.
        layout: of its processes.
        vocabulary: entries of the tokenizer, before padding.
    """

    options: RunOptions
    layout: Layout
    vocabulary: int

    @property
    def padded_vocabulary(self) -> int:
        """Rows of the word embedding."""
        multiple = self.options.make_vocab_size_divisible_by * self.layout.tensor
        return padded_vocabulary_size(self.vocabulary, multiple)

    @property
    def places(self) -> int:
        """Masked places in a row."""
        options = self.options
        most = most_predictions(options.seq_length, options.mask_prob)
        return most if options.pack else options.max_preds_per_seq or most

    @property
    def samples(self) -> int:
        """Samples in a row."""
        return PACKED_SAMPLES if self.options.pack else 1

    @property
    def micro_batches(self) -> int:
        """Of one data rank in a step.

        Raises:
            ValueError: --global-batch-size is no multiple of the rows that all data ranks read at once.
        """
        rows = self.options.batch_size * self.layout.data
        total = self.options.global_batch_size or rows
        if total % rows:
            raise ValueError(
                f"--global-batch-size {total} is not a multiple of {rows} (--micro-batch-size "
                f"{self.options.batch_size} on {self.layout.data} data ranks): the nearest is "
                f"{max(rows, round(total / rows) * rows)}"
            )
        return total // rows

    @property
    def rows(self) -> int:
        """Rows in a step, of all data ranks."""
        return self.micro_batches * self.options.batch_size * self.layout.data

    @property
    def pair_task(self) -> Literal["sop", "nsp", "none"]:
        """The sentence-pair task."""
        return self.options.pairs

    def with_options(self, **changes: object) -> Subject:
        """The same run with other options, in the layout that they mean for the same number of processes."""
        options = dataclasses.replace(self.options, **changes)  # type: ignore[arg-type]
        return dataclasses.replace(self, options=options, layout=layout_for(options, self.layout.world))

    def in_world(self, world: int) -> Subject:
        """The same options among another number of processes."""
        return dataclasses.replace(self, layout=layout_for(self.options, world))


def layout_for(options: RunOptions, world: int) -> Layout:
    """The layout of `options` among `world` processes.

    Raises:
        ValueError: an impossible one; the reason and the nearest possible one are named.
    """
    return layout_of(
        options, world, layers=options.num_layers, heads=options.num_attention_heads,
        intermediate=options.intermediate_size or 4 * options.hidden_size, sequence=options.seq_length,
    )  # fmt: skip
