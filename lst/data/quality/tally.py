"""Counts over the spoken documents, added up piece by piece. Numpy only; memory does not grow with the documents.

Frames are speech tokens (25 a second). A *silence* is a stretch of frames outside every word of a document that has words.
Not here: reading (scan.py), what a count means (checks.py, summary.py).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lst.data.quality.scan import Lists

IntArray = NDArray[np.int64]

KEPT = 10  # longest silences and runs that are kept by name
LONGEST_COUNTED = 1 << 16  # lengths up to here are counted one by one (44 minutes)
DOMINATED_SHARE = 0.5  # a document is dominated by a token that is more than this share of it
DOMINATED_TOKENS = 25  # ... if it lasts a second at least


class LengthCounts:
    """How often each length occurs. Lengths over LONGEST_COUNTED count as that, but `total` and `longest` are exact."""

    def __init__(self) -> None:
        self.counts = np.zeros(LONGEST_COUNTED + 1, np.int64)
        self.number = 0
        self.total = 0
        self.longest = 0

    def add(self, lengths: IntArray) -> None:
        if not len(lengths):
            return
        clipped = np.bincount(np.minimum(lengths, LONGEST_COUNTED))
        self.counts[: len(clipped)] += clipped
        self.number += len(lengths)
        self.total += int(lengths.sum())
        self.longest = max(self.longest, int(lengths.max()))

    @property
    def mean(self) -> float:
        return self.total / self.number if self.number else 0.0

    def quantile(self, share: float) -> int:
        """The smallest length that at least `share` of all do not exceed."""
        return int(np.searchsorted(np.cumsum(self.counts), share * self.number)) if self.number else 0


class Stretch(NamedTuple):
    """A stretch of frames of a document that begins at frame `start`."""

    frames: int
    document: str
    start: int


class Longest:
    """The KEPT longest stretches; of equals, those whose documents come first in the alphabet."""

    def __init__(self) -> None:
        self._kept: list[tuple[int, str, int]] = []  # (-frames, document, start)

    def add(self, lengths: IntArray, starts: IntArray, owner: IntArray, ids: list[str]) -> None:
        if not len(lengths):
            return
        least = int(np.partition(lengths, -KEPT)[-KEPT]) if len(lengths) > KEPT else 0
        least = max(least, -self._kept[-1][0] if len(self._kept) == KEPT else 0)
        found = [(-int(lengths[i]), ids[owner[i]], int(starts[i])) for i in np.flatnonzero(lengths >= least)]
        self._kept = heapq.nsmallest(KEPT, self._kept + found)

    def sorted(self) -> list[Stretch]:
        """Longest first."""
        return [Stretch(-frames, document, start) for frames, document, start in self._kept]


class TokenTally:
    """Which tokens occur, how they repeat, and how long documents are."""

    def __init__(self, vocabulary: int) -> None:
        self.counts = np.zeros(vocabulary, np.int64)
        self.lengths = LengthCounts()
        self.pairs = 0  # neighbours inside a document
        self.repeats = 0  # of them, equal ones
        self.runs = Longest()
        self.dominated = 0
        self.dominated_ids: list[str] = []

    def add(self, tokens: Lists, ids: list[str]) -> None:
        lengths = tokens.lengths
        self.lengths.add(lengths)
        if not len(tokens.values):
            return
        self.counts += np.bincount(tokens.values, minlength=len(self.counts))
        first = np.zeros(len(tokens.values), bool)
        first[tokens.offsets[:-1][lengths > 0]] = True
        changes = np.append(True, tokens.values[1:] != tokens.values[:-1])
        self.pairs += int((~first).sum())
        self.repeats += int((~first & ~changes).sum())
        begin = np.flatnonzero(first | changes)
        owner = np.searchsorted(tokens.offsets, begin, side="right") - 1
        run = np.diff(np.append(begin, len(tokens.values)))
        self.runs.add(run, begin - tokens.offsets[owner], owner, ids)
        self._add_dominated(tokens, ids)

    def _add_dominated(self, tokens: Lists, ids: list[str]) -> None:
        size = len(self.counts)
        keys, counts = np.unique(tokens.owner * size + tokens.values, return_counts=True)
        lengths = tokens.lengths[keys // size]
        found = (keys // size)[(counts > DOMINATED_SHARE * lengths) & (lengths >= DOMINATED_TOKENS)]
        self.dominated += len(found)
        self.dominated_ids += [ids[i] for i in found[: KEPT - len(self.dominated_ids)]]


class WordTally:
    """Words, silences and what the tokens know of them, over the documents that have words."""

    def __init__(self, vocabulary: int) -> None:
        self.documents = 0
        self.frames = 0
        self.durations = LengthCounts()
        self.silences = LengthCounts()
        self.longest_silences = Longest()
        self.mostly_silent = 0
        self.mostly_silent_ids: list[str] = []
        self.tokens = np.zeros((2, vocabulary), np.int64)  # outside words, inside words
        self.characters = 0
        self.fast = 0
        self.slow = 0
        self._moments = np.zeros(5)  # sums of c, d, c^2, d^2, c d

    def add(self, tokens: Lists, starts: Lists, ends: Lists, characters: IntArray, ids: list[str], limits: WordLimits) -> None:
        """`tokens`, `starts`, `ends` of documents that all have words; `characters` of each word."""
        first, last = starts.values.astype(np.int64), ends.values.astype(np.int64)
        durations = last - first + 1
        self.documents += len(ids)
        self.frames += len(tokens.values)
        self.durations.add(durations)
        self.characters += int(characters.sum())
        self.fast += int((characters * limits.frame_rate > limits.fastest * durations).sum())
        self.slow += int((durations > limits.longest_frames).sum())
        c, d = characters.astype(np.float64), durations.astype(np.float64)
        self._moments += [c.sum(), d.sum(), c @ c, d @ d, c @ d]
        silences = find_silences(tokens, starts, ends)
        self.silences.add(silences.lengths)
        self.longest_silences.add(silences.lengths, silences.begins, silences.owner, ids)
        edges = np.bincount(first + tokens.offsets[starts.owner], minlength=len(tokens.values) + 1)
        edges = edges - np.bincount(last + 1 + tokens.offsets[starts.owner], minlength=len(tokens.values) + 1)
        inside = np.cumsum(edges[:-1]) > 0
        for kind in (0, 1):
            self.tokens[kind] += np.bincount(tokens.values[inside == kind], minlength=self.tokens.shape[1])
        spoken = np.add.reduceat(inside.astype(np.int64), tokens.offsets[:-1])
        silent = np.flatnonzero(spoken < (1 - limits.mostly_silent) * tokens.lengths)
        self.mostly_silent += len(silent)
        self.mostly_silent_ids += [ids[i] for i in silent[: KEPT - len(self.mostly_silent_ids)]]

    @property
    def words(self) -> int:
        return self.durations.number

    @property
    def silence_share(self) -> float:
        """Share of frames outside words."""
        return self.silences.total / self.frames if self.frames else 0.0

    @property
    def length_correlation(self) -> float | None:
        """Pearson's r of a word's characters and its frames; None where either never varies."""
        n = self.words
        c, d, cc, dd, cd = (self._moments / max(n, 1)).tolist()
        spread = (cc - c * c) * (dd - d * d)
        return (cd - c * d) / spread**0.5 if n > 1 and spread > 1e-12 else None

    @property
    def silence_information(self) -> float | None:
        """I(token; silent) / H(silent) of a frame, with Miller's correction; None where no frame, or every frame, is silent."""
        total = self.tokens.sum()
        by_kind = self.tokens.sum(1)
        if not by_kind.all():
            return None
        used = int((self.tokens.sum(0) > 0).sum())
        joint, kinds, tokens = _entropy(self.tokens.ravel()), _entropy(by_kind), _entropy(self.tokens.sum(0))
        bias = (used - 1) / (2 * total)  # what independent tokens would seem to tell (Miller 1955)
        return float(max(0.0, kinds + tokens - joint - bias) / kinds)


class Silences(NamedTuple):
    """The silences of some documents, and how many documents begin and end with one."""

    lengths: IntArray
    begins: IntArray  # first frame, from the document's start
    owner: IntArray  # row of the document
    leading: int
    trailing: int


def find_silences(tokens: Lists, starts: Lists, ends: Lists) -> Silences:
    """The stretches of frames outside words; each document has a word at least."""
    first, last = starts.values.astype(np.int64), ends.values.astype(np.int64)
    opening = starts.offsets[:-1]  # places of the documents' first words
    begin = np.append(0, last[:-1] + 1)  # where the silence before each word would begin
    begin[opening] = 0
    tail_begin = last[starts.offsets[1:] - 1] + 1
    gaps, tails = first - begin, tokens.lengths - tail_begin
    lengths = np.concatenate([gaps, tails])
    kept = lengths > 0
    return Silences(
        lengths[kept],
        np.concatenate([begin, tail_begin])[kept],
        np.concatenate([starts.owner, np.arange(len(tails))])[kept],
        int((gaps[opening] > 0).sum()),
        int((tails > 0).sum()),
    )


@dataclass(frozen=True)
class WordLimits:
    """Beyond which a word or a document counts as an outlier (checks.py has the values and their reasons)."""

    frame_rate: int
    fastest: float  # characters a second
    longest_frames: int
    mostly_silent: float


def _entropy(counts: IntArray) -> float:
    """In nats."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())
