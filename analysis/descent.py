"""Local minima of many small robust fits at once: a damped Newton method on a batch that is refilled as problems end.

Each step solves (Hessian + damping x reweighted Hessian) step = -gradient (`analysis.solver.system`): Newton's where the damping
is small, iteratively reweighted least squares where it is large, which goes downhill from anywhere. The coefficients' faces
c_j = 0 and the exponents' bounds are active constraints: a parameter on a bound whose gradient points outwards does not move, and
a step that meets a bound goes on along it. A step that raises the objective is bent to where the residuals within delta stay as
they should (a second-order correction), or else cut to the share at which the residuals, as they changed, make the objective
least: the valleys of nearly undetermined laws are curved and kinked, and damping alone creeps along them.
Every problem has its own Huber delta, damping and count of steps; those that end leave and others take their place, so
that numpy always works on about as many points as the processor's cache holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from analysis.laws import Floats, floats
from analysis.solver import IN_D, IN_N, Problem, Scratch, Solutions, residuals, shapes, system, weighted

CACHED = 2**15
"""Points of the problems that are worked on together: their arrays should stay in the processor's cache."""
REFILL = 0.75
"""Share of a batch under which ended problems are replaced."""
STEPS, COARSE_STEPS, COARSE_TOLERANCE = 150, 12, 1e-4
"""Most steps at a problem's own delta and at a wider one; relative change of the objective that ends a wider one."""
FIRST_DAMPING, LEAST_DAMPING, MOST_DAMPING = 1e-3, 1e-13, 1e9
EASED, RAISED = 0.15, 8.0
"""Factors of the damping after a step that lowers the objective and after one that does not."""
BENT = 0.1
"""Least damping after a step at which the Hessian was indefinite."""
NEWTON = 1e-3
"""Damping up to which a step is Newton's, whose predicted gain can be trusted."""
ALMOST_NEWTON, QUADRATIC = 1e-5, 1e-7
"""Damping, and relative gain, at which one more step of a smooth problem changes the objective by less than its last digit."""
EXACT = 1e-28
"""Objectives below are of points that the law goes through."""
HALVINGS = 10
"""Bisections for the best share of a step that raised the objective; a share under `LEAST_SHARE` counts as that much."""
LEAST_SHARE = 0.03
FEW = 3
"""Points a parameter under which steps are corrected and cut: with more, valleys are straighter and damping is quicker."""
FARTHEST = 0.5
"""An exponent moves by at most this in a step, so that no power overflows on the way."""


def chunk_rows(points: int) -> int:
    """Problems of `points` points each that are worked on together."""
    return min(max(CACHED // points, 32), 1024)


@dataclass
class Batch:
    """The problems that are worked on, B rows of every array."""

    row: np.ndarray  # their places among all problems
    theta: Floats  # (B, p)
    target: Floats  # (B, n)
    weight: Floats  # (B, n)
    delta: Floats  # (B, 1)
    columns: Floats  # (B, J, n)
    model: Floats  # (B, n) Lhat
    residual: Floats  # (B, n)
    value: Floats  # objective at delta
    damping: Floats
    kept: np.ndarray  # (B, p) parameters that stay as they are
    stage: np.ndarray  # place of delta among the stages
    steps: np.ndarray  # in this stage
    still: np.ndarray  # steps in a row that changed next to nothing

    def take(self, rows: np.ndarray) -> Batch:
        return Batch(*(getattr(self, f.name)[rows] for f in fields(self)))

    def join(self, other: Batch) -> Batch:
        return Batch(*(np.concatenate([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self)))

    def accept(self, moved: tuple[Floats, ...], better: np.ndarray) -> None:
        """Take the moved theta, columns, model, residual and value of the rows that are `better`."""
        rows = np.flatnonzero(better)
        every = len(rows) == len(better)
        for name, new in zip(("theta", "columns", "model", "residual", "value"), moved, strict=True):
            if every:
                getattr(self, name)[:] = new
            else:
                getattr(self, name)[rows] = new[rows]


@dataclass(frozen=True)
class Work:
    """All problems of one call, and how far to go: `tolerance` is relative, on the objective."""

    problem: Problem
    start: Floats  # (P, p), inside the bounds
    target: Floats  # (P, n)
    weight: Floats  # (P, n)
    kept: np.ndarray  # (P, p)
    deltas: Sequence[float]
    scratch: Scratch
    most: np.ndarray  # steps of each stage
    tolerances: Floats  # of each stage

    def load(self, rows: np.ndarray) -> Batch:
        theta, target, weight = self.start[rows], self.target[rows], self.weight[rows]
        columns, model = shapes(self.problem, theta)
        residual = residuals(self.problem, model, target)
        delta, none = np.full((len(rows), 1), self.deltas[0]), np.zeros(len(rows), dtype=int)
        value, damping = weighted(residual, weight, delta), np.full(len(rows), FIRST_DAMPING)
        found = (rows, theta, target, weight, delta, columns, model, residual, value, damping, self.kept[rows])
        return Batch(*found, none, none.copy(), none.copy())


def minimise(
    problem: Problem,
    start: Floats,
    log_loss: Floats,
    weight: Floats,
    *,
    tolerance: float = 1e-14,
    deltas: Sequence[float] | None = None,
    most: int = STEPS,
    kept: np.ndarray | None = None,
    alike: float = 0.0,
) -> Solutions:
    """Local minima from `start` (P, p); log_loss and weight are (P, n); `tolerance` is relative, on the objective.

    `deltas` are Huber's thresholds, one stage after the other (default: the problem's stages, widest first); the last
    stage ends at `tolerance` or after `most` steps, the others roughly. Parameters that are `kept` (P, p) stay as they start.
    Starts of one and the same fit may end as one: who comes as near as `alike` to a minimum that was found is given up, and
    has the objective inf.
    """
    deltas = problem.stages if deltas is None else deltas
    limits = np.full(len(deltas), COARSE_STEPS), np.full(len(deltas), COARSE_TOLERANCE)
    limits[0][-1], limits[1][-1] = most, tolerance
    kept = np.zeros(start.shape, dtype=bool) if kept is None else kept
    count, last = len(start), len(deltas) - 1
    room = min(chunk_rows(len(problem.x)), count)
    at = problem, np.clip(start, *problem.bounds), problem.target(log_loss), weight, kept, deltas
    work = Work(*at, Scratch.of(problem, room), *limits)
    ends = Solutions(work.start.copy(), np.full(count, np.inf), np.zeros(count, dtype=bool))
    begun = room
    batch = work.load(np.arange(begun))
    while len(batch.row):
        over = _advance(work, batch)
        if not over.any():
            continue
        ended = over & (batch.stage == last)
        _next_stage(work, batch, np.flatnonzero(over & ~ended))
        if not ended.any():
            continue
        rows = batch.row[ended]
        ends.theta[rows], ends.objective[rows] = batch.theta[ended], batch.value[ended]
        ends.converged[rows] = batch.steps[ended] < most
        if begun == count and ended.all():
            break
        batch = batch.take(np.flatnonzero(~ended))
        if alike and len(batch.row):
            reached = ends.theta[np.isfinite(ends.objective)]
            batch = batch.take(np.flatnonzero(np.abs(batch.theta[:, None] - reached).max(2).min(1) > alike))
        free = room - len(batch.row)
        if begun < count and len(batch.row) <= REFILL * room:
            more = np.arange(begun, min(count, begun + free))
            begun += len(more)
            batch = batch.join(work.load(more))
    return ends


def _next_stage(work: Work, batch: Batch, rows: np.ndarray) -> None:
    """Narrow the delta of `rows` that ended a wider one."""
    if not len(rows):
        return
    batch.stage[rows] += 1
    batch.delta[rows, 0] = np.asarray(work.deltas)[batch.stage[rows]]
    batch.steps[rows], batch.still[rows], batch.damping[rows] = 0, 0, FIRST_DAMPING
    batch.value[rows] = weighted(batch.residual[rows], batch.weight[rows], batch.delta[rows])


def _advance(work: Work, batch: Batch) -> np.ndarray:
    """One step of every problem of the batch, taken where it lowers the objective; (B,) whether its stage is over."""
    problem = work.problem
    step, gain, hessian, held = _step(problem, batch, work.scratch)
    low, high = problem.bounds
    theta = np.minimum(np.maximum(batch.theta + step, low), high)  # quicker than np.clip on a few numbers
    columns, model = shapes(problem, theta, work.scratch)
    residual = residuals(problem, model, batch.target)
    moved = theta, columns, model, residual, weighted(residual, batch.weight, batch.delta)
    share = _bettered(problem, batch, work.scratch, moved, hessian, held)
    value = moved[-1]
    better, until = value < batch.value, work.tolerances[batch.stage]
    done = batch.value - value <= until * batch.value
    if not better.all():
        rounding = (gain >= 0) & (gain <= 1e-14 * batch.value)  # no step could show
        stuck = np.isinf(gain) & ~step.any(1)  # every way is barred at this damping: no optimum
        small = (np.abs(theta - batch.theta).max(1) < 1e-12) | (batch.damping > MOST_DAMPING) | rounding
        done = np.where(better, done, small & ~stuck)
    sure = done & (batch.damping <= NEWTON) & (gain >= 0) & (gain <= 4 * until * batch.value)
    if np.isinf(problem.delta):  # no kinks: the step after one that gained so little would gain less than rounding shows
        sure |= better & (batch.damping <= ALMOST_NEWTON) & (gain >= 0) & (gain <= QUADRATIC * batch.value)
    batch.accept(moved, better)
    exact = batch.value < EXACT
    damping = np.maximum(batch.damping, 1e-6)
    eased, raised = np.maximum(batch.damping * EASED, LEAST_DAMPING), damping * RAISED
    after = np.where(share < 1, damping / np.maximum(share, LEAST_SHARE), eased)
    batch.damping = np.where(np.isinf(gain), np.maximum(raised, BENT), np.where(better, after, raised))
    batch.still = np.where(done, batch.still + 1, 0)
    batch.steps += 1
    over: np.ndarray = (batch.still >= 2) | sure | exact | (batch.steps >= work.most[batch.stage])
    return over


def _bettered(
    problem: Problem, batch: Batch, scratch: Scratch, moved: tuple[Floats, ...], hessian: Floats, held: np.ndarray
) -> Floats:
    """(B,) share of the step taken: steps that do not lower the objective are corrected, or else cut, in `moved`."""
    theta, _, _, residual, value = moved
    share = np.ones(len(value))
    worse = np.flatnonzero(~(value < batch.value))
    if len(worse) and len(problem.x) < FEW * problem.free_parameters:
        bent = _corrected(problem, batch, scratch, moved, hessian, held, worse)
        part = _least_between(batch.residual[worse], residual[worse], batch.weight[worse], batch.delta[worse])
        cut = batch.theta[worse] + part[:, None] * (theta[worse] - batch.theta[worse])
        _replace(problem, batch, moved, worse, bent)
        left = ~(value[worse] < batch.value[worse])
        share[worse[left]] = part[left]
        _replace(problem, batch, moved, worse[left], cut[left])
    return share


def _replace(problem: Problem, batch: Batch, moved: tuple[Floats, ...], rows: np.ndarray, theta: Floats) -> None:
    """Put `theta` in the place of the moved `rows`."""
    if not len(rows):
        return
    columns, model = shapes(problem, theta)
    residual = residuals(problem, model, batch.target[rows])
    found = theta, columns, model, residual, weighted(residual, batch.weight[rows], batch.delta[rows])
    for old, new in zip(moved, found, strict=True):
        old[rows] = new


def _corrected(
    problem: Problem,
    batch: Batch,
    scratch: Scratch,
    moved: tuple[Floats, ...],
    hessian: Floats,
    held: np.ndarray,
    rows: np.ndarray,
) -> Floats:
    """(rows, p) where the steps of `rows` lead when the bend of residuals within delta is taken out (second-order correction)."""
    theta, slope = moved[0][rows], scratch.slope[rows]
    straight = batch.residual[rows] - np.matmul((theta - batch.theta[rows])[:, None], slope)[:, 0]
    off = (moved[3][rows] - straight) * batch.weight[rows] * (np.abs(straight) <= batch.delta[rows])
    low, high = problem.bounds
    fixed = held[rows] | (theta <= low) | (theta >= high)
    pull = -np.matmul(slope, off[:, :, None])[:, :, 0]
    pull[fixed] = 0.0
    result: Floats = np.clip(theta + _solved(hessian[rows], pull, fixed), low, high)
    if problem.tied:
        result[:, -1] = result[:, -2]
    return result


def _least_between(before: Floats, after: Floats, weight: Floats, delta: Floats) -> Floats:
    """(B,) share of a step at which sum w h would be least if the residuals (B, n) went straight from `before` to `after`."""
    change = after - before
    low, high = np.zeros(len(before)), np.ones(len(before))
    force = weight * change
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        at = before + middle[:, None] * change
        rising = (np.clip(at, -delta, delta, out=at) * force).sum(1) > 0
        low, high = np.where(rising, low, middle), np.where(rising, middle, high)
    result: Floats = 0.5 * (low + high)
    return result


def _step(problem: Problem, batch: Batch, scratch: Scratch) -> tuple[Floats, Floats, Floats, np.ndarray]:
    """The damped step (B, p), inside the bounds, twice the gain (B,) that its quadratic model predicts (inf where it predicts
    none: uphill, or no way to go), the Hessian and what is held."""
    gradient, hessian = _system(problem, batch, scratch, exact=True)
    held = _held(problem, batch.theta, gradient)
    held |= batch.kept
    gradient[held] = 0.0
    step = _solved(hessian, gradient, held)
    gain = -(step * gradient).sum(1)
    uphill = np.flatnonzero(gain < 0)
    if len(uphill):  # an indefinite Hessian: the reweighted one alone
        _, hessian[uphill] = _system(problem, batch.take(uphill), None, exact=False)
        step[uphill] = _solved(hessian[uphill], gradient[uphill], held[uphill])
    _stay_inside(problem, batch.theta, gradient, hessian, held, step, gain)
    gain[uphill], gain[~step.any(1) & gradient.any(1)] = np.inf, np.inf
    if problem.tied:
        step[:, -1] = step[:, -2]
    largest = np.abs(step[:, -2:]).max(1)
    step *= np.minimum(1, FARTHEST / np.maximum(largest, 1e-300))[:, None]
    return step, gain, hessian, held


def _stay_inside(
    problem: Problem, theta: Floats, gradient: Floats, hessian: Floats, held: np.ndarray, step: Floats, gain: Floats
) -> None:
    """Change the steps (B, p), and their gains, that leave the bounds: a primal active-set method on the quadratic model.

    A step goes as far as the first bound, holds that parameter there, and goes on to the minimum over the others, until none is
    left to meet: the model falls all the way where the free Hessian is positive definite. Where it is not, a stretch may lead
    up, or the step end where it began; the objective then says so, and more damping mends the Hessian. To cut each parameter by
    itself would not do: columns that make up for each other would no longer, so that nothing but tiny steps lowered the
    objective.
    """
    low, high = problem.bounds
    rows = np.flatnonzero(((theta + step < low) | (theta + step > high)).any(1))
    goal, held, at = step[rows], held[rows], np.zeros((len(rows), problem.size))
    for _ in range(problem.size):
        if not len(rows):
            return
        bends, slopes, here = hessian[rows], gradient[rows], theta[rows]
        way = np.where(held, 0.0, goal - at)
        room = np.where(way > 0, high, low) - here - at
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where(way != 0, np.maximum(room / way, 0.0), np.inf)
        first = share.argmin(1)
        each = np.arange(len(rows))
        part = np.minimum(share[each, first], 1.0)
        at += part[:, None] * way
        stopped = share[each, first] < 1
        met = first[stopped]
        at[stopped, met] = np.where(way[stopped, met] > 0, high[met], low[met]) - here[stopped, met]
        held[stopped, met] = True
        bent = np.einsum("bij,bj->bi", bends, at)
        step[rows], gain[rows] = at, -(at * (2 * slopes + bent)).sum(1)
        rows, goal, held, at = rows[stopped], goal[stopped], held[stopped], at[stopped]
        if len(rows):
            goal = at + _solved(bends[stopped], np.where(held, 0.0, (slopes + bent)[stopped]), held)


def _system(problem: Problem, batch: Batch, scratch: Scratch | None, *, exact: bool) -> tuple[Floats, Floats]:
    at = (batch.theta, batch.columns, batch.model, batch.residual, batch.weight, batch.delta, batch.damping)
    return system(problem, *at, exact=exact, scratch=scratch)


def _held(problem: Problem, theta: Floats, gradient: Floats) -> np.ndarray:
    """(B, p) parameters that do not move: on a bound with the gradient pointing outwards, unused, or exponents of nothing."""
    low, high = problem.bounds
    held: np.ndarray = ((theta <= low) & (gradient > 0)) | ((theta >= high) & (gradient < 0))
    held[:, problem.unused] = True
    none = theta[:, : len(problem.kinds)] == 0
    if not problem.tied and none.any():
        for group in problem.groups:
            if group.kind in (IN_N, IN_D):  # an exponent whose columns are all 0 has no slope
                held[:, group.slot] |= none[:, group.columns].all(1)
    return held


def _solved(hessian: Floats, gradient: Floats, held: np.ndarray) -> Floats:
    """-hessian^-1 gradient over the parameters that are not held."""
    free = (~held).astype(float)
    free_hessian = hessian * (free[:, :, None] * free[:, None]) if held.any() else hessian.copy()
    diagonal: Floats = np.einsum("bii->bi", free_hessian)  # a view
    size = np.abs(diagonal)
    diagonal += np.where(size > 0, 1e-13 * size, 1.0)
    try:
        return floats(-np.linalg.solve(free_hessian, gradient[:, :, None])[:, :, 0])
    except np.linalg.LinAlgError:  # an exactly singular one in the batch: the diagonal alone still descends
        return floats(-gradient / np.where(size > 0, size, 1.0))
