"""The project's own format: JSON lines, one spoken document a line.

    {"id": "b1-0001", "speech_tokens": [17, 17, 402], "text": "The cat", "words": [{"word": "The", "start": 0, "end": 1}, ...]}

`start` and `end` are frames at 25 Hz, both inside the word. A frame that two neighbours share goes to the later word; a
larger overlap is malformed. Optional: "speaker", "book", "split" ("train" or "heldout"). Every refusal names file, line and
reason; nothing of a refused line is kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lst.data.shards import SPLITS, speech_row_error
from lst.data.sources.base import Block, Record, Refused, block_lines, line_blocks, require_utf8

REQUIRED = ("id", "speech_tokens", "text", "words")


class SpeechJsonl:
    """A `lst.data.sources.base.Source` of spoken documents."""

    def __init__(self, path: Path, *, speech_vocab: int) -> None:
        self._path, self._speech_vocab = path, speech_vocab

    def blocks(self) -> Sequence[Block]:
        return line_blocks(self._path)

    def read(self, block: Block) -> Iterator[Record | Refused]:
        for number, line in block_lines(block):
            try:
                yield Record(speech_row(json.loads(line), self._speech_vocab), number)
            except json.JSONDecodeError as error:
                yield Refused(block.file, f"not JSON ({error.msg} at column {error.colno})", number)
            except ValueError as error:
                yield Refused(block.file, str(error), number)
            except RecursionError:
                yield Refused(block.file, "not JSON (nested too deeply)", number)

    def identity(self) -> dict[str, Any]:
        return {}


def speech_row(record: Any, speech_vocab: int) -> dict[str, Any]:
    """A checked row from one decoded record. Raises ValueError with the reason."""
    if not isinstance(record, dict):
        raise ValueError("the line is no JSON object")
    for key in REQUIRED:
        if key not in record:
            raise ValueError(f"key '{key}' is missing")
    tokens, words = record["speech_tokens"], record["words"]
    if not isinstance(tokens, list) or not all(_is_count(t) for t in tokens):
        raise ValueError("'speech_tokens' must be a list of whole numbers from 0")
    if not isinstance(words, list) or not all(isinstance(w, dict) for w in words):
        raise ValueError("'words' must be a list of objects with 'word', 'start' and 'end'")
    row: dict[str, Any] = {"speech_tokens": tokens, "words": [], "word_start": [], "word_end": []}
    for key, default in (("id", None), ("text", None), ("speaker", ""), ("book", ""), ("split", "")):
        row[key] = record.get(key, default)
        if not isinstance(row[key], str):
            raise ValueError(f"'{key}' must be a string")
        require_utf8(key, row[key])
    if row["split"] not in ("", *SPLITS):
        raise ValueError(f"'split' is '{row['split']}'; it must be one of {', '.join(SPLITS)}")
    for word in words:
        _add_word(row, word)
    reason = speech_row_error(row, speech_vocab)
    if reason:
        raise ValueError(reason)
    return row


def _add_word(row: dict[str, Any], word: dict[str, Any]) -> None:
    text, start, end = word.get("word"), word.get("start"), word.get("end")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"word {len(row['words'])} has no text under 'word'")
    require_utf8("word", text)
    if not _is_count(start) or not _is_count(end):
        raise ValueError(f"word '{text}' needs whole frames from 0 under 'start' and 'end'")
    ends = row["word_end"]
    if ends and ends[-1] == start:
        if row["word_start"][-1] == start:
            raise ValueError(f"word '{row['words'][-1]}' is left without a frame, since '{text}' shares its only one")
        ends[-1] -= 1  # a frame shared by two neighbours goes to the later word
    row["words"].append(text)
    row["word_start"].append(start)
    ends.append(end)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31
