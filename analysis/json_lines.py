"""Files of JSON lines decoded by msgspec, exactly as `json.loads` reads them (tested), several times as fast.

What msgspec refuses or reads otherwise (NaN and Infinity, bytes that are not ASCII, damaged lines) goes through `json.loads`, a
line at a time. Not here: what records mean (`analysis.step_records`, `analysis.run_files`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from lst import records

Row = TypeVar("Row")
PART_BYTES = 8 * 2**20
"""Bytes of a file that are decoded at once, about."""
OBJECTS: msgspec.json.Decoder[dict[str, Any]] = msgspec.json.Decoder(dict[str, Any])


def parts(path: Path, decoder: msgspec.json.Decoder[Row]) -> Iterator[list[Row]]:
    """The objects of the decoder's type, a line each, PART_BYTES at a time; a missing file gives nothing.

    A torn last line, damaged lines and those of another type are left out.
    """
    try:
        file = path.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        return
    with file:
        while data := file.read(PART_BYTES):
            if not data.endswith(b"\n"):
                data += file.readline()
            yield _decoded(data, decoder)


def _decoded(data: bytes, decoder: msgspec.json.Decoder[Row]) -> list[Row]:
    if data.isascii() and (count := _objects(data)):  # msgspec passes over bytes that are no UTF-8
        try:
            rows = decoder.decode_lines(data)
        except (msgspec.DecodeError, RecursionError):
            rows = []
        if len(rows) == count:
            return rows
    return [row for line in data.splitlines(keepends=True) for row in _slowly(line, decoder)]


def _objects(data: bytes) -> int:
    """How many lines there are if each begins with { and ends with }, so that no object goes on in the next one; else 0."""
    text = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(text == ord("\n"))
    whole = data.startswith(b"{") and data.endswith(b"}\n")
    whole = whole and bool((text[ends - 1] == ord("}")).all() and (text[ends[:-1] + 1] == ord("{")).all())
    return len(ends) if whole else 0


def _slowly(line: bytes, decoder: msgspec.json.Decoder[Row]) -> list[Row]:
    """The row of one line, by `json.loads`; none where it is damaged or of another type."""
    record = records.parse_line(line)
    if record is None:
        return []
    try:
        return [msgspec.convert(record, decoder.type)]
    except msgspec.ValidationError:
        return []
