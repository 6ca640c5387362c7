"""Items in CSV tables: StoryCloze's sentences, and ZeroSpeech's gold.csv with its recordings or their ready tokens.

storycloze   the published CSV: InputSentence1..4, RandomFifthSentenceQuiz1, 2, AnswerRightEnding (1 or 2)
zerospeech   gold.csv of sWUGGY or sBLIMP (ZeroSpeech 2021), with audio=FOLDER or tokens=FILE
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lst.data.sources.base import Refused
from lst.errors import DataError
from lst.evals.found_items import AUDIO, Found, Part, Reader, parse_json, read_label, read_text, whole_numbers

FREQUENCY_BANDS = ((1, "oov"), (5, "1-5"), (20, "6-20"), (100, "21-100"))  # ZeroSpeech's, each below its number

LONGEST_FIELD = 2**17
"""Characters of a cell: more are a quote that is never closed."""


def _rows(file: Path, wanted: Sequence[str]) -> Iterator[tuple[int, dict[str, str]] | Refused]:
    """(line, row) of a CSV file with a header. Raises DataError if a column is missing, or there twice."""
    csv.field_size_limit(LONGEST_FIELD)  # of the whole process: other readers set theirs
    reader = csv.DictReader(io.StringIO(read_text(file), newline=""))
    try:
        columns = list(reader.fieldnames or ())
        for name in wanted:
            if columns.count(name) != 1:
                told = f"has column '{name}' {columns.count(name)} times" if name in columns else f"has no column '{name}'"
                raise DataError(f"eval={file} {told}; its columns are {', '.join(columns)}.")
        for row in reader:
            if None in row or None in row.values():
                yield Refused(file, f"it has {'more' if None in row else 'fewer'} cells than the header", reader.line_num)
            else:
                yield reader.line_num, row
    except csv.Error as error:
        raise DataError(f"eval={file}:{reader.line_num + 1}: {error}, as after an open quote; correct it.") from error


def storycloze(file: Path) -> Reader:
    prompt = [f"InputSentence{i}" for i in range(1, 5)]
    endings = ["RandomFifthSentenceQuiz1", "RandomFifthSentenceQuiz2"]
    for found in _rows(file, [*prompt, *endings, "AnswerRightEnding"]):
        if isinstance(found, Refused):
            yield found
            continue
        line, row = found
        try:
            right = read_label(row["AnswerRightEnding"], 2, first=1)
            empty = [name for name in (*prompt, *endings) if not row[name].strip()]
            if empty:
                raise ValueError(f"its {empty[0]} is empty")
        except ValueError as error:
            yield Refused(file, str(error), line)
            continue
        parts = (Part(text=" ".join(row[name].strip() for name in prompt)), *(Part(text=row[name].strip()) for name in endings))
        yield Found(row.get("InputStoryid") or str(line), parts, True, right, line)


class Sounds:
    """The audio or the ready tokens of recordings, by name."""

    def __init__(self, audio: Path | None, tokens: Path | None) -> None:
        if (audio is None) == (tokens is None):
            raise DataError(
                "format=zerospeech needs audio=FOLDER or tokens=FILE (one of them): the sound of gold.csv's filenames."
            )
        if audio is not None and not audio.is_dir():
            raise DataError(f"audio={audio} is no folder; give the folder of gold.csv's wav files.")
        self._audio, self._tokens = audio, None if tokens is None else read_tokens(tokens)

    def part(self, row: Mapping[str, str]) -> Part:
        """The recording of a row of gold.csv. Raises ValueError where there is none."""
        name, text = row["filename"].removesuffix(".wav"), row.get("transcription") or row.get("word", "")
        if self._tokens is not None:
            if name not in self._tokens:
                raise ValueError(f"tokens= has no recording '{name}'")
            return Part(text, tokens=self._tokens[name])
        assert self._audio is not None
        files = [self._audio / f"{name}{suffix}" for suffix in AUDIO]
        there = [f for f in files if f.is_file()]
        if not there:
            raise ValueError(f"'{files[0]}' does not exist")
        return Part(text, audio=there[0])


def read_tokens(file: Path) -> dict[str, NDArray[np.int64]]:
    """Ready tokens by recording: JSON lines of id and speech_tokens, or lines NAME<tab>1,2,3 (ZeroSpeech's quantized outputs)."""
    found: dict[str, NDArray[np.int64]] = {}
    for number, line in enumerate(read_text(file, "tokens").split("\n"), 1):
        if not line.strip():
            continue
        try:
            if line.lstrip()[:1] == "{":
                record = parse_json(line)
                name, values = str(record["id"]), record["speech_tokens"]
            else:
                name, _, numbers = line.strip().partition("\t")
                values = [int(n) for n in numbers.replace(",", " ").split()]
            if not whole_numbers(values, pairs=False):
                raise ValueError("speech tokens must be whole numbers from 0")
            name = name.removesuffix(".wav")
            if name in found:
                raise ValueError(f"recording '{name}' stands twice")
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"tokens={file}:{number}: {error}; write NAME<tab>1,2,3 or JSON with id and speech_tokens."
            ) from error
        found[name] = np.asarray(values, np.int64)
    return found


def zerospeech(file: Path, sounds: Sounds) -> Reader:
    """Pairs of rows with one id and voice (and, of sBLIMP, type and subtype), of which one is correct."""
    pairs: dict[tuple[str, ...], list[tuple[int, dict[str, str]]]] = {}
    for found in _rows(file, ["id", "filename", "voice", "correct"]):
        if isinstance(found, Refused):
            yield found
            continue
        line, row = found
        key = tuple(row.get(name, "") for name in ("type", "subtype", "id", "voice"))
        pairs.setdefault(key, []).append((line, row))
    for (kind, subtype, number, voice), rows in pairs.items():
        right = [i for i, (_, row) in enumerate(rows) if row["correct"].strip() in ("1", "1.0", "True")]
        line, first = rows[0]
        if len(rows) != 2 or len(right) != 1:
            reason = f"id {number} of voice {voice} has {len(rows)} rows, {len(right)} of them correct; a pair has 2 and 1"
            yield Refused(file, reason, line)
            continue
        try:
            parts = tuple(sounds.part(row) for _, row in rows)
            group = kind or _band(first.get("frequency", ""))
        except ValueError as error:
            yield Refused(file, str(error), line)
            continue
        pair = "/".join(filter(None, (kind, subtype, number)))
        yield Found(f"{pair}/{voice}", parts, False, right[0], line, group, pair)


def _band(frequency: str) -> str:
    """ZeroSpeech's band of a word's frequency in LibriSpeech; "" where it is not given."""
    if not frequency.strip():
        return ""
    number = float(frequency)
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"frequency '{frequency}' is no count")
    return next((name for below, name in FREQUENCY_BANDS if number < below), ">100")
