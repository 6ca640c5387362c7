"""What a benchmark's file has: an item with its parts, and what the readers of all formats share.

Readers: `lst.evals.item_lines`, `lst.evals.item_tables`, `lst.evals.item_folders`; which of them reads a file:
`lst.evals.item_formats`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lst.data.sources.base import Refused, require_utf8
from lst.errors import DataError

AUDIO = (".wav", ".flac", ".ogg")


class Part(NamedTuple):
    """A prompt or an ending, as far as its file tells."""

    text: str = ""
    audio: Path | None = None
    tokens: NDArray[np.int64] | None = None
    words: NDArray[np.int64] | None = None  # (n, 2)


class Found(NamedTuple):
    """An item as its file has it."""

    id: str
    parts: tuple[Part, ...]  # the prompt, if there is one, then the endings
    prompt: bool
    right: int
    line: int = 0
    group: str = ""
    pair: str = ""


Reader = Iterator[Found | Refused]


def read_text(file: Path, option: str = "eval") -> str:
    """A file's text, without the mark of its byte order that some programs put before it. Raises DataError naming `option`."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{option}={file} cannot be read as UTF-8 text ({error}); give a file of text.") from error


def parse_json(line: str) -> Any:
    """The JSON of a line. Raises ValueError on a key that stands twice in one object, of which Python would take the last."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            raise ValueError(f"it has '{next(key for key in keys if keys.count(key) > 1)}' twice")
        return found

    return json.loads(line, object_pairs_hook=once)


def read_label(value: Any, endings: int, first: int = 0) -> int:
    """The place of the right ending, from 0; labels count from `first`."""
    try:
        label = int(str(value)) - first
    except ValueError as error:
        raise ValueError(f"label '{value}' is no whole number") from error
    if not 0 <= label < endings:
        raise ValueError(f"label {value} is not one of its {endings} endings ({first}..{endings - 1 + first})")
    return label


def whole_numbers(values: Any, *, pairs: bool) -> bool:
    if not isinstance(values, list):
        return False
    if pairs:
        return all(isinstance(v, list) and len(v) == 2 and whole_numbers(v, pairs=False) for v in values)
    return all(type(v) is int and 0 <= v < 1 << 31 for v in values)


def check_found(item: Found) -> None:
    """What every format shares. Raises ValueError with the reason."""
    require_utf8("id", item.id)
    kinds = "prompt and endings" if item.prompt else "endings"
    for i, part in enumerate(item.parts):
        require_utf8("text", part.text)
        name = "the prompt" if item.prompt and i == 0 else f"ending {i - item.prompt}"
        if part.tokens is not None and not len(part.tokens):
            raise ValueError(f"{name} has no speech tokens")
        if part.text.strip() and not any(c.isprintable() and not c.isspace() for c in part.text):
            raise ValueError(f"{name} has text without a character that can be seen: {ascii(part.text)[:60]}")
        if not part.text.strip() and part.audio is None and part.tokens is None:
            raise ValueError(f"{name} is empty; {kinds} need text, audio or speech tokens")
