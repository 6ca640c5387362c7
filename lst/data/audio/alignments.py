"""When each word is spoken, from files that people have: TextGrid, CTM, JSON.

    alignments=FOLDER          ID.TextGrid, ID.ctm or ID.json in it or below; by the last part of the id where no folder has it
    alignments=FILE.ctm        id channel start duration word [confidence], seconds; `;;` starts a comment
    alignments=FILE.jsonl      {"id": ..., "words": [{"word", "start", "end"}]} a line

JSON is a list of {"word", "start", "end"} in seconds, or an object with that list under "words" (Gentle), or WhisperX's
"segments" with "words" in each, or the "tiers" of the Montreal Forced Aligner. A word whose times are missing (Gentle's and
WhisperX's way to say that it was not found) has None for them. Labels of silence are no words. FILE.ctm and FILE.jsonl are
indexed by the places of their documents: about 200 bytes of memory a document.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from lst.data.audio.textgrid import WORD_TIERS, read_textgrid
from lst.data.audio.transcripts import Malformed
from lst.data.sources.files import files_below
from lst.data.vocab import FRAMES_PER_SECOND
from lst.errors import DataError

SUFFIXES = (".TextGrid", ".ctm", ".json")
SILENCES = frozenset({"", "sil", "sp", "<eps>", "<sil>", "[sil]", "<p:>"})


class Heard(NamedTuple):
    """A word of an alignment; times in seconds, None where the aligner did not find it."""

    word: str
    start: float | None
    end: float | None
    line: int = 0


class Alignments:
    """`alignments=`, opened."""

    def __init__(self, given: Path, *, tier: str = "") -> None:
        """Raises DataError if it isn't there, or a whole FILE is malformed."""
        self._given, self._tier = given, tier
        if given.is_dir():
            self._index: dict[str, tuple[int, int, int]] | None = None
        elif given.suffix in (".ctm", ".jsonl") and given.is_file():
            try:
                self._index = index_lines(given, _ctm_id if given.suffix == ".ctm" else _jsonl_id)
            except Malformed as error:
                raise DataError(f"{error}; mend the line.") from error
        else:
            raise DataError(f"alignments={given} must be a folder of {', '.join(SUFFIXES)} files, or a .ctm or .jsonl file.")

    def words(self, document: str) -> tuple[Path, list[Heard]] | None:
        """The file and the words of `document`, in order and without silences, or None. Raises Malformed by file and line."""
        if self._index is None:
            file = self._file(document)
            if file is None:
                return None
            heard = _read_file(file, self._tier)
        else:
            file = self._given
            place = self._index.get(document)
            if place is None:
                return None
            start, stop, number = place
            with file.open("rb") as stream:
                stream.seek(start)
                content = stream.read(stop - start).decode("utf-8", errors="surrogateescape")
            if file.suffix == ".ctm":
                heard = read_ctm(file, content, number)
            else:
                heard = read_json(file, content, tier=self._tier, line=number)
        return file, [h for h in heard if h.word.strip().lower() not in SILENCES]

    def _file(self, document: str) -> Path | None:
        for suffix in SUFFIXES:
            file = self._given / f"{document}{suffix}"
            if file.is_file() and file.resolve().is_relative_to(self._given.resolve()):
                return file
        files = self._by_stem.get(document.rpartition("/")[2], [])
        if len(files) > 1:
            raise Malformed(files[0], 0, f"{files[1]} is named after document '{document}' too; keep one")
        return files[0] if files else None

    @cached_property
    def _by_stem(self) -> dict[str, list[Path]]:
        files: dict[str, list[Path]] = {}
        for file in sorted(files_below(self._given)):
            if file.suffix in SUFFIXES:
                files.setdefault(file.stem, []).append(file)
        return files


def _read_file(file: Path, tier: str) -> list[Heard]:
    if file.suffix == ".TextGrid":
        return _in_order(file, [Heard(*interval) for interval in read_textgrid(file, tier)])
    try:
        content = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise Malformed(file, 0, f"it cannot be read as UTF-8 ({error})") from error
    return read_ctm(file, content, 1) if file.suffix == ".ctm" else read_json(file, content, tier=tier)


def index_lines(file: Path, name: Callable[[bytes], str | None]) -> dict[str, tuple[int, int, int]]:
    """Document -> (first byte, one past the last byte, first line) of its lines; raises Malformed where they are apart."""
    index: dict[str, tuple[int, int, int]] = {}
    position, last = 0, None
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                document = name(line)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise Malformed(file, number, f"it names no document ({error})") from error
            if document is not None:
                if document == last:
                    start, _, first = index[document]
                elif document in index:
                    raise Malformed(
                        file, number, f"'{document}' stands at line {index[document][2]} already; keep its lines together"
                    )
                else:
                    start, first = position, number
                index[document] = (start, position + len(line), first)
                last = document
            position += len(line)
    return index


def _ctm_id(line: bytes) -> str | None:
    fields = line.split(None, 1)
    return None if not fields or fields[0].startswith(b";;") else fields[0].decode()


def _jsonl_id(line: bytes) -> str | None:
    if not line.strip():
        return None
    name = json.loads(line)["id"]
    if not isinstance(name, str):
        raise ValueError("'id' is no text")
    return name


def read_ctm(file: Path, content: str, first_line: int) -> list[Heard]:
    """The words of one document's CTM lines. Raises Malformed."""
    heard: list[Heard] = []
    channel = ""
    for number, line in enumerate(content.split("\n"), first_line):
        fields = line.split()
        if not fields or fields[0].startswith(";;"):
            continue
        if not 5 <= len(fields) <= 8:
            raise Malformed(file, number, f"{len(fields)} fields; a CTM line has id, channel, start, duration, word")
        if channel and fields[1] != channel:
            raise Malformed(file, number, f"'{fields[0]}' has words in channels {channel} and {fields[1]}; give each its own id")
        channel = fields[1]
        start, duration = _seconds(file, number, "start", fields[2]), _seconds(file, number, "duration", fields[3])
        heard.append(Heard(fields[4], start, round(start + duration, 6), number))
    return _in_order(file, heard)


def read_json(file: Path, content: str, *, tier: str = "", line: int = 0) -> list[Heard]:
    """The words of one document's JSON, in any of the forms above. Raises Malformed."""
    try:
        value = json.loads(content)
    except json.JSONDecodeError as error:
        raise Malformed(file, line or error.lineno, f"not JSON ({error.msg} at column {error.colno})") from error
    except RecursionError as error:
        raise Malformed(file, line, "not JSON (nested too deeply)") from error
    return _in_order(file, [_heard(file, line, word) for word in _json_words(file, line, value, tier)])


def _json_words(file: Path, line: int, value: Any, tier: str) -> Iterable[Any]:
    if isinstance(value, dict):
        if isinstance(value.get("tiers"), dict):
            names = [tier] if tier else [n for n in value["tiers"] if n.lower().rpartition(" - ")[2] in WORD_TIERS]
            entries = value["tiers"].get(names[0]) if len(names) == 1 else None
            if not isinstance(entries, dict) or not isinstance(entries.get("entries"), list):
                raise Malformed(file, line, f"no tier of words among {', '.join(value['tiers'])}; give tier=NAME")
            return [
                dict(zip(("start", "end", "word"), e, strict=False)) if isinstance(e, list) else e for e in entries["entries"]
            ]
        if "words" not in value and isinstance(value.get("segments"), list):
            return list(_segment_words(value["segments"]))
        value = value.get("words")
    if not isinstance(value, list):
        raise Malformed(file, line, "no list of words, nor an object with 'words', 'segments' or 'tiers'")
    return value


def _segment_words(segments: list[Any]) -> Iterator[Any]:
    for segment in segments:
        words = segment.get("words") if isinstance(segment, dict) else None
        yield from words if isinstance(words, list) else [segment]


def _heard(file: Path, line: int, word: Any) -> Heard:
    text = word.get("word") if isinstance(word, dict) else None
    if not isinstance(text, str):
        raise Malformed(file, line, f"{json.dumps(word)[:60]} is no word with 'word', 'start' and 'end'")
    if word.get("start") is None and word.get("end") is None:
        return Heard(text.strip(), None, None, line)
    start, end = (_seconds(file, line, key, word.get(key)) for key in ("start", "end"))
    return Heard(text.strip(), start, end, line)


def _seconds(file: Path, line: int, key: str, value: Any) -> float:
    try:
        seconds = math.nan if isinstance(value, bool) else float(value)
    except (ValueError, TypeError, OverflowError):  # a whole number of JSON may have thousands of digits
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise Malformed(file, line, f"{key} '{str(value)[:40]}' is no number of seconds from 0")
    return seconds


def _in_order(file: Path, heard: list[Heard]) -> list[Heard]:
    """`heard`. Raises Malformed where times run backwards, or two words share more than a frame."""
    before = Heard("", 0.0, 0.0)
    for word in heard:
        if word.start is None or word.end is None or before.start is None or before.end is None:
            continue
        if word.end < word.start:
            raise Malformed(file, word.line, f"'{word.word}' ends at {word.end:g} s, before it starts at {word.start:g} s")
        if word.start < max(before.start, before.end - 1 / FRAMES_PER_SECOND - 1e-6):
            raise Malformed(file, word.line, f"'{word.word}' starts at {word.start:g} s, inside the word before it")
        before = word
    return heard
