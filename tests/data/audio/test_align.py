"""Seconds -> frames, and CTC forced alignment."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lst.data.audio.align import ctc_path, frame_spans
from lst.errors import DataError


def test_the_shared_frame_goes_to_the_later_word_as_drawn() -> None:
    assert frame_spans([(0.0, 0.10), (0.10, 0.15)], 5) == ([0, 2], [1, 3])


def test_a_gap_between_words_stays_a_gap() -> None:
    assert frame_spans([(0.0, 0.08), (0.2, 0.28)], 10) == ([0, 5], [1, 6])


def test_words_that_start_in_one_frame_get_a_frame_each() -> None:
    assert frame_spans([(0.0, 0.01), (0.01, 0.02), (0.02, 0.03)], 4) == ([0, 1, 2], [0, 1, 2])


def test_words_that_crowd_at_the_end_move_forward() -> None:
    assert frame_spans([(0.0, 0.04), (0.15, 0.15), (0.15, 0.16)], 4) == ([0, 2, 3], [0, 2, 3])


def test_more_words_than_frames_are_refused() -> None:
    with pytest.raises(DataError, match="3 words do not fit into 2 frames"):
        frame_spans([(0.0, 0.1)] * 3, 2)


@given(st.lists(st.floats(0, 3), min_size=1, max_size=20), st.integers(20, 80))
def test_frames_always_keep_the_contract(times: list[float], frames: int) -> None:
    cuts = sorted(times)
    starts, ends = frame_spans(list(zip(cuts, [*cuts[1:], 3.0], strict=True)), frames)
    assert starts[0] >= 0
    assert ends[-1] < frames
    assert all(start <= end for start, end in zip(starts, ends, strict=True))
    assert all(end < start for end, start in zip(ends, starts[1:], strict=False))


def _peaks(labels: list[int], classes: int = 4) -> np.ndarray:
    probabilities = np.full((len(labels), classes), 0.01)
    probabilities[np.arange(len(labels)), labels] = 0.97
    return np.log(probabilities).astype(np.float32)


def test_the_path_follows_the_peaks() -> None:
    assert ctc_path(_peaks([0, 1, 0, 2, 2, 0]), [1, 2], blank=0) == [-1, 0, -1, 1, 1, -1]


def test_a_repeated_phoneme_needs_a_blank_between() -> None:
    assert ctc_path(_peaks([1, 1, 1]), [1, 1], blank=0) == [0, -1, 1]


def test_targets_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="3 sounds do not fit into 2"):
        ctc_path(_peaks([1, 2]), [1, 2, 3], blank=0)
