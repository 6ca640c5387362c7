"""Figures of the tokenizer card, on tokens whose truth is known by hand."""

from __future__ import annotations

import numpy as np
import pytest

from lst.data.corpus.measure import frame_phones, measure, phone_accuracies, repeat_rate
from lst.data.corpus.plan import Document


def _document(speaker: str, split: str, text: str) -> Document:
    return Document(text, speaker, "book", split, text)


def _record(tokens: list[int], phones: list[str]) -> dict[str, object]:
    """One phoneme a frame of 40 ms."""
    return {"tokens": tokens, "phones": [(0.04 * i, p) for i, p in enumerate(phones)]}


def test_a_frame_has_the_phoneme_at_its_middle() -> None:
    assert frame_phones([(0.0, "a"), (0.05, "b"), (0.15, "")], 5) == ["a", "b", "b", "b", ""]


def test_repeats_are_counted_inside_documents_only() -> None:
    assert repeat_rate([np.array([1, 1, 2]), np.array([2, 2])]) == pytest.approx(2 / 3)


def test_phone_accuracy_within_and_across_voices() -> None:
    """Voice x: token 1 is a, 2 is b. Voice y: the other way round, so that maps fail across."""
    pairs = [
        (_document("x", "train", "1"), _record([1, 2, 1, 2], ["a", "b", "a", "b"])),
        (_document("x", "heldout", "2"), _record([1, 2, 2, 1], ["a", "b", "b", "b"])),
        (_document("y", "train", "3"), _record([1, 2], ["b", "a"])),
        (_document("y", "heldout", "4"), _record([1, 1, 2, 2], ["b", "b", "a", "a"])),
    ]
    within, across, chance = phone_accuracies(pairs)
    assert within == pytest.approx((3 / 4 + 1) / 2)
    assert across == pytest.approx((1 / 4 + 0) / 2)  # x's map on y tells none, y's map on x one of four
    assert chance == pytest.approx((3 / 4 + 2 / 4) / 2)


def test_documents_without_phonemes_are_left_out_of_phone_accuracy() -> None:
    pairs = [
        (_document("k", "train", "1"), {"tokens": [5, 5, 6], "phones": None}),
        (_document("k", "heldout", "2"), {"tokens": [5, 6, 5], "phones": None}),
    ]
    figures = measure(pairs)
    assert np.isnan(figures["phone_accuracy_within"])
    assert figures["repeat_rate"] == 0.5
    assert figures["used_centres"] == 2
    assert 1 < figures["unigram_perplexity"] <= 500
