"""Columnar inputs: Parquet files, and a data set that Hugging Face's `datasets` saved to disk (read without that package).

    DIR/dataset_dict.json     {"splits": ["train", "test"]}: then DIR/train, DIR/test are data sets; else DIR is one
    DIR/state.json            {"_data_files": [{"filename": "data-00000-of-00002.arrow"}, ...]} in order
    DIR/data-*.arrow          Arrow *stream* files

Columns have the names of a record's keys (lst/data/sources/contract.py) unless columns= tells others. Rows of a split that is
not "train" are held out, unless a column says else. A block is the rows of some row groups or record batches. Nothing
is ever executed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lst.data.sources.base import LINES_BLOCK_BYTES, Block, Record, Refused, Row, file_size
from lst.data.sources.contract import KEYS, SpokenContract
from lst.errors import DataError

BATCH_ROWS = 1_000
NAMES = ("id", "speaker", "book")  # columns that may hold whole numbers, which become strings
STATE, SPLITS_FILE = "state.json", "dataset_dict.json"
_DAMAGED = (OSError, pa.ArrowException)


class _Tables:
    """Files of rows; `keys` are (a row's key, the column's name), of which the `required` must be there."""

    def __init__(
        self,
        files: Sequence[Path],
        row: Callable[[Any], Row],
        *,
        columns: Mapping[str, str],
        required: Sequence[str],
        identity: Mapping[str, Any],
        block_bytes: int = LINES_BLOCK_BYTES,
    ) -> None:
        self._files, self._row, self._block_bytes = files, row, block_bytes
        self._columns, self._required, self._identity = columns, required, identity

    def blocks(self) -> Sequence[Block]:
        """Raises DataError, naming the file, if one is damaged or lacks a column."""
        return [block for file in self._files for block in self._file_blocks(file)]

    def read(self, block: Block) -> Iterator[Record | Refused]:
        """Raises DataError if the block is damaged."""
        split = self._split(block.file)
        names = [self._columns[key] for key in NAMES if key in self._columns]
        try:
            for number, record in self._numbered_rows(block):
                place = f"row {number}"
                for name in names:
                    if isinstance(record.get(name), int):
                        record[name] = str(record[name])
                if split and self._columns["split"] not in record:
                    record[self._columns["split"]] = split
                try:
                    yield Record(self._row(record), place=place)
                except ValueError as error:
                    yield Refused(block.file, str(error), place=place)
        except _DAMAGED as error:
            raise DataError(f"{block.file} is damaged ({error}); fetch or write it again.") from error

    def identity(self) -> dict[str, Any]:
        return dict(self._identity)

    def _file_blocks(self, file: Path) -> list[Block]:
        file_size(file)
        try:
            names, sizes = self._layout(file)
        except _DAMAGED as error:
            raise DataError(f"{file} cannot be read as {self._kind} ({error}); fetch or write it again.") from error
        for key in self._required:
            if self._columns[key] not in names:
                raise DataError(
                    f"{file} has no column '{self._columns[key]}' ({', '.join(names)}); name it by columns={key}:NAME."
                )
        return [Block(file, start, stop) for start, stop in _runs(sizes, self._block_bytes)]

    def _wanted(self, names: Sequence[str]) -> list[str]:
        return [name for name in self._columns.values() if name in names]

    _kind = ""

    def _split(self, file: Path) -> str:
        return ""

    def _layout(self, file: Path) -> tuple[Sequence[str], list[tuple[int, int]]]:
        """The file's columns, and (rows, bytes) of each of its stretches that are read as one."""
        raise NotImplementedError

    def _numbered_rows(self, block: Block) -> Iterator[tuple[int, dict[str, Any]]]:
        raise NotImplementedError


class ParquetRows(_Tables):
    """A `lst.data.sources.base.Source` over Parquet files; a stretch is a row group."""

    _kind = "Parquet"

    def _layout(self, file: Path) -> tuple[Sequence[str], list[tuple[int, int]]]:
        with pq.ParquetFile(file) as parquet:
            groups = [parquet.metadata.row_group(i) for i in range(parquet.num_row_groups)]
            return parquet.schema_arrow.names, [(group.num_rows, group.total_byte_size) for group in groups]

    def _numbered_rows(self, block: Block) -> Iterator[tuple[int, dict[str, Any]]]:
        with pq.ParquetFile(block.file, page_checksum_verification=True) as parquet:  # where the writer made checksums
            ends = list(accumulate(parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)))
            groups = [group for group, end in enumerate(ends) if block.start < end <= block.stop]
            number = block.start + 1
            names = self._wanted(parquet.schema_arrow.names)
            for batch in parquet.iter_batches(BATCH_ROWS, row_groups=groups, columns=names, use_threads=False):
                yield from enumerate(batch_rows(batch), number)
                number += batch.num_rows


class SavedDataset(_Tables):
    """A `lst.data.sources.base.Source` over a data set saved to disk; a stretch is a record batch of a stream file."""

    _kind = "an Arrow stream"

    def __init__(self, folder: Path, row: Callable[[Any], Row], **options: Any) -> None:
        """Raises DataError if `folder` holds no saved data set."""
        super().__init__(saved_files(folder), row, **options)
        self._several = (folder / SPLITS_FILE).is_file()

    def _split(self, file: Path) -> str:
        if not self._several:
            return ""
        return "train" if file.parent.name == "train" else "heldout"

    def _layout(self, file: Path) -> tuple[Sequence[str], list[tuple[int, int]]]:
        with pa.memory_map(str(file)) as mapped, pa.ipc.open_stream(mapped) as stream:
            return stream.schema.names, [(batch.num_rows, batch.nbytes) for batch in stream]

    def _numbered_rows(self, block: Block) -> Iterator[tuple[int, dict[str, Any]]]:
        with pa.memory_map(str(block.file)) as mapped, pa.ipc.open_stream(mapped) as stream:
            names = self._wanted(stream.schema.names)
            row = 0
            for batch in stream:
                if row >= block.stop:
                    break
                for start in range(0, batch.num_rows if row >= block.start else 0, BATCH_ROWS):
                    yield from enumerate(batch_rows(batch.select(names).slice(start, BATCH_ROWS)), row + start + 1)
                row += batch.num_rows


def speech_parquet(files: Sequence[Path], contract: SpokenContract, *, block_bytes: int = LINES_BLOCK_BYTES) -> ParquetRows:
    """Spoken documents of Parquet files."""
    return ParquetRows(files, contract.row, **_of_speech(contract), block_bytes=block_bytes)


def saved_speech(folder: Path, contract: SpokenContract, *, block_bytes: int = LINES_BLOCK_BYTES) -> SavedDataset:
    """Spoken documents of a saved data set. Raises DataError if `folder` holds none."""
    return SavedDataset(folder, contract.row, **_of_speech(contract), block_bytes=block_bytes)


def _of_speech(contract: SpokenContract) -> dict[str, Any]:
    # Columns that were named must be there; others of the contract's keys may be.
    required = dict.fromkeys([*contract.required, *contract.columns])
    columns = {key: contract.their(key) for key in KEYS}
    return {"columns": columns, "required": list(required), "identity": contract.identity()}


def saved_files(folder: Path) -> list[Path]:
    """The Arrow files of a saved data set in order. Raises DataError."""
    splits = _described(folder / SPLITS_FILE, "splits") if (folder / SPLITS_FILE).is_file() else [""]
    files = []
    for split in splits:
        part = folder / _inside(folder, split) if split else folder
        entries = _described(part / STATE, "_data_files")
        files += [part / _inside(part, entry.get("filename") if isinstance(entry, dict) else entry) for entry in entries]
    return files


def batch_rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """A batch's rows as dictionaries; lists of whole numbers become arrays, without a Python number for each."""
    columns = {name: _values(column) for name, column in zip(batch.schema.names, batch.columns, strict=True)}
    for number in range(batch.num_rows):
        yield {name: values[number] for name, values in columns.items()}


def _values(column: pa.Array) -> Sequence[Any]:
    kind = column.type
    if isinstance(column, pa.ExtensionArray):
        return _values(column.storage)
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not listed or not pa.types.is_integer(kind.value_type) or column.values.null_count:
        values: list[Any] = column.to_pylist()
        return values
    flat, offsets = column.values.to_numpy(zero_copy_only=False), column.offsets.to_numpy()
    nothing = column.is_null().to_pylist() if column.null_count else [False] * len(column)
    return [None if nothing[i] else flat[offsets[i] : offsets[i + 1]] for i in range(len(column))]


def _runs(stretches: Sequence[tuple[int, int]], most: int) -> Iterator[tuple[int, int]]:
    """(first row, one past the last) of neighbouring stretches joined up to `most` bytes; a larger one stands alone."""
    start = stop = total = 0
    for rows, size in stretches:
        if stop > start and total + size > most:
            yield start, stop
            start, total = stop, 0
        stop, total = stop + rows, total + size
    if stop > start:
        yield start, stop


def _described(file: Path, key: str) -> list[Any]:
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"'{file.parent}' is no data set saved by `datasets` ({file.name} has no '{key}': {error}).") from error
    if not isinstance(entries, list) or not entries:
        raise DataError(f"'{file}' names nothing under '{key}'; save the data set again.")
    return entries


def _inside(folder: Path, name: Any) -> str:
    """`name` if it is that of a file in `folder` itself. Raises DataError."""
    if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name:
        raise DataError(f"'{folder}' names the file '{name}', which does not lie in it; save the data set again.")
    return name
