"""Fits of L(N, D) and of L(C) to a table.

    fit_loss_surface(table)              # columns num_params, tokens, loss -> SurfaceFit
    fit_power_law(table)                 # columns train_flops, loss        -> PowerLawFit

The objective is Huber's on residuals of log loss, summed (Hoffmann et al. 2022, section 3.3, with its delta 1e-3); how its
optimum is found: `analysis.optimum`; where intervals come from: `analysis.uncertainty`. Not here: isoFLOP profiles
(`analysis.isoflop`) and comparisons of arms (`analysis.compare`).
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.basis import percentile_interval
from analysis.diagnose import (
    DELTA,
    HUBER,
    LOSS_SQUARES,
    at_end,
    basis,
    bound_warnings,
    bounds_met,
    check_options,
    chosen_delta,
    extent,
    robust_spread,
    runner_up_warnings,
    runners,
    unit_of,
)
from analysis.laws import Floats, LossSurface, PowerLaw
from analysis.optimum import solve
from analysis.results import PowerLawFit, SurfaceFit
from analysis.solver import CONSTANT, IN_D, IN_N, Problem
from analysis.table import Frame, read_points, require_one_kind, require_points, require_spread, require_table
from analysis.uncertainty import bootstrap
from lst.errors import FitError


def fit_loss_surface(
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
) -> SurfaceFit:
    """Fit L(N, D) = E + A / N^alpha + B / D^beta to a table's columns `params`, `tokens`, `loss` (nats per token).

    `objective` is "huber" (on log residuals, with `delta`), "squares" or "absolute" (of log residuals), or "loss_squares" (of the
    loss itself). Intervals come from
    `resamples` bootstrap refits at `level`, drawn from `rng` (default: a generator with seed 0). Raises FitError where the table
    cannot support the law: see docs/fitting.md.
    """
    delta = chosen_delta(objective, delta)
    check_options(resamples, level)
    require_one_kind(table)
    points = read_points(table, params=params, tokens=tokens, loss=loss)
    require_points(points, 5, "L(N, D)")
    require_spread(points)
    frame = Frame.of(points)
    unit, logs = unit_of(objective, frame.loss_mean), objective != LOSS_SQUARES
    problem = Problem(frame.x, frame.y, np.ones((len(points), 3)), (CONSTANT, IN_N, IN_D), delta, logs=logs)
    best = solve(problem, frame.log_loss)
    value = best.objective / unit
    rng = np.random.default_rng(0) if rng is None else rng
    draws = bootstrap(problem, best.theta, frame.log_loss, points.budget, resamples=resamples, level=level, rng=rng)
    samples = frame.surface(draws.theta)
    law = LossSurface(*frame.surface(best.theta[None])[0].tolist())
    spread = robust_spread(np.log(points.loss) - np.log(law.predict(points.num_params, points.tokens)))
    told = basis(points, 5, objective, delta, value, spread, level, draws, resamples)
    on_bound, runner_ups = bounds_met(law), runners(best, frame, unit)
    told["warnings"] = (*bound_warnings(on_bound), *runner_up_warnings(runner_ups, told["objective"]), *told["warnings"])
    ranges = {"num_params": points.num_params, "tokens": points.tokens, "flops": 6 * points.num_params * points.tokens}
    return SurfaceFit(
        law=law,
        intervals={k: percentile_interval(samples[:, i], level) for i, k in enumerate(law.names())} if len(samples) else {},
        on_bound=on_bound,
        runner_ups=runner_ups,
        ranges={name: extent(values) for name, values in ranges.items()},
        columns=(params, tokens),
        samples=samples if len(samples) else None,
        **told,
    )


def fit_power_law(
    table: pd.DataFrame,
    *,
    flops: str = "train_flops",
    loss: str = "loss",
    asymptote: bool = True,
    objective: str = HUBER,
    delta: float = DELTA,
    resamples: int = 1000,
    level: float = 0.9,
    rng: np.random.Generator | None = None,
) -> PowerLawFit:
    """Fit L(C) = asymptote + scale C^exponent (exponent < 0) to a table's columns, as `fit_loss_surface` fits its law."""
    delta = chosen_delta(objective, delta)
    check_options(resamples, level)
    require_table(table)
    require_one_kind(table)
    points = read_points(table.assign(tokens=1.0), params=flops, loss=loss)
    parameters = 3 if asymptote else 2
    if len(points) >= parameters > points.cells():
        raise FitError(f"{flops} takes fewer than {parameters} distinct values; L(C) needs that many budgets.")
    require_points(points, parameters, "L(C)")
    frame = Frame.of(points)
    kinds = (CONSTANT, IN_N) if asymptote else (IN_N,)
    members = np.ones((len(points), len(kinds)))
    problem = Problem(frame.x, frame.y, members, kinds, delta, logs=objective != LOSS_SQUARES)
    best = solve(problem, frame.log_loss)
    value = best.objective / unit_of(objective, frame.loss_mean)
    rng = np.random.default_rng(0) if rng is None else rng
    strata = np.zeros(len(points), dtype=int)
    draws = bootstrap(problem, best.theta, frame.log_loss, strata, resamples=resamples, level=level, rng=rng)
    law = PowerLaw(*_curve(best.theta[None], frame, asymptote)[0].tolist())
    samples = _curve(draws.theta, frame, asymptote)
    spread = robust_spread(np.log(points.loss) - np.log(law.predict(points.num_params)))
    told = basis(points, parameters, objective, delta, value, spread, level, draws, resamples)
    held = {"asymptote": asymptote and law.asymptote == 0, "exponent": at_end(-law.exponent)}
    told["warnings"] = (*bound_warnings(tuple(name for name, on in held.items() if on)), *told["warnings"])
    names = law.names() if asymptote else law.names()[:2]
    return PowerLawFit(
        law=law,
        quantity="loss",
        intervals={k: percentile_interval(samples[:, i], level) for i, k in enumerate(names)} if len(samples) else {},
        range=extent(points.num_params),
        samples=samples if len(samples) else None,
        **told,
    )


def _curve(theta: Floats, frame: Frame, asymptote: bool) -> Floats:
    """(P, 3) scale, exponent, asymptote in the table's units, from the solver's coordinates (P, p)."""
    scale, power = np.exp(frame.loss_mean), 2 if asymptote else 1
    exponent = theta[:, power]
    constant = theta[:, 0] * scale if asymptote else np.zeros(len(theta))
    return np.stack([theta[:, power - 1] * scale * np.exp(exponent * frame.x_mean), -exponent, constant], axis=1)
