"""The laws, as closed forms with their gradients: the equation stands above the code. Nothing is fitted here, no data is read.

Sources: L(N, D) is eq. 2 and the compute-optimal allocation eq. 4 of Hoffmann et al. 2022 ("Training compute-optimal large
language models"); isoFLOP parabolas are approach 2 there (section 3.2); L(C) with an asymptote is the same saturating power law
in compute. C = 6 N D is Kaplan et al. 2020's approximation and appears only under its name. Over-training, repeated data and
accuracy: `analysis.forms`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lst.errors import FitError

Floats = NDArray[np.float64]
SIX_ND = "6ND"
"""Name of the approximation C = 6 N D, printed wherever it is used."""


def floats(values: ArrayLike) -> Floats:
    return np.asarray(values, dtype=np.float64)


SAME_PLACE = 0.003
"""Sizes, lengths or FLOPs within 0.3% are one: the seeds of a run see other batches, and end a few tokens apart."""


def places(logs: Floats, of: NDArray[Any]) -> NDArray[np.int64]:
    """(n,) which of the different places a row stands at: `logs` (n, k) equal but for SAME_PLACE, `of` (n, j) equal."""
    index: NDArray[np.int64] = np.unique(of, axis=0, return_inverse=True)[1].ravel()
    for column in logs.T:
        order = np.lexsort((column, index))
        new = (np.diff(index[order]) != 0) | (np.diff(column[order]) > SAME_PLACE)
        index[order] = np.concatenate([[0], np.cumsum(new)])
    return index


class Parameters:
    """Shared by the laws: names, values and JSON of a frozen dataclass of floats."""

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return tuple(f.name for f in fields(cls))  # type: ignore[arg-type]

    def values(self) -> Floats:
        return floats([getattr(self, name) for name in self.names()])

    def to_json(self) -> dict[str, float]:
        return asdict(self)  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        try:
            return cls(**{name: float(content[name]) for name in cls.names()})
        except (KeyError, TypeError, ValueError) as error:
            raise FitError(
                f"a {cls.__name__} in JSON needs the numbers {', '.join(cls.names())}; got {sorted(content)}."
            ) from error


@dataclass(frozen=True)
class Allocation:
    """The best use of a compute budget: parameters, tokens, and the loss (nats per token) they reach."""

    flops: float
    num_params: float
    tokens: float
    loss: float
    flops_convention: str  # SIX_ND, or "given" for a caller's flops-per-token function


@dataclass(frozen=True)
class LossSurface(Parameters):
    """L(N, D) = E + A / N^alpha + B / D^beta.

    E, A, B >= 0; N parameters, D tokens (or units: whatever the fit was given), L nats per token.
    """

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def predict(self, num_params: ArrayLike, tokens: ArrayLike) -> Floats:
        """Loss at N = `num_params`, D = `tokens`; arrays broadcast."""
        return self.E + self.A * floats(num_params) ** -self.alpha + self.B * floats(tokens) ** -self.beta

    def gradient(self, num_params: ArrayLike, tokens: ArrayLike) -> Floats:
        """dL / d(E, A, B, alpha, beta), along a new last axis of 5.

        dL/dE = 1; dL/dA = N^-alpha; dL/dB = D^-beta; dL/dalpha = -A N^-alpha ln N; dL/dbeta = -B D^-beta ln D.
        """
        n, d = np.broadcast_arrays(floats(num_params), floats(tokens))
        u, v = n**-self.alpha, d**-self.beta
        return np.stack([np.ones_like(u), u, v, -self.A * u * np.log(n), -self.B * v * np.log(d)], axis=-1)

    def optimal(self, flops: float, flops_per_token: Callable[[float], float] | None = None) -> Allocation:
        """The N and D of least loss at C = `flops`.

        Without `flops_per_token`, C = 6 N D (the approximation "6ND"), in closed form:
            N* = G (C/6)^(beta/(alpha+beta)),  D* = (C/6) / N*,  G = (alpha A / (beta B))^(1/(alpha+beta)).
        With it, D = C / flops_per_token(N) and the minimum over ln N is searched numerically.
        Raises FitError where the surface has no interior optimum (A or B is 0).
        """
        if not (math.isfinite(flops) and flops > 0):
            raise FitError(f"flops={flops} is no compute budget; give a positive, finite number.")
        if min(self.A, self.B, self.alpha, self.beta) <= 0:
            raise FitError(
                f"the surface has A={self.A:g}, B={self.B:g}: where a term is 0 nothing is best; fit more sizes and lengths."
            )
        scale = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        n = scale * (flops / 6) ** (self.beta / (self.alpha + self.beta))
        if flops_per_token is None:
            d = flops / 6 / n
        else:
            n = _least(lambda m: float(self.predict(m, flops / flops_per_token(m))), n)
            d = flops / flops_per_token(n)
        return Allocation(
            float(flops), float(n), float(d), float(self.predict(n, d)), SIX_ND if flops_per_token is None else "given"
        )


def _least(loss_of: Callable[[float], float], near: float, decades: float = 4.0) -> float:
    """The N of least loss within `decades` of `near`: a grid in log N, then golden-section search to 1e-9."""
    grid = np.linspace(math.log(near) - decades * math.log(10), math.log(near) + decades * math.log(10), 161)
    losses = [loss_of(math.exp(g)) for g in grid]
    best = int(np.argmin(losses))
    if best in (0, len(grid) - 1):
        raise FitError(f"no best size within {decades:g} decades of N={near:.3g}; flops_per_token does not fit this surface.")
    low, high = float(grid[best - 1]), float(grid[best + 1])
    ratio = (math.sqrt(5) - 1) / 2
    while high - low > 1e-9:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if loss_of(math.exp(left)) < loss_of(math.exp(right)):
            high = right
        else:
            low = left
    return math.exp((low + high) / 2)


@dataclass(frozen=True)
class PowerLaw(Parameters):
    """y(x) = asymptote + scale * x^exponent.

    L(C) has exponent < 0 (and asymptote >= 0); N*(C) and D*(C) have exponent > 0 and asymptote 0.
    """

    scale: float
    exponent: float
    asymptote: float = 0.0

    def predict(self, x: ArrayLike) -> Floats:
        return self.asymptote + self.scale * floats(x) ** self.exponent

    def gradient(self, x: ArrayLike) -> Floats:
        """dy / d(scale, exponent, asymptote), along a new last axis of 3."""
        x = floats(x)
        power = x**self.exponent
        return np.stack([power, self.scale * power * np.log(x), np.ones_like(x)], axis=-1)

    def inverse(self, y: ArrayLike) -> Floats:
        """The x at which y is reached: ((y - asymptote) / scale)^(1 / exponent); inf at or below the asymptote."""
        above = floats(y) - self.asymptote
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(above > 0, (above / self.scale) ** (1 / self.exponent), np.inf)


@dataclass(frozen=True)
class IsoflopParabola(Parameters):
    """L(N) = floor + curvature (ln N - ln N*)^2 at one compute budget; a minimum only where curvature > 0."""

    floor: float
    curvature: float
    log_optimal_params: float

    def predict(self, num_params: ArrayLike) -> Floats:
        return self.floor + self.curvature * (np.log(floats(num_params)) - self.log_optimal_params) ** 2

    def gradient(self, num_params: ArrayLike) -> Floats:
        """dL / d(floor, curvature, ln N*), along a new last axis of 3."""
        away = np.log(floats(num_params)) - self.log_optimal_params
        return np.stack([np.ones_like(away), away**2, -2 * self.curvature * away], axis=-1)


@dataclass(frozen=True)
class IsoflopCubic(Parameters):
    """L(N) = floor + curvature u^2 + skew u^3, u = ln N - ln N*, at one compute budget; a minimum only where curvature > 0.

    skew > 0: the loss rises faster on the side of large models. The minimum is a local one: past u = -2 curvature / (3 skew) the
    cubic falls again, so it says nothing beyond the sizes tried.
    """

    floor: float
    curvature: float
    skew: float
    log_optimal_params: float

    def predict(self, num_params: ArrayLike) -> Floats:
        away = np.log(floats(num_params)) - self.log_optimal_params
        return self.floor + self.curvature * away**2 + self.skew * away**3

    def gradient(self, num_params: ArrayLike) -> Floats:
        """dL / d(floor, curvature, skew, ln N*), along a new last axis of 4."""
        away = np.log(floats(num_params)) - self.log_optimal_params
        slope = -2 * self.curvature * away - 3 * self.skew * away**2
        return np.stack([np.ones_like(away), away**2, away**3, slope], axis=-1)
