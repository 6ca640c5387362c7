"""What to say about a fit beside its numbers: options checked, spreads measured, soft warnings in words. Fits nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from analysis.basis import Interval
from analysis.laws import Floats, LossSurface
from analysis.optimum import Optimum
from analysis.solver import EXPONENT_BOUNDS
from analysis.table import Frame, Points
from analysis.uncertainty import Draws, small_design_warning
from lst.errors import FitError, did_you_mean

HUBER, SQUARES, ABSOLUTE, LOSS_SQUARES = "huber", "squares", "absolute", "loss_squares"
DELTA = 1e-3
ABSOLUTE_DELTA = 1e-7
"""Least absolute deviation is Huber's loss over a delta so small that it moves no digit that is printed."""
RUNNER_UP = 1.05
"""Other minima are told where their objective is within this factor of the best."""
MOST_RESAMPLES = 1_000_000
NO_FLOPS = "the table has no train_flops: C is each arm's own 6ND, an approximation that knows of no savings"
FINE_DELTA = 0.2
"""Huber's delta below this share of the residuals' spread is told: the fit is then nearly one of least absolute deviation."""


def chosen_delta(objective: str, delta: float, *, logs: bool = False) -> float:
    """Huber's threshold for an objective's name: inf is least squares. Raises FitError; with `logs` also on what is not of
    ln loss."""
    known = {HUBER: delta, SQUARES: np.inf, ABSOLUTE: ABSOLUTE_DELTA, LOSS_SQUARES: np.inf}
    if objective not in known:
        raise FitError(f"loss='{objective}' is no objective; {did_you_mean(str(objective), known)}")
    if not isinstance(delta, int | float | np.number) or not (np.isfinite(delta) and delta > 0):
        raise FitError(f"delta={delta} must be positive and finite; 1e-3 is the literature's, on log residuals.")
    if objective == HUBER and delta < ABSOLUTE_DELTA:
        raise FitError(f"delta={delta} is below {ABSOLUTE_DELTA:g}: that is absolute deviation; give loss={ABSOLUTE}.")
    if logs and objective == LOSS_SQUARES:
        raise FitError(f"loss={LOSS_SQUARES} is not for this fit; choose {HUBER}, {SQUARES} or {ABSOLUTE}.")
    return known[objective]


def unit_of(objective: str, loss_mean: float) -> float:
    """What the solver's objective is divided by to be the one named: sum |r| is Huber's over its delta, and squares of the loss
    are in units of its geometric mean, exp(`loss_mean`)."""
    return {ABSOLUTE: ABSOLUTE_DELTA, LOSS_SQUARES: float(np.exp(-2 * loss_mean))}.get(objective, 1.0)


def check_options(resamples: int, level: float) -> None:
    if not isinstance(level, float | np.floating) or not 0 < level < 1:
        raise FitError(f"level={level} is no coverage; give a number between 0 and 1, as 0.9.")
    whole = isinstance(resamples, int | np.integer) and not isinstance(resamples, bool)
    if not whole or not 0 <= resamples <= MOST_RESAMPLES:
        raise FitError(f"resamples={resamples} is no whole number of 0 to {MOST_RESAMPLES:,}; give 0 for no intervals, or 1000.")


def basis(
    points: Points,
    parameters: int,
    objective: str,
    delta: float,
    value: float,
    spread: float,
    level: float,
    draws: Draws,
    asked: int,
    *,
    member: np.ndarray | None = None,
) -> dict[str, Any]:
    """The fields that every robust fit reports of itself, but its warnings are only those of copies, spread and intervals."""
    n, cells = len(points), points.cells(member)
    return {
        "n": n,
        "loss": objective,
        "delta": delta if objective == HUBER else None,
        "objective": value,
        "residual_spread": spread,
        "level": level,
        "interval_method": draws.method,
        "resamples": draws.resamples,
        "failed": draws.failed,
        "warnings": (
            *copy_warnings(points, member),
            *(spread_warnings(delta, spread) if objective == HUBER else []),
            *interval_warnings(n, parameters, draws.resamples, draws.failed, asked, cells=cells),
            *_few_warnings(cells, n, parameters, draws, level),
        ),
    }


def extent(values: Floats) -> Interval:
    return float(values.min()), float(values.max())


def robust_spread(residual: Floats) -> float:
    """1.4826 times the median absolute residual: the standard deviation, if residuals are normal."""
    return float(1.4826 * np.median(np.abs(residual)))


def at_end(exponent: float) -> bool:
    return exponent <= EXPONENT_BOUNDS[0] * (1 + 1e-6) or exponent >= EXPONENT_BOUNDS[1] * (1 - 1e-6)


def bounds_met(law: LossSurface) -> tuple[str, ...]:
    """Names of the surface's parameters that are 0, or exponents at the ends of their range."""
    faces = [name for name in ("E", "A", "B") if getattr(law, name) <= 0]
    ends = [name for name, term in (("alpha", law.A), ("beta", law.B)) if term > 0 and at_end(getattr(law, name))]
    return (*faces, *ends)


def runners(best: Optimum, frame: Frame, unit: float) -> tuple[dict[str, float], ...]:
    """Up to three other converged minima, told apart by their objective."""
    found: list[dict[str, float]] = []
    seen = [best.objective]
    for theta, value, converged in zip(best.others.theta, best.others.objective, best.others.converged, strict=True):
        new = all(abs(value - s) > 1e-6 * abs(value) + 1e-20 for s in seen)
        if converged and new and len(found) < 3:
            seen.append(float(value))
            law = LossSurface(*frame.surface(theta[None])[0].tolist())
            found.append({"objective": float(value) / unit, **law.to_json()})
    return tuple(found)


def bound_warnings(names: tuple[str, ...]) -> list[str]:
    meaning = {"E": "= 0", "A": "= 0", "B": "= 0", "asymptote": "= 0"}
    low, high = EXPONENT_BOUNDS
    return [
        f"{name} ended on its bound ({meaning.get(name, f'range {low:g} to {high:g}')}): the data do not determine it"
        for name in names
    ]


def runner_up_warnings(runner_ups: tuple[dict[str, float], ...], best: float) -> list[str]:
    close = [r for r in runner_ups if r["objective"] <= RUNNER_UP * best]
    if not close:
        return []
    r = close[0]
    where = ", ".join(f"{name}={r[name]:.4g}" for name in ("E", "alpha", "beta"))
    return [f"another minimum is within {r['objective'] / best - 1:.2%} of the best: {where}"]


def other_minima_warnings(best: Optimum) -> list[str]:
    """Of a fit of several arms: how near its next minimum is."""
    others = best.others.objective[best.others.converged]
    apart = others[others > best.objective * (1 + 1e-6) + 1e-20]
    if not len(apart) or apart.min() > RUNNER_UP * best.objective:
        return []
    return [f"another minimum is within {apart.min() / best.objective - 1:.2%} of the best"]


def spread_warnings(delta: float, spread: float) -> list[str]:
    if delta >= FINE_DELTA * spread:
        return []
    return [
        f"Huber's delta {delta:g} is {delta / spread:.2g} of the residuals' spread {spread:.2g}: nearly least absolute deviation"
    ]


def copy_warnings(points: Points, member: np.ndarray | None = None) -> list[str]:
    """Rows that are another's copy to the last digit."""
    if not (copies := points.copies(member)):
        return []
    return [f"{copies} rows repeat another's N, D and loss to the last digit: copies narrow every interval; drop them"]


def _few_warnings(cells: int, n: int, parameters: int, draws: Draws, level: float) -> list[str]:
    """As many cells as parameters, and resamples too few for a percentile."""
    found = []
    if parameters == cells < n:
        found.append(f"{cells} cells for {parameters} parameters: the law goes through the cells' middles whatever it is")
    if 0 < draws.resamples * (1 - level) < 2 - 1e-9:
        found.append(f"{draws.resamples} resamples are too few for {level:.0%} intervals; give 1000")
    return found


def interval_warnings(n: int, parameters: int, done: int, failed: int, asked: int, *, cells: int | None = None) -> list[str]:
    """What to know about a fit's intervals: none at all, a small design, failed refits."""
    if asked and not done:
        return [f"{n} points for {parameters} parameters leave no degree of freedom: the fit is exact and has no intervals"]
    found = []
    if done and (small := small_design_warning(n, parameters, n if cells is None else cells)):
        found.append(small)
    if failed:
        found.append(f"{failed:,} of {done:,} bootstrap refits failed and are left out of the intervals")
    return found
