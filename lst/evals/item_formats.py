"""Which reader reads a benchmark's file, and that each of its items has an id of its own.

Not here: audio to tokens, text to audio (lst/evals/make_items.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lst.data.sources.base import Refused
from lst.errors import ConfigError, DataError, did_you_mean
from lst.evals.found_items import Found, Reader, read_text
from lst.evals.item_folders import salmon, slamkit
from lst.evals.item_lines import hellaswag, jsonl
from lst.evals.item_tables import Sounds, storycloze, zerospeech

READERS: dict[str, Callable[[Path], Reader]] = {
    "jsonl": jsonl,
    "hellaswag": hellaswag,
    "storycloze": storycloze,
    "salmon": salmon,
    "slamkit": slamkit,
}
ZEROSPEECH = "zerospeech"  # alone reads two files
FORMATS = (*READERS, ZEROSPEECH)


def read_items(format_: str, file: Path, *, audio: Path | None = None, tokens: Path | None = None) -> Reader:
    """The items of a benchmark's file or folder, in its order. Raises DataError where the input as a whole cannot be read,
    ConfigError where `audio` or `tokens` are given to a format that has its own."""
    if not file.exists():
        raise DataError(f"eval={file} does not exist; give a benchmark's file or folder.")
    if format_ == ZEROSPEECH:
        return _once(file, zerospeech(file, Sounds(audio, tokens)))
    if format_ not in READERS:
        raise DataError(f"format={format_} is unknown; {did_you_mean(format_, FORMATS)}")
    for name, given in (("audio", audio), ("tokens", tokens)):
        if given is not None:
            raise ConfigError(f"{name}={given} belongs to format={ZEROSPEECH}, and {file} is {format_}; leave it out.")
    return _once(file, READERS[format_](file))


def _once(file: Path, items: Reader) -> Reader:
    """The items; one whose id an earlier one has is refused: records and pairs of evaluations go by it."""
    lines: dict[str, int] = {}
    for item in items:
        if isinstance(item, Found) and item.id in lines:
            yield Refused(file, f"its id '{item.id}' is that of line {lines[item.id]}; give each item its own", item.line)
            continue
        if isinstance(item, Found):
            lines[item.id] = item.line
        yield item


def guess_format(file: Path) -> str:
    """The format that a file's name and first line tell. Raises DataError where they tell none."""
    if file.is_dir():
        return "salmon" if any(file.glob("*/sample_*")) or any(file.glob("sample_*")) else "slamkit"
    if file.suffix == ".csv":
        head = read_text(file).split("\n", 1)[0]
        return "storycloze" if "AnswerRightEnding" in head else ZEROSPEECH
    if file.suffix in (".jsonl", ".json"):
        return "hellaswag" if '"ctx"' in read_text(file).split("\n", 1)[0] else "jsonl"
    raise DataError(f"eval={file}: its name tells no format; give format=, one of {', '.join(FORMATS)}.")
