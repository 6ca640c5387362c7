"""A prepared data set read once, front to back, in bounded pieces.

A piece is some rows of one table, of at most PIECE_TOKENS tokens (a longer document is a piece of its own), so that memory does
not grow with the documents. Arrow files are memory-mapped and sliced, Parquet files are read in batches. Not here: what is
counted (tally.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lst.data.shards import Dataset
from lst.errors import DataError

IntArray = NDArray[np.int64]

PIECE_TOKENS = 1 << 20
PIECE_ROWS = 1 << 14  # documents may be short, and texts are copied
PARQUET_ROWS = 1 << 10


@dataclass(frozen=True)
class Lists:
    """A list column of a piece: row i is `values[offsets[i]:offsets[i + 1]]`, and offsets[0] is 0."""

    values: NDArray[np.integer]
    offsets: IntArray

    @property
    def lengths(self) -> IntArray:
        return np.diff(self.offsets)

    def row(self, index: int) -> NDArray[np.integer]:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    @property
    def owner(self) -> IntArray:
        """The row that each value belongs to."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.lengths)


@dataclass(frozen=True)
class Piece:
    """Rows of a table; `first` is the number of the first of them in the table."""

    batch: pa.RecordBatch
    first: int

    def __len__(self) -> int:
        return int(self.batch.num_rows)

    def column(self, name: str) -> pa.Array:
        return self.batch.column(self.batch.schema.get_field_index(name))

    def strings(self, name: str) -> list[str]:
        """A text column; a value that is missing is ""."""
        return [value or "" for value in self.column(name).to_pylist()]

    def lists(self, name: str) -> Lists:
        """A list column of numbers; zero-copy."""
        array = self.column(name)
        offsets = _numbers(array.offsets).astype(np.int64)
        return Lists(_numbers(array.values)[offsets[0] : offsets[-1]], offsets - offsets[0])

    def take(self, rows: NDArray[np.bool_]) -> Piece:
        """The rows where `rows` (one value a row) is True."""
        return self if rows.all() else Piece(self.batch.filter(pa.array(rows)), self.first)


def pieces(dataset: Dataset, table: str, columns: Sequence[str], *, bound_by: str) -> Iterator[Piece]:
    """Table `table` ('speech' or 'text') in pieces; `bound_by` is the list column whose values are bounded.

    Raises DataError where a file is missing or damaged.
    """
    first = 0
    for path in table_files(dataset, table):
        try:
            for batch in _batches(path, columns):
                for part in _cut(batch, bound_by):
                    yield Piece(part, first)
                    first += part.num_rows
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"'{path}' cannot be read ({error}); prepare the data set again.") from error


def table_files(dataset: Dataset, table: str) -> list[Path]:
    """The files of a table in order: its shards, or the one file that small data sets have."""
    shards = dataset.manifest.get("shards", {}).get(table)
    if shards is not None:
        return [dataset.path / str(shard["file"]) for shard in shards]
    arrow = dataset.path / f"{table}.arrow"
    return [arrow if arrow.is_file() else dataset.path / f"{table}.parquet"]


def rows_at(dataset: Dataset, table: str, columns: Sequence[str], wanted: Sequence[int], *, bound_by: str) -> dict[int, Piece]:
    """The rows with the numbers `wanted`, each as a piece of one row; found by one more pass."""
    left, found = sorted(set(wanted)), {}
    for piece in pieces(dataset, table, columns, bound_by=bound_by) if left else ():
        while left and left[0] < piece.first + len(piece):
            number = left.pop(0)
            found[number] = Piece(piece.batch.slice(number - piece.first, 1), number)
        if not left:
            break
    return found


def _batches(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    if path.suffix == ".parquet":
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=PARQUET_ROWS, columns=list(columns))
        return
    number, count = 0, 1
    while number < count:  # a map for each batch: pages that were read are resident until their map goes
        with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
            count = reader.num_record_batches
            batch = reader.get_batch(number).select(list(columns)) if count else None
        if batch is not None:
            yield batch
        number += 1


def _cut(batch: pa.RecordBatch, bound_by: str) -> Iterator[pa.RecordBatch]:
    """`batch` in slices of at most PIECE_TOKENS values of `bound_by` and PIECE_ROWS rows."""
    offsets = _numbers(batch.column(batch.schema.get_field_index(bound_by)).offsets)
    start = 0
    while start < batch.num_rows:
        fitting = int(np.searchsorted(offsets, int(offsets[start]) + PIECE_TOKENS, side="right")) - 1
        stop = min(max(fitting, start + 1), start + PIECE_ROWS, batch.num_rows)
        yield batch.slice(start, stop - start)
        start = stop


def _numbers(array: pa.Array) -> NDArray[np.integer]:
    """By the array protocol: pyarrow's own conversion imports pandas, a second in each run."""
    numbers: NDArray[np.integer] = np.from_dlpack(array)  # type: ignore[assignment]
    return numbers
