"""Where each text piece of a spoken word lies: the units of `patching.aligned_unit=bpe` (PAPER: BPE align).

The paper maps a character alignment to pieces. Where a data set has times of pieces (columns piece_start, piece_end of
lst/data/shards.py) they are used; else a word's frames are divided among its pieces in proportion to their characters:

    "unhappily" on frames 10..18 as  un | happ | ily  (2, 4 and 3 characters)    ->   10-11 | 12-15 | 16-18
    "unhappily" on frames 10..13 as  un | happ | ily                             ->   10    | 11-12 | 13
    "unhappily" on frames 10..11 as  un | happ | ily                             ->   10    | 11         (two frames, two patches)

Each piece keeps a frame at least as long as there are as many frames as pieces. Numpy only; words of a document at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
CHARACTER_START = "character_start"
"""Optional column of raw rows (list of uint32): the frame in which each character of the words begins, one word after another."""


def divide_words(starts: IntArray, ends: IntArray, pieces: IntArray, characters: IntArray) -> tuple[IntArray, IntArray]:
    """(spans, counts): first and last frame of each piece that has frames, (n, 2); and how many of them each word has.

    `starts`, `ends` (W,) are the words' first and last frames, `pieces` (W,) how many pieces each has, `characters` (P,) the
    characters of all pieces, one word after another. A word without pieces is one span.
    """
    whole = pieces == 0
    characters = np.insert(characters, (np.cumsum(pieces))[whole], 1) if whole.any() else characters
    pieces = np.where(whole, 1, pieces)
    first = np.cumsum(pieces) - pieces  # place of each word's first piece
    word = np.repeat(np.arange(len(pieces)), pieces)
    place = np.arange(len(word)) - first[word]  # of the piece in its word, from 0
    weight = np.where(np.add.reduceat(characters, first)[word] > 0, characters, 1) if len(word) else characters
    running = np.cumsum(weight)
    before = (running - weight)[first][word]
    total = np.add.reduceat(weight, first)[word] if len(word) else weight
    frames = (ends - starts + 1)[word]
    bound = (2 * frames * (running - before) + total) // (2 * total)  # frames up to this piece's end, rounded half up
    enough = frames >= pieces[word]
    # A piece's end is one past the end before it at least, b_j >= max_i<=j (b_i + j - i), and leaves a frame to each later one.
    lifted = _running_maximum(bound - place, word) + place
    bound = np.where(enough, np.minimum(np.maximum(lifted, place + 1), frames - (pieces[word] - 1 - place)), bound)
    previous = np.where(place > 0, np.roll(bound, 1), 0)
    kept = bound > previous
    offset = starts[word]
    spans = np.stack([offset + previous, offset + bound - 1], 1)[kept]
    return spans, np.bincount(word[kept], minlength=len(pieces))


def piece_times(
    words: Sequence[str],
    starts: Sequence[int],
    ends: Sequence[int],
    character_starts: Sequence[int],
    pieces: Sequence[int],
    characters: IntArray,
) -> tuple[list[int], list[int]]:
    """(piece_start, piece_end) of a document whose characters are aligned (PAPER: character alignment mapped to pieces).

    `starts`, `ends` are the words' frames, `character_starts` those in which their characters begin; `pieces` (words) how many
    pieces each word has, `characters` (all pieces) how many characters each stands for. A piece begins with its first character
    and lasts until the next piece begins:

        "unhappily" on frames 10..18, characters beginning at 10 11 | 12 13 13 14 | 17 17 18     un | happ | ily
        ->   un 10-11, happ 12-16, ily 17-18

    Where the pieces have another number of characters than the word (a normalising tokenizer), places are scaled.
    """
    piece_start: list[int] = []
    piece_end: list[int] = []
    place, first = 0, 0
    for word, start, end, count in zip(words, starts, ends, pieces, strict=True):
        bounds = np.concatenate([[0], np.cumsum(characters[first : first + count])])
        scaled = (bounds[:-1] * len(word)) // max(1, int(bounds[-1]))
        begins = np.asarray(character_starts[place : place + len(word)])[np.minimum(scaled, len(word) - 1)].tolist()
        begins = [start, *begins[1:]] if count else []
        piece_start += begins
        piece_end += [after - 1 for after in begins[1:]] + ([end] if count else [])
        place, first = place + len(word), first + count
    return piece_start, piece_end


def _running_maximum(values: IntArray, group: IntArray) -> IntArray:
    """The running maximum inside each stretch of equal `group` (rising)."""
    if not len(values):
        return values
    height = int(values.max()) - int(values.min()) + 1
    return np.maximum.accumulate(values + group * height) - group * height
