"""Fits of the over-training law and of the law of repeated data (`analysis.forms`) to a table.

    fit_overtraining(table)   # num_params, tokens, loss; train_flops where exact FLOPs are known
    fit_repetition(table)     # num_params, tokens, loss, unique_tokens

Over-training is one exponent for both terms, so it is a surface with tied exponents in ln sqrt(C / M) and ln sqrt(C M), solved
and resampled as every surface (`analysis.optimum`, `analysis.uncertainty`). Repetition is fitted as it was published: the surface
of unrepeated data first, from the runs that saw no token twice, then the two decays from all runs with that surface held.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.basis import percentile_interval
from analysis.diagnose import DELTA, HUBER, LOSS_SQUARES, basis, check_options, chosen_delta, extent, robust_spread, unit_of
from analysis.fit import fit_loss_surface
from analysis.form_results import FormFit
from analysis.forms import OvertrainingLaw, RepetitionLaw
from analysis.laws import Floats, LossSurface
from analysis.optimum import solve
from analysis.results import SurfaceFit
from analysis.scoring import Evaluate, minimise_by_scoring
from analysis.solver import CONSTANT, IN_D, IN_N, Problem, huber
from analysis.table import Frame, Points, column, read_points, require_one_kind, require_points
from analysis.uncertainty import PAIRS, Draws, bootstrap, stratified_counts
from lst.errors import FitError

DECAYS = (0.05, 1e4)
"""Range of the decays: from repeats that are worth nothing to repeats that are worth as much as new data."""
DISTINCT_RATIO = 1.05


def fit_overtraining(
    table: pd.DataFrame,
    *,
    params: str = "num_params",
    tokens: str = "tokens",
    loss: str = "loss",
    objective: str = HUBER,
    delta: float = DELTA,
    resamples: int = 1000,
    level: float = 0.9,
    rng: np.random.Generator | None = None,
) -> FormFit:
    """L(C, M) = E + (a M^eta + b M^-eta) C^-eta with M = D / N and C = train_flops (else 6ND).

    Raises FitError where the table has fewer than five runs, three budgets' worth of FLOPs, or two ratios M.
    """
    delta = chosen_delta(objective, delta)
    check_options(resamples, level)
    require_one_kind(table)
    points = read_points(table, params=params, tokens=tokens, loss=loss)
    require_points(points, 4, "L(C, M)")
    ratio = points.tokens / points.num_params
    if ratio.max() < DISTINCT_RATIO * ratio.min():
        raise FitError(
            f"all runs have {ratio.mean():.3g} tokens a parameter; L(C, M) needs two ratios or more: add over-trained runs."
        )
    if len(np.unique(np.round(np.log(points.flops), 2))) < 3:
        raise FitError("the runs have fewer than three different FLOPs; L(C, M) needs three to tell asymptote from slope.")
    x, y = 0.5 * np.log(points.flops / ratio), 0.5 * np.log(points.flops * ratio)
    log_loss = np.log(points.loss)
    means = float(x.mean()), float(y.mean()), float(log_loss.mean())
    frame = Frame(x - means[0], y - means[1], log_loss - means[2], *means)
    problem = Problem(frame.x, frame.y, np.ones((len(points), 3)), (CONSTANT, IN_N, IN_D), delta, True, objective != LOSS_SQUARES)
    best = solve(problem, frame.log_loss)
    value = best.objective / unit_of(objective, frame.loss_mean)
    rng = np.random.default_rng(0) if rng is None else rng
    draws = bootstrap(problem, best.theta, frame.log_loss, points.budget, resamples=resamples, level=level, rng=rng)
    law = OvertrainingLaw(*_overtraining(frame, best.theta[None])[0].tolist())
    samples = _overtraining(frame, draws.theta)
    spread = robust_spread(log_loss - np.log(law.predict(points.flops, ratio)))
    told = basis(points, 4, objective, delta, value, spread, level, draws, resamples)
    faces = [name for name in ("E", "a", "b") if getattr(law, name) == 0]
    told["warnings"] = (*[f"{name} ended on its bound (= 0): the data do not determine it" for name in faces], *told["warnings"])
    return FormFit(
        form="overtraining",
        law=law,
        intervals={k: percentile_interval(samples[:, i], level) for i, k in enumerate(law.names())} if len(samples) else {},
        ranges={"flops": extent(points.flops), "tokens_per_param": extent(ratio)},
        extra={"best_ratio": law.best_ratio} if min(law.a, law.b) > 0 else {},
        samples=samples if len(samples) else None,
        **told,
    )


def _overtraining(frame: Frame, theta: Floats) -> Floats:
    """(P, 4) E, a, b, eta from the solver's coordinates: eta is half the tied exponent."""
    surface = frame.surface(theta)
    return np.concatenate([surface[:, :3], surface[:, 3:4] / 2], axis=1)


def fit_repetition(
    table: pd.DataFrame,
    *,
    params: str = "num_params",
    tokens: str = "tokens",
    unique: str = "unique_tokens",
    loss: str = "loss",
    base: SurfaceFit | LossSurface | None = None,
    objective: str = HUBER,
    delta: float = DELTA,
    resamples: int = 1000,
    level: float = 0.9,
    rng: np.random.Generator | None = None,
) -> FormFit:
    """The decays of L(N, D, U), with the surface of unrepeated data held: `base`, or fitted to the runs with D <= U.

    `unique` is the corpus's size, of which a run may see a part: with U = D the law already counts parameters beyond N_opt(U) as
    excess, and a surface fitted to such runs has some of that in it.

    The intervals are of the decays alone: they take the surface as known. Raises FitError where no run repeats its data, or the
    surface cannot be fitted.
    """
    delta = chosen_delta(objective, delta, logs=True)
    check_options(resamples, level)
    require_one_kind(table)
    points = read_points(table, params=params, tokens=tokens, loss=loss)
    seen = column(table, unique)
    again = points.tokens > seen * (1 + 1e-9)
    if again.sum() < 3:
        raise FitError(
            f"{int(again.sum())} runs saw a token twice ({params}, {tokens} > {unique}); the decays need three or more."
        )
    rng = np.random.default_rng(0) if rng is None else rng
    surface = _unrepeated(base, table[~again], {"params": params, "tokens": tokens, "loss": loss}, objective, delta)
    likelihood = Decays(surface, points, seen, delta)
    best, value, drawn = likelihood.solve(stratified_counts(np.where(again, points.budget, -1), resamples, rng))
    law = RepetitionLaw(*surface.values().tolist(), *np.exp(best).tolist())
    ended = [name for name, at in zip(law.names()[5:], np.exp(best), strict=True) if at_bound(at)]
    samples = np.concatenate([np.repeat(surface.values()[None], len(drawn), axis=0), np.exp(drawn)], axis=1)
    residual = np.log(points.loss) - np.log(law.predict(points.num_params, points.tokens, seen))
    draws = Draws(drawn, PAIRS if len(drawn) else "none", resamples, resamples - len(drawn))
    value, spread = value / unit_of(objective, 0.0), robust_spread(residual)
    told = basis(points, 7, objective, delta, value, spread, level, draws, resamples)
    told["warnings"] = (
        *[f"{name} ended on its bound ({DECAYS[0]:g} to {DECAYS[1]:g}): the data do not determine it" for name in ended],
        "the surface of unrepeated data is held: the decays' intervals do not have its uncertainty",
        *told["warnings"],
    )
    return FormFit(
        form="repetition",
        law=law,
        intervals={k: percentile_interval(samples[:, 5 + i], level) for i, k in enumerate(law.names()[5:])} if len(drawn) else {},
        ranges={"num_params": extent(points.num_params), "tokens": extent(points.tokens), "unique_tokens": extent(seen)},
        samples=samples if len(drawn) else None,
        **told,
    )


@dataclass(frozen=True)
class Decays:
    """The objective in (ln r, ln s) with the surface held."""

    surface: LossSurface
    points: Points
    unique: Floats
    delta: float

    def evaluate(self, weight: Floats) -> Evaluate:
        """For `analysis.scoring`: Huber's objective on log residuals, weights (P, n), by reweighted least squares."""
        at = (self.points.num_params, self.points.tokens, self.unique)
        log_loss = np.log(self.points.loss)

        def evaluated(theta: Floats, rows: np.ndarray) -> tuple[Floats, Floats, Floats]:
            decays = np.exp(theta)
            law = RepetitionLaw(*self.surface.values().tolist(), *decays.T[:, :, None])
            predicted = law.predict(*at)
            slope = law.gradient(*at)[..., 5:] / predicted[..., None] * decays[:, None, :]
            residual = log_loss - np.log(predicted)
            force = weight[rows] * np.clip(residual, -self.delta, self.delta)
            curved = weight[rows] * np.minimum(1.0, self.delta / np.maximum(np.abs(residual), 1e-300))
            value: Floats = (weight[rows] * huber(residual, self.delta)).sum(1)
            return value, -np.einsum("pn,pnk->pk", force, slope), np.einsum("pn,pnk,pnl->pkl", curved, slope, slope)

        return evaluated

    def solve(self, weight: Floats) -> tuple[Floats, float, Floats]:
        """The best (ln r, ln s) over a grid of starts, its objective, and (kept, 2) those of resamples with `weight` (R, n)."""
        low, high = np.full(2, np.log(DECAYS[0])), np.full(2, np.log(DECAYS[1]))
        grid = np.stack([g.ravel() for g in np.meshgrid(*[np.linspace(low[0] + 1, high[0] - 2, 6)] * 2)], axis=1)
        once = np.ones((len(grid), len(self.points)))
        ends, values, _ = minimise_by_scoring(self.evaluate(once), grid, low, high, steps=300)
        best = ends[values.argmin()]
        near = np.repeat(best[None], len(weight), axis=0)
        drawn, _, converged = minimise_by_scoring(self.evaluate(weight), near, low, high, steps=300)
        return best, float(values.min()), drawn[converged]


def at_bound(decay: float) -> bool:
    return decay <= DECAYS[0] * (1 + 1e-6) or decay >= DECAYS[1] * (1 - 1e-6)


def _unrepeated(
    base: SurfaceFit | LossSurface | None, fresh: pd.DataFrame, columns: dict[str, str], objective: str, delta: float
) -> LossSurface:
    """The surface of unrepeated data, given or fitted. Raises FitError where it has no N_opt(U)."""
    if base is None:
        finite = delta if np.isfinite(delta) else DELTA
        base = fit_loss_surface(fresh, **columns, objective=objective, delta=finite, resamples=0)  # type: ignore[arg-type]
    surface = base.law if isinstance(base, SurfaceFit) else base
    if min(surface.A, surface.B) <= 0:
        raise FitError(
            f"the surface of unrepeated data has A={surface.A:g}, B={surface.B:g}; both must be positive for N_opt(U)."
        )
    return surface
