"""The global optimum of one robust fit: starts, solver, faces and checks. Knows no tables, units or intervals.

Starts come from variable projection over (alpha, beta). The best one goes through `scipy.optimize.least_squares` with the Huber
loss and the analytic Jacobian, all of them through the Newton method of `analysis.solver`; the faces (a column at 0: E = 0,
A = 0, B = 0) are tried from starts of their own, and columns that end at 0 are checked by their Karush-Kuhn-Tucker condition
over all exponents, and let in again where it fails.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from scipy import optimize

from analysis.laws import Floats, floats
from analysis.projection import exponent_grid, projected_starts
from analysis.solver import CONSTANT, IN_D, IN_N, Problem, Solutions, derivatives, minimise, model, objective

NEAR = 1e-5
"""Relative change at which scipy's solver hands over: the Newton method that follows converges faster near the end."""
STARTS, FACE_POINTS = 4, 10
"""Local minima of the projection that become starts, and the points of a face's grid, a side."""


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
    one = (log_loss[None], np.ones((1, len(log_loss))))
    starts = [projected_starts(problem, *one, keep=STARTS if others else 1, fill=False)[0]]
    first = least_squares(problem, starts[0][0], log_loss)[None]
    if others:
        for j in range(len(problem.kinds)):
            if len(problem.kinds) > 1:  # the face c_j = 0, from its own projection
                members = problem.members.copy()
                members[:, j] = 0
                face = dataclasses.replace(problem, members=members)
                starts.append(projected_starts(face, *one, keep=1, points=FACE_POINTS)[0])
        ends = _minimise_one(problem, np.concatenate([first, *starts]), log_loss)
    else:
        ends = minimise(problem, first, *one, coarse=0)
    for _ in range(2 * len(problem.kinds)):
        order = np.argsort(ends.objective)
        released = kkt_release(problem, ends.theta[order[0]], log_loss)
        if released is None:
            break
        ends = Solutions.join([ends, _minimise_one(problem, released, log_loss)])
    order = np.argsort(ends.objective)
    return Optimum(ends.theta[order[0]], float(ends.objective[order[0]]), ends.take(order[1:]))


def _minimise_one(problem: Problem, starts: Floats, log_loss: Floats) -> Solutions:
    """Minima of one fit from several starts; those that the coarse stages bring together go on as one."""
    losses, weight = np.repeat(log_loss[None], len(starts), axis=0), np.ones((len(starts), len(log_loss)))
    if np.isfinite(problem.delta):
        starts = minimise(problem, starts, losses, weight, fine=False).theta
    _, distinct = np.unique(np.round(starts, 3), axis=0, return_index=True)
    return minimise(problem, starts[distinct], losses[distinct], weight[distinct], coarse=0)


def least_squares(problem: Problem, start: Floats, log_loss: Floats) -> Floats:
    """scipy's trust-region solver with the Huber loss from `start` (p,); exponents that no column has stay as they are."""
    used = np.setdiff1d(np.arange(problem.size), problem.unused())
    low, high = (bound[used] for bound in problem.bounds())
    unit = problem.delta if np.isfinite(problem.delta) else 1.0  # residuals in units of delta: scipy's own threshold is then 1

    def whole(values: Floats) -> Floats:
        theta = start.copy()
        theta[used] = values
        theta[-1] = theta[-2] if problem.tied else theta[-1]
        return theta[None]

    def residual(values: Floats) -> Floats:
        result: Floats = (log_loss - np.log(model(problem, whole(values))[0][0])) / unit
        return result

    def jacobian(values: Floats) -> Floats:
        value, slope = model(problem, whole(values))
        if problem.tied:
            slope[:, :, -2] += slope[:, :, -1]
        result: Floats = -(slope[0] / value[0][:, None])[:, used] / unit
        return result

    inside = np.clip(start[used], low + 1e-9, np.minimum(high, 1e9) - 1e-9)
    end = optimize.least_squares(
        residual,
        inside,
        jacobian,
        bounds=(low, high),
        loss="huber" if np.isfinite(problem.delta) else "linear",
        x_scale="jac",
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
    mine = value_at(problem, theta, log_loss)
    better = ends.objective < mine * (1 - 1e-9)
    return ends.theta[better] if better.any() else None


def value_at(problem: Problem, theta: Floats, log_loss: Floats) -> float:
    """The objective of one fit at `theta` (p,)."""
    return float(objective(problem, theta[None], log_loss[None], np.ones((1, len(log_loss))), problem.delta)[0])


def projected_gradient(problem: Problem, theta: Floats, log_loss: Floats) -> Floats:
    """The gradient (p,) at `theta` in units of the residuals' own scale, 0 where a bound holds it: 0 at an optimum."""
    gradient, _, scale = derivatives(problem, theta[None], log_loss[None], np.ones((1, len(log_loss))), problem.delta)
    low, high = problem.bounds()
    held = ((theta <= low) & (gradient[0] > 0)) | ((theta >= high) & (gradient[0] < 0))
    result: Floats = np.where(held, 0.0, gradient[0]) / np.sqrt(scale[0])
    return result
