"""Small benchmark files in the formats that lst.evals reads, made by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lst.data.vocoders.vocoder import write_wav

CARD = {"model": "made up", "layer": 3, "k": 40, "rate_hz": 25, "dedup": False, "quantizer_sha256": "c0ffee"}


def write_lines(file: Path, records: Sequence[Any]) -> Path:
    file.write_text("".join(json.dumps(r) + "\n" for r in records))
    return file


def write_card(file: Path, **changes: Any) -> Path:
    file.write_text(json.dumps(CARD | changes))
    return file


def spoken_part(text: str, seed: int) -> dict[str, Any]:
    """A part with ready tokens: each word has three frames, and a silence of one follows it."""
    generator = np.random.Generator(np.random.Philox(key=seed))
    words = text.split()
    tokens = [int(t) for t in generator.integers(0, 40, 4 * len(words))]
    return {"text": text, "speech_tokens": tokens, "words": [[4 * i, 4 * i + 2] for i in range(len(words))]}


def spoken_items(count: int, endings: int = 2) -> list[dict[str, Any]]:
    """Items with text, ready tokens and word spans."""
    made = []
    for i in range(count):
        texts = ["ab cd ef", *(f"{c}{c} xyz" for c in "ghijk"[:endings])]
        parts = [spoken_part(t, 10 * i + j) for j, t in enumerate(texts)]
        made.append({"id": f"i{i}", "prompt": parts[0], "endings": parts[1:], "label": i % endings, "group": "ab"[i % 2]})
    return made


def write_tone(file: Path, seconds: float, hertz: float = 200.0) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_wav(file, np.sin(2 * np.pi * hertz * np.arange(int(16_000 * seconds)) / 16_000).astype(np.float32) / 2, 16_000)
    return file
