"""The files of a prepared data set's tables, read batch by batch: for passes over all rows, such as checks and counts.

Memory does not grow with the files. Not here: random access for training (lst/data/shards.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lst.errors import DataError


def table_files(manifest: Mapping[str, Any], table: str) -> list[str]:
    """Names of the files that hold `table`, in order."""
    if table in manifest.get("shards", {}):
        return [shard["file"] for shard in manifest["shards"][table]]
    return [name for name in (f"{table}.arrow", f"{table}.parquet") if name in manifest["files"]]


def table_batches(
    folder: Path, manifest: Mapping[str, Any], table: str, columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """The rows of a table in order, some columns or all. Raises DataError where a file cannot be read."""
    for name in table_files(manifest, table):
        yield from file_batches(folder / name, columns)


def file_batches(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The rows of one Arrow or Parquet file. Raises DataError where it cannot be read."""
    try:
        if path.suffix == ".parquet":
            for batch in pq.ParquetFile(path).iter_batches(columns=columns):
                yield pa.Table.from_batches([batch])
            return
        with pa.OSFile(str(path), "rb") as file:
            schema = pa.ipc.open_file(file).schema
            wanted = [schema.get_field_index(name) for name in columns] if columns is not None else None
            options = pa.ipc.IpcReadOptions(included_fields=sorted(wanted) if wanted is not None else None)
            reader = pa.ipc.open_file(file, options=options)
            for number in range(reader.num_record_batches):
                table = pa.Table.from_batches([reader.get_batch(number)])
                yield table.select(columns) if columns is not None else table
    except (OSError, pa.ArrowException, KeyError) as error:
        raise DataError(f"'{path}' cannot be read ({error}); it is damaged: make it again.") from error
