"""What the engines are told to say, and the word times that are made of their events."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from lst.data.audio.waveform import SAMPLE_RATE
from lst.data.corpus import synthesis
from lst.data.corpus.synthesis import speak, spoken_word, word_spans
from lst.errors import DataError

needs_espeak = pytest.mark.skipif(
    importlib.util.find_spec("espeakng_loader") is None, reason="espeakng-loader is not installed (extra: speech)"
)


@pytest.mark.parametrize(
    ("word", "spoken"),
    [
        ('"Oh!"', "Oh!"),
        ("VERY", "very"),
        ("I", "I"),
        ("said,—", "said,"),
        ("think—'", "think,"),
        ("Mr.", "Mr"),
        ("to-day.", "to-day."),
        ("(for", "for"),
        ("don't;", "don't;"),
        ("1857", "1857"),
    ],
)
def test_words_are_handed_over_bare_with_one_mark(word: str, spoken: str) -> None:
    assert spoken_word(word) == spoken


def test_word_times_come_from_the_events() -> None:
    spans = word_spans(["he", "ran."], [(0.0, 0), (0.3, 3)], [0.7], 1.0)
    assert spans == [(0.0, 0.3), (0.3, 0.7)]  # the last word ends at the pause


def test_joined_words_share_their_stretch_by_letters() -> None:
    """ "of the" has one event: 0.0-0.5 s for 2 + 3 letters."""
    spans = word_spans(["of", "the", "two"], [(0.0, 0), (0.5, 7)], [], 0.9)
    assert np.allclose(spans, [(0.0, 0.2), (0.2, 0.5), (0.5, 0.9)])


def test_a_pause_before_a_word_is_no_part_of_the_word_before() -> None:
    spans = word_spans(["no,", "sir"], [(0.1, 0), (0.8, 4)], [0.4, 0.6], 1.2)
    assert np.allclose(spans, [(0.1, 0.4), (0.8, 1.2)])


def test_an_unknown_speaker_is_told_with_the_nearest_one() -> None:
    with pytest.raises(DataError, match=r"did you mean 'espeak:en-us'"):
        speak(["hello"], "espeak:en-uss")


def test_a_missing_package_is_told_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"'espeakng-loader' is not installed; run: pip install lst-scaling\[speech\]"):
        speak(["hello"], "espeak:en-us")


@needs_espeak
@pytest.mark.parametrize("voice", synthesis.ESPEAK_VOICES)
def test_espeak_says_the_same_samples_whatever_was_said_before(voice: str) -> None:
    words = ["The", "little", "mouse", "ran", "across", "the", "floor."]
    first = speak(words, f"espeak:{voice}")
    speak(["Something", "else."], "espeak:en-us")
    again = speak(words, f"espeak:{voice}")
    assert np.array_equal(first.audio, again.audio)
    assert first.spans == again.spans
    assert first.spans is not None
    assert len(first.spans) == len(words)
    assert 1.0 < len(first.audio) / SAMPLE_RATE < 6.0


@needs_espeak
@pytest.mark.parametrize("voice", ["en-gb", "en-us+f99", "en-us+f3"])
def test_espeak_voices_that_are_missing_or_not_reproducible_are_refused(voice: str) -> None:
    with pytest.raises(DataError, match="espeak-ng"):
        synthesis._Espeak(voice)
