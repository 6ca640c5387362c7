"""Fitting and using the quantizer on small made-up features."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lst.data.audio.embedded_quantizer import Quantizer, SpeechTokenizerCard, fit_kmeans, fit_quantizer, nearest, position_basis
from lst.errors import DataError

WIDTH = 16


def _utterances(seed: int = 0, shift: float = 0.0) -> list[np.ndarray]:
    """Frames around 8 prototypes, plus a speaker's constant and a drift with the position."""
    rng = np.random.default_rng(seed)
    prototypes = np.random.default_rng(99).normal(size=(8, WIDTH)) * 4
    made = []
    for _ in range(30):
        labels = rng.integers(8, size=60)
        noise = rng.normal(size=(60, WIDTH)) * 0.05
        drift = position_basis(60, WIDTH)[:, :1] * 3
        made.append((prototypes[labels] + noise + drift + shift).astype(np.float32))
    return made


@pytest.fixture(scope="module")
def fitted() -> Quantizer:
    return fit_quantizer(_utterances(), seed=1, centres=8, components=6)


def test_fitting_twice_gives_the_same_bits(fitted: Quantizer) -> None:
    again = fit_quantizer(_utterances(), seed=1, centres=8, components=6)
    assert all(np.array_equal(a, b) for a, b in zip(vars(fitted).values(), vars(again).values(), strict=True))


def test_components_are_white_on_the_fitted_frames(fitted: Quantizer) -> None:
    points = np.concatenate([fitted.embed(u) for u in _utterances()])
    assert np.allclose(points.mean(0), 0, atol=1e-5)
    assert np.allclose(np.cov(points.T), np.eye(6), atol=0.02)


def test_a_speakers_constant_does_not_change_the_tokens(fitted: Quantizer) -> None:
    for plain, shifted in zip(_utterances(3)[:5], _utterances(3, shift=5.0)[:5], strict=True):
        assert np.array_equal(fitted.tokens(plain), fitted.tokens(shifted))


def test_the_folded_form_equals_the_steps_written_out(fitted: Quantizer) -> None:
    features = _utterances(5)[0]
    basis = position_basis(len(features), WIDTH)
    y = features.astype(float) @ fitted.projection_DC - basis @ fitted.position_DC
    y = y - y.mean(0) - fitted.bias_C
    by_hand = [int(((row - fitted.centres_KC) ** 2).sum(1).argmin()) for row in y]
    assert fitted.tokens(features).tolist() == by_hand


def test_a_saved_quantizer_gives_the_same_tokens(fitted: Quantizer, tmp_path: Path) -> None:
    fitted.save(tmp_path / "q.safetensors")
    features = _utterances(6)[0]
    assert np.array_equal(Quantizer.load(tmp_path / "q.safetensors").tokens(features), fitted.tokens(features))


def test_no_frames_give_no_tokens(fitted: Quantizer) -> None:
    assert fitted.tokens(np.zeros((0, WIDTH), np.float32)).shape == (0,)


def test_ties_go_to_the_lower_number() -> None:
    assert nearest(np.array([[0.0], [1.0]]), np.array([[-1.0], [1.0], [1.0]])).tolist() == [0, 1]


def test_kmeans_only_ever_comes_closer_to_its_points() -> None:
    points = np.random.default_rng(0).normal(size=(400, 3))
    distances = []
    for iterations in (0, 1, 3, 10, 30):
        centres = fit_kmeans(points, 12, iterations=iterations, seed=4)
        distances.append(float(((points - centres[nearest(points, centres)]) ** 2).sum()))
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.8 * distances[0]


def test_a_centre_without_points_starts_again_somewhere_else() -> None:
    points = np.repeat([[0.0], [10.0]], 20, axis=0)
    centres = fit_kmeans(points, 4, iterations=5, seed=0)
    assert set(np.unique(centres)) == {0.0, 10.0}


def test_too_few_frames_are_refused() -> None:
    with pytest.raises(DataError, match="60 frames are too few for 500 centres"):
        fit_quantizer(_utterances()[:1], seed=0)


def test_a_damaged_quantizer_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "q.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read"):
        Quantizer.load(tmp_path / "q.safetensors")


def test_a_card_that_is_not_its_quantizers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "quantizer.safetensors").write_bytes(b"other")
    card = SpeechTokenizerCard(
        model="m", layer=3, k=2, rate_hz=25, dedup=False, features="f", fitted_on={}, quantizer_sha256="0",
        weights_sha256="0", versions={}, measured={},
    )  # fmt: skip
    (tmp_path / "card.json").write_text(json.dumps({"speech_tokenizer": card.to_dict()}))
    with pytest.raises(DataError, match="is not the file of its card"):
        SpeechTokenizerCard.read(tmp_path)
