"""One record of any format to one row of the speech table: the checks that every reader shares, in one place.

A reader decodes its format into a dictionary of plain values; `SpokenContract.row` maps its keys, brings tokens and times to
25 Hz, checks everything a row promises (lst/data/shards.py) and raises ValueError with the reason. A row's keys, and their
forms:

    id              a string (or the path of an audio file, of which `naming` makes one)
    speech_tokens   whole numbers, or one string of them between spaces
    durations       optional: how many frames each token lasts, where repeats were joined
    words           optional: {"word", "start", "end"} each, or [word, start, end], or strings beside word_start and word_end
    text            optional: the transcript; default: the words between spaces
    speaker, book   optional strings
    split           optional: train or heldout

Times are frames, both ends inside the word, where a frame that two neighbours share goes to the later one; or seconds, which
`lst.data.audio.align.frame_spans` turns into frames. Tokens of 50 Hz become 25 Hz by taking every second: frame f is token 2f.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lst.data.audio.align import frame_spans
from lst.data.shards import SPLITS, speech_row_error
from lst.data.sources.base import Row, require_utf8
from lst.data.vocab import FRAMES_PER_SECOND
from lst.errors import DataError

KEYS = ("id", "speech_tokens", "durations", "words", "word_start", "word_end", "text", "speaker", "book", "split")
MAX_FRAMES = 1 << 24  # of a document, a week of speech: a few durations could ask for any amount of memory
FRAME_SECONDS = 1 / FRAMES_PER_SECOND
SPARE_SECONDS = 0.2  # how far past the last frame a word in seconds may end: encoders drop the last, partial frames
EVERY_SECOND = "every-second"
FRAMES, SECONDS = "frames", "seconds"


Naming = Callable[[PurePosixPath], tuple[str, str, str]]
"""A file's path -> (id, speaker, book); "" is not known. Raises ValueError with the reason where a name does not fit."""


@dataclass(frozen=True, kw_only=True)
class SpokenContract:
    """How records of an input are read. `columns` are the names of a row's keys in the input, where they differ."""

    speech_vocab: int
    columns: Mapping[str, str] = field(default_factory=dict)
    required: tuple[str, ...] = ("id", "speech_tokens")
    rate: int = FRAMES_PER_SECOND  # of tokens and of words' frames, per second
    reduce: str = ""  # with rate=50: every-second
    times: str = FRAMES  # of words: frames or seconds
    naming: Naming | None = None  # ids are paths of audio files: what their names tell

    def identity(self) -> dict[str, Any]:
        """What of the reading decides the rows, beside the input: how another rate was brought to 25 Hz."""
        return {} if self.rate == FRAMES_PER_SECOND else {"rate": self.rate, "reduce": self.reduce}

    def their(self, key: str) -> str:
        """The input's name for a row's key."""
        return self.columns.get(key, key)

    def row(self, record: Any) -> Row:
        """A checked row. Raises ValueError with the reason, in the input's names."""
        if not isinstance(record, Mapping):
            raise ValueError("the record is no JSON object")
        for key in self.required:
            if record.get(self.their(key)) is None:
                raise ValueError(f"key '{self.their(key)}' is missing")
        tokens = self._tokens(record)
        row: Row = {"speech_tokens": tokens, **self._words(record, len(tokens))}
        for key, default in (("id", ""), ("text", " ".join(row["words"])), ("speaker", ""), ("book", ""), ("split", "")):
            value = record.get(self.their(key))
            row[key] = default if value is None else value
            if not isinstance(row[key], str):
                raise ValueError(f"'{self.their(key)}' must be a string")
            require_utf8(self.their(key), row[key])
        if not row["id"]:
            raise ValueError(f"'{self.their('id')}' is empty")
        if self.naming:
            if not PurePosixPath(row["id"]).name:
                raise ValueError(f"'{self.their('id')}' is '{row['id']}', which names no file")
            row["id"], speaker, book = self.naming(PurePosixPath(row["id"]))
            row |= {"speaker": row["speaker"] or speaker, "book": row["book"] or book}
        if row["split"] not in ("", *SPLITS):
            raise ValueError(f"'{self.their('split')}' is '{row['split']}'; it must be one of {', '.join(SPLITS)}")
        reason = speech_row_error(row, self.speech_vocab)
        if reason:
            raise ValueError(reason)
        return row

    def _tokens(self, record: Mapping[str, Any]) -> NDArray[np.int64]:
        """Tokens at 25 Hz: durations written out, other rates brought down."""
        name = self.their("speech_tokens")
        tokens = whole_numbers(name, record[name])
        durations = record.get(self.their("durations"))
        if durations is not None:
            tokens = _written_out(tokens, whole_numbers(self.their("durations"), durations), self.their("durations"))
        if len(tokens) > MAX_FRAMES:
            raise ValueError(f"it has {len(tokens):,} frames; a document may have {MAX_FRAMES:,}")
        return tokens[:: self._step]

    @property
    def _step(self) -> int:
        return self.rate // FRAMES_PER_SECOND if self.reduce == EVERY_SECOND else 1

    def _words(self, record: Mapping[str, Any], frames: int) -> dict[str, list[Any]]:
        """Columns words, word_start, word_end."""
        spans = self._spans(record)
        for number, (word, _, _) in enumerate(spans):
            if not isinstance(word, str) or not word.strip():
                raise ValueError(f"word {number} has no text under 'word'")
            require_utf8("word", word)
        spans = [(word.strip(), start, end) for word, start, end in spans]
        starts, ends = spans_of_seconds(spans, frames) if self.times == SECONDS else self._spans_of_frames(spans)
        return {"words": [word for word, _, _ in spans], "word_start": starts, "word_end": ends}

    def _spans_of_frames(self, spans: Sequence[tuple[str, Any, Any]]) -> tuple[list[int], list[int]]:
        """First and last frames; one that two neighbours share goes to the later word."""
        starts: list[int] = []
        ends: list[int] = []
        for number, (word, start, end) in enumerate(spans):
            if not is_count(start) or not is_count(end):
                raise ValueError(f"word '{word}' needs whole frames from 0 under 'start' and 'end'")
            start, end = start // self._step, end // self._step
            if ends and ends[-1] == start:
                if starts[-1] == start:
                    raise ValueError(f"word '{spans[number - 1][0]}' is left without a frame, since '{word}' shares its only one")
                ends[-1] -= 1
            starts.append(start)
            ends.append(end)
        return starts, ends

    def _spans(self, record: Mapping[str, Any]) -> list[tuple[Any, Any, Any]]:
        name = self.their("words")
        words = record.get(name)
        if words is None:
            return []
        if not isinstance(words, Sequence) or isinstance(words, str):
            raise ValueError(f"'{name}' must be a list of objects with 'word', 'start' and 'end'")
        if all(isinstance(word, dict) for word in words):
            return [(word.get("word"), word.get("start"), word.get("end")) for word in words]
        if all(isinstance(word, list | tuple) and len(word) == 3 for word in words):
            return [(word, start, end) for word, start, end in words]
        starts, ends = (record.get(self.their(key)) for key in ("word_start", "word_end"))
        if not all(isinstance(word, str) for word in words) or starts is None or ends is None:
            raise ValueError(f"'{name}' must be a list of objects with 'word', 'start' and 'end'")
        if not isinstance(starts, Sequence | np.ndarray) or not isinstance(ends, Sequence | np.ndarray):
            raise ValueError("the starts and ends of words must be lists")
        if not len(words) == len(starts) == len(ends):
            raise ValueError(f"{len(words)} words have {len(starts)} starts and {len(ends)} ends")
        return list(zip(words, _plain(starts), _plain(ends), strict=True))


def _plain(values: Sequence[Any] | NDArray[Any]) -> Sequence[Any]:
    plain: Sequence[Any] = values.tolist() if isinstance(values, np.ndarray) else values
    return plain


def whole_path(path: PurePosixPath) -> tuple[str, str, str]:
    """The naming that knows no layout: the path without its ending is the id."""
    return str(path.with_suffix("")), "", ""


def is_count(value: Any) -> bool:
    """Whether `value` is a whole number from 0 that a column of frames holds; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31


def whole_numbers(name: str, values: Any) -> NDArray[np.int64]:
    """(n,) whole numbers from 0, from a list, an array, or a string with spaces between them. Raises ValueError."""
    if isinstance(values, str):
        return parsed_numbers(name, values)
    if isinstance(values, np.ndarray):
        whole = values.ndim == 1 and values.dtype.kind in "iu"
    else:
        whole = isinstance(values, list) and set(map(type, values)) <= {int}
    try:
        numbers = np.asarray(values, np.int64) if whole else None
    except OverflowError:
        numbers = None
    if numbers is None or (len(numbers) and numbers.min() < 0):
        raise ValueError(f"'{name}' must be a list of whole numbers from 0")
    return numbers


def parsed_numbers(name: str, text: str) -> NDArray[np.int64]:
    """(n,) numbers of a string of digits and single or repeated white space. Raises ValueError with the first other word."""
    words = text.split()
    wrong = next((word for word in words if not (word.isascii() and word.isdigit() and len(word) < 10)), None)
    if wrong is not None:
        raise ValueError(f"'{wrong[:20]}' in '{name}' is no whole number from 0")
    return np.array(words, np.int64)


def spans_of_seconds(spans: Sequence[tuple[str, Any, Any]], frames: int) -> tuple[list[int], list[int]]:
    """First and last frame of each (word, start, end) in seconds, by `lst.data.audio.align.frame_spans`. Raises ValueError."""
    before = 0.0
    for word, start, end in spans:
        for value in (start, end):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ValueError(f"word '{word}' needs seconds from 0 under 'start' and 'end', not {value!r}")
        if end < start:
            raise ValueError(f"word '{word}' ends at {end} s, before it starts at {start} s")
        if start < before - FRAME_SECONDS:
            raise ValueError(f"word '{word}' starts at {start} s, inside the word before it (which ends at {before} s)")
        if end > frames * FRAME_SECONDS + SPARE_SECONDS:
            raise ValueError(f"word '{word}' ends at {end} s, past the last frame (which ends at {frames * FRAME_SECONDS:g} s)")
        before = float(end)
    try:
        return frame_spans([(start, end) for _, start, end in spans], frames)
    except DataError as error:
        raise ValueError(str(error).rstrip(".")) from error


def _written_out(tokens: NDArray[np.int64], durations: NDArray[np.int64], name: str) -> NDArray[np.int64]:
    if len(durations) != len(tokens):
        raise ValueError(f"{len(tokens)} tokens have {len(durations)} '{name}'")
    if len(durations) and durations.min() < 1:
        raise ValueError(f"'{name}' holds {durations.min()}; a token lasts 1 frame or more")
    if len(durations) and (durations.max() > MAX_FRAMES or durations.sum() > MAX_FRAMES):
        raise ValueError(f"'{name}' ask for more than {MAX_FRAMES:,} frames, the most that a document may have")
    return np.repeat(tokens, durations)
