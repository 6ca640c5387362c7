"""What the embedded corpus will say: which texts, in whose voice, in which split. Pure text, no audio, seeded.

Each chunk of a paragraph is spoken at most once. Splits are by book. Budgets are in characters, for durations are not known
before synthesis (about 16 characters a second).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from pathlib import Path

from lst.data.corpus.prose import BOOKS, HELDOUT_BOOKS, Section, pack_sentences, read_book, split_sentences
from lst.data.corpus.synthesis import ESPEAK_VOICES, KOKORO_VOICES

SEED = 20
MAX_CHARS = 380  # of a spoken document: at most about 27 s
MIN_WORDS = 12

# Characters to speak for each speaker: (train, heldout).
BUDGETS: Mapping[str, tuple[int, int]] = {
    **{f"espeak:{voice}": (172_000, 12_000) for voice in ESPEAK_VOICES},
    **{f"kokoro:{voice}": (7_500, 900) for voice in KOKORO_VOICES},
}
# Characters set aside for each, at least its budget: a change of one voice's share leaves the other voices' texts alone.
RESERVES: Mapping[str, tuple[int, int]] = {
    **{f"espeak:{voice}": (205_000, 12_000) for voice in ESPEAK_VOICES},
    **{f"kokoro:{voice}": (9_500, 1_800) for voice in KOKORO_VOICES},
}


@dataclass(frozen=True)
class Document:
    """A text to be spoken by one speaker."""

    id: str
    speaker: str
    book: str
    split: str
    text: str

    @property
    def key(self) -> str:
        """Names what is made of it: another text or voice is another key."""
        return content_key(self.speaker, self.text)


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of the text side."""

    id: str
    book: str
    split: str
    text: str


def content_key(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


def split_of(book: str) -> str:
    return "heldout" if book in HELDOUT_BOOKS else "train"


def read_sections(folder: Path) -> dict[str, list[Section]]:
    """All books by name."""
    return {book: read_book(book, folder) for book in BOOKS}


def list_paragraphs(books: Mapping[str, list[Section]]) -> list[Paragraph]:
    """The text side: every paragraph of every book, in order."""
    return [
        Paragraph(f"{book}-{i:04d}", book, split_of(book), text)
        for book, sections in books.items()
        for i, text in enumerate(chain.from_iterable(s.paragraphs for s in sections))
    ]


def plan_documents(
    paragraphs: list[Paragraph],
    *,
    budgets: Mapping[str, tuple[int, int]] = BUDGETS,
    reserves: Mapping[str, tuple[int, int]] = RESERVES,
    limit: int | None = None,
) -> list[Document]:
    """Deal seeded, shuffled chunks to the speakers until each has its characters; speakers alternate in the result.

    With `limit`, only so many documents remain, a tenth of them (at least one a speaker) held out.
    """
    planned: dict[str, list[Document]] = {}
    for column, split in enumerate(("train", "heldout")):
        chunks = [c for p in paragraphs if p.split == split for c in _chunks(p)]
        random.Random(f"{SEED} documents {split}").shuffle(chunks)
        supply = iter(chunks)
        hands = []
        for speaker in sorted(budgets, reverse=True):
            hand = list(_take(supply, reserves[speaker][column]))
            hands.append([replace(chunk, speaker=speaker) for chunk in _take(iter(hand), budgets[speaker][column])])
        planned[split] = [d for row in zip_longest(*hands) for d in row if d is not None]
    if limit is not None:
        heldout = min(limit - 1, max(len(budgets), limit // 10))
        planned = {"train": planned["train"][: limit - heldout], "heldout": planned["heldout"][:heldout]}
    return planned["train"] + planned["heldout"]


def _take(chunks: Iterator[Document], chars: int) -> Iterator[Document]:
    """Chunks from the front until they have `chars` characters."""
    taken = 0
    while taken < chars and (chunk := next(chunks, None)):
        taken += len(chunk.text)
        yield chunk


def _chunks(paragraph: Paragraph) -> list[Document]:
    packed = pack_sentences(split_sentences(paragraph.text), MAX_CHARS)
    return [
        Document(f"{paragraph.id}-{i}", "", paragraph.book, paragraph.split, text)
        for i, text in enumerate(packed)
        if len(text.split()) >= MIN_WORDS
    ]
