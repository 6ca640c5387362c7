"""The global optimum of one robust fit: starts, solver, faces and checks. Knows no tables, units or intervals.

Starts come from variable projection over (alpha, beta), those of the faces (a column at 0: E = 0, A = 0, B = 0) included. All go
through the Newton method of `analysis.descent`; columns that end at 0 are checked by their Karush-Kuhn-Tucker condition over all
exponents, and let in again where it fails; `scipy.optimize.least_squares` with the Huber loss and the analytic Jacobian goes on
from the best end, and what it finds lower still is polished and taken.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize

from analysis.descent import minimise
from analysis.laws import Floats, floats
from analysis.projection import exponent_grid, projected_starts, starts_and_faces
from analysis.solver import CONSTANT, IN_D, IN_N, Problem, Solutions, model, objective, residuals, shapes, system

NEAR = 1e-8
"""Relative change at which scipy's solver stands still."""
STARTS = 4
"""Local minima of the projection that become starts."""
ALIKE = 3e-3
"""Starts that come so near to a minimum, in every parameter, end there."""
RACE, RIVAL = 12, 1.5
"""Steps after which only the starts within this factor of the best objective go on."""
TINY = 1e-4
"""Huber's delta below which it is met in stages: nothing but a few points would have a bend."""
LOWER = 1e-9
"""Relative change of the objective that counts as a lower minimum."""


@dataclass(frozen=True)
class Optimum:
    """The best point found, in the solver's coordinates, and the other minima, best first."""

    theta: Floats
    objective: float
    others: Solutions


def solve(problem: Problem, log_loss: Floats, *, others: bool = True) -> Optimum:
    """The global optimum of one fit as far as the starts can tell; see the module's docstring.

    Without `others` only the best projected start is followed (and what the KKT check lets in): quicker, and no runner-ups.
    """
    order = np.lexsort((log_loss, problem.y, problem.x))  # sums, and so the optimum, are the same whatever the order of the rows
    problem = replace(problem, x=problem.x[order], y=problem.y[order], members=problem.members[order])
    log_loss = log_loss[order]
    if others:
        starts, faces = starts_and_faces(problem, log_loss, keep=STARTS)
    else:
        starts = projected_starts(problem, log_loss[None], np.ones((1, len(log_loss))), keep=1)[0]
        faces = np.empty((0, problem.size))
    ends = _minimise_one(problem, np.concatenate([starts, faces]), log_loss, faces=len(faces))
    for _ in range(2 * len(problem.kinds)):
        released = kkt_release(problem, ends.theta[ends.objective.argmin()], log_loss)
        if released is None:
            break
        ends = Solutions.join([ends, _minimise_one(problem, released, log_loss)])
    if others:
        ends = _second_opinion(problem, ends, log_loss)
    order = np.argsort(ends.objective, kind="stable")
    return Optimum(ends.theta[order[0]], float(ends.objective[order[0]]), ends.take(order[1:]))


def _minimise_one(problem: Problem, starts: Floats, log_loss: Floats, *, faces: int = 0) -> Solutions:
    """Minima of one fit from several starts, each once; the last `faces` starts stay on the face that they are on."""
    losses, kept = np.broadcast_to(log_loss, (len(starts), len(log_loss))), np.zeros(starts.shape, dtype=bool)
    kept[len(starts) - faces :, : len(problem.kinds)] = starts[len(starts) - faces :, : len(problem.kinds)] == 0
    deltas = problem.stages if problem.delta < TINY else [problem.delta]
    ends = minimise(problem, starts, losses, np.ones_like(losses), kept=kept, alike=ALIKE, deltas=deltas, most=RACE)
    rivals = np.flatnonzero(~ends.converged & (ends.objective <= RIVAL * ends.objective.min()))
    if len(rivals):
        more = losses[: len(rivals)], np.ones((len(rivals), len(log_loss)))
        last = minimise(problem, ends.theta[rivals], *more, kept=kept[rivals], deltas=deltas[-1:])
        ends.theta[rivals], ends.objective[rivals], ends.converged[rivals] = last.theta, last.objective, last.converged
    return ends.take(np.flatnonzero(np.isfinite(ends.objective)))


def _second_opinion(problem: Problem, ends: Solutions, log_loss: Floats) -> Solutions:
    """`ends`, and what scipy's solver finds from the best of them if it is lower."""
    best = int(ends.objective.argmin())
    found = least_squares(problem, ends.theta[best], log_loss)
    if not value_at(problem, found, log_loss) < ends.objective[best] * (1 - LOWER):
        return ends
    return Solutions.join([ends, _minimise_one(problem, found[None], log_loss)])


def least_squares(problem: Problem, start: Floats, log_loss: Floats) -> Floats:
    """scipy's trust-region solver with the Huber loss from `start` (p,); exponents that no column has stay as they are."""
    used = np.setdiff1d(np.arange(problem.size), problem.unused)
    low, high = (bound[used] for bound in problem.bounds)
    unit = problem.delta if np.isfinite(problem.delta) else 1.0  # residuals in units of delta: scipy's own threshold is then 1
    target = problem.target(log_loss)

    def whole(values: Floats) -> Floats:
        theta = start.copy()
        theta[used] = values
        theta[-1] = theta[-2] if problem.tied else theta[-1]
        return theta[None]

    def residual(values: Floats) -> Floats:
        result: Floats = residuals(problem, model(problem, whole(values))[0], target)[0] / unit
        return result

    def jacobian(values: Floats) -> Floats:
        value, slope = model(problem, whole(values))
        result: Floats = -(slope[0] / (value[0][:, None] if problem.logs else 1.0))[:, used] / unit
        return result

    end = optimize.least_squares(
        residual,
        np.clip(start[used], low, high),
        jacobian,
        bounds=(low, high),
        method="dogbox",
        loss="huber" if np.isfinite(problem.delta) else "linear",
        xtol=NEAR,
        ftol=NEAR,
        gtol=1e-12,
        max_nfev=30,
    )
    found: Floats = whole(floats(end.x))[0]
    return found


def kkt_release(problem: Problem, theta: Floats, log_loss: Floats) -> Floats | None:
    """Starts with a column let in that ended at 0 but would lower the objective, or None where the optimum stands.

    A column at 0 has a slope -sum psi phi / Lhat in its coefficient; it must be >= 0 for every exponent it could take.
    """
    count = len(problem.kinds)
    if (theta[:count] > 0).all():
        return None
    value, _ = model(problem, theta[None])
    residual = residuals(problem, value, problem.target(log_loss))[0]
    psi = np.clip(residual, -problem.delta, problem.delta) / (value[0] if problem.logs else 1.0)
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
    mine = value_at(problem, theta, log_loss)
    better = ends.objective < mine * (1 - 1e-9)
    return ends.theta[better] if better.any() else None


def value_at(problem: Problem, theta: Floats, log_loss: Floats) -> float:
    """The objective of one fit at `theta` (p,)."""
    return float(objective(problem, theta[None], log_loss[None], np.ones((1, len(log_loss))), problem.delta)[0])


def projected_gradient(problem: Problem, theta: Floats, log_loss: Floats) -> Floats:
    """The gradient (p,) at `theta` in units of the residuals' own scale, 0 where a bound holds it: 0 at an optimum."""
    columns, value = shapes(problem, theta[None])
    residual = residuals(problem, value, problem.target(log_loss))
    weight, none = np.ones_like(residual), np.zeros(1)
    gradient, bend = system(problem, theta[None], columns, value, residual, weight, problem.delta, none, exact=False)
    low, high = problem.bounds
    held = ((theta <= low) & (gradient[0] > 0)) | ((theta >= high) & (gradient[0] < 0))
    scale = np.maximum(np.diagonal(bend[0]), 1e-300)
    result: Floats = np.where(held, 0.0, gradient[0]) / np.sqrt(scale)
    return result
