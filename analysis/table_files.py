"""How tables go to disk: by one process at a time, all of them together, large ones by row groups."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lst import records
from lst.errors import FitError

ROW_GROUP = 2**17
"""Rows of a Parquet row group: what is kept in memory of a growing table."""


@contextlib.contextmanager
def only_one(path: Path, sentence: str) -> Iterator[None]:
    """Hold the lock `path`. Raises FitError with `sentence` while another process holds it; a process that dies lets it go."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FitError(sentence) from error
        yield


@contextlib.contextmanager
def replacing(folder: Path, *names: str) -> Iterator[dict[str, Path]]:
    """Where to write the files `names` of `folder`: flushed to disk and renamed when the block ends well, else removed."""
    aside = {name: folder / f".{name}.new" for name in names}
    try:
        yield aside
        for path in aside.values():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        for name, path in aside.items():
            path.replace(folder / name)
    finally:
        for path in aside.values():
            path.unlink(missing_ok=True)


def table_of(rows: Iterable[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as an Arrow table; what a row lacks is null."""
    kept = list(rows)
    return pa.table([pa.array([row.get(f.name) for row in kept], f.type) for f in schema], schema=schema)


def write_parquet(path: Path, table: pa.Table) -> None:
    """A table that is all there, as `collect_into` writes one that grows."""
    with ParquetRows(path, table.schema) as file:
        file.add(table)


class ParquetRows:
    """A Parquet file that grows by row groups of ROW_GROUP rows: the same bytes, however its rows come in tables."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        named = [f.name for f in schema if f.type == pa.string()]
        numbers = {pa.int64(): "DELTA_BINARY_PACKED", pa.float64(): "BYTE_STREAM_SPLIT"}  # smaller and quicker than plain ones
        encoded = {f.name: numbers[f.type] for f in schema if f.type in numbers}
        self._writer = pq.ParquetWriter(
            path, schema, compression="zstd", use_dictionary=named, column_encoding=encoded, write_statistics=[*named, "step"]
        )
        self._waiting = [schema.empty_table()]
        self._rows = 0

    def add(self, table: pa.Table) -> None:
        self._waiting.append(table)
        self._rows += len(table)
        if self._rows >= ROW_GROUP:
            rows = pa.concat_tables(self._waiting)
            whole = self._rows - self._rows % ROW_GROUP
            for start in range(0, whole, ROW_GROUP):
                self._write(rows.slice(start, ROW_GROUP))
            self._waiting, self._rows = [rows.slice(whole)], self._rows - whole

    def _write(self, rows: pa.Table) -> None:
        self._writer.write_table(rows.combine_chunks(), row_group_size=ROW_GROUP)

    def __enter__(self) -> ParquetRows:
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        if failed is None and self._rows:
            self._write(pa.concat_tables(self._waiting))
        self._writer.close()


NUMBERS = frozenset(
    [
        *("step", "branch", "value", "n_items", "num_params", "num_non_embedding_params", "num_params_global", "flops_budget"),
        *("planned_flops", "planned_spent_flops", "train_flops", "spent_flops", "units", "tokens", "seed"),
    ]
)
"""Columns that hold numbers or nothing, unless a table was edited by hand."""


def require_whole(path: Path, table: pd.DataFrame, remedy: str) -> None:
    """Raise FitError where the file `path` of `table` is torn, or has text in a column of NUMBERS; `remedy` makes it anew."""
    if not records.is_whole_text(path):
        raise FitError(f"'{path}' is torn (its last line has no end); {remedy}")
    for name in (str(c) for c in table.columns if c in NUMBERS and not pd.api.types.is_numeric_dtype(table[c])):
        wrong = (pd.to_numeric(table[name], errors="coerce").isna() & table[name].notna()).to_numpy()
        if wrong.any():
            row = int(wrong.argmax())
            raise FitError(f"'{path}' has {name}={table[name].iloc[row]} in row {row + 1}, which is no number; {remedy}")
