"""Story completion: 3 or 4 consecutive sentences, the sentence that follows, and wrong endings of two kinds.

    elsewhere   3 sentences from other stories or chapters: told apart by topic
    later       3 sentences from later in the same story: the same topic, so that order and coherence must decide

All come from the held-out books, about as long as the right one. The task is `embedded_story_completion`; it isn't
StoryCloze or HellaSwag and its accuracy can't be compared with theirs. Nobody checked the items by hand: some wrong
endings would do as well as the right one, so the ceiling lies below 100%.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain

from lst.data.corpus.plan import SEED, content_key
from lst.data.corpus.prose import HELDOUT_BOOKS, Section, split_sentences
from lst.data.corpus.synthesis import ESPEAK_VOICES

TASK = "embedded_story_completion"
COUNT = 420
ENDINGS = 3  # wrong endings of each kind
_PROMPT_WORDS = 62  # of at most about 25 s
_SENTENCE_WORDS = range(3, 31)
_ENDING_WORDS = range(4, 19)
_LATER_GAP = 3  # sentences between the right ending and the first one that counts as later


@dataclass(frozen=True)
class Story:
    """One item, text only."""

    id: str
    book: str
    speaker: str
    prompt: str
    right: str
    elsewhere: tuple[str, ...]
    later: tuple[str, ...]

    @property
    def utterances(self) -> tuple[str, ...]:
        """Everything to be spoken, each apart."""
        return (self.prompt, self.right, *self.elsewhere, *self.later)

    @property
    def key(self) -> str:
        """Names what is made of it: another text or voice is another key."""
        return content_key(self.speaker, *self.utterances)


def plan_stories(books: Mapping[str, Sequence[Section]], *, count: int = COUNT) -> list[Story]:
    """Seeded choice of `count` items (fewer if the books do not hold so many), in the books' order."""
    scenes = {
        (book, number): list(chain.from_iterable(split_sentences(p) for p in section.paragraphs))
        for book in HELDOUT_BOOKS
        for number, section in enumerate(books.get(book, ()))
    }
    rng = random.Random(f"{SEED} stories")
    candidates: list[Story] = []
    for (book, number), sentences in scenes.items():
        foreign = [s for key, other in scenes.items() if key != (book, number) for s in other]
        candidates += _scene_items(f"{book}-s{number:02d}", book, sentences, foreign, rng)
    chosen = sorted(rng.sample(range(len(candidates)), min(count, len(candidates))))
    speakers = [f"espeak:{voice}" for voice in ESPEAK_VOICES]
    return [
        Story(**{**vars(candidates[c]), "speaker": speakers[i % len(speakers)]})  # each voice reads as many
        for i, c in enumerate(chosen)
    ]


def _scene_items(prefix: str, book: str, sentences: list[str], foreign: list[str], rng: random.Random) -> list[Story]:
    """Non-overlapping items of one scene."""
    items: list[Story] = []
    start = 0
    while start + 3 < len(sentences):
        size = next((n for n in (3, 4) if _fits(sentences[start : start + n + 1], n)), 0)
        if not size:
            start += 1
            continue
        right = sentences[start + size]
        taken = set(map(_bare, sentences[start : start + size + 1]))
        later = _similar(right, sentences[start + size + 1 + _LATER_GAP :], taken, rng)
        elsewhere = _similar(right, foreign, taken | set(map(_bare, later)), rng)
        if len(later) == len(elsewhere) == ENDINGS:
            prompt = " ".join(sentences[start : start + size])
            items.append(Story(f"{prefix}-{start:03d}", book, "", prompt, right, tuple(elsewhere), tuple(later)))
        start += size + 1
    return items


def _fits(window: list[str], size: int) -> bool:
    lengths = [_length(s) for s in window]
    return (
        len(window) == size + 1
        and all(n in _SENTENCE_WORDS for n in lengths)
        and lengths[-1] in _ENDING_WORDS
        and sum(lengths[:-1]) <= _PROMPT_WORDS
    )


def _similar(right: str, pool: list[str], taken: set[str], rng: random.Random) -> list[str]:
    """Up to ENDINGS different sentences of `pool` whose length differs least from `right`'s; ties are drawn."""
    words = _length(right)
    near = [s for s in pool if abs(_length(s) - words) <= 4 and _length(s) in _ENDING_WORDS]
    options = {_bare(s): s for s in near if _bare(s) not in taken}
    drawn = rng.sample(list(options.values()), min(4 * ENDINGS, len(options)))
    return sorted(drawn, key=lambda s: abs(_length(s) - words))[:ENDINGS]


@cache
def _length(sentence: str) -> int:
    return len(sentence.split())


@cache
def _bare(sentence: str) -> str:
    """Letters only, so that two sentences that differ in punctuation count as equal."""
    return " ".join("".join(c for c in word if c.isalnum()) for word in sentence.casefold().split())
