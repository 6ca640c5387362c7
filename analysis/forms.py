"""Laws beside L(N, D), as closed forms with their gradients: over-training, repeated data, accuracy. Nothing is fitted here.

Sources: over-training, Gadre et al. 2024 ("Language models scale reliably with over-training and on downstream tasks", arXiv
2403.08540, eq. 4); repeated data, Muennighoff et al. 2023 ("Scaling data-constrained language models", arXiv 2305.16264, the
law of effective data D' and effective parameters N'); accuracy by a sigmoid in the loss, Bhagia et al. 2024 ("Establishing
task scaling laws via compute-efficient model ladders", arXiv 2412.04403), here with the floor held at the task's chance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from analysis.laws import Floats, LossSurface, Parameters, floats


@dataclass(frozen=True)
class OvertrainingLaw(Parameters):
    """L(C, M) = E + (a M^eta + b M^-eta) C^-eta,  M = D / N tokens a parameter, C the training FLOPs.

    It is L(N, D) with alpha = beta = 2 eta under C = 6ND: then a = A 6^eta, b = B 6^eta. Every ratio M has the same exponent
    in C, so that a ladder at one ratio tells of another; the best ratio is M* = (b / a)^(1 / (2 eta)) at every C.
    """

    E: float
    a: float
    b: float
    eta: float

    def predict(self, flops: ArrayLike, tokens_per_param: ArrayLike) -> Floats:
        c, m = floats(flops), floats(tokens_per_param)
        return self.E + (self.a * m**self.eta + self.b * m**-self.eta) * c**-self.eta

    def gradient(self, flops: ArrayLike, tokens_per_param: ArrayLike) -> Floats:
        """dL / d(E, a, b, eta), along a new last axis of 4."""
        c, m = np.broadcast_arrays(floats(flops), floats(tokens_per_param))
        few, many = (m / c) ** self.eta, (m * c) ** -self.eta
        bend = self.a * few * np.log(m / c) - self.b * many * np.log(m * c)
        return np.stack([np.ones_like(few), few, many, bend], axis=-1)

    @property
    def best_ratio(self) -> float:
        """M*, tokens a parameter of least loss at any C; inf or 0 where a term is 0."""
        with np.errstate(divide="ignore"):
            return float(np.exp((np.log(self.b) - np.log(self.a)) / (2 * self.eta)))


@dataclass(frozen=True)
class RepetitionLaw(Parameters):
    """L(N, D, U) = E + A / N'^alpha + B / D'^beta: D tokens trained on, of which U are unique.

        D' = U (1 + r (1 - exp(-R / r))),      R = D / U - 1  repetitions,   r = data_decay
        N' = V (1 + s (1 - exp(-S / s))),      S = N / V - 1,                s = params_decay,   V = min(N, N_opt(U))
        N_opt(U) = G (G U)^(beta / alpha),     G = (alpha A / (beta B))^(1 / (alpha + beta))

    V is the best size for U tokens seen once. D <= U means no repetition: D' = D, and the law is L(N, D) for N <= N_opt(U).
    Published on C4: r = 15.4, s = 5.3 (a token's worth falls to 1/e after r repetitions).
    """

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    data_decay: float
    params_decay: float

    @property
    def surface(self) -> LossSurface:
        """The law of unrepeated data."""
        return LossSurface(self.E, self.A, self.B, self.alpha, self.beta)

    def _parts(self, num_params: ArrayLike, tokens: ArrayLike, unique: ArrayLike) -> tuple[Floats, ...]:
        n, d, u = np.broadcast_arrays(floats(num_params), floats(tokens), floats(unique))
        seen = np.minimum(d, u)
        log_g = np.log(self.alpha * self.A / (self.beta * self.B)) / (self.alpha + self.beta)
        best = np.exp(log_g + self.beta / self.alpha * (log_g + np.log(u)))
        return n, d, seen, np.minimum(n, best), np.log(u), np.asarray(log_g)

    def effective(self, num_params: ArrayLike, tokens: ArrayLike, unique: ArrayLike) -> tuple[Floats, Floats]:
        """N' and D'."""
        n, d, seen, base, _, _ = self._parts(num_params, tokens, unique)
        return decayed(base, n / base - 1, self.params_decay), decayed(seen, d / seen - 1, self.data_decay)

    def predict(self, num_params: ArrayLike, tokens: ArrayLike, unique: ArrayLike) -> Floats:
        return self.surface.predict(*self.effective(num_params, tokens, unique))

    def gradient(self, num_params: ArrayLike, tokens: ArrayLike, unique: ArrayLike) -> Floats:
        """dL / d(E, A, B, alpha, beta, data_decay, params_decay), along a new last axis of 7.

        At N > N_opt the size V moves with A, B, alpha, beta too:  dN'/dV = 1 + s (1 - e) - (N / V) e,  e = exp(-S / s).
        """
        n, d, seen, base, log_u, log_g = self._parts(num_params, tokens, unique)
        more_n, more_d = n / base - 1, d / seen - 1
        n_eff, d_eff = decayed(base, more_n, self.params_decay), decayed(seen, more_d, self.data_decay)
        own = self.surface.gradient(n_eff, d_eff)
        to_n, to_d = -self.alpha * self.A * n_eff ** (-self.alpha - 1), -self.beta * self.B * d_eff ** (-self.beta - 1)
        left = np.exp(-more_n / self.params_decay)
        by_base = np.where(more_n > 0, 1 + self.params_decay * (1 - left) - n / base * left, 0.0) * base * to_n
        total, ratio = self.alpha + self.beta, self.beta / self.alpha
        shift = (log_g + log_u) / self.alpha  # of (beta / alpha) (ln G + ln U): what alpha and beta do beside ln G
        moved: tuple[Floats | float, ...] = (
            (1 + ratio) / self.A / total,
            -(1 + ratio) / self.B / total,
            (1 + ratio) * (1 / self.alpha - log_g) / total - ratio * shift,
            (1 + ratio) * (-1 / self.beta - log_g) / total + shift,
        )
        for k, change in enumerate(moved, start=1):
            own[..., k] += by_base * change
        by_r = to_d * decay_slope(seen, more_d, self.data_decay)
        by_s = to_n * decay_slope(base, more_n, self.params_decay)
        return np.concatenate([own, by_r[..., None], by_s[..., None]], axis=-1)


def decayed(once: Floats, repeats: Floats, decay: float) -> Floats:
    """once (1 + decay (1 - exp(-repeats / decay))): what repeats are worth."""
    result: Floats = once * (1 - decay * np.expm1(-repeats / decay))
    return result


def decay_slope(once: Floats, repeats: Floats, decay: float) -> Floats:
    """d decayed / d decay."""
    left = np.exp(-repeats / decay)
    result: Floats = once * (1 - left - repeats / decay * left)
    return result


@dataclass(frozen=True)
class ChanceSigmoid(Parameters):
    """p(x) = chance + (ceiling - chance) / (1 + exp(-slope (x - midpoint))): accuracy with the task's chance as its floor.

    x is a loss in nats (slope < 0) or ln C (slope > 0). chance and ceiling are given, never fitted: with k endings 1 / k.
    """

    midpoint: float
    slope: float
    chance: float
    ceiling: float = 1.0

    def predict(self, x: ArrayLike) -> Floats:
        share = 0.5 * (1 + np.tanh(0.5 * self.slope * (floats(x) - self.midpoint)))
        return self.chance + (self.ceiling - self.chance) * share

    def gradient(self, x: ArrayLike) -> Floats:
        """dp / d(midpoint, slope), along a new last axis of 2; chance and ceiling are constants."""
        away = floats(x) - self.midpoint
        share = 0.5 * (1 + np.tanh(0.5 * self.slope * away))
        bell = (self.ceiling - self.chance) * share * (1 - share)
        return np.stack([-self.slope * bell, away * bell], axis=-1)

    def inverse(self, accuracy: ArrayLike) -> Floats:
        """The x at which `accuracy` is expected; nan outside (chance, ceiling)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            odds = (floats(accuracy) - self.chance) / (self.ceiling - floats(accuracy))
            return np.where(odds > 0, self.midpoint + np.log(odds) / self.slope, np.nan)
