"""Local minima of many small robust fits at once: a damped Newton method on a batch that is refilled as problems end.

Each step solves (Hessian + damping x reweighted Hessian) step = -gradient (`analysis.solver.system`): Newton's where the damping
is small, iteratively reweighted least squares where it is large, which goes downhill from anywhere. The coefficients' faces
c_j = 0 and the exponents' bounds are active constraints: a parameter on a bound whose gradient points outwards does not move.
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
EXACT = 1e-28
"""Objectives below are of points that the law goes through."""
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
    step, gain = _step(problem, batch, work.scratch)
    theta = np.clip(batch.theta + step, *problem.bounds)
    columns, model = shapes(problem, theta, work.scratch)
    residual = residuals(problem, model, batch.target)
    value = weighted(residual, batch.weight, batch.delta)
    better, until = value < batch.value, work.tolerances[batch.stage]
    rounding = (gain >= 0) & (gain <= 1e-14 * batch.value)  # no step could show
    small = (np.abs(theta - batch.theta).max(1) < 1e-12) | (batch.damping > MOST_DAMPING) | rounding
    done = np.where(better, batch.value - value <= until * batch.value, small)
    sure = done & (batch.damping <= NEWTON) & (gain >= 0) & (gain <= 4 * until * batch.value)
    batch.accept((theta, columns, model, residual, value), better)
    exact = batch.value < EXACT
    eased, raised = np.maximum(batch.damping * EASED, LEAST_DAMPING), np.maximum(batch.damping, 1e-6) * RAISED
    batch.damping = np.where(np.isinf(gain), np.maximum(raised, BENT), np.where(better, eased, raised))
    batch.still = np.where(done, batch.still + 1, 0)
    batch.steps += 1
    over: np.ndarray = (batch.still >= 2) | sure | exact | (batch.steps >= work.most[batch.stage])
    return over


def _step(problem: Problem, batch: Batch, scratch: Scratch) -> tuple[Floats, Floats]:
    """The damped step (B, p), and twice the gain (B,) that its quadratic model predicts."""
    gradient, hessian = _system(problem, batch, scratch, exact=True)
    held = _held(problem, batch.theta, gradient)
    held |= batch.kept
    gradient[held] = 0.0
    step = _solved(hessian, gradient, held)
    gain = -(step * gradient).sum(1)
    uphill = np.flatnonzero(gain < 0)
    if len(uphill):  # an indefinite Hessian: the reweighted one alone
        _, hessian = _system(problem, batch.take(uphill), scratch, exact=False)
        step[uphill] = _solved(hessian, gradient[uphill], held[uphill])
        gain[uphill] = np.inf
    if problem.tied:
        step[:, -1] = step[:, -2]
    largest = np.abs(step[:, -2:]).max(1)
    step *= np.minimum(1, FARTHEST / np.maximum(largest, 1e-300))[:, None]
    return step, gain


def _system(problem: Problem, batch: Batch, scratch: Scratch, *, exact: bool) -> tuple[Floats, Floats]:
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
    """-hessian^-1 gradient over the parameters that are not held; changes `hessian`."""
    if held.any():
        free = (~held).astype(float)
        hessian *= free[:, :, None]
        hessian *= free[:, None]
    diagonal: Floats = np.einsum("bii->bi", hessian)  # a view
    size = np.abs(diagonal)
    diagonal += np.where(size > 0, 1e-13 * size, 1.0)
    try:
        return floats(-np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0])
    except np.linalg.LinAlgError:  # an exactly singular one in the batch: the diagonal alone still descends
        return floats(-gradient / np.where(size > 0, size, 1.0))
