"""Checks of a fitted surface: does it predict the largest budget, does it hang on one run, and what is the noise made of?

    held_out(table)       # fitted without the largest budget, which is then predicted
    influence(table)      # every run left out once
    noise_parts(table)    # seeds, evaluation and the law's misfit apart, where runs are repeated

A held-out run's prediction interval is the law's bootstrap plus a run's own noise, Student's t. Noise is of ln loss.
Runs that share arm, N and D but not the seed have the variance s_seed^2 + s_eval^2; where a column gives each loss's standard
error (`loss_se`), s_eval is known and s_seed is the rest. The law's lack of fit is tested against pure error (Draper and Smith
1998, section 2.1): F = ((RSS - SS_pure) / (n - p - f)) / (SS_pure / f), f the degrees of freedom of the repeats.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analysis.diagnose import DELTA, HUBER, LOSS_SQUARES, chosen_delta
from analysis.fit import fit_loss_surface
from analysis.laws import Floats
from analysis.optimum import solve
from analysis.solver import CONSTANT, IN_D, IN_N, Problem
from analysis.table import Frame, column, read_points, require_points, require_spread
from analysis.uncertainty import refit
from lst.errors import FitError

TOLD = 3
"""Runs that are named as the most influential."""


def held_out(
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
) -> dict[str, Any]:
    """The largest budget predicted by a fit of the others: each run's predicted and actual loss, distance, coverage.

    Raises FitError where there are fewer than four budgets, or where the rest cannot be fitted.
    """
    columns = {"params": params, "tokens": tokens, "loss": loss}
    points = read_points(table, **columns)
    if len(points.budget_flops) < 4:
        raise FitError(f"{len(points.budget_flops)} budgets: holding one out needs four, so that three are left to fit.")
    rng = np.random.default_rng(0) if rng is None else rng
    last = points.budget == points.budget.max()
    rest = {"objective": objective, "delta": delta, "resamples": resamples, "level": level, "rng": rng}
    fit = fit_loss_surface(table[~last], **columns, **rest)  # type: ignore[arg-type]
    left = np.log(points.loss[~last]) - np.log(fit.law.predict(points.num_params[~last], points.tokens[~last]))
    freedom = max(len(left) - len(fit.law.names()), 1)
    noise = float(np.sqrt((left**2).sum() / freedom))  # not the median's: a fit of near least absolute deviation has some at 0
    rows: list[dict[str, Any]] = []
    for k in np.flatnonzero(last):
        n, d, actual = float(points.num_params[k]), float(points.tokens[k]), float(points.loss[k])
        predicted = float(fit.law.predict(n, d))
        interval = None
        if fit.samples is not None:
            e, a, b, alpha, beta = fit.samples.T
            logs = np.log(e + a * n**-alpha + b * d**-beta)
            noisy = np.exp(logs + noise * rng.standard_t(freedom, len(logs)))
            interval = [float(q) for q in np.quantile(noisy, [(1 - level) / 2, (1 + level) / 2])]
        inside = None if interval is None else interval[0] <= actual <= interval[1]
        row = {"num_params": n, "tokens": d, "predicted": predicted, "actual": actual, "interval": interval, "covered": inside}
        rows.append(row | {"run_id": str(table["run_id"].iloc[k]) if "run_id" in table.columns else str(k)})
    errors = np.array([np.log(r["actual"] / r["predicted"]) for r in rows])
    known = [r["covered"] for r in rows if r["covered"] is not None]
    return {
        "flops_budget": float(points.budget_flops[-1]),
        "times_the_next": float(points.budget_flops[-1] / points.budget_flops[-2]),
        "runs": rows,
        "mean_error": float(errors.mean()),  # of ln loss: above 0 the law was too hopeful
        "root_mean_square_error": float(np.sqrt((errors**2).mean())),
        "covered": float(np.mean(known)) if known else None,
        "level": level,
    }


def influence(
    table: pd.DataFrame,
    *,
    params: str = "num_params",
    tokens: str = "tokens",
    loss: str = "loss",
    objective: str = HUBER,
    delta: float = DELTA,
) -> list[dict[str, Any]]:
    """Each run left out once, refitted to its own optimum: the change of alpha, beta, E and ln N* at the largest 6ND.

    The most influential first, by the largest change of ln N*. Raises FitError as `fit_loss_surface` does.
    """
    points = read_points(table, params=params, tokens=tokens, loss=loss)
    require_points(points, 6, "L(N, D) without a run")
    require_spread(points)
    frame = Frame.of(points)
    members, logs = np.ones((len(points), 3)), objective != LOSS_SQUARES
    problem = Problem(frame.x, frame.y, members, (CONSTANT, IN_N, IN_D), chosen_delta(objective, delta), logs=logs)
    best = solve(problem, frame.log_loss)
    weight = 1 - np.eye(len(points))
    ends = refit(problem, best.theta, np.repeat(frame.log_loss[None], len(points), axis=0), weight)
    laws = frame.surface(np.concatenate([best.theta[None], ends.theta]))
    flops = float((6 * points.num_params * points.tokens).max())
    place = log_optimal(laws, flops)
    found = []
    for k in range(len(points)):
        changes = {name: float(laws[k + 1, i] - laws[0, i]) for i, name in ((0, "E"), (3, "alpha"), (4, "beta"))}
        moved = float(place[k + 1] - place[0]) if np.isfinite(place[[0, k + 1]]).all() else np.nan
        entry = {
            "run_id": str(table["run_id"].iloc[k]) if "run_id" in table.columns else str(k),
            "converged": bool(ends.converged[k]),
        }
        found.append(entry | changes | {"log_optimal_params": moved if np.isfinite(moved) else None})
    return sorted(found, key=lambda r: -(np.inf if r["log_optimal_params"] is None else abs(r["log_optimal_params"])))


def log_optimal(laws: Floats, flops: float) -> Floats:
    """(P,) ln N* at `flops` under 6ND of surfaces (P, 5); not finite where a term is 0."""
    _, a, b, alpha, beta = laws.T
    with np.errstate(divide="ignore", invalid="ignore"):
        result: Floats = (np.log(alpha * a / (beta * b)) + beta * np.log(flops / 6)) / (alpha + beta)
    return result


def influence_warning(rows: list[dict[str, Any]], half_width: float) -> list[str]:
    """The runs whose absence moves ln N* by more than half the width of its interval."""
    strong = [r for r in rows[:TOLD] if r["log_optimal_params"] is None or abs(r["log_optimal_params"]) > half_width]
    return [
        "without run "
        + r["run_id"]
        + (
            " N* is not determined"
            if (move := r["log_optimal_params"]) is None
            else f" N* would be {np.exp(move):.3g} times as large"
        )
        + ": the fit hangs on it"
        for r in strong
    ]


def noise_parts(
    table: pd.DataFrame,
    residual: Floats,
    parameters: int,
    *,
    params: str = "num_params",
    tokens: str = "tokens",
    loss: str = "loss",
    standard_error: str = "loss_se",
) -> dict[str, Any] | None:
    """Standard deviations of ln loss between seeds and of evaluation, and the law's lack of fit; None without repeated runs.

    `residual` (n,) are the fit's, in the table's order, and `parameters` its number of free ones.
    """
    if "seed" not in table.columns:
        return None
    points = read_points(table, params=params, tokens=tokens, loss=loss)
    arms = pd.factorize(table["arm"])[0] if "arm" in table.columns else None
    groups = pd.Series(np.log(points.loss)).groupby(points.cell_of(arms))
    pure, freedom = float(groups.apply(lambda g: ((g - g.mean()) ** 2).sum()).sum()), int((groups.size() - 1).sum())
    if freedom < 1:
        return None
    variance = pure / freedom
    evaluation = None
    if standard_error in table.columns:
        evaluation = float(np.sqrt(np.mean((column(table, standard_error) / points.loss) ** 2)))
    rss = float((residual**2).sum())
    lack = len(points) - parameters - freedom
    ratio = ((rss - pure) / lack) / variance if lack > 0 and variance > 0 else None
    low, high = (float(np.sqrt(pure / stats.chi2.ppf(q, freedom))) for q in (0.95, 0.05))
    return {
        "repeats": freedom,
        "total": float(np.sqrt(variance)),
        "total_interval": [low, high],
        "evaluation": evaluation,
        "seed": None if evaluation is None else float(np.sqrt(max(0.0, variance - evaluation**2))),
        "lack_of_fit": ratio,
        "lack_of_fit_p": None if ratio is None else float(stats.f.sf(ratio, lack, freedom)),
    }
