"""Word and character errors of a transcript against its reference, with a named normaliser.

    S, D, I     substituted, left out and inserted items of a shortest edit (Levenshtein 1966), counted on one such edit
    WER         (S + D + I) / reference words, summed over all utterances before it is divided; it may exceed 1
    CER         the same over characters, spaces included

Equal to jiwer's WER and CER on the same normalised texts (tested). The normaliser is part of the number:
its name stands in every record.
"""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np


def plain_english(text: str) -> str:
    """`plain-english-1`: lower case; all but letters, digits and apostrophes become spaces; runs of spaces become one.

    Numbers are not spelt out and abbreviations are not opened; typographic apostrophes become plain ones.
    """
    text = text.casefold().replace("’", "'").replace("‘", "'")
    return " ".join(re.sub(r"[^\w']|_", " ", text).split())


NORMALISERS: dict[str, Callable[[str], str]] = {"plain-english-1": plain_english, "none": lambda text: text}


@dataclass(frozen=True)
class Errors:
    """Counts of an alignment. Additive."""

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    reference: int = 0  # items of the reference

    def __add__(self, other: Errors) -> Errors:
        return Errors(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def rate(self) -> float:
        """(S + D + I) / reference; of an empty reference 0 without insertions, else 1 a inserted item."""
        return (self.substitutions + self.deletions + self.insertions) / max(1, self.reference)


def total(errors: Iterable[Errors]) -> Errors:
    return functools.reduce(operator.add, errors, Errors())


def word_errors(reference: str, heard: str) -> Errors:
    return align(reference.split(), heard.split())


def character_errors(reference: str, heard: str) -> Errors:
    return align(list(reference), list(heard))


def align(reference: Sequence[str], heard: Sequence[str]) -> Errors:
    """The counts of a shortest edit from `reference` to `heard`, row by row over all prefixes of the reference."""
    names: dict[str, int] = {}
    r, h = (np.array([names.setdefault(item, len(names)) for item in items], np.int64) for items in (reference, heard))
    cost = np.zeros((len(r) + 1, len(h) + 1), np.int64)
    cost[:, 0], cost[0] = np.arange(len(r) + 1), np.arange(len(h) + 1)
    step = np.arange(len(h) + 1)
    for i in range(1, len(r) + 1):
        best = np.minimum(cost[i - 1, 1:] + 1, cost[i - 1, :-1] + (h != r[i - 1]))
        row = np.concatenate([[i], best]) - step
        cost[i] = np.minimum.accumulate(row) + step  # an insertion costs one a place
    i, j, counts = len(r), len(h), [0, 0, 0]
    while i or j:
        if i and j and cost[i, j] == cost[i - 1, j - 1] + (r[i - 1] != h[j - 1]):
            counts[0] += int(r[i - 1] != h[j - 1])
            i, j = i - 1, j - 1
        elif i and cost[i, j] == cost[i - 1, j] + 1:
            counts[1], i = counts[1] + 1, i - 1
        else:
            counts[2], j = counts[2] + 1, j - 1
    return Errors(counts[0], counts[1], counts[2], len(r))
