"""Coins and small whole numbers from a bit generator's raw words: the draws of interleaving.

The numbers are those that `numpy.random.Generator` draws one at a time (`random() < 0.5`, `integers(low, high,
endpoint=True)`), a tenth of its time each. They are defined here, by the raw stream alone, which numpy keeps stable; how it
makes numbers of that stream may change from one version to the next.
"""

from __future__ import annotations

import numpy as np

_BLOCK = 64  # raw words fetched at a time
_HALF = 1 << 32
_LOW_BITS = _HALF - 1
_TOP_BIT = 1 << 63


class Draws:
    """Draws from a generator, which belongs to this object from now on: it is read ahead of what was drawn."""

    def __init__(self, generator: np.random.Generator) -> None:
        self._raw = generator.bit_generator
        self._words: list[int] = []  # the next one stands last
        self._half = -1  # the upper half of a word whose lower half was drawn; -1: none

    def coin(self) -> bool:
        """True with probability 1/2."""
        return self._word() < _TOP_BIT

    def between(self, low: int, high: int) -> int:
        """A uniform number of low .. high, both inside; fewer than 2^32 of them (Lemire 2019, with 32-bit words)."""
        count = high - low + 1
        if count == 1:
            return low
        product = self._word32() * count
        if product & _LOW_BITS < count:
            threshold = (_HALF - count) % count
            while product & _LOW_BITS < threshold:
                product = self._word32() * count
        return low + (product >> 32)

    def _word32(self) -> int:
        half = self._half
        if half >= 0:
            self._half = -1
            return half
        word = self._word()
        self._half = word >> 32
        return word & _LOW_BITS

    def _word(self) -> int:
        words = self._words
        if not words:
            words.extend(self._raw.random_raw(_BLOCK)[::-1].tolist())
        return words.pop()
