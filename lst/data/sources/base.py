"""What a reader of an existing format gives, and how its input is cut into blocks.

A source cuts its input into *blocks* by a rule that depends on the input alone: never on the machine, the number of parts or
where an earlier attempt stopped. A block is read, checked, written and resumed as one (lst/data/building.py), so the prepared
data set cannot depend on how the work was divided.

`read` yields records and refusals in the input's order. A record's row is a dictionary with the raw columns of its table in
lst/data/shards.py (no text pieces: those are made when the parts are joined):

    spoken  id, speaker, book, split, text, speech_tokens, words, word_start, word_end   (frames at 25 Hz, both ends inside)
    written id, book, split, text

`speech_tokens` may be a list or an array of whole numbers; texts that are not known are "", words that are not known are [].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from lst.errors import DataError

LINES_BLOCK_BYTES = 64 * 2**20  # a constant of the format: another number would cut other blocks, and so other shards

Row = dict[str, Any]


class Block(NamedTuple):
    """A stretch of the input, in the source's own numbering: bytes of a file of lines, rows of a table, members, files."""

    file: Path
    start: int = 0
    stop: int = 0


class Record(NamedTuple):
    """A well-formed record, and where it stands (as in `Refused`), for what only a look at all records can refuse."""

    row: Row
    line: int = 0
    place: str = ""


@dataclass(frozen=True)
class Refused:
    """A malformed record, of which nothing is kept."""

    file: Path
    reason: str
    line: int = 0  # from 1; 0: the file has no lines, and `place` says where
    place: str = ""  # for example: row 17, or: member b1/0001.json

    def __str__(self) -> str:
        where = f":{self.line}" if self.line else f", {self.place}" if self.place else ""
        return f"{self.file}{where}: {self.reason}"


class Source(Protocol):
    """A reader of one format. Its constructor raises DataError where the input as a whole cannot be read."""

    def blocks(self) -> Sequence[Block]:
        """The input in order, cut by a fixed rule."""

    def read(self, block: Block) -> Iterator[Record | Refused]:
        """The records of one block."""

    def identity(self) -> dict[str, Any]:
        """What decides the rows beside the input's bytes (a tokenizer card, an aligner); it becomes part of the data set's."""


def line_blocks(path: Path, size: int = LINES_BLOCK_BYTES) -> list[Block]:
    """A file of lines cut every `size` bytes; a line belongs to the block in which its first byte lies."""
    try:
        length = path.stat().st_size
    except OSError as error:
        raise DataError(f"input={path} cannot be read ({error.strerror}); give an existing file.") from error
    return [Block(path, start, min(start + size, length)) for start in range(0, length, size)]


def block_lines(block: Block) -> Iterator[tuple[int, str]]:
    """(number from 1 in the file, line) of the block's lines that are not blank; bytes that are no UTF-8 become surrogates."""
    number = 1 + _newlines_before(block.file, block.start)
    with block.file.open("rb") as file:
        if block.start:
            file.seek(block.start - 1)
            number += int(file.readline() != b"\n")  # the rest of a line that began in the block before
        while file.tell() < block.stop:
            line = file.readline().decode("utf-8", errors="surrogateescape")
            if line.strip():
                yield number, line
            number += 1


def _newlines_before(path: Path, position: int) -> int:
    count = 0
    with path.open("rb") as file:
        while position > 0 and (chunk := file.read(min(position, 1 << 20))):
            count += chunk.count(b"\n")
            position -= len(chunk)
    return count


def require_utf8(key: str, text: str) -> None:
    """Raises ValueError where `text` holds bytes that are no UTF-8, or half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"'{key}' is no UTF-8 text (at character {error.start})") from error
