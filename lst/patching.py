"""Where patches begin and end, and from which token on each unit may be seen.

A *unit* is a position of the global transformer: a text token, a marker, or a patch of speech tokens. A unit *closes* at
the token from which alone it is known to be complete (DESIGN rule 2; drawn in docs/patching.md):

    static(3)    <s>  a  b  c   d  e  f   g  h  <t>  w
    unit          0   1  1  1   2  2  2   3  3   4   5
    closes at     0         3         6          9 9 10      (unit 3 is cut short: it closes at the NEXT token, position 9)
    visible       1   1  1  2   2  2  3   3  3   5   6       (units closed at each token)

Only a speech span's last patch can be cut short. Showing it at its own last token would tell the model that the span ends.
Aligned patches are made from the future (an alignment says where a word ends): their boundaries are side information.
This module decides boundaries from lengths and word spans alone; it never sees token values.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lst.config import Patching
from lst.errors import DataError

IntArray = NDArray[np.int64]


class Patches(NamedTuple):
    """Consecutive patches of one speech span."""

    lengths: IntArray  # tokens of each patch; they sum to the span's length
    complete: NDArray[np.bool_]  # False: cut short by the span's end, so it closes only at the next token


def patch_span(kind: Patching, length: int, *, patch_size: int, words: IntArray | None = None) -> Patches:
    """The patches of a span of `length` speech tokens; `kind` is TOKEN, STATIC or ALIGNED.

    `words` (n, 2) are the first and last frames of its words, counted from the span's start; ALIGNED needs them.
    """
    if kind is Patching.TOKEN:
        return Patches(np.ones(length, np.int64), np.ones(length, bool))
    if kind is Patching.STATIC:
        return static_patches(length, patch_size)
    if words is None:
        raise DataError("an aligned arm needs word spans, and this speech has none; give alignments or use lst_static.")
    return aligned_patches(length, words)


def static_patches(length: int, patch_size: int) -> Patches:
    """static(p) (PAPER, Patching): patches {ip .. min((i+1)p - 1, T)}, restarting at each speech span."""
    full, rest = divmod(length, patch_size)
    lengths = np.full(full + (rest > 0), patch_size, np.int64)
    complete = np.ones(len(lengths), bool)
    if rest:
        lengths[-1], complete[-1] = rest, False
    return Patches(lengths, complete)


def aligned_patches(length: int, words: IntArray) -> Patches:
    """One patch a word, and the frames outside words form silence patches (PAPER: *sil sep.*).

    Words at [2, 4] and [6, 7] of eight frames give {0,1} {2,3,4} {5} {6,7}. A silence at the span's end is cut short.
    """
    words = np.asarray(words, np.int64).reshape(-1, 2)
    cuts = np.unique(np.concatenate([words[:, 0], words[:, 1] + 1, [0, length]]))
    if len(words) and (cuts[0] < 0 or cuts[-1] > length):
        raise DataError(f"a word's frames {words.min()}..{words.max()} lie outside its span of {length} speech tokens.")
    lengths = np.diff(cuts)
    complete = np.ones(len(lengths), bool)
    if len(lengths):
        complete[-1] = bool(len(words)) and int(words[-1, 1]) + 1 == length
    return Patches(lengths, complete)


def closing_positions(unit_lengths: IntArray, complete: NDArray[np.bool_]) -> IntArray:
    """The token position at which each unit closes; one past the last token where it never does."""
    ends = np.cumsum(unit_lengths) - 1
    return ends + ~complete


def visible_units(closes: IntArray, tokens: int) -> IntArray:
    """For each token position, how many units are closed there: the units 0 .. visible - 1."""
    return np.searchsorted(closes, np.arange(tokens), side="right")
