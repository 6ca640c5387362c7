"""A few documents to listen to: transcript, word times, and the tokens rendered back to audio.

Not the recording: what the vocoder makes of the tokens alone. Documents are spread evenly over the table, those with words and
of other speakers first; long ones are cut behind a word.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lst.data.quality.scan import Piece, rows_at
from lst.data.shards import Dataset
from lst.data.vocab import FRAMES_PER_SECOND
from lst.errors import DataError

EXAMPLES = 5
CANDIDATES = 64
MOST_SECONDS = 8.0
COLUMNS = ("id", "speaker", "book", "split", "text", "speech_tokens", "words", "word_start", "word_end")
LANE, CHARACTER, PER_SECOND = 26, 8, 130  # height of a row of words, width of a letter and of a second, in CSS pixels


@dataclass(frozen=True)
class Word:
    """A word on the time axis, in seconds and CSS pixels."""

    text: str
    start: float
    end: float
    lane: int

    @property
    def x(self) -> float:
        return round(self.start * PER_SECOND, 1)

    @property
    def width(self) -> float:
        return round(max(2.0, (self.end - self.start) * PER_SECOND), 1)

    @property
    def y(self) -> int:
        return self.lane * LANE


@dataclass(frozen=True)
class Example:
    """A document, or its beginning."""

    id: str
    speaker: str
    book: str
    split: str
    text: str
    seconds: float  # of the whole document
    tokens: NDArray[np.integer]  # those that are heard
    words: list[Word]

    @property
    def heard(self) -> float:
        return len(self.tokens) / FRAMES_PER_SECOND

    @property
    def width(self) -> int:
        """Of the time axis, in CSS pixels; the last word's letters may go past the sound's end."""
        ends = [word.x + CHARACTER * len(word.text) for word in self.words]
        return round(max([self.heard * PER_SECOND, *ends])) + 12

    @property
    def height(self) -> int:
        return LANE * (1 + max((word.lane for word in self.words), default=0))

    @property
    def ticks(self) -> list[tuple[int, int]]:
        """(second, x) of each whole second."""
        return [(second, second * PER_SECOND) for second in range(int(self.heard) + 1)]


def choose(dataset: Dataset, documents: int) -> list[Example]:
    """At most EXAMPLES of `documents` spoken documents, the same each time."""
    spread = np.unique(np.linspace(0, documents - 1, CANDIDATES).astype(int)).tolist() if documents else []
    found = rows_at(dataset, "speech", COLUMNS, spread, bound_by="speech_tokens")
    examples = [_example(found[row]) for row in spread if len(found[row].lists("speech_tokens").values)]
    heard: dict[str, int] = {}
    ranked = []
    for place, example in enumerate(examples):
        again = heard[example.speaker] = heard.get(example.speaker, -1) + 1
        ranked.append((not example.words, again, place))
    return [examples[place] for _, _, place in sorted(ranked)[:EXAMPLES]]


def _example(row: Piece) -> Example:
    tokens = row.lists("speech_tokens").row(0)
    starts, ends = (row.lists(name).row(0).astype(int).tolist() for name in ("word_start", "word_end"))
    texts = [text or "" for text in row.column("words")[0].as_py() or []]
    most = int(MOST_SECONDS * FRAMES_PER_SECOND)
    fitting = sum(end < most for end in ends)
    kept = most if not fitting else min(most, ends[fitting - 1] + 6)  # a quarter of a second behind the last word
    kept = len(tokens) if len(tokens) <= most else kept
    words = _lanes([(t, s / FRAMES_PER_SECOND, (e + 1) / FRAMES_PER_SECOND) for t, s, e in zip(texts, starts, ends, strict=True)])
    return Example(
        **{name: row.strings(name)[0] for name in ("id", "speaker", "book", "split", "text")},
        seconds=len(tokens) / FRAMES_PER_SECOND,
        tokens=tokens[:kept],
        words=words[: fitting if len(tokens) > most else len(words)],
    )


def _lanes(words: list[tuple[str, float, float]]) -> list[Word]:
    """Words in as few rows as let their letters stand beside each other."""
    free: list[float] = []  # where each row ends, in pixels
    placed = []
    for text, start, end in words:
        x = start * PER_SECOND
        lane = next((number for number, used in enumerate(free) if used <= x), len(free))
        free += [0.0] * (lane == len(free))
        free[lane] = max(x + CHARACTER * len(text), end * PER_SECOND) + 4
        placed.append(Word(text, start, end, lane))
    return placed


def rendered(dataset: Dataset, examples: list[Example], vocoder: str) -> tuple[list[str], str]:
    """Each example's audio as a data: URI of a 16-bit WAV file, and what a reader must know of it.

    Without `vocoder` (a folder) it is the embedded one, and where that doesn't fit the data there is no audio and the reason
    is said. Raises DataError where the vocoder that the user gave does not fit.
    """
    from lst.data.vocoders.vocoder import open_vocoder, wav_bytes

    try:
        speaking = open_vocoder(vocoder or "embedded")
        speaking.check_units(dataset)
    except DataError as error:
        if vocoder:
            raise
        return [], f"No audio: {error}"
    uris = []
    for example in examples:
        audio, rate = speaking(example.tokens)
        uris.append("data:audio/wav;base64," + base64.b64encode(wav_bytes(audio, rate)).decode())
    name = "the embedded vocoder" if not vocoder else f"the vocoder in {Path(vocoder).name}"
    return uris, f"Rendered from the tokens by {name}: not the recording, and in the vocoder's voice."
