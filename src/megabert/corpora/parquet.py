"""Parquet files as lines of loose JSON, some rows at a time: the text column and the title, nothing else."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any, NamedTuple

MAGIC = b"PAR1"
_ROWS = 256  # that are unpacked at once


class Rows(NamedTuple):
    """Rows from `first` up to, without, `last`, counted from 0, as JSON objects a line."""

    first: int
    last: int
    lines: bytes


def rows(path: Path, packed: IO[bytes] | None, text_key: str, start_row: int, chunk_bytes: int) -> Iterator[Rows]:
    """The rows of a file from `start_row` on, about `chunk_bytes` at a time.

    Args:
        packed: the open file when it is packed as a whole (gzip and the like): Parquet is read from its end, so that it
            is unpacked into a temporary file first.

    Raises:
        ValueError: pyarrow is missing, the file is damaged, or has no column `text_key`.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ValueError(
            f"{path} is a Parquet file, which needs another package: pip install 'megabert[parquet]'"
        ) from None
    with nullcontext() if packed is None else tempfile.TemporaryFile() as unpacked:
        if packed is not None and unpacked is not None:
            shutil.copyfileobj(packed, unpacked)
            unpacked.seek(0)
        try:
            table = parquet.ParquetFile(unpacked or path, buffer_size=1 << 20, pre_buffer=False)
            names = table.schema_arrow.names
            if text_key not in names:
                columns = ", ".join(repr(name[:40]) for name in names[:8])
                raise ValueError(f"{path}: has no column {text_key!r}; its columns are {columns}")
            columns = [text_key, *(["title"] if "title" in names and text_key != "title" else [])]
            yield from _runs(table, columns, start_row, chunk_bytes)
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{path}: cannot be read as Parquet: {' '.join(str(error).split())}") from None


def _runs(table: Any, columns: list[str], start_row: int, chunk_bytes: int) -> Iterator[Rows]:
    group, place = 0, 0
    while group < table.num_row_groups and place + table.metadata.row_group(group).num_rows <= start_row:
        place += table.metadata.row_group(group).num_rows
        group += 1
    groups = list(range(group, table.num_row_groups))
    first, held, size = max(place, start_row), [], 0
    for batch in table.iter_batches(_ROWS, row_groups=groups, columns=columns) if groups else ():
        skipped = max(start_row - place, 0)
        place += batch.num_rows
        for row in batch.slice(skipped).to_pylist():
            held.append(_line(row))
            size += len(held[-1])
        if size >= chunk_bytes:
            yield Rows(first, place, b"".join(held))
            first, held, size = place, [], 0
    if held:
        yield Rows(first, place, b"".join(held))


def _line(row: dict[str, Any]) -> bytes:
    # Bytes that are no UTF-8 become lone surrogates, which no text may hold: such a row is counted as a bad one.
    text = {key: value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value
            for key, value in row.items()}  # fmt: skip
    return json.dumps(text, default=str).encode() + b"\n"
