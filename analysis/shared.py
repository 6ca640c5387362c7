"""All arms in one fit with shared exponents, and each arm's efficiency against the baseline.

    compute:   L_arm(N, D) = E + A / N^alpha + B / (e D)^beta
    separate:  L_arm(N, D) = E + A / (e_N N)^alpha + B / (e_D D)^beta,   multiplier e_N e_D

with D = C / (6 N) where exact FLOPs C are known: then the arm's best loss at C is the baseline's at e C (or e_N e_D C), so
that e is a compute multiplier in true FLOPs, the same at every scale. Two families with asymptotes of their own give a multiplier
that explodes with C; shared E, alpha, beta give a stable one, if the assumption holds. Not here: the assumption-light curve
(`analysis.compare`).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from analysis.basis import Interval, percentile_interval
from analysis.diagnose import (
    DELTA,
    HUBER,
    LOSS_SQUARES,
    NO_FLOPS,
    basis,
    bound_warnings,
    bounds_met,
    check_options,
    chosen_delta,
    other_minima_warnings,
    robust_spread,
    unit_of,
)
from analysis.laws import Floats, LossSurface, floats
from analysis.optimum import solve
from analysis.results import SharedFit
from analysis.solver import CONSTANT, IN_D, IN_N, Problem, model
from analysis.table import Frame, Points, arm_rows, named_arms, read_points, require_comparable, require_points, require_spread
from analysis.uncertainty import bootstrap
from lst.errors import FitError, did_you_mean

COMPUTE, SEPARATE = "compute", "separate"
Factors = dict[str, dict[str, Floats]]


def fit_shared_exponents(
    table: pd.DataFrame,
    *,
    baseline: str = "baseline",
    factors: str = COMPUTE,
    params: str = "num_params",
    tokens: str = "tokens",
    loss: str = "loss",
    objective: str = HUBER,
    delta: float = DELTA,
    resamples: int = 1000,
    level: float = 0.9,
    rng: np.random.Generator | None = None,
) -> SharedFit:
    """One E, alpha, beta for all arms of `table`, with each arm's efficiency: "compute" (one factor) or "separate" (two).

    Raises FitError as `fit_loss_surface` does, where there is no second arm, and where an arm has too few runs for its factors.
    """
    delta = chosen_delta(objective, delta)
    check_options(resamples, level)
    table, baseline = named_arms(table), str(baseline)
    if factors not in (COMPUTE, SEPARATE):
        raise FitError(f"factors='{factors}' is unknown; {did_you_mean(factors, (COMPUTE, SEPARATE))}")
    points, arms = _points(table, baseline, factors, {"params": params, "tokens": tokens, "loss": loss})
    frame = Frame.of(points)
    member = floats([(table["arm"] == name).to_numpy(dtype=float) for name in (baseline, *arms)]).T
    problem = shared_problem(frame, member, factors, delta, logs=objective != LOSS_SQUARES)
    best = solve(problem, frame.log_loss)
    value = best.objective / unit_of(objective, frame.loss_mean)
    rng = np.random.default_rng(0) if rng is None else rng
    strata = points.budget * member.shape[1] + member.argmax(1)
    draws = bootstrap(problem, best.theta, frame.log_loss, strata, resamples=resamples, level=level, rng=rng)
    point, samples = _efficiencies(problem, best.theta[None], arms), _efficiencies(problem, draws.theta, arms)
    spread = robust_spread(frame.log_loss - np.log(model(problem, best.theta[None])[0][0]))
    told = basis(
        points, problem.free_parameters, objective, delta, value, spread, level, draws, resamples, member=member.argmax(1)
    )
    degenerate = [arm for arm in arms if not all(np.isfinite(v[0]) for v in point[arm].values())]
    columns = [0, problem.columns_of(IN_N)[0], problem.columns_of(IN_D)[0], len(problem.kinds), len(problem.kinds) + 1]
    law = LossSurface(*frame.surface(best.theta[None, columns])[0].tolist())
    told["warnings"] = (
        *bound_warnings(bounds_met(law)),
        *other_minima_warnings(best),
        *([] if points.exact_flops else [NO_FLOPS]),
        *[f"arm '{arm}': a term of the law ended at 0, so its efficiency has no finite value" for arm in degenerate],
        *told["warnings"],
    )
    return SharedFit(
        baseline=baseline,
        law=law,
        efficiencies={arm: {k: float(v[0]) for k, v in point[arm].items() if np.isfinite(v[0])} for arm in arms},
        intervals=_intervals(samples, level),
        tokens_meaning="train_flops / (6 num_params)" if points.exact_flops else "tokens",
        **told,
    )


def _points(table: pd.DataFrame, baseline: str, factors: str, columns: dict[str, str]) -> tuple[Points, list[str]]:
    """The points of all arms, D = C / (6 N) where C is known, and the arms beside the baseline."""
    runs = {arm: len(arm_rows(table, arm)) for arm in sorted({baseline, *table.get("arm", pd.Series(dtype=str)).astype(str)})}
    arms = [arm for arm in runs if arm != baseline]
    if not arms:
        raise FitError(f"the table has no arm beside '{baseline}'; give two arms or more.")
    own = 1 if factors == COMPUTE else 2
    for arm, count in runs.items():
        if count <= own:
            raise FitError(f"arm '{arm}' has {count} runs for {own} factors of its own; add runs, or leave the arm out.")
    require_comparable(table)
    points = read_points(table, **columns)
    index = table["arm"].astype("category").cat.codes.to_numpy()
    require_points(points, 5 + own * len(arms), "arms with shared exponents", index)
    if points.exact_flops:
        points = replace(points, tokens=points.flops / (6 * points.num_params))
    require_spread(points)
    if factors == SEPARATE:
        for arm in runs:
            _require_two_ways(points, (table["arm"] == arm).to_numpy(), arm)
    return points, arms


def _require_two_ways(points: Points, rows: np.ndarray, arm: str) -> None:
    """An arm's two efficiencies can be told apart only if some budget has two of its sizes."""
    sizes = [len(np.unique(points.num_params[rows & (points.budget == b)])) for b in np.unique(points.budget[rows])]
    if max(sizes) < 2:
        raise FitError(
            f"arm '{arm}' has one size a budget: parameter and data efficiency cannot be told apart; use factors=compute."
        )


def shared_problem(frame: Frame, member: Floats, factors: str, delta: float, *, logs: bool = True) -> Problem:
    """Columns: the constant, N (one for all arms, or one each), and D for each arm; the baseline's first."""
    n_columns = np.ones((len(member), 1)) if factors == COMPUTE else member
    members = np.concatenate([np.ones((len(member), 1)), n_columns, member], axis=1)
    kinds = (CONSTANT, *[IN_N] * n_columns.shape[1], *[IN_D] * member.shape[1])
    return Problem(frame.x, frame.y, floats(members), kinds, delta, logs=logs)


def _efficiencies(problem: Problem, theta: Floats, arms: list[str]) -> Factors:
    """arm -> factor -> (P,): e = (coefficient of the baseline / of the arm)^(1 / exponent); not finite where one is 0."""
    count = len(problem.kinds)
    in_n, in_d = problem.columns_of(IN_N), problem.columns_of(IN_D)
    found: Factors = {}
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for i, arm in enumerate(arms, start=1):
            data = (theta[:, in_d[0]] / theta[:, in_d[i]]) ** (1 / theta[:, count + 1])
            if len(in_n) == 1:
                found[arm] = {"compute": data}
                continue
            params = (theta[:, in_n[0]] / theta[:, in_n[i]]) ** (1 / theta[:, count])
            found[arm] = {"params": params, "data": data, "compute": params * data}
    return found


def _intervals(samples: Factors, level: float) -> dict[str, dict[str, Interval]]:
    """Percentile intervals of the factors that are finite in nearly all resamples: as many as the interval's tails may lack."""
    found: dict[str, dict[str, Interval]] = {arm: {} for arm in samples}
    for arm, of in samples.items():
        for name, values in of.items():
            finite = np.isfinite(values) & (values > 0)
            if len(values) and finite.mean() > 0.5 + level / 2:
                found[arm][name] = percentile_interval(values[finite], level)
    return found
