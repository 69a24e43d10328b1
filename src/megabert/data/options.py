"""Options of the training data: where it lies, how it is split, cut into samples and masked."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from megabert.config import option


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Training data and samples."""

    train_data: tuple[str, ...] = option(
        (), "text files (JSON, CSV, Parquet, plain text), patterns of them, .lazy folders, prefixes of indexed data, "
        "or names given with --corpora; several may each follow a weight", aliases=("data-path", "train-data-path"),
        metavar="[WEIGHT] PATH",
        example="0.7 wiki_text_sentence 0.3 pubmed_text_sentence",
    )  # fmt: skip
    valid_data: tuple[str, ...] = option(
        (), "separate data for evaluation while training; the validation share of --split is then unused",
        aliases=("valid-data-path",), metavar="[WEIGHT] PATH", example="heldout.jsonl",
    )  # fmt: skip
    test_data: tuple[str, ...] = option(
        (), "separate data for the test after training; the test share of --split is then unused",
        aliases=("test-data-path",), metavar="[WEIGHT] PATH", example="test.jsonl",
    )  # fmt: skip
    corpora: dict[str, tuple[str, ...]] = option(
        {}, "names that --train-data, --valid-data and --test-data may use instead of paths or patterns; in a config "
        "file a table: [corpora], and in it wikipedia = [\"/data/wiki/*.jsonl\"]",
        example="'wikipedia=/data/wiki/*.jsonl'",
    )  # fmt: skip
    use_tfrecords: bool = option(
        False, "the data are samples that were stored with their masks: TFRecords of create_pretraining_data.py, or "
        "NVIDIA's HDF5 files; they are read as they are, with NSP as the pair task", aliases=("use-hdf5",),
    )  # fmt: skip
    split: str = option(
        "949,50,1", "shares of training, validation and test, by documents, in their order in the file; any scale, "
        "separated by commas or slashes", example="90,5,5",
    )  # fmt: skip
    text_key: str = option("text", "the JSON key that holds the text", aliases=("json-keys",), example="abstract")
    eval_text_key: str | None = option(
        None, "the JSON key of the text in --valid-data and --test-data; left out, --text-key", example="body"
    )
    eval_seq_length: int | None = option(
        None, "longest sample of --valid-data and --test-data, in tokens; left out, --seq-length", minimum=8,
        example="512",
    )  # fmt: skip
    eval_max_preds_per_seq: int | None = option(
        None, "most tokens to predict in a sample of --valid-data and --test-data; left out, --max-preds-per-seq",
        minimum=1,
    )  # fmt: skip
    loose_json: bool = option(
        False, "insist on one JSON object a line; without the flag the format of each file is detected"
    )
    presplit_sentences: bool = option(
        False, "each line of a document is one sentence already: do not look for sentence ends"
    )
    text_layout: Literal["auto", "file", "blank-lines", "lines"] = option(
        "auto", "what is a document of a plain text file: the whole file, what stands between blank lines, or a line; "
        "auto looks at the file",
    )  # fmt: skip
    delim: str | None = option(
        None, "what stands between the cells of a .csv, one character; left out, found from the first line of each",
        example="';'",
    )  # fmt: skip
    lazy_loader: bool = option(
        False, "copy no text and no tokens: documents stay in their files (loose JSON) and are tokenized when they are "
        "read; only an index is made",
    )  # fmt: skip
    seq_length: int = option(
        512, "longest sample in tokens, [CLS] and [SEP] included", aliases=("max-seq-length", "encoder-seq-length"),
        minimum=8, example="128",
    )  # fmt: skip
    mask_prob: float = option(0.15, "share of a sample's tokens to predict", above=0, maximum=1, example="0.15")
    max_preds_per_seq: int | None = option(
        None, "most tokens to predict in a sample; left out, mask-prob of the sequence, rounded up to a multiple of 10",
        minimum=1, example="80",
    )  # fmt: skip
    short_seq_prob: float = option(
        0.1, "share of samples with a random, shorter length (0: none)", minimum=0, maximum=1, example="0.1"
    )
    masking: Literal["token", "whole-word", "ngram"] = option(
        "ngram",
        "what is masked at once: single tokens (2019), whole words, or 1 to 3 whole words (Megatron from v1.0 on)",
    )
    pair_task: Literal["sop", "nsp", "none"] = option(
        "sop", "the sentence-pair task: sop asks whether the two halves were swapped (Megatron from v1.0 on), nsp "
        "whether the second half comes from another document (2018), none leaves samples whole",
    )  # fmt: skip
    bert_binary_head: bool = option(
        True, "train the sentence-pair head; --bert-no-binary-head means --pair-task none",
        aliases=("bert-no-binary-head", "no-bert-binary-head"), hidden=True,
    )  # fmt: skip
    pack: bool = option(
        False,
        "fill each row with several samples, so that nearly no position is padding; attention stays inside a sample",
    )
    data_cache_path: Path | None = option(
        None,
        "folder for tokenized text and maps of samples, shared by runs; by default beside the run",
        example="cache",
    )
    max_bad_fraction: float = option(
        0.01, "share of the lines of a text file that may be unusable (not JSON, no text) before the run stops",
        minimum=0, maximum=1, example="0.001",
    )  # fmt: skip

    @property
    def pairs(self) -> Literal["sop", "nsp", "none"]:
        """The sentence-pair task after both spellings are read; stored samples know only NSP."""
        task = self.pair_task if self.bert_binary_head else "none"
        return "nsp" if self.use_tfrecords and task != "none" else task

    def of(self, field: str) -> Self:
        """The options as they hold for the data of `train_data`, `valid_data` or `test_data`.

        Raises:
            ValueError: options for separate evaluation data, and there is none.
        """
        changes = {
            name: getattr(self, f"eval_{name}")
            for name in ("text_key", "seq_length", "max_preds_per_seq")
            if getattr(self, f"eval_{name}") is not None
        }
        if changes and not (self.valid_data or self.test_data):
            flag = f"--eval-{next(iter(changes)).replace('_', '-')}"
            raise ValueError(
                f"{flag} is for --valid-data and --test-data; data that --split takes off is read as the rest"
            )
        return self if field == "train_data" else dataclasses.replace(self, **changes)


@dataclass(frozen=True, kw_only=True)
class StoredSampleOptions:
    """Samples for other programs (--to tfrecord).

    Defaults and further names of the flags are those of BERT's create_pretraining_data.py.
    """

    to: Literal["indexed", "tfrecord", "tfrecord.gz"] = option(
        "indexed", "what to write: indexed data; or also samples with masks, as create_pretraining_data.py writes them"
    )
    seq_length: int = option(
        128, "longest sample in tokens, [CLS] and [SEP] included", aliases=("max-seq-length",), minimum=8
    )
    max_preds_per_seq: int = option(
        20, "most tokens to predict in a sample", aliases=("max-predictions-per-seq",), minimum=1
    )
    mask_prob: float = option(
        0.15, "share of a sample's tokens to predict", aliases=("masked-lm-prob",), above=0, maximum=1
    )
    short_seq_prob: float = option(0.1, "share of samples with a random, shorter length", minimum=0, maximum=1)
    masking: Literal["token", "whole-word", "ngram"] = option("token", "what is masked at once")
    dupe_factor: int = option(10, "passes over the documents, each with other cuts and masks", minimum=1)
    seed: int = option(12345, "of cuts and masks", aliases=("random-seed",), minimum=0)
    samples_per_file: int = option(100_000, "after so many samples the next file begins", minimum=1)

    def sample_options(self) -> DataOptions:
        """How samples are cut and masked."""
        return DataOptions(
            seq_length=self.seq_length, max_preds_per_seq=self.max_preds_per_seq, mask_prob=self.mask_prob,
            short_seq_prob=self.short_seq_prob, masking=self.masking, pair_task="nsp",
        )  # fmt: skip
