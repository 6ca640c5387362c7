"""Speech tokens in plain lines: fairseq's TSV with a .km, and textlesslib's .units with .durations.

    train.tsv                                       train.km
    /data/LibriSpeech            the root
    84/121123/84-121123-0000.flac <tab> 252400      17 17 402 5 5 9 ...      line 1: the first audio file's tokens

    train.units                                     train.durations
    84-121123-0000 <tab> 17 402 5 9                 84-121123-0000 <tab> 2 1 2 1

The second column of a TSV is the number of audio samples: tokens that are not `rate` a second of them are refused, so a .km of
another frame rate, of other audio or of joined repeats is found. textlesslib writes names with --preserve_name; they are
needed, for several workers leave the manifest's order. GSLM's `name|17 402` is read too. Neither format has words or texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat
from pathlib import Path, PurePosixPath
from typing import Any

from lst.data.sources.base import (
    LINES_BLOCK_BYTES,
    Block,
    Record,
    Refused,
    block_lines,
    file_size,
    line_blocks,
    newlines_before,
    position_after_newlines,
    require_utf8,
)
from lst.data.sources.contract import SpokenContract, is_count
from lst.errors import DataError

SPARE_FRAMES, SPARE_SHARE = 3, 0.01  # by how much tokens may miss `rate`: encoders drop the ends of a file, or of its chunks


class _PairedLines:
    """Two files whose lines belong together, read by blocks of the first."""

    def __init__(self, file: Path, other: Path | None, contract: SpokenContract, block_bytes: int) -> None:
        self._file, self._other, self._contract, self._block_bytes = file, other, contract, block_bytes

    def identity(self) -> dict[str, Any]:
        return self._contract.identity()

    def _blocks(self, header: int, what: str) -> Sequence[Block]:
        """Raises DataError unless both files have equally many lines, but for `header` more in the other one."""
        blocks = line_blocks(self._file, self._block_bytes)
        if self._other:
            here, there = _count_lines(self._file), _count_lines(self._other) - header
            if here != there:
                raise DataError(
                    f"{self._file} has {here:,} lines, but {self._other} {what.format(f'{there:,}')}; make both of one list."
                )
        return blocks

    def _pairs(self, block: Block, header: int) -> Iterator[tuple[int, str, str]]:
        """(number, line, the other file's line) without line ends."""
        others: Iterator[str] | None = None
        for number, line in block_lines(block, blank=True):
            others = others or self._others(number - 1 + header)
            yield number, line.rstrip("\r\n"), next(others, "")

    def _others(self, skipped: int) -> Iterator[str]:
        if not self._other:
            return repeat("")
        start = position_after_newlines(self._other, skipped) if skipped else 0
        rest = block_lines(Block(self._other, start, file_size(self._other)), blank=True)
        return (line.rstrip("\r\n") for _, line in rest)


class FairseqLabels(_PairedLines):
    """A `lst.data.sources.base.Source`: a fairseq manifest (`files.tsv`) and its frame labels (.km)."""

    def __init__(
        self,
        manifest: Path,
        labels: Path | None,
        contract: SpokenContract,
        *,
        sample_rate: int = 16_000,
        block_bytes: int = LINES_BLOCK_BYTES,
    ) -> None:
        super().__init__(labels or manifest.with_suffix(".km"), manifest, contract, block_bytes)
        self._manifest, self._sample_rate = manifest, sample_rate

    def blocks(self) -> Sequence[Block]:
        """Raises DataError if a file is missing, or the TSV does not name one audio file a line of the .km."""
        file_size(self._manifest)
        with self._manifest.open("rb") as file:
            if b"\t" in file.readline():
                raise DataError(f"{self._manifest}:1 must be the root folder alone, as fairseq writes it; put it in.")
        return self._blocks(1, "names {} files")

    def read(self, block: Block) -> Iterator[Record | Refused]:
        for number, labels, named in self._pairs(block, header=1):
            try:
                path, _, samples = named.partition("\t")
                seconds = self._samples(path, samples.strip()) / self._sample_rate
            except ValueError as error:
                yield Refused(self._manifest, str(error), number + 1)
                continue
            try:
                if not labels.strip():
                    raise ValueError("the line is empty, so its audio file has no tokens")
                self._require_rate(len(labels.split()), seconds)
                yield Record(self._contract.row({"id": path, "speech_tokens": labels}), number, audio_seconds=seconds)
            except ValueError as error:
                yield Refused(block.file, str(error), number)

    def _samples(self, path: str, samples: str) -> int:
        if not path.strip():
            raise ValueError("the line names no audio file")
        require_utf8("path", path)
        if not (samples.isascii() and samples.isdigit() and is_count(int(samples[:11])) and int(samples)):
            raise ValueError(f"'{samples[:20]}' after the tab is no number of audio samples")
        return int(samples)

    def _require_rate(self, tokens: int, seconds: float) -> None:
        rate = self._contract.rate
        if abs(tokens - rate * seconds) > SPARE_FRAMES + SPARE_SHARE * rate * seconds:
            raise ValueError(
                f"{tokens} tokens for {seconds:.2f} s are {tokens / seconds:.1f} a second, not rate={rate} "
                f"(by the TSV, at sample_rate={self._sample_rate})"
            )


class TextlessUnits(_PairedLines):
    """A `lst.data.sources.base.Source`: textlesslib's `name <tab> units` with its durations beside."""

    def __init__(
        self, file: Path, contract: SpokenContract, *, deduplicated: bool = True, block_bytes: int = LINES_BLOCK_BYTES
    ) -> None:
        """`deduplicated=False` says that no repeats were joined, so that no durations are needed."""
        super().__init__(file, file.with_suffix(".durations") if deduplicated else None, contract, block_bytes)

    def blocks(self) -> Sequence[Block]:
        """Raises DataError if a file is missing, or the lines of both are not equally many."""
        if self._other and not self._other.is_file():
            raise DataError(
                f"'{self._other}' is missing: without durations joined repeats have lost their 25 Hz time; transcribe with "
                "--durations, or give deduplicated=false if no repeats were joined."
            )
        return self._blocks(0, "has {}")

    def read(self, block: Block) -> Iterator[Record | Refused]:
        for number, units, lasting in self._pairs(block, header=0):
            try:
                yield Record(self._contract.row(self._record(units, lasting)), number)
            except ValueError as error:
                yield Refused(block.file, str(error), number)

    def _record(self, units: str, lasting: str) -> dict[str, Any]:
        name, tokens = _named(units)
        record = {"id": f"{name}.wav" if self._contract.naming else name, "speech_tokens": tokens}
        if self._other:
            other, record["durations"] = _named(lasting)
            if other != name:
                raise ValueError(f"'{name}' stands here, but '{other[:80]}' on this line of {self._other.name}")
        return record


def _named(line: str) -> tuple[str, str]:
    """(name, numbers) of `name <tab> numbers` or `name|numbers`. Raises ValueError."""
    name, mark, numbers = line.partition("\t" if "\t" in line else "|")
    if not mark or not PurePosixPath(name).name:
        raise ValueError("no name and tab before the numbers; transcribe with --preserve_name")
    return name, numbers


def _count_lines(path: Path) -> int:
    size = file_size(path)
    with path.open("rb") as file:
        file.seek(max(size - 1, 0))
        unended = file.read(1) not in (b"\n", b"")
    return newlines_before(path, size) + unended
