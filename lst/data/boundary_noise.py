"""Errors put on purpose into the boundaries of aligned units, as another aligner would make them (PAPER: A.11).

A boundary is moved by a size drawn uniformly between two numbers of milliseconds, to either side with equal chance. Frames
are 40 ms, so a move is made whole at random, by its size on average: 20 ms are a frame every second time. What is drawn
follows from the document alone, for the boundary before each of its frames: two words that touch keep their common boundary,
and every pass, arm and evaluation meets the same errors. Boundaries keep their order and their frame at least; those of a
span stay inside it. Not here: what aligned patches are made of boundaries (lst/patching.py).
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from lst.data.vocab import FRAMES_PER_SECOND

IntArray = NDArray[np.int64]
FRAME_MS = 1000 / FRAMES_PER_SECOND
NoiseRange = tuple[int, int]  # milliseconds, the least and the largest


def frame_moves(word_starts: NDArray[np.integer], frames: int, noise: NoiseRange) -> IntArray:
    """(frames + 1,) frames by which a boundary before each frame, and after the last, of a document moves.

    `word_starts` are the document's, by which its draws are found again.
    """
    key = zlib.crc32(word_starts.astype("<i8").tobytes())
    generator = np.random.Generator(np.random.Philox(key=(frames << 32) + key))
    size, rounding, side = generator.random((3, frames + 1))
    low, high = noise
    whole = np.floor((low + (high - low) * size) / FRAME_MS + rounding).astype(np.int64)
    moves: IntArray = np.where(side < 0.5, -whole, whole)
    return moves


def move_boundaries(
    first: IntArray, after: IntArray, moves: tuple[IntArray, IntArray], limits: tuple[IntArray, IntArray]
) -> tuple[IntArray, IntArray]:
    """First frame of each unit and one past its last, moved by `moves` within `limits` (of its span: first, one past the last).

    Units come in order and do not overlap, nor do spans. No boundary ends farther from its place than the largest move.
    """
    if not len(first):
        return first, after
    places, index, inverse = np.unique(np.stack([first, after], 1), return_index=True, return_inverse=True)
    low, high = (np.repeat(limit, 2)[index] for limit in limits)
    order = np.arange(len(places))
    after_it = np.searchsorted(high, high, side="right") - 1 - order  # boundaries of its span that need a frame behind it
    wanted = np.clip(places + np.stack(moves, 1).ravel()[index], low, high - after_it)
    wanted = np.maximum.accumulate(wanted - order) + order  # each at least a frame after the one before it
    moved = wanted[inverse].reshape(-1, 2)
    return moved[:, 0], moved[:, 1]
