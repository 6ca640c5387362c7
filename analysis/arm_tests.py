"""Are two arms' laws alike? Shared exponents against free ones, and the slope of the gain against scale.

    exponent_test(table, "lst_static")   # one E, alpha, beta for both arms, or a surface each: which do the data ask for?
    gain_slope(pairs)                    # matched losses: does the gain grow with compute?

The test's statistic is how much three free parameters (E, alpha, beta of the second arm) lower the objective, as
F = ((S_shared - S_free) / 3) / (S_free / (n - 10)); its distribution under the shared law is simulated: losses from the
shared fit plus resampled residuals with random signs, both fits anew for each. No normality, and no table of F, is relied on.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analysis.diagnose import SQUARES, chosen_delta
from analysis.laws import Floats, floats
from analysis.optimum import solve
from analysis.shared import SEPARATE, shared_problem
from analysis.solver import CONSTANT, IN_D, IN_N, Problem, model
from analysis.table import Frame, arm_rows, read_points, require_comparable
from analysis.uncertainty import leverages, refit, residual_errors
from lst.errors import FitError

FREE, SHARED = 10, 7
"""Parameters of two surfaces, and of two with one E, alpha and beta."""
ROUNDING = 1e-12
"""Residuals of log loss below which nothing is left but rounding, and no fit is better than another."""


def exponent_test(
    table: pd.DataFrame,
    arm: str,
    *,
    baseline: str = "baseline",
    params: str = "num_params",
    tokens: str = "tokens",
    loss: str = "loss",
    resamples: int = 500,
    rng: np.random.Generator | None = None,
) -> dict[str, Any]:
    """F, its simulated p-value, and the exponents of either fit (least squares of log residuals).

    Raises FitError with fewer than twelve runs, or five in either arm.
    """
    rows = pd.concat([arm_rows(table, baseline), arm_rows(table, arm)], ignore_index=True)
    second = (rows["arm"] == arm).to_numpy()
    counts = (int((~second).sum()), int(second.sum()))
    if len(rows) < FREE + 2 or min(counts) < 6:
        raise FitError(
            f"{counts[0]} and {counts[1]} runs: a test of shared exponents needs six in each arm and twelve in all; add runs."
        )
    require_comparable(rows)
    points = read_points(rows, params=params, tokens=tokens, loss=loss)
    if points.exact_flops:  # as fits with shared exponents: in true FLOPs
        points = replace(points, tokens=points.flops / (6 * points.num_params))
    frame = Frame.of(points)
    member = floats([~second, second]).T
    delta = chosen_delta(SQUARES, 1.0)
    shared = shared_problem(frame, member, SEPARATE, delta)
    singles = [_alone(frame, side) for side in (~second, second)]
    best = solve(shared, frame.log_loss)
    free = [solve(problem, frame.log_loss[side]) for problem, side in zip(singles, (~second, second), strict=True)]
    observed = _statistic(np.array([best.objective]), np.array([sum(f.objective for f in free)]), len(rows))[0]
    rng = np.random.default_rng(0) if rng is None else rng
    value, slope = model(shared, best.theta[None])
    fitted = np.log(value[0])
    errors = residual_errors(frame.log_loss - fitted, leverages(slope[0] / value[0][:, None]), SHARED, None, resamples, rng)
    losses = fitted + errors
    ones = np.ones_like(losses)
    drawn_shared = refit(shared, best.theta, losses, ones)
    drawn_free = [
        refit(problem, end.theta, losses[:, side], ones[:, side])
        for problem, end, side in zip(singles, free, (~second, second), strict=True)
    ]
    fine = drawn_shared.converged & drawn_free[0].converged & drawn_free[1].converged
    drawn = _statistic(drawn_shared.objective[fine], sum(d.objective[fine] for d in drawn_free), len(rows))
    p = (1 + int((drawn >= observed).sum())) / (1 + len(drawn))
    return {
        "f": float(observed),
        "p": float(p),
        "resamples": resamples,
        "failed": int((~fine).sum()),
        "shared": {"alpha": float(best.theta[-2]), "beta": float(best.theta[-1])},
        "free": {
            name: {"alpha": float(f.theta[-2]), "beta": float(f.theta[-1])} for name, f in zip((baseline, arm), free, strict=True)
        },
    }


def _alone(frame: Frame, rows: np.ndarray) -> Problem:
    """One arm's own surface, in the common coordinates."""
    return Problem(frame.x[rows], frame.y[rows], np.ones((int(rows.sum()), 3)), (CONSTANT, IN_N, IN_D), np.inf)


def _statistic(shared: Floats, free: Floats, n: int) -> Floats:
    free = np.maximum(free, n * ROUNDING**2)
    result: Floats = (np.maximum(shared - free, 0) / (FREE - SHARED)) / (free / (n - FREE))
    return result


def gain_slope(differences: Floats, flops: Floats, level: float) -> dict[str, Any] | None:
    """Least squares of matched differences (arm minus baseline, ln loss) on ln C, with Student's interval of the slope.

    slope < 0: the gain grows with scale. Cells at one budget share nothing but the budget, so that pairs are the unit. None with
    fewer than three pairs or one budget.
    """
    x = np.log(flops)
    if len(x) < 3 or np.ptp(x) < 1e-6:
        return None
    away = x - x.mean()
    slope = float(away @ differences / (away @ away))
    residual = differences - differences.mean() - slope * away
    error = float(np.sqrt((residual @ residual) / (len(x) - 2) / (away @ away)))
    half = float(stats.t.ppf(0.5 + level / 2, len(x) - 2)) * error
    p = float(2 * stats.t.sf(abs(slope) / error, len(x) - 2)) if error > 0 else None
    return {"slope": slope, "interval": [slope - half, slope + half], "p": p, "pairs": len(x), "level": level}
