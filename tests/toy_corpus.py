"""A small spoken corpus with a known regularity, for tests: each word is a fixed string of speech tokens. Not real speech."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "saw",
    "dog",
    "run",
    "over",
    "hill",
    "while",
    "moon",
    "was",
    "high",
    "in",
    "sky",
    "bright",
    "stars",
]
SILENCE = 99
SPEECH_VOCAB = 100


def toy_record(number: int, generator: random.Random, words: int | None = None) -> dict[str, Any]:
    """One well-formed line of `prepare-data`'s JSON format."""
    chosen = [generator.choice(WORDS) for _ in range(words or generator.randint(12, 40))]
    tokens, spans = [SILENCE] * generator.randint(0, 4), []
    for word in chosen:
        start = len(tokens)
        tokens += [(7 * sum(map(ord, word)) + j * j) % (SILENCE - 1) for j in range(3 + len(word))]
        spans.append({"word": word, "start": start, "end": len(tokens) - 1})
        tokens += [SILENCE] * generator.choice([0, 0, 0, 2, 5])
    return {
        "id": f"d{number:04}",
        "speech_tokens": tokens,
        "text": " ".join(chosen),
        "words": spans,
        "book": f"book{number % 8}",
        "speaker": f"voice{number % 8}",
    }


def write_toy_jsonl(path: Path, documents: int = 120) -> Path:
    generator = random.Random(0)
    path.write_text("".join(json.dumps(toy_record(i, generator)) + "\n" for i in range(documents)))
    return path


def write_toy_dataset(folder: Path, documents: int = 120) -> Path:
    """Prepare the toy corpus into `folder`/data through the real command's function."""
    from lst.data.prepare import PrepareConfig
    from lst.data.preparing.preparation import prepare

    source = write_toy_jsonl(folder / "toy.jsonl", documents)
    out = folder / "data"
    prepare(PrepareConfig(input=str(source), out=str(out), vocab_size=300, speech_vocab=SPEECH_VOCAB, heldout_share=0.2))
    return out
