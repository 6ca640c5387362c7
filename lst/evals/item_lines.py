"""Items in JSON lines: this program's own form, and HellaSwag's.

jsonl        {"id", "prompt", "endings": [...], "label": 0, "group", "pair"}, a part being text or {"text", "audio",
             "speech_tokens", "words": [[first, last], ...]}; without a prompt the endings are whole sequences
hellaswag    the published JSON lines: ctx, endings, label (and doc_id or id; else its line is its name)
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lst.data.sources.base import Refused
from lst.errors import did_you_mean
from lst.evals.found_items import Found, Part, Reader, parse_json, read_label, read_text, whole_numbers

ITEM_KEYS, PART_KEYS = ("id", "prompt", "endings", "label", "group", "pair"), ("text", "audio", "speech_tokens", "words")


def jsonl(file: Path) -> Reader:
    """Items of this program's own form."""
    return _lines(file, _jsonl_item)


def hellaswag(file: Path) -> Reader:
    """Items of HellaSwag's published lines."""
    return _lines(file, _hellaswag_item)


def _lines(file: Path, item: Callable[[Mapping[str, Any], int, Path], Found]) -> Reader:
    """JSON lines. What makes an item malformed is a ValueError, a KeyError or a TypeError of `item`."""
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = parse_json(line)
            if not isinstance(record, dict):
                raise ValueError("the line is no JSON object")
            yield item(record, number, file.parent)
        except KeyError as error:
            yield Refused(file, f"it has no {error}", number)
        except (ValueError, TypeError, RecursionError) as error:
            yield Refused(file, str(error).rstrip("."), number)


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
        _name(record, "id", line), tuple(parts), prompt is not None, read_label(record["label"], len(endings)), line,
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
        if numbers is not None and not whole_numbers(numbers, pairs=name == "words"):
            raise ValueError(f"'{name}' must be a list of {'[first, last] frames' if name == 'words' else 'whole numbers'}")
    return Part(
        _written(value.get("text", ""), "'text'"),
        folder / _written(value["audio"], "'audio'") if "audio" in value else None,
        None if tokens is None else np.asarray(tokens, np.int64).reshape(-1),
        None if words is None else np.asarray(words, np.int64).reshape(-1, 2),
    )


def _hellaswag_item(record: Mapping[str, Any], line: int, _: Path) -> Found:
    endings = record["endings"]
    if not isinstance(endings, list) or len(endings) != 4:
        raise ValueError(f"HellaSwag items have 4 endings, not {len(endings) if isinstance(endings, list) else 'none'}")
    name = _name(record, "doc_id" if "doc_id" in record else "id", line)
    texts = [without_brackets(_written(text, "'ctx' and each ending")) for text in (record["ctx"], *endings)]
    return Found(name, tuple(Part(text=t) for t in texts), True, read_label(record["label"], 4), line)


def without_brackets(text: str) -> str:
    """HellaSwag's WikiHow marks removed, as is usual: " [title]" becomes a full stop, other bracketed words go."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return re.sub(r"\s+", " ", text).strip()
