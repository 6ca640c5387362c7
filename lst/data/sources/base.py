"""What a reader of an existing format gives, and how its input is cut into blocks.

A source cuts its input into *blocks* by a rule that depends on the input alone: never on the machine, the number of parts or
where an earlier attempt stopped. A block is read, checked, written and resumed as one (lst/data/preparing/building.py), so the
prepared data set cannot depend on how the work was divided.

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
    audio_seconds: float = 0.0  # of the audio that its tokens were made from; 0 = not known


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
    length = file_size(path)
    return [Block(path, start, min(start + size, length)) for start in range(0, length, size)]


def file_size(path: Path) -> int:
    """Bytes of an input file. Raises DataError if it cannot be read."""
    try:
        if path.is_dir():
            raise DataError(f"{path} is a folder; give a file, or name the folder's format by format=.")
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); give an existing file.") from error


def block_lines(block: Block, *, blank: bool = False) -> Iterator[tuple[int, str]]:
    """(number from 1 in the file, line) of the block's lines; bytes that are no UTF-8 become surrogates.

    Lines of white space alone are left out unless `blank`.
    """
    number = 1 + newlines_before(block.file, block.start)
    with block.file.open("rb") as file:
        if block.start:
            file.seek(block.start - 1)
            number += int(file.readline() != b"\n")  # the rest of a line that began in the block before
        while file.tell() < block.stop:
            line = file.readline().decode("utf-8", errors="surrogateescape")
            if blank or line.strip():
                yield number, line
            number += 1


class _Counted(NamedTuple):
    """How many line ends the first `position` bytes of a file hold; `size` and `changed` tell that it is still that file."""

    size: int
    changed: int
    position: int = 0
    newlines: int = 0


_counted: dict[Path, _Counted] = {}  # the furthest count of each file: blocks are read in order, and a count goes on there


def newlines_before(path: Path, position: int) -> int:
    """How many line ends lie in the first `position` bytes of a file."""
    return _count_newlines(path, position, limit=None).newlines


def position_after_newlines(path: Path, count: int) -> int:
    """Bytes up to and with the `count`-th line end; the file's size if it has fewer."""
    return _count_newlines(path, path.stat().st_size, limit=count).position


def _count_newlines(path: Path, position: int, limit: int | None) -> _Counted:
    """Counts on to `position`, or to behind line end number `limit`."""
    status = path.stat()
    known = _counted.get(path, _Counted(status.st_size, status.st_mtime_ns))
    stale = (known.size, known.changed) != (status.st_size, status.st_mtime_ns)
    if stale or known.position > position or (limit is not None and known.newlines >= limit):
        known = _Counted(status.st_size, status.st_mtime_ns)
    at, count = known.position, known.newlines
    with path.open("rb") as file:
        file.seek(at)
        while at < position and (limit is None or count < limit) and (chunk := file.read(min(position - at, 1 << 20))):
            found = chunk.count(b"\n")
            if limit is not None and count + found >= limit:
                chunk = chunk[: _after_newlines(chunk, limit - count)]
                found = limit - count
            at, count = at + len(chunk), count + found
    _counted[path] = known._replace(position=at, newlines=count)
    return _counted[path]


def _after_newlines(chunk: bytes, count: int) -> int:
    """Bytes of `chunk` up to and with its `count`-th line end."""
    place = 0
    for _ in range(count):
        place = chunk.index(b"\n", place) + 1
    return place


def printable(name: str) -> str:
    """A file's or member's name with bytes that are no UTF-8 written as \\udcXX."""
    return name.encode("utf-8", "backslashreplace").decode()


def require_utf8(key: str, text: str) -> None:
    """Raises ValueError where `text` holds bytes that are no UTF-8, or half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"'{key}' is no UTF-8 text (at character {error.start})") from error
