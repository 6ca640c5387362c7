"""Readers of the files that benchmarks come in: each gives items with text, audio or ready tokens, or refuses one by its line.

    jsonl        {"id", "prompt", "endings": [...], "label": 0, "group", "pair"}, a part being text or {"text", "audio",
                 "speech_tokens", "words": [[first, last], ...]}; without a prompt the endings are whole sequences
    hellaswag    the published JSON lines: ctx, endings, label (and doc_id or id; else its line is its name)
    storycloze   the published CSV: InputSentence1..4, RandomFifthSentenceQuiz1, 2, AnswerRightEnding (1 or 2)
    zerospeech   gold.csv of sWUGGY or sBLIMP (ZeroSpeech 2021), with audio=FOLDER or tokens=FILE
    salmon       a folder of SALMon: a folder a part, sample_N_*.wav in pairs, of which the first by name is right
    slamkit      a folder of NAME_correct, NAME_incorrect and, where there is one, NAME_mutual (the prompt): .wav, .txt or both

Not here: audio to tokens, text to audio (lst/evals/make_items.py).
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lst.data.sources.base import Refused, require_utf8
from lst.errors import DataError, did_you_mean

AUDIO = (".wav", ".flac", ".ogg")
ITEM_KEYS, PART_KEYS = ("id", "prompt", "endings", "label", "group", "pair"), ("text", "audio", "speech_tokens", "words")
FREQUENCY_BANDS = ((1, "oov"), (5, "1-5"), (20, "6-20"), (100, "21-100"))  # ZeroSpeech's, each below its number


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


def read_items(format_: str, file: Path, *, audio: Path | None = None, tokens: Path | None = None) -> Reader:
    """The items of a benchmark's file or folder, in its order. Raises DataError where the input as a whole cannot be read."""
    if not file.exists():
        raise DataError(f"eval={file} does not exist; give a benchmark's file or folder.")
    readers: dict[str, Callable[[], Reader]] = {
        "jsonl": lambda: _lines(file, _jsonl_item),
        "hellaswag": lambda: _lines(file, _hellaswag_item),
        "storycloze": lambda: _storycloze(file),
        "zerospeech": lambda: _zerospeech(file, _Sounds(audio, tokens)),
        "salmon": lambda: _salmon(file),
        "slamkit": lambda: _slamkit(file),
    }
    if format_ not in readers:
        raise DataError(f"format={format_} is unknown; {did_you_mean(format_, readers)}")
    return _once(file, readers[format_]())


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
        head = _text(file).split("\n", 1)[0]
        return "storycloze" if "AnswerRightEnding" in head else "zerospeech"
    if file.suffix in (".jsonl", ".json"):
        return "hellaswag" if '"ctx"' in _text(file).split("\n", 1)[0] else "jsonl"
    raise DataError(
        f"eval={file}: its name tells no format; give format=jsonl, hellaswag, storycloze, zerospeech, salmon or slamkit."
    )


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"eval={file} cannot be read as UTF-8 text ({error}); give a benchmark's file.") from error


def _lines(file: Path, item: Callable[[Mapping[str, Any], int, Path], Found]) -> Reader:
    """JSON lines. What makes an item malformed is a ValueError, a KeyError or a TypeError of `item`."""
    for number, line in enumerate(_text(file).split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = _parsed(line)
            if not isinstance(record, dict):
                raise ValueError("the line is no JSON object")
            yield item(record, number, file.parent)
        except KeyError as error:
            yield Refused(file, f"it has no {error}", number)
        except (ValueError, TypeError, RecursionError) as error:
            yield Refused(file, str(error), number)


def _parsed(line: str) -> Any:
    """The JSON of a line. Raises ValueError on a key that stands twice in one object, of which Python would take the last."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            raise ValueError(f"it has '{next(key for key in keys if keys.count(key) > 1)}' twice")
        return found

    return json.loads(line, object_pairs_hook=once)


def _known_keys(record: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raises ValueError on another key: a prompt that is spelt 'promt' would be no prompt, and the item another one."""
    for key in record:
        if key not in known:
            raise ValueError(f"it has an unknown key '{key}'; {did_you_mean(key, known)}")


def _name(record: Mapping[str, Any], key: str, otherwise: object = "") -> str:
    """A name as text. Raises ValueError where it is neither text nor a whole number."""
    value = record.get(key, otherwise)
    if not isinstance(value, str) and type(value) is not int:
        raise ValueError(f"'{key}' must be text, not {json.dumps(value)[:60]}")
    return str(value)


def _written(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, not {json.dumps(value)[:60]}")
    return value


def _jsonl_item(record: Mapping[str, Any], line: int, folder: Path) -> Found:
    _known_keys(record, ITEM_KEYS)
    endings, prompt = record["endings"], record.get("prompt")
    if not isinstance(endings, list) or len(endings) < 2:
        raise ValueError(f"'endings' must be a list of two or more, not {str(endings)[:60]}")
    parts = [_part(p, folder) for p in ([] if prompt is None else [prompt]) + endings]
    return Found(
        _name(record, "id", line), tuple(parts), prompt is not None, _label(record["label"], len(endings)), line,
        _name(record, "group"), _name(record, "pair"),
    )  # fmt: skip


def _part(value: Any, folder: Path) -> Part:
    if isinstance(value, str):
        return Part(text=value)
    if not isinstance(value, dict):
        raise ValueError(f"a prompt or ending must be text, or have {', '.join(PART_KEYS)}: {str(value)[:80]}")
    _known_keys(value, PART_KEYS)
    tokens, words = value.get("speech_tokens"), value.get("words")
    for name, numbers in (("speech_tokens", tokens), ("words", words)):
        if numbers is not None and not _whole_numbers(numbers, pairs=name == "words"):
            raise ValueError(f"'{name}' must be a list of {'[first, last] frames' if name == 'words' else 'whole numbers'}")
    return Part(
        _written(value.get("text", ""), "'text'"),
        folder / _written(value["audio"], "'audio'") if "audio" in value else None,
        None if tokens is None else np.asarray(tokens, np.int64).reshape(-1),
        None if words is None else np.asarray(words, np.int64).reshape(-1, 2),
    )


def _whole_numbers(values: Any, *, pairs: bool) -> bool:
    if not isinstance(values, list):
        return False
    if pairs:
        return all(isinstance(v, list) and len(v) == 2 and _whole_numbers(v, pairs=False) for v in values)
    return all(type(v) is int and 0 <= v < 1 << 31 for v in values)


def _label(value: Any, endings: int, first: int = 0) -> int:
    """The place of the right ending, from 0; labels count from `first`."""
    try:
        label = int(str(value)) - first
    except ValueError as error:
        raise ValueError(f"label '{value}' is no whole number") from error
    if not 0 <= label < endings:
        raise ValueError(f"label {value} is not one of its {endings} endings ({first}..{endings - 1 + first})")
    return label


def _hellaswag_item(record: Mapping[str, Any], line: int, _: Path) -> Found:
    endings = record["endings"]
    if not isinstance(endings, list) or len(endings) != 4:
        raise ValueError(f"HellaSwag items have 4 endings, not {len(endings) if isinstance(endings, list) else 'none'}")
    name = _name(record, "doc_id" if "doc_id" in record else "id", line)
    texts = [without_brackets(_written(text, "'ctx' and each ending")) for text in (record["ctx"], *endings)]
    return Found(name, tuple(Part(text=t) for t in texts), True, _label(record["label"], 4), line)


def without_brackets(text: str) -> str:
    """HellaSwag's WikiHow marks removed, as is usual: " [title]" becomes a full stop, other bracketed words go."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return re.sub(r"\s+", " ", text).strip()


def _rows(file: Path, wanted: Sequence[str]) -> Iterator[tuple[int, dict[str, str]] | Refused]:
    """(line, row) of a CSV file with a header. Raises DataError if a column is missing, or there twice."""
    with file.open(encoding="utf-8", newline="") as opened:
        reader = csv.DictReader(opened)
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


def _storycloze(file: Path) -> Reader:
    prompt = [f"InputSentence{i}" for i in range(1, 5)]
    endings = ["RandomFifthSentenceQuiz1", "RandomFifthSentenceQuiz2"]
    for found in _rows(file, [*prompt, *endings, "AnswerRightEnding"]):
        if isinstance(found, Refused):
            yield found
            continue
        line, row = found
        try:
            right = _label(row["AnswerRightEnding"], 2, first=1)
            empty = [name for name in (*prompt, *endings) if not row[name].strip()]
            if empty:
                raise ValueError(f"its {empty[0]} is empty")
        except ValueError as error:
            yield Refused(file, str(error), line)
            continue
        parts = (Part(text=" ".join(row[name].strip() for name in prompt)), *(Part(text=row[name].strip()) for name in endings))
        yield Found(row.get("InputStoryid") or str(line), parts, True, right, line)


class _Sounds:
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
    for number, line in enumerate(_text(file).split("\n"), 1):
        if not line.strip():
            continue
        try:
            if line.lstrip()[:1] == "{":
                record = _parsed(line)
                name, values = str(record["id"]), record["speech_tokens"]
            else:
                name, _, numbers = line.strip().partition("\t")
                values = [int(n) for n in numbers.replace(",", " ").split()]
            if not _whole_numbers(values, pairs=False):
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


def _zerospeech(file: Path, sounds: _Sounds) -> Reader:
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
    return next((name for below, name in FREQUENCY_BANDS if float(frequency) < below), ">100")


def _salmon(folder: Path) -> Reader:
    inner = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    for part in inner or [folder]:
        samples: dict[int, list[Path]] = {}
        for file in sorted(part.glob("sample_*")):
            number = re.fullmatch(r"sample_([0-9]+)_.*", file.name)
            if number and file.suffix in AUDIO:
                samples.setdefault(int(number[1]), []).append(file)
        for number_, files in sorted(samples.items()):
            if len(files) < 2:
                yield Refused(files[0], "it has no second recording to be compared with")
            else:
                name = part.name if inner else ""
                yield Found(f"{name}/{number_}".lstrip("/"), tuple(Part(audio=f) for f in files[:2]), False, 0, group=name)


def _slamkit(folder: Path) -> Reader:
    names = sorted({p.with_suffix("") for p in folder.rglob("*_correct.*") if p.suffix in (*AUDIO, ".txt")})
    if not names:
        raise DataError(f"eval={folder} has no NAME_correct.wav or NAME_correct.txt; give a folder of slamkit's pairs.")
    for correct in names:
        base = str(correct).removesuffix("_correct")
        try:
            prompt = _sound_and_text(f"{base}_mutual")
            endings = [_sound_and_text(f"{base}_{which}") for which in ("correct", "incorrect")]
        except (OSError, UnicodeDecodeError) as error:
            yield Refused(Path(base), str(error))
            continue
        if endings[1] is None or endings[0] is None:
            yield Refused(Path(f"{base}_correct"), "it has no NAME_incorrect beside it")
            continue
        parts = tuple(p for p in (prompt, *endings) if p is not None)
        yield Found(str(Path(base).relative_to(folder)), parts, prompt is not None, 0)


def _sound_and_text(stem: str) -> Part | None:
    """What there is of a part: a recording, its text, or both."""
    sound = next((Path(stem + suffix) for suffix in AUDIO if Path(stem + suffix).is_file()), None)
    written = Path(f"{stem}.txt")
    text = written.read_text(encoding="utf-8").strip() if written.is_file() else ""
    return Part(text, audio=sound) if sound or text else None


def check_found(item: Found) -> None:
    """What every format shares. Raises ValueError with the reason."""
    require_utf8("id", item.id)
    kinds = "prompt and endings" if item.prompt else "endings"
    for i, part in enumerate(item.parts):
        require_utf8("text", part.text)
        name = "the prompt" if item.prompt and i == 0 else f"ending {i - item.prompt}"
        if part.tokens is not None and not len(part.tokens):
            raise ValueError(f"{name} has no speech tokens")
        if not part.text.strip() and part.audio is None and part.tokens is None:
            raise ValueError(f"{name} is empty; {kinds} need text, audio or speech tokens")
