"""Praat's TextGrid, long and short form: the words of one interval tier.

Praat reads such a file as a row of free-standing numbers, "texts" and <flags>, and passes over everything else; so does this
reader, which is why both forms need no more than one. A quotation mark inside a text is written twice; `!` starts a comment.
UTF-8, or UTF-16 with its byte order mark. Points (TextTier) are passed over. Binary TextGrids are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lst.data.audio.transcripts import Malformed

WORD_TIERS = ("words", "word")
_ITEM = re.compile(r'"(?P<text>(?:[^"]|"")*)"|<(?P<flag>\w+)>|(?P<comment>![^\n]*)|(?P<other>[^\s"<!][^\s"]*|<)')
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


class Interval(NamedTuple):
    """A labelled stretch of time in seconds, and the line that it stands on."""

    text: str
    start: float
    end: float
    line: int


def read_textgrid(file: Path, tier: str = "") -> list[Interval]:
    """The intervals of `tier`: by default the one that is named words or word, or `speaker - words`, or the only one.

    Raises Malformed with the line if the file is none, is cut, or lacks the tier.
    """
    items = _Items(file, _decoded(file))
    if (items.text(), items.text()) not in (("ooTextFile", "TextGrid"), ("ooTextFile short", "TextGrid")):
        raise Malformed(file, 1, "no TextGrid in Praat's text form")
    items.number()
    items.number()
    tiers: dict[str, list[Interval]] = {}
    if items.flag() == "exists":
        for _ in range(items.count()):
            kind, name = items.text(), items.text()
            items.number()
            items.number()
            if kind not in ("IntervalTier", "TextTier"):
                raise Malformed(file, items.line, f"tier '{name}' is of the unknown class '{kind}'")
            width = 2 if kind == "IntervalTier" else 1
            entries = [_interval(items, width) for _ in range(items.count())]
            if kind == "IntervalTier":
                tiers.setdefault(name, entries)
    return tiers[_choose(file, tiers, tier)]


def _choose(file: Path, tiers: dict[str, list[Interval]], tier: str) -> str:
    """The name of the wanted tier."""
    known = ", ".join(f"'{name}'" for name in tiers) or "none"
    if tier:
        if tier not in tiers:
            raise Malformed(file, 0, f"no interval tier '{tier}'; it has: {known}")
        return tier
    wanted = [name for name in tiers if name.lower().rpartition(" - ")[2] in WORD_TIERS]
    if len(wanted) == 1 or len(tiers) == 1:
        return (wanted or list(tiers))[0]
    raise Malformed(file, 0, f"which interval tier has the words is not clear; give tier=NAME out of: {known}")


def _interval(items: _Items, width: int) -> Interval:
    times = [items.number() for _ in range(width)]
    return Interval(items.text(), times[0], times[-1], items.line)


def _decoded(file: Path) -> str:
    try:
        content = file.read_bytes()
        encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        return content.decode(encoding)
    except (OSError, UnicodeDecodeError) as error:
        raise Malformed(file, 0, f"it cannot be read as UTF-8 or UTF-16 ({error})") from error


class _Items:
    """The free-standing items of a file, one after another, each with its line."""

    def __init__(self, file: Path, content: str) -> None:
        self._file, self._items, self.line = file, self._scan(content), 1

    def _scan(self, content: str) -> Iterator[tuple[str, str, int]]:
        line, position = 1, 0
        for match in _ITEM.finditer(content):
            line += content.count("\n", position, match.start())
            position = match.start()
            kind = str(match.lastgroup)
            if kind == "other" and _NUMBER.fullmatch(match[0]):
                kind = "number"
            if kind in ("text", "flag", "number"):
                yield kind, match["text"].replace('""', '"') if kind == "text" else match["flag"] or match[0], line

    def _next(self, kind: str) -> str:
        item = next(self._items, None)
        if item is None:
            raise Malformed(self._file, self.line, f"the file ends where a {kind} should stand: it is cut")
        self.line = item[2]
        if item[0] != kind:
            raise Malformed(self._file, self.line, f"'{' '.join(item[1].split())[:40]}' stands where a {kind} should")
        return item[1]

    def text(self) -> str:
        return self._next("text")

    def flag(self) -> str:
        return self._next("flag")

    def number(self) -> float:
        return float(self._next("number"))

    def count(self) -> int:
        value = self.number()
        if not 0 <= value < 1 << 31 or value != int(value):
            raise Malformed(self._file, self.line, f"{value:g} stands where a number of things should")
        return int(value)
