"""JSON lines, one spoken document a line: the project's own format, and slamkit's.

    {"id": "b1-0001", "speech_tokens": [17, 17, 402], "text": "The cat", "words": [{"word": "The", "start": 0, "end": 1}, ...]}
    {"units": [17, 402], "duration": [2, 1], "file_name": "84/121123/84-121123-0000.flac"}                       (slamkit)

slamkit's `extract_features` joins repeats and keeps how long each lasts: `duration` is needed, for without it 25 Hz time is
lost. Its `aligned_text` ([word, start, end] in seconds) and `text` are taken where a line has them. The names and forms of
keys, and what is refused, are told in lst/data/sources/contract.py; every refusal names file, line and reason.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lst.data.sources.base import LINES_BLOCK_BYTES, Block, Record, Refused, Row, block_lines, line_blocks
from lst.data.sources.contract import SECONDS, SpokenContract, whole_path

OWN_KEYS = ("id", "speech_tokens", "text", "words")
SLAMKIT_KEYS = {"id": "file_name", "speech_tokens": "units", "durations": "duration", "words": "aligned_text"}


class SpeechJsonl:
    """A `lst.data.sources.base.Source` of spoken documents; `files` are read one after another."""

    def __init__(self, files: Sequence[Path], contract: SpokenContract, *, block_bytes: int = LINES_BLOCK_BYTES) -> None:
        self._files, self._contract, self._block_bytes = files, contract, block_bytes

    def blocks(self) -> Sequence[Block]:
        return [block for file in self._files for block in line_blocks(file, self._block_bytes)]

    def read(self, block: Block) -> Iterator[Record | Refused]:
        return json_rows(block, self._contract.row)

    def identity(self) -> dict[str, Any]:
        return self._contract.identity()


def own_contract(contract: SpokenContract) -> SpokenContract:
    """The project's format: all four keys must be there, so that a mistyped one is seen."""
    return dataclasses.replace(contract, required=OWN_KEYS)


def slamkit_contract(contract: SpokenContract, *, deduplicated: bool = True) -> SpokenContract:
    """slamkit's keys, under the names that `contract.columns` gives; without `deduplicated` a line needs no durations."""
    return dataclasses.replace(
        contract,
        columns=SLAMKIT_KEYS | dict(contract.columns),
        required=("id", "speech_tokens", *(("durations",) if deduplicated else ())),
        times=SECONDS,
        naming=contract.naming or whole_path,
    )


def json_rows(block: Block, row: Callable[[Any], Row]) -> Iterator[Record | Refused]:
    """What `row` makes of each line's decoded value, or why it is refused."""
    for number, line in block_lines(block):
        try:
            yield Record(row(json.loads(line)), number)
        except json.JSONDecodeError as error:
            yield Refused(block.file, f"not JSON ({error.msg} at column {error.colno})", number)
        except ValueError as error:
            yield Refused(block.file, str(error), number)
        except RecursionError:
            yield Refused(block.file, "not JSON (nested too deeply)", number)
