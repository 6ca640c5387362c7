"""Written text: plain files, JSON lines, Parquet, and folders or globs of them, each a `lst.data.sources.base.Source`.

    novel.txt       paragraphs between blank lines; the id of one is the file's name and the line it starts on
    texts.jsonl     {"text": "Once upon a time ...", "id": "t1", "book": "b1", "split": "train"}        all but text optional
    texts.parquet   columns of the same names

White space inside a paragraph of a plain file is made single. A plain file names no books: of several files each is a book,
of one the paragraphs are drawn one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from lst.data.shards import SPLITS
from lst.data.sources.base import (
    LINES_BLOCK_BYTES,
    Block,
    Record,
    Refused,
    Row,
    Source,
    block_lines,
    file_size,
    line_blocks,
    printable,
    require_utf8,
)
from lst.data.sources.files import named_files
from lst.data.sources.speech_jsonl import json_rows
from lst.data.sources.tables import ParquetRows
from lst.errors import DataError

BYTE_ORDER_MARK = "\ufeff"
KEYS = ("id", "book", "split", "text")


@dataclass(frozen=True, kw_only=True)
class WrittenContract:
    """How a record of text becomes a row of the text table. `columns` are the names of a row's keys, where they differ."""

    columns: Mapping[str, str] = field(default_factory=dict)

    def their(self, key: str) -> str:
        return self.columns.get(key, key)

    def row(self, record: Any) -> Row:
        """A checked row; an id that is no string, or missing, is its writing or "". Raises ValueError with the reason."""
        if not isinstance(record, Mapping):
            raise ValueError("the record is no JSON object")
        row: Row = {}
        for key in KEYS:
            value = record.get(self.their(key))
            row[key] = str(value) if key == "id" and isinstance(value, int) else "" if value is None else value
            if not isinstance(row[key], str):
                raise ValueError(f"'{self.their(key)}' must be a string")
            require_utf8(self.their(key), row[key])
        if not row["text"].strip():
            raise ValueError(f"no text document: '{self.their('text')}' is missing or empty")
        if row["split"] not in ("", *SPLITS):
            raise ValueError(f"'{self.their('split')}' is '{row['split']}'; it must be one of {', '.join(SPLITS)}")
        return row


class PlainText:
    """A `lst.data.sources.base.Source` of the paragraphs of plain files."""

    def __init__(self, files: Mapping[str, Path], *, block_bytes: int = LINES_BLOCK_BYTES) -> None:
        """`files` by the names that begin their paragraphs' ids, and that are their books where there are several."""
        self._files, self._block_bytes = files, block_bytes
        self._names = {file: name for name, file in files.items()}

    def blocks(self) -> Sequence[Block]:
        return [block for file in self._files.values() for block in paragraph_blocks(file, self._block_bytes)]

    def read(self, block: Block) -> Iterator[Record | Refused]:
        name = printable(self._names[block.file])
        book = name if len(self._files) > 1 else ""
        for number, paragraph in _paragraphs(block):
            text = " ".join(paragraph.removeprefix(BYTE_ORDER_MARK).split())
            try:
                require_utf8("text", text)
            except ValueError as error:
                yield Refused(block.file, str(error), number)
                continue
            yield Record({"id": f"{name}-{number:06}", "book": book, "split": "", "text": text}, number)

    def identity(self) -> dict[str, Any]:
        return {}


class TextJsonl:
    """A `lst.data.sources.base.Source` of JSON lines; a line without an id is called by its file's name and its number."""

    def __init__(self, files: Mapping[str, Path], contract: WrittenContract, *, block_bytes: int = LINES_BLOCK_BYTES) -> None:
        self._files, self._contract, self._block_bytes = files, contract, block_bytes
        self._names = {file: name for name, file in files.items()}

    def blocks(self) -> Sequence[Block]:
        return [block for file in self._files.values() for block in line_blocks(file, self._block_bytes)]

    def read(self, block: Block) -> Iterator[Record | Refused]:
        for record in json_rows(block, self._contract.row):
            yield _named(record, self._names[block.file], record.line)

    def identity(self) -> dict[str, Any]:
        return {}


class TextParquet(ParquetRows):
    """A `lst.data.sources.base.Source` of Parquet files; a row without an id is called by its file's name and its number."""

    def __init__(self, files: Mapping[str, Path], contract: WrittenContract, *, block_bytes: int = LINES_BLOCK_BYTES) -> None:
        columns = {key: contract.their(key) for key in KEYS}
        super().__init__(
            list(files.values()), contract.row, columns=columns, required=("text",), identity={}, block_bytes=block_bytes
        )
        self._names = {file: name for name, file in files.items()}

    def read(self, block: Block) -> Iterator[Record | Refused]:
        for number, record in enumerate(super().read(block), block.start + 1):
            yield _named(record, self._names[block.file], number)


class _Mixed:
    """A `lst.data.sources.base.Source` of files of several kinds."""

    def __init__(self, by_suffix: Mapping[str, Source]) -> None:
        self._by_suffix = by_suffix

    def blocks(self) -> Sequence[Block]:
        return [block for source in self._by_suffix.values() for block in source.blocks()]

    def read(self, block: Block) -> Iterator[Record | Refused]:
        return self._by_suffix[block.file.suffix.lower()].read(block)

    def identity(self) -> dict[str, Any]:
        return {}


_BY_SUFFIX: dict[str, Callable[[Mapping[str, Path], WrittenContract], Source]] = {
    ".txt": lambda files, _: PlainText(files),
    ".jsonl": TextJsonl,
    ".parquet": TextParquet,
}


def written_source(given: str, columns: Mapping[str, str]) -> Source:
    """What `text=` names: a file, a folder (its .txt, .jsonl and .parquet files, at any depth), or a glob of files.

    Raises DataError if there is none, or one of another kind.
    """
    files = named_files(given, tuple(_BY_SUFFIX))
    other = next((file for file in files.values() if file.suffix.lower() not in _BY_SUFFIX), None)
    if other:
        raise DataError(f"text={other} must end in {', '.join(_BY_SUFFIX)}.")
    contract = WrittenContract(columns=columns)
    kinds = {suffix: {name: file for name, file in files.items() if file.suffix.lower() == suffix} for suffix in _BY_SUFFIX}
    return _Mixed({suffix: _BY_SUFFIX[suffix](named, contract) for suffix, named in kinds.items() if named})


def paragraph_blocks(path: Path, size: int = LINES_BLOCK_BYTES) -> list[Block]:
    """A file cut behind the first blank line after every `size` bytes, so that each paragraph lies in one block."""
    length = file_size(path)
    cuts = [0]
    with path.open("rb") as file:
        for place in range(size, length, size):
            if place <= cuts[-1]:
                continue
            file.seek(place - 1)
            file.readline()
            while (line := file.readline()) and line.strip():
                pass
            cuts.append(file.tell())
    return [Block(path, start, stop) for start, stop in pairwise([*cuts, length]) if stop > start]


def _paragraphs(block: Block) -> Iterator[tuple[int, str]]:
    """(number of the first line, lines) of each paragraph."""
    lines: list[str] = []
    number = 0
    for number, line in block_lines(block, blank=True):
        if line.strip():
            lines.append(line)
        elif lines:
            yield number - len(lines), "".join(lines)
            lines = []
    if lines:
        yield number - len(lines) + 1, "".join(lines)


def _named(record: Record | Refused, name: str, number: int) -> Record | Refused:
    if isinstance(record, Record) and not record.row["id"]:
        record.row["id"] = f"{name}-{number:06}"
    return record
