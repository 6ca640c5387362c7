"""Fits of L(N, D) and L(C) to a table: starts, solver, faces, checks, and what to say about the result.

    fit_loss_surface(table)              # columns num_params, tokens, loss -> SurfaceFit
    fit_power_law(flops, loss)           # -> PowerLawFit

The objective is Huber's on residuals of log loss, summed (Hoffmann et al. 2022, section 3.3, with its delta 1e-3). Starts come from variable
projection over (alpha, beta); the best one goes through `scipy.optimize.least_squares` with the analytic Jacobian, all of them
through the Newton method of `analysis.solver`; the faces E = 0, A = 0, B = 0 are tried from starts of their own, and columns that end
at 0 are checked by their Karush-Kuhn-Tucker condition over all exponents. Not here: isoFLOP profiles and comparisons of arms.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import optimize

from analysis.laws import Floats, LossSurface, PowerLaw, floats
from analysis.results import Interval, PowerLawFit, SurfaceFit, percentile_interval
from analysis.solver import (
    CONSTANT,
    EXPONENT_BOUNDS,
    IN_D,
    IN_N,
    Problem,
    Solutions,
    derivatives,
    exponent_grid,
    minimise,
    model,
    projected_starts,
)
from analysis.table import Points, read_points, require_points, require_spread
from analysis.uncertainty import bootstrap, small_design_warning
from lst.errors import FitError, did_you_mean

HUBER, SQUARES = "huber", "squares"
DELTA = 1e-3
RUNNER_UP = 1.05
"""Other minima are told where their objective is within this factor of the best."""


@dataclass(frozen=True)
class Optimum:
    """The best point found, in the solver's coordinates, and the other minima, best first."""

    theta: Floats
    objective: float
    others: Solutions


def chosen_delta(objective: str, delta: float) -> float:
    """Huber's threshold for an objective's name: inf is least squares. Raises FitError."""
    if objective not in (HUBER, SQUARES):
        raise FitError(f"loss='{objective}' is no objective; {did_you_mean(objective, (HUBER, SQUARES))}")
    if not (np.isfinite(delta) and delta > 0):
        raise FitError(f"delta={delta} must be positive and finite; 1e-3 is the literature's, on log residuals.")
    return delta if objective == HUBER else np.inf


def check_options(resamples: int, level: float) -> None:
    if not 0 < level < 1:
        raise FitError(f"level={level} is no coverage; give a number between 0 and 1, as 0.9.")
    if resamples < 0:
        raise FitError(f"resamples={resamples} is negative; give 0 for no intervals, or 1000.")


def solve(problem: Problem, log_loss: Floats) -> Optimum:
    """The global optimum of one fit as far as the starts can tell; see the module's docstring."""
    starts = [projected_starts(problem, log_loss[None], np.ones((1, len(log_loss))), keep=6)[0]]
    for j in range(len(problem.kinds)):
        if len(problem.kinds) > 1:  # the face c_j = 0, from its own projection
            members = problem.members.copy()
            members[:, j] = 0
            face = dataclasses.replace(problem, members=members)
            starts.append(projected_starts(face, log_loss[None], np.ones((1, len(log_loss))), keep=1)[0])
    batch = np.concatenate([least_squares(problem, starts[0][0], log_loss)[None], *starts])
    ends = _minimise_one(problem, batch, log_loss)
    for _ in range(2 * len(problem.kinds)):
        order = np.argsort(ends.objective)
        released = kkt_release(problem, ends.theta[order[0]], log_loss)
        if released is None:
            break
        more = _minimise_one(problem, released, log_loss)
        ends = Solutions(*(np.concatenate([getattr(e, f) for e in (ends, more)]) for f in ("theta", "objective", "converged")))
    order = np.argsort(ends.objective)
    return Optimum(ends.theta[order[0]], float(ends.objective[order[0]]), ends.take(order[1:]))


def _minimise_one(problem: Problem, starts: Floats, log_loss: Floats) -> Solutions:
    losses = np.repeat(log_loss[None], len(starts), axis=0)
    return minimise(problem, starts, losses, np.ones_like(losses))


def least_squares(problem: Problem, start: Floats, log_loss: Floats) -> Floats:
    """scipy's trust-region solver with the Huber loss from `start` (p,); exponents that no column has stay as they are."""
    used = np.setdiff1d(np.arange(problem.size), problem.unused())
    low, high = (bound[used] for bound in problem.bounds())
    unit = problem.delta if np.isfinite(problem.delta) else 1.0  # residuals in units of delta: scipy's own threshold is then 1

    def whole(values: Floats) -> Floats:
        theta = start.copy()
        theta[used] = values
        return theta[None]

    def residual(values: Floats) -> Floats:
        result: Floats = (log_loss - np.log(model(problem, whole(values))[0][0])) / unit
        return result

    def jacobian(values: Floats) -> Floats:
        value, slope = model(problem, whole(values))
        result: Floats = -(slope[0] / value[0][:, None])[:, used] / unit
        return result

    inside = np.clip(start[used], low + 1e-9, np.minimum(high, 1e9) - 1e-9)
    loss = "huber" if np.isfinite(problem.delta) else "linear"
    end = optimize.least_squares(
        residual, inside, jacobian, bounds=(low, high), loss=loss, x_scale="jac", xtol=1e-12, ftol=1e-12, gtol=1e-12, max_nfev=100
    )
    return whole(floats(end.x))[0]


def kkt_release(problem: Problem, theta: Floats, log_loss: Floats) -> Floats | None:
    """Starts with a column let in that ended at 0 but would lower the objective, or None where the optimum stands.

    A column at 0 has a slope -sum psi phi / Lhat in its coefficient; it must be >= 0 for every exponent it could take.
    """
    count = len(problem.kinds)
    value, _ = model(problem, theta[None])
    psi = np.clip(log_loss - np.log(value[0]), -problem.delta, problem.delta) / value[0]
    starts = []
    for j in np.flatnonzero(theta[:count] <= 0):
        kind = problem.kinds[j]
        others = [k for k in problem.columns_of(kind) if k != j and theta[k] > 0]
        grid = theta[None, count:] if kind == CONSTANT or others else exponent_grid(problem, 40)
        trial = np.concatenate([np.repeat(theta[None, :count], len(grid), axis=0), grid], axis=1)
        if kind == IN_N:
            trial[:, count + 1] = theta[count + 1]
        if kind == IN_D:
            trial[:, count] = theta[count]
        _, slope = model(problem, trial)
        gain = slope[:, :, j] @ psi
        best = int(np.argmax(gain))
        if gain[best] > 1e-9 * np.abs(psi).sum():
            for size in (1e-3, 1e-2, 0.1):
                starts.append(trial[best].copy())
                starts[-1][j] = size
    if not starts:
        return None
    ends = _minimise_one(problem, np.stack(starts), log_loss)
    mine = derivatives_objective(problem, theta, log_loss)
    better = ends.objective < mine * (1 - 1e-9)
    return ends.theta[better] if better.any() else None


def derivatives_objective(problem: Problem, theta: Floats, log_loss: Floats) -> float:
    from analysis.solver import objective

    return float(objective(problem, theta[None], log_loss[None], np.ones((1, len(log_loss))), problem.delta)[0])


def projected_gradient(problem: Problem, theta: Floats, log_loss: Floats) -> Floats:
    """The gradient (p,) at `theta`, in units of the residuals' own scale, 0 where a bound holds the parameter: 0 at an optimum."""
    gradient, _, scale = derivatives(problem, theta[None], log_loss[None], np.ones((1, len(log_loss))), problem.delta)
    low, high = problem.bounds()
    held = ((theta <= low) & (gradient[0] > 0)) | ((theta >= high) & (gradient[0] < 0))
    result: Floats = np.where(held, 0.0, gradient[0]) / np.sqrt(scale[0])
    return result


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

    `objective` is "huber" (on log residuals, with `delta`) or "squares" (of log residuals). Intervals come from `resamples`
    bootstrap refits at `level`, drawn from `rng` (default: a generator with seed 0). Raises FitError where the table cannot
    support the law: see docs/fitting.md.
    """
    delta = chosen_delta(objective, delta)
    check_options(resamples, level)
    points = read_points(table, params=params, tokens=tokens, loss=loss)
    require_points(points, 5, "L(N, D)")
    require_spread(points)
    frame = Frame.of(points)
    problem = Problem(frame.x, frame.y, np.ones((len(points), 3)), (CONSTANT, IN_N, IN_D), delta)
    best = solve(problem, frame.log_loss)
    rng = np.random.default_rng(0) if rng is None else rng
    draws = bootstrap(problem, best.theta, frame.log_loss, points.budget, resamples=resamples, level=level, rng=rng)
    samples = frame.surface(draws.theta)
    law = LossSurface(*frame.surface(best.theta[None])[0].tolist())
    residual = np.log(points.loss) - np.log(law.predict(points.num_params, points.tokens))
    intervals = {k: percentile_interval(samples[:, i], level) for i, k in enumerate(law.names())} if len(samples) else {}
    on_bound = bounds_met(law)
    spread = robust_spread(residual)
    runner_ups = runners(best, frame)
    return SurfaceFit(
        law=law,
        intervals=intervals,
        on_bound=on_bound,
        runner_ups=runner_ups,
        ranges={
            "num_params": _range(points.num_params),
            "tokens": _range(points.tokens),
            "flops": _range(6 * points.num_params * points.tokens),
        },
        samples=samples if len(samples) else None,
        n=len(points),
        loss=objective,
        delta=delta if np.isfinite(delta) else None,
        objective=best.objective,
        residual_spread=spread,
        level=level,
        interval_method=draws.method,
        resamples=draws.resamples,
        failed=draws.failed,
        warnings=(
            *bound_warnings(on_bound),
            *runner_up_warnings(runner_ups, best.objective),
            *spread_warnings(delta, spread),
            *interval_warnings(len(points), 5, draws.resamples, draws.failed, resamples),
        ),
    )


@dataclass(frozen=True)
class Frame:
    """The solver's coordinates of a table: centred logs, loss over its geometric mean; and the way back."""

    x: Floats
    y: Floats
    log_loss: Floats
    x_mean: float
    y_mean: float
    loss_mean: float

    @classmethod
    def of(cls, points: Points) -> Frame:
        x, y, log_loss = np.log(points.num_params), np.log(points.tokens), np.log(points.loss)
        means = float(x.mean()), float(y.mean()), float(log_loss.mean())
        return cls(x - means[0], y - means[1], log_loss - means[2], *means)

    def surface(self, theta: Floats) -> Floats:
        """(P, 5) E, A, B, alpha, beta in the table's units, from theta (P, 5) of the columns (1, N, D)."""
        scale = np.exp(self.loss_mean)
        alpha, beta = theta[:, 3], theta[:, 4]
        a = theta[:, 1] * scale * np.exp(alpha * self.x_mean)
        b = theta[:, 2] * scale * np.exp(beta * self.y_mean)
        return np.stack([theta[:, 0] * scale, a, b, alpha, beta], axis=1)


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
    points = read_points(table.assign(tokens=1.0), params=flops, loss=loss)
    parameters = 3 if asymptote else 2
    require_points(points, parameters, "L(C)")
    if len(np.unique(np.round(np.log(points.num_params), 6))) < parameters:
        raise FitError(f"{flops} takes fewer than {parameters} distinct values; L(C) needs that many budgets.")
    frame = Frame.of(points)
    kinds = (CONSTANT, IN_N) if asymptote else (IN_N,)
    problem = Problem(frame.x, frame.y, np.ones((len(points), len(kinds))), kinds, delta)
    best = solve(problem, frame.log_loss)
    rng = np.random.default_rng(0) if rng is None else rng
    strata = np.zeros(len(points), dtype=int)
    draws = bootstrap(problem, best.theta, frame.log_loss, strata, resamples=resamples, level=level, rng=rng)

    def back(theta: Floats) -> Floats:
        scale, exponent = np.exp(frame.loss_mean), theta[:, len(kinds)]
        constant = theta[:, 0] * scale if asymptote else np.zeros(len(theta))
        return np.stack([theta[:, len(kinds) - 1] * scale * np.exp(exponent * frame.x_mean), -exponent, constant], axis=1)

    law = PowerLaw(*back(best.theta[None])[0].tolist())
    samples = back(draws.theta)
    spread = robust_spread(np.log(points.loss) - np.log(law.predict(points.num_params)))
    names = law.names() if asymptote else law.names()[:2]
    stuck = tuple(n for n, held in (("asymptote", asymptote and law.asymptote == 0), ("exponent", _at_end(-law.exponent))) if held)
    return PowerLawFit(
        law=law,
        quantity="loss",
        intervals={k: percentile_interval(samples[:, i], level) for i, k in enumerate(names)} if len(samples) else {},
        range=_range(points.num_params),
        samples=samples if len(samples) else None,
        n=len(points),
        loss=objective,
        delta=delta if np.isfinite(delta) else None,
        objective=best.objective,
        residual_spread=spread,
        level=level,
        interval_method=draws.method,
        resamples=draws.resamples,
        failed=draws.failed,
        warnings=(
            *bound_warnings(stuck),
            *spread_warnings(delta, spread),
            *interval_warnings(len(points), parameters, draws.resamples, draws.failed, resamples),
        ),
    )


def _range(values: Floats) -> Interval:
    return float(values.min()), float(values.max())


def robust_spread(residual: Floats) -> float:
    """1.4826 times the median absolute residual: the standard deviation, if residuals are normal."""
    return float(1.4826 * np.median(np.abs(residual)))


def _at_end(exponent: float) -> bool:
    return exponent <= EXPONENT_BOUNDS[0] * (1 + 1e-6) or exponent >= EXPONENT_BOUNDS[1] * (1 - 1e-6)


def bounds_met(law: LossSurface) -> tuple[str, ...]:
    """Names of the surface's parameters that are 0, or exponents at the ends of their range."""
    faces = [name for name in ("E", "A", "B") if getattr(law, name) <= 0]
    ends = [name for name, term in (("alpha", law.A), ("beta", law.B)) if term > 0 and _at_end(getattr(law, name))]
    return (*faces, *ends)


def runners(best: Optimum, frame: Frame) -> tuple[dict[str, float], ...]:
    """Up to three other converged minima, told apart by their objective."""
    found: list[dict[str, float]] = []
    seen = [best.objective]
    for theta, value, converged in zip(best.others.theta, best.others.objective, best.others.converged, strict=True):
        new = all(abs(value - s) > 1e-6 * abs(value) + 1e-20 for s in seen)
        if converged and new and len(found) < 3:
            seen.append(float(value))
            law = LossSurface(*frame.surface(theta[None])[0].tolist())
            found.append({"objective": float(value), **law.to_json()})
    return tuple(found)


def bound_warnings(names: tuple[str, ...]) -> list[str]:
    meaning = {"E": "= 0", "A": "= 0", "B": "= 0", "asymptote": "= 0"}
    low, high = EXPONENT_BOUNDS
    return [
        f"{name} ended on its bound ({meaning.get(name, f'range {low:g} to {high:g}')}): the data do not determine it" for name in names
    ]


def runner_up_warnings(runner_ups: tuple[dict[str, float], ...], best: float) -> list[str]:
    close = [r for r in runner_ups if r["objective"] <= RUNNER_UP * best]
    if not close:
        return []
    r = close[0]
    return [
        f"another minimum is within {r['objective'] / best - 1:.2%} of the best: E={r['E']:.4g}, alpha={r['alpha']:.3g}, beta={r['beta']:.3g}"
    ]


def spread_warnings(delta: float, spread: float) -> list[str]:
    if not np.isfinite(delta) or delta >= 0.2 * spread:
        return []
    return [f"Huber's delta {delta:g} is {delta / spread:.2g} of the residuals' spread {spread:.2g}: nearly least absolute deviation"]


def interval_warnings(n: int, parameters: int, done: int, failed: int, asked: int) -> list[str]:
    """What to know about a fit's intervals: none at all, a small design, failed refits."""
    if asked and not done:
        return [f"{n} points for {parameters} parameters leave no degree of freedom: the fit is exact and has no intervals"]
    found = []
    if done and (small := small_design_warning(n, parameters)):
        found.append(small)
    if failed:
        found.append(f"{failed:,} of {done:,} bootstrap refits failed and are left out of the intervals")
    return found
