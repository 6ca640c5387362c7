"""Samples by hash: bounded, the same whatever the order of the documents, and never parting two equal things.

A thing is kept if its hash lies below a threshold; when there are too many, the threshold is halved. Two equal documents have one
hash, so both are kept or neither: the share of repetitions in the sample estimates that of the whole, and is exact as long
as nothing was dropped (the idea of distinct sampling, Gibbons 2001).
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lst.data.ngram import NgramModel

IntArray = NDArray[np.int64]
HashArray = NDArray[np.uint64]

MOST_HASHES = 1 << 20  # documents up to which repetitions are counted exactly; 16 MiB for each kind
MOST_TOKENS = 1 << 20  # of training documents for the n-gram counts
MOST_SCORED = 1 << 18  # of documents that are scored
LEAST_TOKENS = 20_000  # fewer tell nothing of trigrams
_WHOLE = 1 << 64


def hashes_of(values: Iterable[bytes]) -> HashArray:
    """64 bits of BLAKE2 of each."""
    return np.array([int.from_bytes(hashlib.blake2b(v, digest_size=8).digest()) for v in values], np.uint64)


class Repetitions:
    """How many of many hashes occurred before, and the rows of some that did."""

    def __init__(self, most: int = MOST_HASHES) -> None:
        self._most = most
        self._below = _WHOLE
        self._hashes, self._rows = np.zeros(0, np.uint64), np.zeros(0, np.int64)
        self.added = 0

    def add(self, hashes: HashArray, rows: IntArray) -> None:
        self.added += len(hashes)
        self._hashes, self._rows = np.append(self._hashes, hashes), np.append(self._rows, rows)
        self._drop()
        while len(self._hashes) > self._most and self._below > 1:
            self._below //= 2
            self._drop()

    def _drop(self) -> None:
        if self._below < _WHOLE:
            kept = self._hashes < np.uint64(self._below)
            self._hashes, self._rows = self._hashes[kept], self._rows[kept]

    @property
    def sampled(self) -> int:
        return len(self._hashes)

    @property
    def exact(self) -> bool:
        return self.sampled == self.added

    @property
    def share(self) -> float:
        """Share of the (sampled) things that equal an earlier one."""
        return 1 - len(np.unique(self._hashes)) / self.sampled if self.sampled else 0.0

    def groups(self, most: int) -> list[list[int]]:
        """Rows of equal things, the largest groups first; at most `most` groups of at most `most` rows."""
        order = np.argsort(self._hashes, kind="stable")
        hashes, rows = self._hashes[order], self._rows[order]
        begin = np.flatnonzero(np.append(True, hashes[1:] != hashes[:-1])) if len(hashes) else np.zeros(0, np.int64)
        size = np.diff(np.append(begin, len(hashes)))
        large = sorted(np.flatnonzero(size > 1).tolist(), key=lambda g: (-size[g], rows[begin[g]]))[:most]
        return [rows[begin[g] : begin[g] + min(int(size[g]), most)].tolist() for g in large]


@dataclass(order=True)
class _Kept:
    key: int  # minus the hash
    tokens: NDArray[np.uint16] = field(compare=False)


class TokenSample:
    """The documents of the lowest hashes, whole, as many as have `most` tokens together; one at least."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: list[_Kept] = []  # a heap: the largest hash first
        self._below = _WHOLE
        self.tokens = 0

    def add(self, name_hash: int, tokens: NDArray[np.integer]) -> None:
        if name_hash >= self._below:
            return
        heapq.heappush(self._kept, _Kept(-name_hash, tokens[: self._most].astype(np.uint16)))
        self.tokens += min(len(tokens), self._most)
        while self.tokens > self._most and len(self._kept) > 1:
            dropped = heapq.heappop(self._kept)
            self._below = -dropped.key
            self.tokens -= len(dropped.tokens)

    def documents(self) -> list[NDArray[np.uint16]]:
        """In the order of their hashes."""
        return [kept.tokens for kept in sorted(self._kept, key=lambda kept: -kept.key)]


def perplexities(train: TokenSample, heldout: TokenSample, vocabulary: int) -> dict[int, float]:
    """Perplexity a token of order 1, 2 and 3 (lst/data/ngram.py), counted on `train`, scored on `heldout`.

    Without held-out documents every tenth training document is scored and not counted. Empty where there is too little.
    """
    counted, scored = train.documents(), heldout.documents()
    if not scored:
        counted, scored = [d for i, d in enumerate(counted) if i % 10], counted[::10]
    if sum(map(len, counted)) < LEAST_TOKENS or not sum(map(len, scored)):
        return {}
    model = NgramModel(counted, vocabulary)
    return {order: math.exp(model.nats(scored, order)) for order in (1, 2, 3)}
