"""t-SNE (van der Maaten and Hinton 2008), exact, for a picture of some hundred points. It shows neighbourhoods: neither the
distance between clusters nor their size means anything, so no figure is computed from it.

    p_j|i  ~ exp(-|x_i - x_j|^2 b_i), b_i such that its entropy is ln(perplexity);  P = (p_j|i + p_i|j) / 2N
    q_ij   ~ 1 / (1 + |y_i - y_j|^2);   dKL(P|Q)/dy_i = 4 sum_j (p_ij - q_ij) (y_i - y_j) / (1 + |y_i - y_j|^2)

Started at the first two principal components, so that it has no seed. N points.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

EARLY, EXAGGERATION = 250, 12.0  # steps of it, and by how much P is raised in them
MOMENTUM = (0.5, 0.8)  # in these steps, and after them


def tsne(points_NG: Array, *, perplexity: float = 15.0, steps: int = 750) -> Array:
    """(N, 2) places, centred. A `perplexity` above N / 4 is lowered to it."""
    N = len(points_NG)
    p_NN = joint_probabilities(points_NG, max(2.0, min(perplexity, N / 4)))
    centred_NG = points_NG - points_NG.mean(0)
    u_NK, s_K, _ = np.linalg.svd(centred_NG, full_matrices=False)
    y_N2 = np.zeros((N, 2))
    width = min(2, len(s_K))
    y_N2[:, :width] = u_NK[:, :width] * s_K[:width] * np.sign(u_NK[np.abs(u_NK).argmax(0), range(len(s_K))])[:width]
    y_N2 *= 1e-4 / max(y_N2[:, 0].std(), 1e-12)
    speed_N2, gain_N2, rate = np.zeros_like(y_N2), np.ones_like(y_N2), max(N / EXAGGERATION / 4, 50.0)
    for step in range(steps):
        early = step < EARLY
        slope_N2 = gradient(p_NN * (EXAGGERATION if early else 1.0), y_N2)
        gain_N2 = np.where(np.sign(slope_N2) == np.sign(speed_N2), gain_N2 * 0.8, gain_N2 + 0.2).clip(min=0.01)
        speed_N2 = MOMENTUM[not early] * speed_N2 - rate * gain_N2 * slope_N2
        y_N2 = y_N2 + speed_N2
        y_N2 -= y_N2.mean(0)
    return y_N2


def joint_probabilities(points_NG: Array, perplexity: float) -> Array:
    """P, symmetric and of sum 1, its rows' perplexities set by bisection."""
    distance_NN = _squared_distances(points_NG)
    N, wanted = len(points_NG), np.log(perplexity)
    given_NN = np.zeros((N, N))
    for i in range(N):
        away = np.delete(distance_NN[i], i)
        away -= away.min()
        low, high, b = 0.0, np.inf, 1.0 / max(float(away.mean()), 1e-12)
        for _ in range(100):
            weight = np.exp(-away * b)
            p = weight / weight.sum()
            entropy = -float((p * np.log(np.maximum(p, 1e-300))).sum())
            if abs(entropy - wanted) < 1e-9:
                break
            low, high = (b, high) if entropy > wanted else (low, b)
            b = 2 * b if high == np.inf else (low + high) / 2
        given_NN[i, np.arange(N) != i] = p
    return (given_NN + given_NN.T) / (2 * N)


def gradient(p_NN: Array, y_N2: Array) -> Array:
    """Of KL(P|Q) by the places."""
    near_NN = 1 / (1 + _squared_distances(y_N2))
    np.fill_diagonal(near_NN, 0)
    pull_NN = (p_NN - near_NN / near_NN.sum()) * near_NN
    return np.asarray(4 * (pull_NN.sum(1, keepdims=True) * y_N2 - pull_NN @ y_N2))


def _squared_distances(x_NG: Array) -> Array:
    norm_N = (x_NG**2).sum(1)
    return np.asarray(np.maximum(norm_N[:, None] + norm_N - 2 * x_NG @ x_NG.T, 0))
