"""What is planned: a model, its rows and its precision in a layout."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from megabert.data.masking import most_predictions
from megabert.models.bert.recompute import recomputation_of
from megabert.parallel.mesh import Layout, Sizes, layout_of
from megabert.parallel.saved import check_distributed_saving
from megabert.planning.options import RunOptions

PACKED_SAMPLES = 8
"""Samples in a packed row: only the pooler and the pair head see how many there are."""


@dataclass(frozen=True)
class Subject:
    """A run, seen by its planner.

    Attributes:
        options: of the run.
        layout: of its processes.
        vocabulary: entries of the tokenizer, before padding.
        places: masked places in a row.
        samples: samples in a row; more than 1 in packed rows.
    """

    options: RunOptions
    layout: Layout
    vocabulary: int
    places: int
    samples: int = 1

    @classmethod
    def of(cls, options: RunOptions, world: int) -> Subject:
        """The run of `options` on `world` processes, with a vocabulary of --vocab-size entries.

        Raises:
            ValueError: an impossible layout or batch; the reason and the nearest possible one are named.
        """
        most = most_predictions(options.seq_length, options.mask_prob)
        subject = cls(
            options,
            layout_for(options, world),
            options.vocab_size,
            most if options.pack else options.max_preds_per_seq or most,
            PACKED_SAMPLES if options.pack else 1,
        )
        assert subject.micro_batches
        return subject

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
    recomputed = recomputation_of(options, options.num_layers)
    check_distributed_saving(options, full=recomputed is not None and recomputed.granularity == "full")
    sizes = Sizes(
        layers=options.num_layers, heads=options.num_attention_heads, hidden=options.hidden_size,
        intermediate=options.intermediate_size or 4 * options.hidden_size, sequence=options.seq_length,
    )  # fmt: skip
    return layout_of(options, world, sizes)
