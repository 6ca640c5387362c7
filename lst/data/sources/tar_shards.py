"""Tar shards as WebDataset writes them: members of one key, side by side, are a document. Streamed, never extracted.

    b1/0001.json        a record, by the keys of lst/data/sources/contract.py (its id is the key if it has none)
    b1/0001.units       or: speech tokens with spaces between them;  .durations likewise;  .txt the transcript
    b1/0001.npy         or: speech tokens as a NumPy array of whole numbers
    b1/0001.flac        other endings are passed over

The key is all before the first dot of the name. Links, devices, sparse files, absolute names and `..` are refused, member by
member; what would fill memory or never end (more members, more bytes after decompression than the limits) ends the reading. A
block is a file; .gz, .bz2 and .xz are told by their first bytes.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from tokenize import TokenError
from typing import IO, Any, cast

import numpy as np

from lst.data.sources.base import Block, Record, Refused, file_size, printable
from lst.data.sources.contract import SpokenContract
from lst.errors import DataError

TEXTS = {"units": "speech_tokens", "durations": "durations", "txt": "text"}  # ending -> a row's key
_WANTED = ("json", "npy", *TEXTS)
_DAMAGED = (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError)
_HEADER_BYTES = 1 << 20  # of a member's own headers (long names), and what tarfile reads ahead


@dataclass(frozen=True, kw_only=True)
class TarLimits:
    """How much of an archive is read, after decompression."""

    member_bytes: int = 64 << 20  # of a member that is wanted
    members: int = 10_000_000
    total_bytes: int = 64 << 30


@dataclass
class _Sample:
    """The members of one key so far: values by a row's key, or why it is refused."""

    key: str
    values: dict[str, Any] = field(default_factory=dict)
    refused: str = ""
    member: str = ""  # that was refused


class TarShards:
    """A `lst.data.sources.base.Source` over tar files."""

    def __init__(self, files: Sequence[Path], contract: SpokenContract, *, limits: TarLimits | None = None) -> None:
        self._files, self._contract, self._limits = files, contract, limits or TarLimits()

    def blocks(self) -> Sequence[Block]:
        return [Block(file, 0, file_size(file)) for file in self._files]

    def identity(self) -> dict[str, Any]:
        return self._contract.identity()

    def read(self, block: Block) -> Iterator[Record | Refused]:
        """Raises DataError if the archive is damaged or larger than the limits."""
        try:
            for sample in self._samples(block.file):
                place = f"member {printable(sample.member or sample.key)}"
                try:
                    if sample.refused:
                        raise ValueError(sample.refused)
                    values = {self._contract.their("id"): sample.key} | sample.values
                    yield Record(self._contract.row(values), place=place)
                except ValueError as error:
                    yield Refused(block.file, str(error), place=place)
        except _DAMAGED as error:
            raise DataError(f"{block.file} is no whole tar archive ({error}); fetch or write it again.") from error

    def _samples(self, file: Path) -> Iterator[_Sample]:
        sample: _Sample | None = None
        for key, ending, member, content in self._members(file):
            if sample is None or sample.key != key:
                if sample and (sample.values or sample.refused):
                    yield sample
                sample = _Sample(key)
            try:
                self._add(sample, ending, member, content)
            except ValueError as error:
                if not sample.refused:
                    sample.refused, sample.member = str(error), member.name
        if sample and (sample.values or sample.refused):
            yield sample

    def _add(self, sample: _Sample, ending: str, member: tarfile.TarInfo, content: IO[bytes] | None) -> None:
        """Raises ValueError if the member is one that is refused."""
        reason = _unsafe(member)
        if reason:
            raise ValueError(reason)
        if ending not in _WANTED or content is None:
            return
        if member.size > self._limits.member_bytes:
            raise ValueError(f"it has {member.size:,} bytes; a member may have {self._limits.member_bytes:,}")
        values = self._decoded(ending, content.read())
        twice = next((key for key in values if key in sample.values), None)
        if twice:
            raise ValueError(f"'{twice}' is given by another member too")
        sample.values |= values

    def _decoded(self, ending: str, content: bytes) -> dict[str, Any]:
        if ending == "npy":
            return {self._contract.their("speech_tokens"): _numpy_array(content)}
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"it is no UTF-8 (at byte {error.start})") from error
        if ending != "json":
            return {self._contract.their(TEXTS[ending]): text.strip()}
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"not JSON ({error.msg} at character {error.pos})") from error
        except RecursionError as error:
            raise ValueError("not JSON (nested too deeply)") from error
        if not isinstance(record, dict):
            raise ValueError("the record is no JSON object")
        return record

    def _members(self, file: Path) -> Iterator[tuple[str, str, tarfile.TarInfo, IO[bytes] | None]]:
        """(key, ending, header, content) of each member but folders. Raises DataError past the limits."""
        with _decompressed(file) as plain:
            guarded = _Guarded(plain, file, self._limits.total_bytes)
            guarded.header()  # opening reads the first one
            with tarfile.open(fileobj=cast(IO[bytes], guarded), mode="r|", tarinfo=_Member) as archive:
                for count in range(self._limits.members + 1):
                    guarded.header()
                    member = archive.next()
                    if member is None:
                        return guarded.require_end(cast(IO[bytes], archive.fileobj))
                    if count == self._limits.members:
                        break
                    # tarfile keeps every header it has read; a stream of millions must not.
                    cast(Any, archive).members.clear()
                    guarded.content(member)
                    if not member.isdir():
                        path = PurePosixPath(member.name)
                        stem, _, ending = path.name.partition(".")
                        key = str(path.with_name(stem)) if stem else member.name
                        regular = member.isreg() and not member.issparse()
                        yield key, ending, member, archive.extractfile(member) if regular else None
        raise DataError(f"{file} has more than {self._limits.members:,} members; split it into several.")


class _Member(tarfile.TarInfo):
    """A header that is wrong in the midst of an archive is an error: tarfile takes it for the end."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _Member:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise  # two blocks of zeros: the end
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error or 'no end'} at byte {tarfile_.offset}") from error


class _Guarded:
    """Bytes for tarfile, which would read a header of any length into memory: no more than a member and its headers at once."""

    def __init__(self, source: IO[bytes], file: Path, total: int) -> None:
        self._source, self._file, self._left, self._room = source, file, total, 0

    def header(self) -> None:
        """Room for the next member's headers, beside what is left of the member before."""
        self._room += _HEADER_BYTES

    def content(self, member: tarfile.TarInfo) -> None:
        """Room for a member's content instead of more headers."""
        if not 0 <= member.size <= self._left:
            self._refuse()
        self._room = member.size + _HEADER_BYTES

    def require_end(self, stream: IO[bytes]) -> None:
        """Raises DataError unless zeros alone follow: a second archive behind the first would be dropped in silence."""
        self.header()
        while rest := stream.read(_HEADER_BYTES):
            if rest.strip(b"\0"):
                raise DataError(f"{self._file} goes on behind its end; archives that were joined end to end must be given apart.")
            self.header()

    def read(self, size: int) -> bytes:
        data = self._source.read(size)
        self._left -= len(data)
        self._room -= len(data)
        if self._left < 0 or self._room < 0:
            self._refuse()
        return data

    def _refuse(self) -> None:
        raise DataError(f"{self._file} asks for more memory or bytes than an archive of documents needs; it is not read.")


def _unsafe(member: tarfile.TarInfo) -> str:
    """Why a member is refused, or ""."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name or "\0" in member.name:
        return "its name is absolute or leaves the archive"
    if member.islnk() or member.issym():
        return f"it is a link (to {member.linkname[:80]!r}); store the file itself"
    if not member.isreg() or member.issparse():
        return "it is no regular file"
    return ""


def _decompressed(file: Path) -> IO[bytes]:
    with file.open("rb") as raw:
        start = raw.read(6)
    if start.startswith(b"\x1f\x8b"):
        return cast(IO[bytes], gzip.open(file, "rb"))
    if start.startswith(b"BZh"):
        return cast(IO[bytes], bz2.open(file, "rb"))
    if start.startswith(b"\xfd7zXZ\x00"):
        return cast(IO[bytes], lzma.open(file, "rb"))
    return file.open("rb")


def _numpy_array(content: bytes) -> np.ndarray[Any, Any]:
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError, MemoryError, SyntaxError, TokenError) as error:
        raise ValueError(f"it is no NumPy array ({error})") from error
    if not isinstance(array, np.ndarray):
        raise ValueError("it is an archive of NumPy arrays; store one array")
    return array
