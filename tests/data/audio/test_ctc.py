"""CTC alignment of letters: the best path by brute force, and a tiny random wav2vec2 from a folder."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lst.data.audio.align import ctc_path
from lst.data.audio.ctc import CtcAligner
from lst.errors import DataError
from tests.tiny_speech_models import save_ctc, save_hubert, tones


def collapsed(path: tuple[int, ...], blank: int) -> list[int]:
    return [label for label, _ in itertools.groupby(path) if label != blank]


@settings(max_examples=150)
@given(st.data())
def test_no_path_is_better_than_the_one_that_is_found(data: st.DataObject) -> None:
    """All labellings of up to six frames are listed: the best one that reads as the targets has the score of the path."""
    frames, classes = data.draw(st.integers(1, 6)), data.draw(st.integers(2, 4))
    scores = data.draw(
        st.lists(st.lists(st.integers(-9, 0), min_size=classes, max_size=classes), min_size=frames, max_size=frames)
    )
    targets = data.draw(st.lists(st.integers(1, classes - 1), max_size=4))
    log_probs = np.array(scores, np.float32)
    every = [p for p in itertools.product(range(classes), repeat=frames) if collapsed(p, 0) == targets]
    if not every:
        with pytest.raises(DataError, match="sounds do not fit"):
            ctc_path(log_probs, targets, blank=0)
        return
    found = tuple(0 if i < 0 else targets[i] for i in ctc_path(log_probs, targets, blank=0))
    assert collapsed(found, 0) == targets
    best = max(sum(log_probs[t, label] for t, label in enumerate(path)) for path in every)
    assert sum(log_probs[t, label] for t, label in enumerate(found)) == best


def test_audio_without_a_frame_is_refused() -> None:
    with pytest.raises(DataError, match="too short for a frame"):
        ctc_path(np.zeros((0, 3), np.float32), [1], blank=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_ctc(tmp_path_factory.mktemp("models") / "ctc")


class Played(CtcAligner):
    """An aligner whose recogniser hears what a test says: one letter a frame, `-` a blank."""

    heard = ""

    def _log_probs(self, audio: np.ndarray) -> np.ndarray:
        ids = {**self._ids, "-": self._blank}
        log_probs = np.full((len(self.heard), 40), -9.0, np.float32)
        log_probs[np.arange(len(self.heard)), [ids[c] for c in self.heard]] = -0.1
        return log_probs


def played(folder: Path, heard: str, words: list[str]) -> tuple[Played, list[tuple[float, float]], list[float]]:
    aligner = Played(folder, device="cpu")
    aligner.heard = heard
    times = aligner.times(np.zeros(320 * len(heard), np.float32), words)
    assert times.characters is not None
    return aligner, times.spans, times.characters


def test_words_and_characters_get_the_times_of_the_drawing(folder: Path) -> None:
    _, spans, characters = played(folder, "-AAT-|A", ["At", "a"])
    assert np.allclose(spans, [(0.02, 0.08), (0.12, 0.14)])
    assert np.allclose(characters, [0.02, 0.06, 0.12])


def test_characters_outside_the_vocabulary_are_left_out_and_counted(folder: Path) -> None:
    aligner, spans, characters = played(folder, "-A-B|-CC-D", ["a1b,", "1914", "«cd»"])
    assert np.allclose(spans, [(0.02, 0.08), (0.08, 0.12), (0.12, 0.20)])
    assert dict(aligner.take_unknown()) == {"1": 3, "9": 1, "4": 1}  # punctuation is not spoken
    assert not aligner.take_unknown()
    assert np.allclose(characters[:4], [0.02, 0.04, 0.06, 0.07])  # between their neighbours
    assert len(characters) == 4 + 4 + 4
    assert characters == sorted(characters)


def test_typographic_apostrophes_and_ligatures_are_known(folder: Path) -> None:
    aligner, _, characters = played(folder, "DON'T|FIN", ["don’t", "ﬁn"])  # the ligature fi is one character of two letters
    assert not aligner.take_unknown()
    assert np.allclose(characters, [0.0, 0.02, 0.04, 0.06, 0.08, 0.12, 0.16])


def test_a_real_forward_gives_every_word_a_time_inside_the_audio(folder: Path) -> None:
    audio = tones(2.0)
    aligner = CtcAligner(folder, device="cpu")
    times = aligner.times(audio, ["go", "do", "you", "hear"])
    flat = [t for span in times.spans for t in span]
    assert flat == sorted(flat)
    assert 0 <= flat[0] < flat[-1] <= 2.0
    assert times == aligner.times(audio, ["GO", "DO", "YOU", "HEAR"])
    assert aligner.identity() == CtcAligner(folder, device="cpu").identity()


def test_letters_that_do_not_fit_and_long_audio_are_refused(folder: Path) -> None:
    aligner = CtcAligner(folder, device="cpu")
    with pytest.raises(DataError, match="sounds do not fit into"):
        aligner.times(tones(0.1), ["incomprehensibilities"])
    with pytest.raises(ValueError, match=r"301\.0 s are too long to align"):
        aligner.times(np.zeros(301 * 16_000, np.float32), ["a"])


def test_a_folder_without_letters_or_of_another_kind_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "m")
    for content in ({"eng": {"a": 1}}, {"a": 99}, [1]):
        (tmp_path / "m" / "vocab.json").write_text(json.dumps(content))
        with pytest.raises(DataError, match=r"names no letters of the model's"):
            CtcAligner(tmp_path / "m")
    (tmp_path / "m" / "vocab.json").unlink()
    with pytest.raises(DataError, match=r"vocab\.json' cannot be read"):
        CtcAligner(tmp_path / "m")
    with pytest.raises(DataError, match="of type 'hubert', not 'wav2vec2'"):
        CtcAligner(save_hubert(tmp_path / "h"))
