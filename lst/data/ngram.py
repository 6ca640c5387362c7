"""Unigram and trigram references: what a model must beat before its loss means anything.

Witten-Bell interpolation, counted on the training documents, scored on given documents:

    p1(x)        = (c(x) + 1) / (N + V)
    p2(x | h)    = (c(h, x) + k(h) p1(x)) / (c(h) + k(h))          k(h): how many different tokens follow h
    p3(x | g, h) = (c(g, h, x) + k(g, h) p2(x | h)) / (c(g, h) + k(g, h))

(Witten and Bell 1991.) A document's first token is scored by p1, its second by p2. Counting is vectorised over sorted
integer keys; it holds three arrays of at most one key a token.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]


class NgramModel:
    """Counts of a corpus of token documents over `vocabulary` ids."""

    def __init__(self, documents: Sequence[NDArray[np.integer]], vocabulary: int) -> None:
        self.vocabulary = vocabulary
        self._unigrams = np.zeros(vocabulary, np.int64)
        for document in documents:
            self._unigrams += np.bincount(document, minlength=vocabulary)
        self._tables = {order: _Table(_keys(documents, order, vocabulary), vocabulary) for order in (2, 3)}

    def nats(self, documents: Sequence[NDArray[np.integer]], order: int) -> float:
        """Mean negative log-probability of all tokens under the model of `order` 1 or 3."""
        total, count = 0.0, 0
        for document in documents:
            total -= float(np.log(self._probabilities(np.asarray(document, np.int64), order)).sum())
            count += len(document)
        return total / count

    def _probabilities(self, x: IntArray, order: int) -> NDArray[np.float64]:
        p: NDArray[np.float64] = (self._unigrams[x] + 1) / (self._unigrams.sum() + self.vocabulary)
        for n in range(2, order + 1):
            if len(x) < n:
                break
            p[n - 1 :] = self._tables[n].interpolate(_keys([x], n, self.vocabulary), p[n - 1 :])
        return p


class _Table:
    """Counts of the n-grams of one order, and of their contexts."""

    def __init__(self, keys: IntArray, vocabulary: int) -> None:
        self._vocabulary = vocabulary
        self._keys, self._counts = np.unique(keys, return_counts=True)
        self._contexts, first = np.unique(self._keys // vocabulary, return_index=True)
        self._kinds = np.diff(np.append(first, len(self._keys)))
        self._context_counts = np.add.reduceat(self._counts, first) if len(first) else first

    def interpolate(self, keys: IntArray, lower: NDArray[np.float64]) -> NDArray[np.float64]:
        """(c(key) + k lower) / (c(context) + k); `lower` where the context was never seen."""
        count = _look_up(self._keys, self._counts, keys)
        context = keys // self._vocabulary
        total, kinds = _look_up(self._contexts, self._context_counts, context), _look_up(self._contexts, self._kinds, context)
        return np.where(total > 0, (count + kinds * lower) / np.maximum(total + kinds, 1), lower)


def _look_up(keys: IntArray, values: IntArray, wanted: IntArray) -> IntArray:
    if not len(keys):
        return np.zeros(len(wanted), np.int64)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)


def _keys(documents: Sequence[NDArray[np.integer]], order: int, vocabulary: int) -> IntArray:
    """The n-grams inside each document as integers, most significant token first."""
    parts = [np.zeros(0, np.int64)]
    for document in documents:
        x = np.asarray(document, np.int64)
        if len(x) >= order:
            key = np.zeros(len(x) - order + 1, np.int64)
            for i in range(order):
                key = key * vocabulary + x[i : len(x) - order + 1 + i]
            parts.append(key)
    return np.concatenate(parts)
