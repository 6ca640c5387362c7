"""Intervals: refits of resampled data, batched, from a generator that is passed in. No law is chosen here and no table read.

Two ways. With enough runs, a pairs bootstrap over runs, stratified by budget: each resample draws, within each budget, as
many runs as it has, with replacement (Efron and Tibshirani 1993, chapter 9); budgets of one or two runs are pooled. Where the law
misses cells (one N and D) by more than their repeats scatter, the repeats are drawn together, as they share it. With few cells,
a resample would often lose a size altogether, so the design is kept and the errors are resampled: magnitudes drawn from all
residuals, each divided by sqrt(1 - leverage), with random signs. They are scaled to the variance RSS / (n - p) times (t / z)^2,
t and z the quantiles of Student's t with n - p degrees of freedom and of the normal at the interval's level: small designs get
the width that their degrees of freedom ask for.
(A wild bootstrap, Wu 1986, keeps each residual at its own point. It allows noise
that differs between points, but at a handful of degrees of freedom it rests on one or two residuals and covers too little;
`tests/analysis/test_uncertainty.py` shows both.) Intervals are percentiles of the refits that converged;
the others are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from analysis.descent import STEPS, minimise
from analysis.laws import Floats
from analysis.projection import projected_starts
from analysis.solver import Problem, Solutions, model

RESIDUAL_BELOW = 12
"""Cells under which the design is kept and residuals are resampled."""
LACK_OF_FIT = 0.05
"""Level of the test after which a cell's repeats are drawn together; done always, bands of few cells were too narrow."""
POOLED_BELOW = 3
"""Runs of a budget under which it is pooled with other such budgets in the pairs bootstrap."""
SMALL_DESIGN = 20
"""Cells under which every interval carries a warning."""
PAIRS, CELLS = "pairs bootstrap over runs, stratified by budget", "bootstrap over cells with their repeats, stratified by budget"
RESIDUAL = "bootstrap of residuals with random signs, design kept"
MAX_LEVERAGE = 0.95
ROUGH_STEPS, ROUGH_TOLERANCE, ROUGH_WIDTH = 2, 0.01, 10
"""Newton steps at a wider delta, so many times the problem's, that tell whether a resample's own start leads elsewhere."""
SAME, FEW_SAME = 0.1, 0.02
"""Exponents that differ by less lead to the same optimum; the second where points are few."""
MANY, MOST_STARTS = 48, 4
"""Points from which one start of a resample's own is enough: few points have more minima, and get up to so many starts."""
PATIENCE, RACE, RIVAL = 40, 5, 1.2
"""Steps from the fit's own optimum; from a resample's own starts, after which the lowest goes on if it is within this factor.
They come to it through Huber's wider deltas: at a narrow one alone they end at minima of their own where tails are heavy."""
ALIKE = 0.01
"""Starts that come so near to another's end, in every parameter, end there."""
REFIT_TOLERANCE = 1e-9
"""Relative change of the objective at which a resample's refit stops: far under the scatter of resamples."""


@dataclass(frozen=True)
class Draws:
    """Parameters of the refits that can be used, in the solver's coordinates."""

    theta: Floats  # (kept, p)
    method: str
    resamples: int
    failed: int


def stratified_counts(strata: np.ndarray, resamples: int, rng: np.random.Generator) -> Floats:
    """(resamples, n) how often each run is drawn. Each stratum keeps its size; those of fewer than three runs are pooled, as
    a stratum of one would never vary."""
    counts = np.zeros((resamples, len(strata)))
    values, index, sizes = np.unique(strata, return_inverse=True, return_counts=True)
    index = np.where(sizes[index] < POOLED_BELOW, len(values), index)
    for stratum in np.unique(index):
        members = np.flatnonzero(index == stratum)
        counts[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=resamples)
    return counts


def residual_errors(
    residual: Floats, leverage: Floats, parameters: int, level: float | None, resamples: int, rng: np.random.Generator
) -> Floats:
    """(resamples, n) errors to add to the fitted values, widened by t / z for an interval at `level` (None: for a test, which
    compares studies of one size); all 0 where no degree of freedom is left."""
    n = len(residual)
    freedom = n - parameters
    if freedom < 1:
        return np.zeros((resamples, n))
    scaled = residual / np.sqrt(1 - np.minimum(leverage, MAX_LEVERAGE))
    variance = float((residual**2).sum()) / freedom
    size = float(np.sqrt((scaled**2).mean()))
    scaled = scaled * (np.sqrt(variance) / size if size > 0 else 0.0) * (1.0 if level is None else widening(level, freedom))
    errors: Floats = rng.choice(scaled, size=(resamples, n)) * rng.choice([-1.0, 1.0], size=(resamples, n))
    return errors


def widening(level: float, freedom: int) -> float:
    """t / z at an interval's level: what a standard deviation from so few degrees of freedom must be stretched by."""
    return float(stats.t.ppf(0.5 + level / 2, freedom) / stats.norm.ppf(0.5 + level / 2))


def cells_differ(residual: Floats, cells: np.ndarray, parameters: int) -> bool:
    """Whether the law misses the cells by more than their repeats scatter: the F test of lack of fit (Draper and Smith 1998,
    section 2.1) at 5%. False where no cell is repeated, or there are no more cells than parameters."""
    count = np.bincount(cells)
    pure, lack = len(residual) - len(count), len(count) - parameters
    if pure < 1 or lack < 1:
        return False
    within = float(((residual - (np.bincount(cells, residual) / count)[cells]) ** 2).sum())
    between = max(float((residual**2).sum()) - within, 0.0)
    return bool(stats.f.sf((between / lack) / max(within / pure, 1e-300), lack, pure) < LACK_OF_FIT)


def leverages(jacobian: Floats) -> Floats:
    """Diagonal of the hat matrix of an (n, p) Jacobian; columns without influence do no harm."""
    scale = np.linalg.norm(jacobian, axis=0)
    used = jacobian[:, scale > 0]
    left, singular, _ = np.linalg.svd(used / np.linalg.norm(used, axis=0), full_matrices=False)
    result: Floats = (left[:, singular > 1e-10 * singular[0]] ** 2).sum(1)
    return result


def bootstrap(
    problem: Problem,
    best: Floats,
    log_loss: Floats,
    strata: np.ndarray,
    *,
    resamples: int,
    level: float,
    rng: np.random.Generator,
) -> Draws:
    """Refits of `problem` around its optimum `best` (p,), each from variable projection and from `best`, at its own optimum."""
    n, cells = len(log_loss), problem.cells
    kept_design, together = int(cells.max()) + 1 < RESIDUAL_BELOW, False
    if resamples < 1 or n <= problem.free_parameters:
        return Draws(np.empty((0, problem.size)), "none", 0, 0)
    weight, losses = np.ones((resamples, n)), np.repeat(log_loss[None], resamples, axis=0)
    if kept_design:
        value, slope = model(problem, best[None])
        fitted = np.log(value[0])
        jacobian = np.delete(slope[0] / value[0][:, None], problem.unused, axis=1)
        losses = fitted + residual_errors(log_loss - fitted, leverages(jacobian), problem.free_parameters, level, resamples, rng)
    else:
        together = cells_differ(log_loss - np.log(model(problem, best[None])[0][0]), cells, problem.free_parameters)
        first = np.unique(cells, return_index=True)[1]
        strata = np.asarray(strata)
        weight = (
            stratified_counts(strata[first], resamples, rng)[:, cells] if together else stratified_counts(strata, resamples, rng)
        )
    drawn = weight @ (cells[:, None] == np.arange(cells.max() + 1))  # (resamples, cells) runs
    enough = (drawn > 0).sum(1) >= problem.free_parameters
    solved = refit(problem, best, losses[enough], weight[enough])
    kept = solved.theta[solved.converged]
    method = RESIDUAL if kept_design else CELLS if together else PAIRS
    return Draws(kept, method, resamples, resamples - len(kept))


def refit(problem: Problem, near: Floats, log_loss: Floats, weight: Floats) -> Solutions:
    """The optimum of each resample (R, n): from `near` (p,), the fit's own, and from the resample's own projection where a few
    steps from there lead elsewhere. The lower one counts, converged or not: a higher minimum is known not to be the optimum."""
    resamples = len(log_loss)
    if not resamples:
        return Solutions(np.empty((0, problem.size)), np.empty(0), np.empty(0, dtype=bool))
    every = np.arange(resamples)
    ends = _polished(problem, np.repeat(near[None], resamples, axis=0), log_loss, weight, every, most=PATIENCE)
    of, starts = _elsewhere(problem, near, ends, log_loss, weight)
    raced = _polished(problem, starts, log_loss, weight, of, most=RACE, deltas=problem.stages)
    unfinished, rivals = np.flatnonzero(~ends.converged), _rivals(ends, raced, of)
    of = np.concatenate([unfinished, of[rivals]])
    again = _polished(problem, np.concatenate([ends.theta[unfinished], raced.theta[rivals]]), log_loss, weight, of)
    for k in np.argsort(-again.objective, kind="stable"):  # the last one wins: the lowest
        row = of[k]
        if again.objective[k] <= ends.objective[row]:
            for mine, theirs in ((ends.theta, again.theta), (ends.objective, again.objective), (ends.converged, again.converged)):
                mine[row] = theirs[k]
    return ends


def _polished(
    problem: Problem,
    start: Floats,
    log_loss: Floats,
    weight: Floats,
    of: np.ndarray,
    *,
    most: int = STEPS,
    deltas: Sequence[float] | None = None,
) -> Solutions:
    """Ends from `start` (S, p), each for the resample `of` (S,) that it belongs to, at the problem's own delta unless told."""
    deltas = [problem.delta] if deltas is None else deltas
    return minimise(problem, start, log_loss[of], weight[of], tolerance=REFIT_TOLERANCE, deltas=deltas, most=most)


def _rivals(ends: Solutions, raced: Solutions, of: np.ndarray) -> np.ndarray:
    """Each resample's lowest of the `raced`, where it may still end below `ends`."""
    order = np.lexsort((raced.objective, of))
    lowest = order[np.unique(of[order], return_index=True)[1]]
    near = raced.objective[lowest] <= RIVAL * ends.objective[of[lowest]]
    same = np.abs(raced.theta[lowest] - ends.theta[of[lowest]]).max(1) < ALIKE
    result: np.ndarray = lowest[near & ~same]
    return result


def _elsewhere(problem: Problem, near: Floats, ends: Solutions, log_loss: Floats, weight: Floats) -> tuple[np.ndarray, Floats]:
    """Rows of resamples, and starts (S, p) for them that a few steps do not bring to `ends`; all that has not converged."""
    few, rows = len(problem.x) < MANY, len(log_loss)
    own = projected_starts(problem, log_loss, weight, keep=int(np.clip(MANY // len(problem.x), 1, MOST_STARTS)), points=8)
    of, own, wide = np.repeat(np.arange(rows), own.shape[1]), own.reshape(-1, problem.size), [ROUGH_WIDTH * problem.delta]
    rough = minimise(problem, own, log_loss[of], weight[of], deltas=wide, most=ROUGH_STEPS, tolerance=ROUGH_TOLERANCE).theta
    away = np.abs(rough - ends.theta[of])[:, -2:].max(1) > (FEW_SAME if few else SAME)
    apart = away | ~ends.converged[of]
    return of[apart], rough[apart]


def small_design_warning(n: int, parameters: int, cells: int) -> str | None:
    """The sentence for a design whose intervals cannot be trusted to their nominal coverage: repeats of a cell do not help."""
    if cells >= SMALL_DESIGN:
        return None
    what = "runs" if cells == n else "cells"
    few = f"intervals from fewer than {SMALL_DESIGN} {what} may cover less than their nominal level"
    return f"{n} runs{f' at {cells} cells' if cells < n else ''} for {parameters} parameters: {few}"
