"""Where patches begin and end, and from which token on each unit may be seen.

A *unit* is a position of the global transformer: a text token, a marker, or a patch of speech tokens. A unit *closes* at
the token from which alone it is known to be complete (DESIGN rule 2; drawn in docs/patching.md):

    static(3)    <s>  a  b  c   d  e  f   g  h  <t>  w
    unit          0   1  1  1   2  2  2   3  3   4   5
    closes at     0         3         6          9 9 10      (unit 3 is cut short: it closes at the NEXT token, position 9)
    visible       1   1  1  2   2  2  3   3  3   5   6       (units closed at each token)

Only a speech span's last patch can be cut short. Showing it at its own last token would tell the model that the span ends.
Aligned patches are made from the future (an alignment says where a word ends): their boundaries are side information, but
they too never tell where the *span* ends. This module decides boundaries from lengths and the spans of aligned units (words,
or the text pieces of words) alone; it never sees token values.
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


def patch_span(
    kind: Patching, length: int, *, patch_size: int, words: IntArray | None = None, silence: str = "separate"
) -> Patches:
    """The patches of a span of `length` speech tokens; `kind` is TOKEN, STATIC or ALIGNED.

    `words` (n, 2) are the first and last frames of its words (or of their pieces), counted from the span's start; ALIGNED
    needs them. `silence` is as in `aligned_patches`.
    """
    if kind is Patching.TOKEN:
        return Patches(np.ones(length, np.int64), np.ones(length, bool))
    if kind is Patching.STATIC:
        return static_patches(length, patch_size)
    if words is None:
        raise DataError("an aligned arm needs word spans, and this speech has none; give alignments or use lst_static.")
    return aligned_patches(length, words, silence)


def static_patches(length: int, patch_size: int) -> Patches:
    """static(p) (PAPER, Patching): patches {ip .. min((i+1)p - 1, T)}, restarting at each speech span."""
    full, rest = divmod(length, patch_size)
    lengths = np.full(full + (rest > 0), patch_size, np.int64)
    complete = np.ones(len(lengths), bool)
    if rest:
        lengths[-1], complete[-1] = rest, False
    return Patches(lengths, complete)


def aligned_patches(length: int, words: IntArray, silence: str = "separate") -> Patches:
    """One patch a word (or a text piece); the frames outside, silence, by the rule `silence`.

    Words at [2, 4] and [6, 7] of nine frames, `|` where a patch begins; `)` marks a patch that is cut short:

        frame       0  1  2  3  4  5  6  7  8
                    .  .  w  w  w  .  w  w  .
        separate   |.  . |w  w  w |. |w  w |.)     a silence is a patch of its own (PAPER: *sil sep.*)
        previous   |.  . |w  w  w  . |w  w  .)     it joins the word before it (PAPER: *sil merged*; the side is not said)
        next       |.  .  w  w  w |.  w  w |.)     it joins the word after it

    A silence with no word on the rule's side stays a patch of its own. The last patch is cut short unless its end is a
    word's end that would be a patch's end whatever followed: under `previous` silence might have followed and joined it.
    Raises DataError on words that overlap, are out of order, or leave the span.
    """
    words = np.asarray(words, np.int64).reshape(-1, 2)
    _check_words(length, words)
    starts, ends = words[:, 0], words[:, 1] + 1
    inner = {"separate": (starts, ends), "previous": (starts,), "next": (ends,)}[silence]
    cuts = np.unique(np.concatenate([*inner, [0, length]]))
    lengths = np.diff(cuts)
    complete = np.ones(len(lengths), bool)
    if len(lengths):
        complete[-1] = silence != "previous" and len(words) > 0 and int(ends[-1]) == length
    return Patches(lengths, complete)


def _check_words(length: int, words: IntArray) -> None:
    if not len(words):
        return
    if words.min() < 0 or words.max() >= length:
        raise DataError(
            f"a word's frames {words.min()}..{words.max()} lie outside its span of {length} speech tokens; "
            "count frames from the span's start."
        )
    flat = words.ravel()
    if (np.diff(flat)[1::2] <= 0).any() or (words[:, 1] < words[:, 0]).any():
        wrong = int(np.argmax(np.append(False, np.diff(flat)[1::2] <= 0) | (words[:, 1] < words[:, 0])))
        raise DataError(
            f"word {wrong} at frames {words[wrong].tolist()} overlaps the word before it, or ends before it starts; "
            "give first and last frames in order, each frame to one word."
        )


def closing_positions(unit_lengths: IntArray, complete: NDArray[np.bool_]) -> IntArray:
    """The token position at which each unit closes; one past the last token where it never does."""
    ends = np.cumsum(unit_lengths) - 1
    return ends + ~complete


def visible_units(closes: IntArray, tokens: int) -> IntArray:
    """For each token position, how many units are closed there: the units 0 .. visible - 1."""
    return np.searchsorted(closes, np.arange(tokens), side="right")
