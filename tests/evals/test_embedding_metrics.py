"""Cosines, silhouette, the probe and t-SNE: by hand, by brute force, and by the conditions that define them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lst.errors import DataError
from lst.evals.embedding_metrics import Geometry, fit_probe, geometry, unit_vectors
from lst.evals.tsne import tsne


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=seed)).normal(size=shape)


def test_cosines_and_silhouette_by_hand() -> None:
    vectors = np.array([[2.0, 0], [0, 3], [-1, 0], [-5, 0]])  # lengths do not matter
    found = geometry(vectors, np.array([0, 0, 1, 1]))
    # within: 0 and 1. between: -1, -1, 0, 0. silhouette: (2 - 1) / 2, (1 - 1) / 1, (1.5 - 0) / 1.5 twice
    assert found == Geometry(pytest.approx(0.5, abs=1e-12), pytest.approx(-0.5, abs=1e-12), pytest.approx(0.625, abs=1e-12))


def test_cosines_and_silhouette_equal_those_of_all_pairs() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2])
    x = unit_vectors(drawn(9, 5))
    cosine = x @ x.T
    same = labels[:, None] == labels
    np.fill_diagonal(cosine, np.nan)
    within = np.mean([np.nanmean(cosine[np.ix_(labels == k, labels == k)]) for k in range(3)])
    between = np.mean([cosine[np.ix_(labels == k, labels == j)].mean() for k in range(3) for j in range(k)])
    scores = []
    for i in range(9):
        a = np.nanmean(1 - cosine[i][same[i]])
        b = min((1 - cosine[i][labels == k]).mean() for k in range(3) if k != labels[i])
        scores.append((b - a) / max(a, b))
    found = geometry(drawn(9, 5), labels)
    assert (found.within, found.between, found.silhouette) == pytest.approx((within, between, np.mean(scores)), abs=1e-12)


def test_equal_vectors_have_silhouette_nought_and_single_ones_are_refused() -> None:
    assert geometry(np.ones((4, 3)), np.array([0, 0, 1, 1])) == Geometry(pytest.approx(1), pytest.approx(1), 0.0)
    for labels in ([0, 0, 1], [0, 0, 0]):
        with pytest.raises(DataError, match="cannot be compared"):
            geometry(np.ones((3, 2)), np.array(labels))


def test_a_probe_of_two_points_has_the_weight_of_its_stationary_point() -> None:
    """Of x = -1, 1 the loss is ln(1 + exp(-2 w)) + l2 w^2, so sigma(-2 w) = l2 w."""
    found = fit_probe(np.array([[3.0], [7.0]]), np.array([0, 1]), l2=0.1)
    w = float(found.weight_GK[0, 1])
    assert found.weight_GK[0, 0] == pytest.approx(-w, abs=1e-9)
    assert 1 / (1 + math.exp(2 * w)) == pytest.approx(0.1 * w, abs=1e-6)
    assert found.predict(np.array([[4.9], [5.1]])).tolist() == [0, 1]


def test_a_probe_is_where_its_gradient_is_nought_and_no_seed_or_constant_feature_moves_it() -> None:
    x, y = drawn(60, 4, seed=1), np.random.Generator(np.random.Philox(key=2)).integers(0, 3, 60)
    x[:, 3] = 8.0
    found = fit_probe(x, y, l2=0.02)
    z = (x - found.mean_G) / found.scale_G
    logits = z @ found.weight_GK + found.bias_K
    p = np.exp(logits - logits.max(1, keepdims=True))
    wrong = p / p.sum(1, keepdims=True) - np.eye(3)[y]
    assert np.abs(z.T @ wrong / 60 + 0.02 * found.weight_GK).max() < 1e-6
    assert np.abs(wrong.mean(0)).max() < 1e-6
    assert np.abs(found.weight_GK[3]).max() < 1e-9
    assert np.array_equal(fit_probe(x, y, l2=0.02).weight_GK, found.weight_GK)


def test_far_clusters_stay_apart_and_the_picture_is_the_same_each_time() -> None:
    points = np.concatenate([drawn(15, 4, seed=6), drawn(15, 4, seed=7) + 40])
    places = tsne(points, perplexity=5.0)
    assert np.array_equal(places, tsne(points, perplexity=5.0))
    distance = np.linalg.norm(places[:, None] - places, axis=-1)
    np.fill_diagonal(distance, np.inf)
    assert all((i < 15) == (j < 15) for i, j in enumerate(distance.argmin(1)))


def test_the_picture_of_words_names_the_extra_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install lst-scaling\[embeddings\]"):
        tsne(drawn(4, 3))
