"""An arm against the baseline: the compute multiplier as a curve over the losses that both reach.

    multiplier(L) = C_baseline(L) / C_arm(L): FLOPs the baseline needs to reach loss L over the FLOPs the arm needs.

C(L) is the inverse of the best loss against FLOPs. "envelope": per budget the least loss of its isoFLOP parabola within the
sizes tried (or the best run, where sizes are too few), joined by straight lines in (ln C, ln L). "law": L(C) = asymptote +
scale C^exponent through the same points. Both only inside the losses that both arms reach: separate asymptotes make any
extrapolated multiplier explode or vanish. Not here: efficiencies under shared exponents (`analysis.shared`), and which arms may
be compared at all (`analysis.study`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.basis import Interval, percentile_interval
from analysis.descent import minimise
from analysis.diagnose import NO_FLOPS, check_options
from analysis.isoflop import AUTO, Regression
from analysis.laws import Floats
from analysis.projection import projected_starts
from analysis.results import MultiplierCurve
from analysis.solver import CONSTANT, IN_N, Problem
from analysis.table import Points, arm_rows, named_arms, read_points, require_comparable, require_varying
from analysis.uncertainty import widening
from lst.errors import FitError, did_you_mean

ENVELOPE, LAW = "envelope", "law"
CURVE_POINTS = 21
OWN_FREEDOM = 5
"""Degrees of freedom under which an arm's noise is told from both arms together."""
LAW_ASYMPTOTE_BUDGETS = 4
"""Budgets from which L(C) gets an asymptote: with three it would pass through all of them."""


@dataclass(frozen=True)
class BestLosses:
    """The least loss at each budget, and resamples of it."""

    log_flops: Floats  # (B,), rising
    log_loss: Floats  # (B,)
    draws: Floats  # (R, B)
    observed: bool  # some budgets have too few sizes: their best run stands for the minimum
    falling: bool  # the losses fall from each budget to the next
    runs: int


def best_losses(
    points: Points,
    regression: Regression | None,
    *,
    resamples: int,
    level: float,
    rng: np.random.Generator,
    noise: float | None,
    pooled: float | None,
) -> BestLosses:
    """Per-budget best of `points`; `noise` is the standard deviation to give to a loss that has no parabola, `pooled` that of all
    runs, in place of the residuals' own."""
    count = len(points.budget_flops)
    groups = [np.flatnonzero(points.budget == b) for b in range(count)]
    best = np.array([points.loss[rows].min() for rows in groups])
    flops = np.array([points.flops[rows][np.argmin(points.loss[rows])] for rows in groups])
    draws = best + (noise or 0.0) * rng.standard_normal((resamples, count))
    if regression is not None:
        fitted, sampled = regression.draws(resamples=resamples, level=level, rng=rng, spread=pooled)
        best[regression.budgets], draws[:, regression.budgets] = fitted.best_in_span[0], sampled.best_in_span
        flops[regression.budgets] = [np.exp(np.log(points.flops[groups[b]]).mean()) for b in regression.budgets]
    if best.min() <= 0:
        raise FitError(
            f"an isoFLOP parabola falls to a loss of {best.min():.3g}: the runs scatter too much to be compared; add sizes."
        )
    floor = 0.5 * best.min()  # a draw must stay a loss
    observed = regression is None or len(regression.budgets) < count
    return BestLosses(
        np.log(flops), np.log(best), np.log(np.maximum(draws, floor)), observed, bool((np.diff(best) < 0).all()), len(points)
    )


def parabolas(points: Points) -> Regression | None:
    """The arm's isoFLOP parabolas, or None with too few sizes: its best runs stand for them."""
    try:
        return Regression.of(points, AUTO)
    except FitError:
        return None


def pooled_spread(regressions: Sequence[Regression | None], level: float) -> float | None:
    """Standard deviation of a loss about its parabola from the residuals of all arms, widened for its degrees of freedom; None
    where each arm has enough of its own, or none has any."""
    freedoms = [r.freedom if r is not None else 0 for r in regressions]
    if not sum(freedoms) or min(freedoms) >= OWN_FREEDOM:
        return None
    squares = sum(float((r.residual**2).sum()) for r in regressions if r is not None)
    return float(np.sqrt(squares / sum(freedoms))) * widening(level, sum(freedoms))


def compute_multiplier(
    table: pd.DataFrame,
    arm: str,
    *,
    baseline: str = "baseline",
    method: str = ENVELOPE,
    params: str = "num_params",
    tokens: str = "tokens",
    loss: str = "loss",
    resamples: int = 1000,
    level: float = 0.9,
    rng: np.random.Generator | None = None,
) -> MultiplierCurve:
    """The multiplier of `arm` against `baseline` (column `arm` of the table) as a curve over the losses that both reach.

    `method` is "envelope" or "law" (see the module's docstring). The band resamples both arms. Raises FitError where the losses
    do not overlap, or where the baseline has one budget only.
    """
    check_options(resamples, level)
    if method not in (ENVELOPE, LAW):
        raise FitError(f"method='{method}' is unknown; {did_you_mean(method, (ENVELOPE, LAW))}")
    rng = np.random.default_rng(0) if rng is None else rng
    table, names = named_arms(table), (str(baseline), str(arm))
    sides = _sides(table, names, {"params": params, "tokens": tokens, "loss": loss})
    regressions = [parabolas(points) for points in sides]
    noises = [regression.noise if regression is not None else None for regression in regressions]
    known = [noise for noise in noises if noise is not None]
    drawn_with: dict[str, Any] = {"resamples": resamples if known else 0, "level": level, "rng": rng}
    pooled = pooled_spread(regressions, level)
    drawn_with |= {"noise": pooled if pooled is not None or not known else known[0], "pooled": pooled}
    curves = [best_losses(points, of, **drawn_with) for points, of in zip(sides, regressions, strict=True)]
    overlap = _overlap(*curves, names=names)
    at = np.linspace(np.log(overlap[1]), np.log(overlap[0]), 1 if overlap[0] == overlap[1] else CURVE_POINTS)
    points_at = [flops_at(curve, curve.log_loss[None], at, method) for curve in curves]
    drawn = flops_at(curves[0], curves[0].draws, at, method) - flops_at(curves[1], curves[1].draws, at, method)
    fine = np.isfinite(drawn).all(1)
    log_multiplier = (points_at[0] - points_at[1])[0]
    if not np.isfinite(log_multiplier).all():
        raise FitError(f"method='{method}' cannot reach all losses that both arms share; use method=envelope.")
    band = np.exp(np.quantile(drawn[fine], [(1 - level) / 2, (1 + level) / 2], axis=0)) if fine.any() else np.empty((2, 0))
    mean_interval = percentile_interval(np.exp(drawn[fine].mean(1)), level) if fine.any() else None
    slopes = slopes_of(points_at[1][0], np.concatenate([log_multiplier[None], drawn[fine]]))
    return MultiplierCurve(
        method=_method_words(method, curves),
        losses=tuple(np.exp(at).tolist()),
        arm_flops=tuple(np.exp(points_at[1][0]).tolist()),
        baseline_flops=tuple(np.exp(points_at[0][0]).tolist()),
        multiplier=tuple(np.exp(log_multiplier).tolist()),
        low=tuple(band[0].tolist()),
        high=tuple(band[1].tolist()),
        mean=float(np.exp(log_multiplier.mean())),
        mean_interval=mean_interval,
        slope=float(slopes[0]) if len(slopes) else None,
        slope_interval=percentile_interval(slopes[1:], level) if len(slopes) > 1 else None,
        overlap=overlap,
        level=level,
        resamples=len(drawn),
        failed=int((~fine).sum()),
        warnings=tuple(_warnings(curves, names, mean_interval, noises, exact=all(s.exact_flops for s in sides))),
    )


def _sides(table: pd.DataFrame, names: tuple[str, str], columns: dict[str, str]) -> list[Points]:
    """The points of both arms. Raises FitError where they are not comparable, or all losses are one."""
    rows = [arm_rows(table, name) for name in names]
    require_comparable(pd.concat(rows))
    require_varying(read_points(pd.concat(rows), **columns))
    return [read_points(of, **columns) for of in rows]


def slopes_of(log_flops: Floats, log_multiplier: Floats) -> Floats:
    """(R,) least-squares slopes of curves (R, points) on the arm's ln C; none where the curve is a point."""
    away = log_flops - log_flops.mean()
    if np.ptp(away) < 1e-6:
        return np.empty(0)
    result: Floats = log_multiplier @ away / (away @ away)
    return result


def _overlap(base: BestLosses, arm: BestLosses, *, names: tuple[str, str]) -> Interval:
    """Lowest and highest loss that both reach. Raises FitError where there is none."""
    if len(base.log_loss) < 2:
        raise FitError(f"arm '{names[0]}' has one budget only; a multiplier needs its loss at two or more.")
    low = max(base.log_loss.min(), arm.log_loss.min())
    high = min(base.log_loss.max(), arm.log_loss.max())
    if low > high or (low == high and len(arm.log_loss) > 1):
        ends = [(name, np.exp(c.log_loss.min()), np.exp(c.log_loss.max())) for name, c in zip(names, (base, arm), strict=True)]
        spans = " and ".join(f"'{name}' ({least:.4g} to {most:.4g})" for name, least, most in ends)
        raise FitError(f"the best losses of {spans} do not overlap; add budgets so that both reach a common loss.")
    return float(np.exp(low)), float(np.exp(high))


def flops_at(curve: BestLosses, log_loss: Floats, at: Floats, method: str) -> Floats:
    """(R, len(at)) ln C at which each of `log_loss` (R, B) reaches the log losses `at`; inf where a law never does."""
    if len(curve.log_flops) == 1:
        return np.broadcast_to(curve.log_flops, (len(log_loss), len(at)))
    if method == ENVELOPE:
        found = _falling_inverse(curve.log_flops, log_loss, at)
        for row in np.flatnonzero((np.diff(log_loss, axis=1) >= 0).any(1)):
            found[row] = _inverse(curve.log_flops, log_loss[row], at)
        return found
    x = curve.log_flops - curve.log_flops.mean()
    kinds = (CONSTANT, IN_N) if len(x) >= LAW_ASYMPTOTE_BUDGETS else (IN_N,)
    problem = Problem(x, np.zeros_like(x), np.ones((len(x), len(kinds))), kinds, np.inf)
    if not len(log_loss):
        return np.empty((0, len(at)))
    weight = np.ones_like(log_loss)
    start = projected_starts(problem, log_loss, weight, keep=1)[:, 0]
    theta = minimise(problem, start, log_loss, weight).theta
    above = np.exp(at) - (theta[:, :1] if len(kinds) == 2 else 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        needed = -np.log(above / theta[:, [len(kinds) - 1]]) / theta[:, [len(kinds)]]
    result: Floats = np.where(above > 0, needed, np.inf) + curve.log_flops.mean()
    return result


def _falling_inverse(log_flops: Floats, log_loss: Floats, at: Floats) -> Floats:
    """`_inverse` of many curves (R, B) at once, right where each falls from budget to budget."""
    piece = np.clip((log_loss[:, None, :] > at[:, None]).sum(-1) - 1, 0, len(log_flops) - 2)
    high, low = (np.take_along_axis(log_loss, piece + k, axis=1) for k in (0, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = (log_flops[piece + 1] - log_flops[piece]) / (high - low)
        result: Floats = log_flops[piece] + (high - at) * slope
    return result


def _inverse(log_flops: Floats, log_loss: Floats, at: Floats) -> Floats:
    """Where the running minimum of a piecewise linear curve reaches `at`; its end pieces are prolonged (for draws)."""
    low = np.minimum.accumulate(log_loss)
    keep = np.concatenate([[True], np.diff(low) < 0])
    x, y = log_flops[keep], -low[keep]
    if len(x) < 2:
        return np.full(len(at), np.nan)
    piece = np.clip(np.searchsorted(y, -at) - 1, 0, len(x) - 2)
    result: Floats = x[piece] + (-at - y[piece]) * (x[piece + 1] - x[piece]) / (y[piece + 1] - y[piece])
    return result


def _method_words(method: str, curves: list[BestLosses]) -> str:
    if method == ENVELOPE:
        return "envelope of per-budget best losses, straight in (ln C, ln L)"
    asymptotes = ["with" if len(c.log_flops) >= LAW_ASYMPTOTE_BUDGETS else "without" for c in curves]
    return f"L(C) through per-budget best losses, {asymptotes[0]} asymptote for the baseline and {asymptotes[1]} for the arm"


def _warnings(
    curves: list[BestLosses], names: tuple[str, str], interval: Interval | None, noises: list[float | None], *, exact: bool
) -> list[str]:
    told = [] if exact else [NO_FLOPS]
    for curve, name in zip(curves, names, strict=True):
        count = len(curve.log_flops)
        if count < 4:
            told.append(f"'{name}' has {count} budgets ({curve.runs} runs): too few to tell how the gain changes with scale")
        if curve.observed:
            told.append(f"'{name}' has budgets of too few sizes: its best run stands for the optimum and may understate the arm")
        if not curve.falling:
            told.append(f"the best losses of '{name}' do not fall from budget to budget: the curve uses the lowest so far")
    if interval is None:
        told.append("no run-to-run noise can be told (no degree of freedom in either arm), so the curve has no band")
        return told
    low, high = interval
    if low <= 1 <= high:
        told.append(f"the mean multiplier's interval [{low:.3g}, {high:.3g}] holds 1: these runs cannot tell the arms apart")
    if None in noises:
        told.append("the noise of one arm is taken from the other, as it has no degree of freedom of its own")
    return told
