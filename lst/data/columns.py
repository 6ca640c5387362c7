"""Reading tables: list columns without copies, and the documents of one split in file order, wherever they lie.

A table is one file of both splits, or many *shards* of one split each (lst/data/shards.py). Either way its documents come in
record batches, and what is read of them are views of the file: nothing is combined, widened or copied.

Memory. A split holds its shards' names and counts; of a shard that was read once, where each record batch begins (28 bytes a
batch); and at most OPEN_FILES maps with OPEN_CHUNKS record batches each. It holds nothing for each document: a billion documents
of 500 tokens in batches of 2^20 tokens are 477,000 batches, 13 MB. Only a table of both splits costs more: 28 bytes for each
change of split from one row to the next. Pages that were read count as resident until the kernel takes them back, or until
`release`, after which a page that is wanted again is mapped again.
"""

from __future__ import annotations

import mmap
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lst.errors import DataError

OPEN_FILES = 32  # memory-mapped shards of a split at a time
OPEN_CHUNKS = 64  # record batches of each at a time
SHUFFLED = 1 << 24  # places up to which all are shuffled, 128 MiB

IntArray = NDArray[np.int64]


class ListColumn(NamedTuple):
    """A list column of one record batch: row i is `values[offsets[i]:offsets[i + 1]]`. Views of the file."""

    values: NDArray[Any]
    offsets: NDArray[np.int32]

    @classmethod
    def of(cls, array: pa.ListArray) -> ListColumn:
        # By the array protocol: pyarrow's own conversion imports pandas, a second in each run.
        return cls(np.from_dlpack(array.values), cast(NDArray[np.int32], np.from_dlpack(array.offsets)))

    def total(self, first: int, last: int) -> int:
        """Values of rows `first` .. `last` - 1."""
        return self.offsets.item(last) - self.offsets.item(first)

    def row(self, row: int) -> NDArray[Any]:
        return self.values[self.offsets.item(row) : self.offsets.item(row + 1)]


class Ragged:
    """A whole list column, in as many chunks as its table has. For small tables: `lengths` is an array of all rows."""

    def __init__(self, chunks: Sequence[ListColumn]) -> None:
        self._chunks = chunks
        self._ends = np.cumsum([len(chunk.offsets) - 1 for chunk in chunks], dtype=np.int64)

    def __len__(self) -> int:
        return _last(self._ends)

    def __getitem__(self, row: int) -> NDArray[Any]:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        place = int(np.searchsorted(self._ends, row, side="right"))
        return self._chunks[place].row(int(row) - (int(self._ends[place - 1]) if place else 0))

    @property
    def lengths(self) -> IntArray:
        """(rows,) values of each row."""
        return np.concatenate([np.zeros(0, np.int64), *(np.diff(chunk.offsets) for chunk in self._chunks)])


def ragged(table: pa.Table, column: str) -> Ragged:
    """A list column with its chunks as they are; zero-copy where the file is memory-mapped."""
    return Ragged([ListColumn.of(chunk) for chunk in table[column].chunks])


class Chunk:
    """The list columns of one record batch, by name."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self._batch = batch
        self._columns: dict[str, ListColumn] = {}

    def __getitem__(self, name: str) -> ListColumn:
        column = self._columns.get(name)
        if column is None:
            column = self._columns[name] = ListColumn.of(self._batch.column(name))
        return column

    def __contains__(self, name: str) -> bool:
        return name in self._batch.schema.names


class Place(NamedTuple):
    """Where a document lies, and how many of its tokens stand before the place that was asked for."""

    chunk: Chunk
    row: int  # in the chunk
    offset: int = 0


class MappedFile:
    """A memory-mapped Arrow file."""

    def __init__(self, path: Path) -> None:
        """Raises DataError if it is missing or no Arrow file."""
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._reader = pa.ipc.open_file(pa.py_buffer(self._map))
        except (OSError, ValueError, pa.ArrowException) as error:  # ValueError: an empty file
            raise DataError(f"'{path}' cannot be read ({error}); prepare the data set again.") from error

    def __len__(self) -> int:
        return int(self._reader.num_record_batches)

    def __getitem__(self, number: int) -> pa.RecordBatch:
        return self._reader.get_batch(number)

    def release(self) -> None:
        """Let go of the pages that were read; views stay good."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


Batches = Sequence[pa.RecordBatch] | MappedFile


class Part:
    """Documents of one split in one file: runs of rows, each inside one record batch."""

    def __init__(
        self,
        name: str,
        batches: Callable[[], Batches],
        runs: Callable[[pa.RecordBatch], list[tuple[int, int]]],
        column: str,
        counts: tuple[int, int] | None = None,
    ) -> None:
        """`counts` are its documents and the tokens of list column `column`, where they are known without opening it."""
        self.name, self.batches, self._runs, self._column, self._counts = name, batches, runs, column, counts

    @property
    def rows(self) -> int:
        return self._counts[0] if self._counts else _last(self.row_ends)

    @property
    def tokens(self) -> int:
        return self._counts[1] if self._counts else _last(self.token_ends)

    @property
    def runs(self) -> NDArray[np.int32]:
        """(n, 3) record batch, first row, and one past the last."""
        return self._index[0]

    @property
    def row_ends(self) -> IntArray:
        """(n,) documents of the part up to each run's end."""
        return self._index[1]

    @property
    def token_ends(self) -> IntArray:
        """(n,) the same for tokens."""
        return self._index[2]

    @cached_property
    def _index(self) -> tuple[NDArray[np.int32], IntArray, IntArray]:
        batches, runs, tokens = self.batches(), [], []
        for number in range(len(batches)):
            batch = batches[number]
            counted = ListColumn.of(batch.column(self._column))
            for first, last in self._runs(batch):
                if last > first:
                    runs.append((number, first, last))
                    tokens.append(counted.total(first, last))
        table = np.array(runs, np.int32).reshape(-1, 3)
        row_ends, token_ends = np.cumsum(table[:, 2] - table[:, 1], dtype=np.int64), np.cumsum(tokens, dtype=np.int64)
        found = (_last(row_ends), _last(token_ends))
        if self._counts not in (None, found):
            raise DataError(
                f"'{self.name}' holds {found[0]:,} documents of {found[1]:,} tokens, but its manifest says {self._counts[0]:,} "
                f"of {self._counts[1]:,}; prepare the data set again."
            )
        return table, row_ends, token_ends


class Split:
    """The documents of one split of a table, in file order, as one long stream of the tokens in list column `column`.

    For one thread: what is open changes with each read.
    """

    def __init__(self, parts: Sequence[Part], column: str) -> None:
        self.column = column
        self._parts = [part for part in parts if part.rows]
        self._ends = np.cumsum([part.tokens for part in self._parts], dtype=np.int64)
        self._open: OrderedDict[int, tuple[Batches, dict[int, Chunk]]] = OrderedDict()  # the last used stands last

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self._parts)

    @property
    def tokens(self) -> int:
        return _last(self._ends)

    def from_token(self, token: int) -> Iterator[Place]:
        """The document that holds `token` of the stream, then those after it, round and round."""
        part = int(np.searchsorted(self._ends, token, side="right"))
        within = token - (int(self._ends[part - 1]) if part else 0)
        ends = self._parts[part].token_ends
        run = int(np.searchsorted(ends, within, side="right"))
        number, first, _ = self._parts[part].runs[run].tolist()
        chunk = self._chunk(part, number)
        offsets = chunk[self.column].offsets
        wanted = int(offsets[first]) + within - (int(ends[run - 1]) if run else 0)
        # The key has the offsets' own type: another would make numpy copy all of them.
        row = int(np.searchsorted(offsets, offsets.dtype.type(wanted), side="right")) - 1
        yield Place(chunk, row, wanted - int(offsets[row]))
        for later in range(row + 1, self._parts[part].runs[run, 2]):
            yield Place(chunk, later)
        while True:
            run += 1
            if run == len(self._parts[part].runs):
                part, run = (part + 1) % len(self._parts), 0
            number, first, last = self._parts[part].runs[run].tolist()
            chunk = self._chunk(part, number)
            for row in range(first, last):
                yield Place(chunk, row)

    def runs(self) -> Iterator[tuple[Chunk, int, int]]:
        """All documents once, as (chunk, first row, one past the last); pages are let go of on the way."""
        for number, part in enumerate(self._parts):
            for batch, first, last in part.runs.tolist():
                yield self._chunk(number, batch), first, last
                self.release()

    def documents(self, places: Iterable[int]) -> Iterator[Place]:
        """The documents at `places` (rising, from 0) of the split; files without any are not opened."""
        part_ends = np.cumsum([part.rows for part in self._parts])
        for place in places:
            number = int(np.searchsorted(part_ends, place, side="right"))
            part = self._parts[number]
            within = place - (int(part_ends[number - 1]) if number else 0)
            run = int(np.searchsorted(part.row_ends, within, side="right"))
            batch, first, _ = part.runs[run].tolist()
            yield Place(self._chunk(number, batch), first + within - (int(part.row_ends[run - 1]) if run else 0))

    def release(self) -> None:
        """Let go of the pages of the open files; a page that is wanted again is mapped again."""
        for source, _ in self._open.values():
            if isinstance(source, MappedFile):
                source.release()

    def _chunk(self, part: int, number: int) -> Chunk:
        if part in self._open:
            self._open.move_to_end(part)
        else:
            self._open[part] = self._parts[part].batches(), {}
            if len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)
        source, chunks = self._open[part]
        if number not in chunks:
            if len(chunks) >= OPEN_CHUNKS:
                chunks.clear()
            chunks[number] = Chunk(source[number])
        return chunks[number]


def draw_places(generator: np.random.Generator, count: int, wanted: int) -> list[int]:
    """`wanted` of 0 .. `count` - 1 without replacement, rising; all if there are no more.

    Of more than SHUFFLED they are drawn without an array of all, so that memory does not grow with the documents.
    """
    if count <= SHUFFLED or count <= wanted:
        return sorted(generator.permutation(count)[:wanted].tolist())
    return sorted(generator.choice(count, wanted, replace=False, shuffle=False).tolist())


def rows_of_split(split: str) -> Callable[[pa.RecordBatch], list[tuple[int, int]]]:
    """The runs of rows of `split` in a record batch of a table with both splits."""

    def runs(batch: pa.RecordBatch) -> list[tuple[int, int]]:
        codes = batch.column("split").dictionary_encode()
        names = codes.dictionary.to_pylist()
        own = np.from_dlpack(codes.indices) == (names.index(split) if split in names else -1)
        edges = np.flatnonzero(np.diff(own, prepend=False, append=False)).tolist()
        return list(pairwise(edges))[::2]

    return runs


def all_rows(batch: pa.RecordBatch) -> list[tuple[int, int]]:
    """The one run of a record batch of one split."""
    return [(0, batch.num_rows)]


def _last(ends: IntArray) -> int:
    return int(ends[-1]) if len(ends) else 0
