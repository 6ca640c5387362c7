"""The times of a transcript's words, from the words that an aligner heard.

Both are compared letter by letter: case, punctuation, white space and the kind of apostrophe do not count. So the transcript's
words keep their own writing, wherever the aligner put its boundaries:

    transcript      "Well-known,"        "can"     "not"        words of punctuation alone ("--") are left out of the words
    heard           well | known         cannot                 (they stay in the text)
    times           start of well to     cannot's stretch is
                    the end of known     divided by letters

Where both have as many words, `<unk>` stands for any word. Any other difference is a mismatch and refused: a wrong transcript
must not get times. A word that the aligner did not find shares the gap between its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from lst.data.audio.alignments import Heard

Span = tuple[float, float]
UNKNOWN = frozenset({"<unk>", "[unk]", "<oov>"})


class WordTimes(NamedTuple):
    """When words, and where that is known their characters, are spoken; in seconds."""

    spans: list[Span]
    characters: list[float] | None = None  # the start of each character of the words, one word after another


def letters(word: str) -> str:
    """What is compared: letters and digits, without case."""
    return "".join(c for c in word.casefold() if c.isalnum())


def spoken_words(text: str) -> list[str]:
    """The words of a transcript that are spoken: those with a letter or a digit."""
    return [word for word in text.split() if letters(word)]


def match_words(words: Sequence[str], heard: Sequence[Heard], duration: float) -> list[Span]:
    """Start and end of each of `words` (from `spoken_words`) in seconds.

    Raises ValueError naming the first word that differs.
    """
    spans = fill_gaps([None if h.start is None or h.end is None else (h.start, h.end) for h in heard], duration)
    if len(words) == len(heard) and any(h.word.casefold() in UNKNOWN for h in heard):
        for word, h in zip(words, heard, strict=True):
            if h.word.casefold() not in UNKNOWN and letters(word) != letters(h.word):
                raise ValueError(f"the transcript has '{word}' where the alignment has '{h.word}'")
        return spans
    ours, theirs = [letters(w) for w in words], [letters(h.word) for h in heard]
    if "".join(ours) != "".join(theirs):
        raise ValueError(_first_difference(words, [h.word for h in heard]))
    kept = [(len(text), span) for text, span in zip(theirs, spans, strict=True) if text]
    if not kept:
        return []
    lengths = np.array([length for length, _ in kept])
    start = np.repeat([a for _, (a, _) in kept], lengths)
    width = np.repeat([(b - a) / n for n, (a, b) in kept], lengths)
    place = np.arange(len(start)) - np.repeat(np.cumsum(lengths) - lengths, lengths)  # of the letter in its heard word
    bounds = np.cumsum([0] + [len(text) for text in ours])
    first, last = bounds[:-1], bounds[1:] - 1
    starts, ends = start + width * place, start + width * (place + 1)
    return [(float(starts[a]), float(ends[b])) for a, b in zip(first, last, strict=True)]


def _first_difference(words: Sequence[str], heard: Sequence[str]) -> str:
    for i in range(max(len(words), len(heard))):
        ours = words[i] if i < len(words) else None
        theirs = heard[i] if i < len(heard) else None
        if ours is None or theirs is None or letters(ours) != letters(theirs):
            break
    place = f"word {i + 1}: the transcript has "
    return place + " where the alignment has ".join("nothing more" if w is None else f"'{w}'" for w in (ours, theirs))


def fill_gaps(spans: Sequence[Span | None], duration: float) -> list[Span]:
    """`spans`, with a run of None dividing the time between its neighbours (the audio's ends) evenly."""
    known = [-1, *(i for i, span in enumerate(spans) if span is not None), len(spans)]
    full: list[Span] = [span or (0.0, 0.0) for span in spans]
    for before, after in pairwise(known):
        begin = full[before][1] if before >= 0 else 0.0
        end = max(begin, full[after][0] if after < len(full) else duration)
        cuts = np.linspace(begin, end, after - before)
        for i, (a, b) in zip(range(before + 1, after), pairwise(cuts), strict=True):
            full[i] = (float(a), float(b))
    return full
