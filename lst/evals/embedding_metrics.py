"""How vectors with labels lie: cosines within and between labels, silhouette, and what a linear probe reads out of them.

With unit vectors x of labels k, n_k of each, and their sums c_k, no pair has to be looked at:

    within      mean over labels of  (|c_k|^2 - n_k) / (n_k (n_k - 1))        the mean cosine of two of one label
    between     mean over pairs of labels of  c_k . c_l / (n_k n_l)           the mean cosine of two of two labels
    silhouette  mean over vectors of (b - a) / max(a, b): a is the mean distance (1 - cosine) to the others of its label, b
                that to the nearest other label (Rousseeuw 1987); 0 where both are 0

Numpy in double precision; torch for the probe's L-BFGS alone. N vectors, G width, K labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lst.errors import DataError

Array = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Geometry:
    within: float
    between: float
    silhouette: float


def geometry(vectors_NG: Array, labels_N: Labels) -> Geometry:
    """Of labels 0 .. K - 1, each of two vectors at least; else it raises DataError."""
    count_K = np.bincount(labels_N)
    if len(count_K) < 2 or count_K.min() < 2:
        raise DataError(
            f"{len(count_K)} words with {count_K.tolist()} occurrences cannot be compared; give two of each at least."
        )
    x_NG = unit_vectors(vectors_NG)
    sum_KG = np.zeros((len(count_K), x_NG.shape[1]))
    np.add.at(sum_KG, labels_N, x_NG)
    within_K = ((sum_KG**2).sum(1) - count_K) / (count_K * (count_K - 1))
    mean_KG = sum_KG / count_K[:, None]
    between_KK = mean_KG @ mean_KG.T
    pairs = np.triu_indices(len(count_K), 1)
    rows = np.arange(len(labels_N))
    distance_NK = 1 - x_NG @ mean_KG.T
    own_N = count_K[labels_N]
    a_N = 1 - ((1 - distance_NK[rows, labels_N]) * own_N - 1) / (own_N - 1)
    distance_NK[rows, labels_N] = np.inf
    b_N = distance_NK.min(1)
    largest_N = np.maximum(a_N, b_N)
    score_N = np.divide(b_N - a_N, largest_N, out=np.zeros_like(a_N), where=largest_N > 0)
    return Geometry(float(within_K.mean()), float(between_KK[pairs].mean()), float(score_N.mean()))


def unit_vectors(vectors_NG: Array) -> Array:
    """Divided by their lengths; a vector of zeros stays."""
    length_N1 = np.linalg.norm(vectors_NG, axis=1, keepdims=True)
    return np.asarray(vectors_NG / np.where(length_N1 > 0, length_N1, 1.0))


@dataclass(frozen=True)
class Probe:
    """Multinomial logistic regression on standardised vectors."""

    mean_G: Array
    scale_G: Array
    weight_GK: Array
    bias_K: Array

    def predict(self, vectors_NG: Array) -> Labels:
        """The most probable label of each."""
        return np.asarray(((vectors_NG - self.mean_G) / self.scale_G @ self.weight_GK + self.bias_K).argmax(1), np.int64)


def fit_probe(vectors_NG: Array, labels_N: Labels, *, l2: float, steps: int = 300) -> Probe:
    """The minimum of mean cross-entropy + l2 / 2 |W|^2, which is strictly convex in W: it depends on no start and no seed.

    Vectors are standardised by their own mean and deviation; a constant feature stays at 0. The biases are not penalised.
    """
    import torch

    mean_G, scale_G = vectors_NG.mean(0), vectors_NG.std(0)
    scale_G = np.where(scale_G > 1e-12, scale_G, 1.0)
    x_NG = torch.from_numpy((vectors_NG - mean_G) / scale_G)
    y_N, labels = torch.from_numpy(labels_N), int(labels_N.max()) + 1
    weight_GK = torch.zeros(x_NG.shape[1], labels, dtype=torch.float64, requires_grad=True)
    bias_K = torch.zeros(labels, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight_GK, bias_K], max_iter=steps, tolerance_grad=1e-6, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(x_NG @ weight_GK + bias_K, y_N) + l2 / 2 * (weight_GK**2).sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return Probe(mean_G, scale_G, weight_GK.detach().numpy(), bias_K.detach().numpy())
